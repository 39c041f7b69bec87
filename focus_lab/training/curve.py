"""Evaluate a checkpoint, at its own keep ratio or at several: a whole curve from one training."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

from focus_lab.data.dataset import build_dataset
from focus_lab.data.loader import build_eval_loader
from focus_lab.errors import SpecError, WeightsError
from focus_lab.specs.compose import Document, with_overrides
from focus_lab.specs.experiment import TrialSpec
from focus_lab.specs.explain import validate_as
from focus_lab.specs.plan import KEEP_RATIO
from focus_lab.training import checkpoint as checkpoints
from focus_lab.training.cost import evaluation_shapes, mean_cost
from focus_lab.training.detector import load_model
from focus_lab.training.environment import choose_device
from focus_lab.training.evaluation import evaluate
from focus_lab.training.folder import checkpoint_folder
from focus_lab.training.loop import AUTOCAST
from focus_lab.training.reporter import Metrics


def evaluate_checkpoint(
    path: Path,
    ratios: list[float],
    settings: list[str],
    on_ratio: Callable[[float], None] = lambda ratio: None,
) -> list[Metrics]:
    """Metrics of a checkpoint at each keep ratio.

    Args:
        path: a checkpoint file, or a trial's folder.
        ratios: keep ratios; empty takes the one that it was trained with.
        settings: `path=value` overrides of its spec, for example a new place of the data.
        on_ratio: called before each ratio.

    Raises:
        WeightsError: it is not a checkpoint, or does not fit the overridden spec.
        SpecError: an override is wrong.
    """
    if path.is_dir():
        newest = checkpoints.latest_path(checkpoint_folder(path)) or checkpoints.latest_path(path)
        if newest is None:
            raise WeightsError(f"{path}: holds no checkpoint; give a trial's folder or a .pt file")
        path = newest
    saved = checkpoints.load(path)
    document = with_overrides(Document(saved.spec), settings)
    spec = validate_as(TrialSpec, document.content, document.locate)
    torch.set_num_threads(spec.compute.threads)
    ratios = ratios or [spec.model.token_selection.keep_ratio]
    device = choose_device(spec.compute)
    val_set = build_dataset(spec.data, "val")
    if list(val_set.class_names) != saved.class_names:
        raise SpecError(
            f"data: has other classes than the checkpoint, got {list(val_set.class_names)}; "
            f"it was trained on {saved.class_names}"
        )
    rows = []
    for ratio in ratios:
        on_ratio(ratio)
        # What an elastic training wants of the ratio matters no more.
        changed = with_overrides(
            document, [f"{KEEP_RATIO}={ratio}", "training.elastic.enabled=false"]
        )
        saved.spec = validate_as(TrialSpec, changed.content, changed.locate).model_dump(mode="json")
        model = load_model(saved, device)
        loader = build_eval_loader(
            val_set, spec.data, batch_size=spec.training.evaluation_batch_size,
            workers=spec.compute.loader_workers, pin_memory=device.type == "cuda",
        )  # fmt: skip
        metrics = evaluate(
            model, spec.model, loader, val_set, device, AUTOCAST[spec.training.precision],
            spec.compute.evaluator,
        )  # fmt: skip
        shapes = evaluation_shapes(val_set, spec.data)
        rows.append({"tokens/keep_ratio": ratio} | metrics | mean_cost(model, shapes).metrics())
    return rows
