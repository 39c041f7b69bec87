"""Elastic training: the drawn ratio, both passes, and what is read in the end."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from focus_lab.data.dataset import build_dataset
from focus_lab.data.loader import build_train_loader
from focus_lab.model.criterion import Criterion, build_criterion
from focus_lab.model.denoising import BatchShare
from focus_lab.model.focus_detr import build_model
from focus_lab.specs.experiment import TrialSpec
from focus_lab.specs.metrics import is_metric
from focus_lab.training.curve import evaluate_checkpoint
from focus_lab.training.elastic import ElasticDetector, drawn_keep_ratio
from focus_lab.training.fit import fit
from focus_lab.training.loop import Progress, TrainingLoop
from focus_lab.training.optimization import LearningRate, build_optimizer
from focus_lab.training.reporter import MemoryReporter, Metrics

MakeTrial = Callable[..., TrialSpec]
RATIOS = [0.1, 0.25, 0.5]


def elastic(tiny_trial: MakeTrial, **more: Any) -> TrialSpec:
    training = {"epochs": 1, "elastic": {"enabled": True, "evaluate_at": RATIOS}}
    return tiny_trial(training=training | more, data={"image_size": [64, 64]})


@given(st.floats(0.01, 0.9), st.floats(0.001, 0.1), st.integers(0, 2**31), st.integers(0, 2**40))
def test_a_drawn_ratio_is_in_the_range(least: float, more: float, step: int, seed: int) -> None:
    assert least <= drawn_keep_ratio(least, least + more, step, seed) <= least + more


def test_the_ratio_of_a_step_depends_on_step_and_seed_alone() -> None:
    drawn = [drawn_keep_ratio(0.1, 1.0, step, 7) for step in range(3)]
    torch.manual_seed(1)
    assert [drawn_keep_ratio(0.1, 1.0, step, 7) for step in (2, 0, 1)] == [
        drawn[2], drawn[0], drawn[1],
    ]  # fmt: skip
    assert len({*drawn, drawn_keep_ratio(0.1, 1.0, 0, 8)}) == 4


def test_ratios_are_uniform_in_their_logarithm() -> None:
    drawn = [drawn_keep_ratio(0.1, 1.0, step, 0) for step in range(2000)]
    # Half of them below the geometric mean; 4 standard deviations of a fair coin are 4.5 %.
    assert sum(r < math.sqrt(0.1) for r in drawn) / 2000 == pytest.approx(0.5, abs=0.045)


def test_both_passes_are_those_of_models_built_with_their_ratio(tiny_trial: MakeTrial) -> None:
    spec = elastic(tiny_trial)
    dataset = build_dataset(spec.data, "train")
    loader = build_train_loader(dataset, spec.data, batch_size=4, seed=0)
    loader.set_epoch(0)
    batch = next(iter(loader))
    counts = [len(target["labels"]) for target in batch.targets]
    share = BatchShare(0, sum(counts), max(counts), 5)
    given_to_model = (batch.images, batch.sizes, batch.targets, share, batch.image_ids)
    torch.manual_seed(0)
    model = build_model(spec.model, len(dataset.class_names)).train()
    outputs = ElasticDetector(model)(*given_to_model, 0.2)
    assert model.effective_token_selection["keep_ratio"] == 0.5
    for ratio, output in zip((0.5, 0.2), outputs, strict=True):
        selection = spec.model.token_selection.model_copy(update={"keep_ratio": ratio})
        changed = spec.model.model_copy(update={"token_selection": selection})
        other = build_model(changed, len(dataset.class_names)).train()
        other.load_state_dict(model.state_dict())
        expected = other(*given_to_model)
        assert output["token_selection"].budgets == expected["token_selection"].budgets
        torch.testing.assert_close(output["pred_logits"], expected["pred_logits"])
        torch.testing.assert_close(output["pred_boxes"], expected["pred_boxes"])
        torch.testing.assert_close(
            output["denoising"]["pred_boxes"], expected["denoising"]["pred_boxes"]
        )


def first_epoch(
    spec: TrialSpec, progress: Progress, on_step: Callable[[], None] = lambda: None
) -> tuple[Metrics, Criterion]:
    dataset = build_dataset(spec.data, "train")
    torch.manual_seed(0)
    model = build_model(spec.model, len(dataset.class_names))
    loader = build_train_loader(dataset, spec.data, batch_size=4, seed=0)
    optimizer = build_optimizer(model, spec.training.optimizer)
    criterion = build_criterion(spec.model, len(dataset.class_names))
    loop = TrainingLoop(
        model, criterion, optimizer, LearningRate(optimizer, spec.training.schedule, 2, 2),
        loader, spec.training, spec.seed, torch.device("cpu"), None, on_step,
    )  # fmt: skip
    return loop.run_epoch(progress), criterion


def loss_of_largest(metrics: Metrics, criterion: Criterion) -> float:
    """The weighted sum of the losses of the pass at the largest ratio."""
    extra = {"loss/total", "loss/smaller", "loss/distillation"}
    names = [name for name in metrics if name.startswith("loss/") and name not in extra]
    return sum(
        criterion.weight(name.replace("loss/", "loss_", 1)) * metrics[name] for name in names
    )


def test_the_loss_is_the_mean_of_both_passes_and_the_distance_between_them(
    tiny_trial: MakeTrial,
) -> None:
    spec = elastic(tiny_trial, elastic={"enabled": True, "distillation_weight": 3.0})
    metrics, criterion = first_epoch(spec, Progress())
    both = (loss_of_largest(metrics, criterion) + metrics["loss/smaller"]) / 2
    expected = both + 3.0 * metrics["loss/distillation"]
    assert metrics["loss/total"] == pytest.approx(expected, rel=1e-5)
    assert metrics["loss/distillation"] > 0


def test_where_a_smaller_ratio_joins_every_other_step_its_losses_are_means_over_those(
    tiny_trial: MakeTrial,
) -> None:
    spec = elastic(tiny_trial, elastic={"enabled": True, "smaller_every_steps": 2})
    progress, sums = Progress(), []
    metrics, _ = first_epoch(spec, progress, lambda: sums.append(progress.since["loss/smaller"]))
    assert len(sums) >= 2
    had = [True, *(later > earlier for earlier, later in itertools.pairwise(sums))]
    assert had == [step % 2 == 0 for step in range(len(sums))]
    assert metrics["loss/smaller"] == pytest.approx(sums[-1] / sum(had))


def test_a_step_without_a_smaller_ratio_is_that_of_an_ordinary_training(
    tiny_trial: MakeTrial,
) -> None:
    spec = elastic(tiny_trial)
    dataset = build_dataset(spec.data, "train")
    model = build_model(spec.model, len(dataset.class_names)).eval()
    images = torch.rand(1, 3, 64, 64)
    share = BatchShare(0, 0, 0, 5)
    largest, smaller = ElasticDetector(model)(images, [(64, 64)], [], share, [0], None)
    assert smaller is None
    torch.testing.assert_close(largest["pred_boxes"], model(images, [(64, 64)])["pred_boxes"])


@pytest.mark.slow
def test_a_trial_is_read_at_every_ratio_as_its_checkpoint_is(
    tiny_trial: MakeTrial, tmp_path: Path
) -> None:
    metrics = fit(elastic(tiny_trial), MemoryReporter(), tmp_path).metrics
    assert [name for name in metrics if not is_metric(name)] == []
    rows = evaluate_checkpoint(tmp_path, RATIOS, [])
    for ratio, row in zip(RATIOS, rows, strict=True):
        prefix = "" if ratio == 0.5 else f"at_{ratio}/"
        for name in ("coco/AP", "tokens/kept", "tokens/foreground_recall", "cost/gflops"):
            assert metrics[prefix + name] == pytest.approx(row[name], abs=1e-12), (ratio, name)
    kept = [row["tokens/kept"] for row in rows]
    assert kept == sorted(kept)
    assert kept[0] < kept[-1]


class KilledError(Exception):
    """Stands for the death of the process."""


class Killer(MemoryReporter):
    def progress(self, epoch: int, step: int, steps: int, loss: float) -> None:
        if step == 1:
            raise KilledError


@pytest.mark.slow
def test_resumed_within_an_epoch_it_computes_what_an_uninterrupted_one_does(
    tiny_trial: MakeTrial, tmp_path: Path
) -> None:
    spec = elastic(tiny_trial)
    spec = spec.model_copy(
        update={"compute": spec.compute.model_copy(update={"checkpoint_every_steps": 1})}
    )
    whole = fit(spec, MemoryReporter(), tmp_path / "whole").metrics
    with pytest.raises(KilledError):
        fit(spec, Killer(), tmp_path / "parts")
    # The progress of a step is told before its checkpoint: the first one is done again.
    again = fit(spec, MemoryReporter(), tmp_path / "parts").metrics

    def comparable(metrics: Metrics) -> Metrics:
        timed = ("train/images", "train/data", "train/seconds", "cost/peak", "system/")
        return {name: value for name, value in metrics.items() if not name.startswith(timed)}

    assert comparable(again) == comparable(whole)


def test_what_cannot_be_trained_for_is_said(tiny_trial: MakeTrial) -> None:
    with pytest.raises(
        ValueError, match=r"not trained for, got \[0\.9\]; allowed are 0\.1 to 0\.5"
    ):
        tiny_trial(training={"elastic": {"enabled": True, "evaluate_at": [0.2, 0.9]}})
    with pytest.raises(ValueError, match=r"least_keep_ratio: must be below .*, got 0\.5"):
        tiny_trial(training={"elastic": {"enabled": True, "least_keep_ratio": 0.5}})
    with pytest.raises(ValueError, match="without denoising queries there is nothing to compare"):
        tiny_trial(model={"denoising": {"enabled": False}}, training={"elastic": {"enabled": True}})
    with pytest.raises(ValueError, match="dense scoring has no keep ratio"):
        tiny_trial(
            model={
                "token_selection": {"scoring": {"kind": "dense"}, "keep_ratio": 1.0},
                "dual_attention": {"enabled": False},
            },
            training={"elastic": {"enabled": True}},
        )


def test_a_training_without_it_keeps_its_fingerprint(tiny_trial: MakeTrial) -> None:
    plain, written = tiny_trial(), tiny_trial(training={"elastic": {"enabled": False}})
    assert plain.fingerprint == written.fingerprint
    assert "elastic" not in json.dumps(plain.model_dump(mode="json"))
