"""A trial's detector: as its training starts, and as a checkpoint has it."""

from __future__ import annotations

import torch

from focus_lab.errors import WeightsError
from focus_lab.model.focus_detr import FocusDETR, build_model
from focus_lab.model.weight_files import load_fitting_weights, read_weights
from focus_lab.specs.experiment import TrialSpec
from focus_lab.training.checkpoint import Checkpoint


def build_start(spec: TrialSpec, num_classes: int) -> tuple[FocusDETR, tuple[str, ...] | None]:
    """The detector as its training starts.

    Args:
        spec: the trial.
        num_classes: C.

    Returns:
        The detector, and the names of its tensors that `training.start_from` has nothing for;
        None when all of it starts afresh.

    Raises:
        UserError: the model cannot be built, or weights do not fit.
    """
    source = spec.training.start_from
    model = build_model(spec.model, num_classes, load_backbone=source is None)
    if source is None:
        return model, None
    return model, load_fitting_weights(model, read_weights(source), "training.start_from")


def load_model(saved: Checkpoint, device: torch.device) -> FocusDETR:
    """The detector of a checkpoint in evaluation mode, with averaged weights if it has them.

    Raises:
        WeightsError: the weights do not fit the checkpoint's own spec.
    """
    spec = TrialSpec.model_validate(saved.spec)
    model = build_model(spec.model, len(saved.class_names), load_backbone=False)
    try:
        model.load_state_dict(saved.ema or saved.model)
    except RuntimeError as error:
        first = str(error).splitlines()[-1].strip()
        raise WeightsError(
            f"checkpoint: its weights do not fit its spec, got {first}; "
            "it was made by another version"
        ) from error
    return model.to(device).eval()
