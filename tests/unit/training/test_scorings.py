"""Every scoring trains, is evaluated, resumed, timed; its numbers do not depend on the workers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from focus_lab.data.dataset import build_dataset
from focus_lab.data.loader import build_eval_loader, build_train_loader
from focus_lab.errors import PreemptedError
from focus_lab.lab.latency import measure
from focus_lab.model.criterion import build_criterion
from focus_lab.model.denoising import BatchShare
from focus_lab.model.focus_detr import build_model
from focus_lab.specs.experiment import TrialSpec
from focus_lab.training import checkpoint as checkpoints
from focus_lab.training.detector import load_model
from focus_lab.training.evaluation import evaluate
from focus_lab.training.fit import fit
from focus_lab.training.folder import SAMPLES, checkpoint_folder
from focus_lab.training.reporter import MemoryReporter, Metrics

MakeTrial = Callable[..., TrialSpec]

LEARNED = ("focus", "objectness", "decoder_attention")
UNLEARNED = ("feature_norm", "random", "oracle")


def scored_by(tiny_trial: MakeTrial, kind: str, **parts: Any) -> TrialSpec:
    model = {
        "token_selection": {"keep_ratio": 0.3, "scoring": {"kind": kind}},
        "dual_attention": {"score_product": "category"},
        **parts.pop("model", {}),
    }
    return tiny_trial(model=model, **parts)


class StoppingReporter(MemoryReporter):
    """Asks to stop after the first step, in the middle of an epoch."""

    def __init__(self) -> None:
        super().__init__()
        self.steps = 0

    def progress(self, epoch: int, step: int, steps: int, loss: float) -> None:
        self.steps += 1

    def should_stop(self) -> bool:
        return self.steps == 1


@pytest.mark.parametrize("kind", [*LEARNED, *UNLEARNED])
def test_a_scoring_trains_resumes_and_is_evaluated(
    tiny_trial: MakeTrial, tmp_path: Path, kind: str
) -> None:
    spec = scored_by(tiny_trial, kind)
    history = fit(spec, MemoryReporter(), tmp_path / "whole").history
    for _, metrics in history:
        assert ("loss/foreground" in metrics) == (kind in LEARNED)
        assert metrics["tokens/kept_layer_0"] == 7  # trunc(21 x 0.3) + 1
        assert 0 <= metrics["tokens/foreground_recall"] <= 1
        assert -1 <= metrics["coco/AP"] <= 1
    if kind == "oracle":
        # One image has more than seven foreground tokens.
        assert history[-1][1]["tokens/foreground_recall"] > 0.9
    assert (tmp_path / "whole" / SAMPLES / "samples.json").is_file()

    with pytest.raises(PreemptedError):
        fit(spec, StoppingReporter(), tmp_path / "broken")
    torch.rand(10)  # another process has another random state
    resumed = fit(spec, MemoryReporter(), tmp_path / "broken").history
    assert comparable(resumed) == comparable(history)

    saved = checkpoints.latest(checkpoint_folder(tmp_path / "whole"))
    assert saved is not None
    assert any("token_selector" in name for name in saved.model) == (kind in LEARNED)
    dataset = build_dataset(spec.data, "val")
    # One image a batch: what an image keeps is its own affair.
    loader = build_eval_loader(dataset, spec.data, batch_size=1)
    cpu = torch.device("cpu")
    again = evaluate(load_model(saved, cpu), spec.model, loader, dataset, cpu)
    assert again == pytest.approx({name: history[-1][1][name] for name in again}, abs=1e-6)
    timed = measure({"it": tmp_path / "whole"}, repeats=1)
    assert timed["it"]["cost/latency_ms"] > 0


def comparable(history: list[tuple[int, Metrics]]) -> list[tuple[int, Metrics]]:
    timed = ("train/images_per_second", "train/data_share", "train/seconds", "cost/", "system/")
    return [
        (epoch, {name: value for name, value in metrics.items() if not name.startswith(timed)})
        for epoch, metrics in history
    ]


@pytest.mark.parametrize("kind", [*LEARNED, *UNLEARNED])
def test_the_losses_of_parts_of_a_batch_add_up_to_those_of_the_whole(
    tiny_trial: MakeTrial, kind: str
) -> None:
    """As when workers share a batch, or a batch is accumulated."""
    spec = scored_by(
        tiny_trial,
        kind,
        # Batch statistics, and tokens beyond an image's budget that others attend to, tie images
        # together, in the release as here.
        model={
            "backbone": {"kind": "resnet", "depth": 18, "frozen_stages": 5},
            "dual_attention": {"enabled": False},
        },
        data={"objects": [0, 3], "augmentation": {"sizes": [24, 32, 40], "max_size": 64}},
    )
    dataset = build_dataset(spec.data, "train")
    torch.manual_seed(0)
    model = build_model(spec.model, 3).train()
    criterion = build_criterion(spec.model, 3)
    loader = build_train_loader(dataset, spec.data, batch_size=4, seed=0)
    loader.set_epoch(0)
    batch = next(iter(loader))
    counts = [len(target["labels"]) for target in batch.targets]
    found = []
    for parts in (1, 2, 4):
        sums: dict[str, float] = {}
        before = 0
        for part in batch.split(parts):
            share = BatchShare(before, sum(counts), max(counts), seed=3)
            before += sum(len(target["labels"]) for target in part.targets)
            output = model(part.images, part.sizes, part.targets, share, part.image_ids)
            losses = criterion(output, part.targets, part.sizes, num_boxes=sum(counts))
            if "loss_foreground" in losses:
                losses["loss_foreground"] *= len(part) / len(batch)
            for name, loss in losses.items():
                sums[name] = sums.get(name, 0.0) + loss.item()
        found.append(sums)
    for sums in found[1:]:
        assert sums == pytest.approx(found[0], rel=1e-4, abs=1e-5)
