"""Released Focus-DETR checkpoints in."""

from __future__ import annotations

from pathlib import Path

from focus_lab.data.dataset import build_dataset
from focus_lab.errors import WeightsError
from focus_lab.model.weight_files import read_weights
from focus_lab.model.weights import convert_released
from focus_lab.specs.experiment import TrialSpec
from focus_lab.training import checkpoint as checkpoints
from focus_lab.training.checkpoint import Checkpoint


def convert_checkpoint(source: Path, spec: TrialSpec, target: Path) -> None:
    """Write a released checkpoint as one that `evaluate` reads.

    Args:
        source: the released file.
        spec: the model that it was trained as, and the data whose classes it knows.
        target: the file to write.

    Raises:
        WeightsError: the weights do not fit the spec's model or its number of classes.
        DataError: the data set of the spec cannot be used.
        OutputError: the target cannot be written.
    """
    state = convert_released(read_weights(str(source)), spec.model)
    class_names = build_dataset(spec.data, "val").class_names
    known = state["class_heads.0.bias"].shape[0]
    if known != len(class_names):
        raise WeightsError(
            f"{source}: was trained on another data set, got {known} classes; "
            f"data has {len(class_names)}, give the spec of the checkpoint's own data"
        )
    checkpoint = Checkpoint(
        spec=spec.model_dump(mode="json"),
        class_names=list(class_names),
        epoch=0,
        batch=0,
        step=0,
        model=state,
        optimizer={},
        averages={},
    )
    checkpoints.write(checkpoint, target)
