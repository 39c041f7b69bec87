"""The manifest of a trial: what it was made from, and what it takes to do it again."""

from __future__ import annotations

from typing import Any

from focus_lab.data.dataset import DetectionDataset
from focus_lab.data.foreground import foreground_share
from focus_lab.data.transforms import EvalTransform
from focus_lab.errors import DataError
from focus_lab.model.focus_detr import FocusDETR
from focus_lab.model.weight_files import weights_digest
from focus_lab.ops import library_state
from focus_lab.specs.experiment import TrialSpec
from focus_lab.training.environment import describe
from focus_lab.training.scoring import check_evaluator
from focus_lab.training.workers import Workers


def manifest_of(
    spec: TrialSpec,
    model: FocusDETR,
    train_set: DetectionDataset,
    val_set: DetectionDataset,
    workers: Workers,
) -> dict[str, Any]:
    """What it takes to do this trial again."""
    return {
        "spec": spec.model_dump(mode="json"),
        "fingerprint": spec.fingerprint,
        "seed": spec.seed,
        "workers": workers.size,
        "effective_token_selection": model.effective_token_selection,
        "ops_implementation": model.implementation,
        "ops_build": library_state().build if model.implementation == "compiled" else None,
        "evaluator": {
            "name": spec.compute.evaluator,
            "version": check_evaluator(spec.compute.evaluator),
        },
        "inputs": input_digests(spec, train_set, val_set),
        "data": {
            split: {
                "digest": dataset.digest,
                "images": len(dataset),
                "classes": list(dataset.class_names),
                "repairs": dataset.repairs,
            }
            for split, dataset in (("train", train_set), ("val", val_set))
        },
        "foreground_share": foreground_share(
            val_set, model.neck.strides, EvalTransform(spec.data.evaluation).size
        ),
        "environment": describe(),
    }


def check_same_everywhere(digests: list[dict[str, str]]) -> None:
    """See that workers on other machines have the same files.

    Raises:
        DataError: some have others.
    """
    for rank, theirs in enumerate(digests):
        for field, digest in theirs.items():
            if digest != digests[0][field]:
                raise DataError(
                    f"{field}: worker {rank} has other files than worker 0, got digest "
                    f"{digest[:12]} instead of {digests[0][field][:12]}; "
                    "give all machines the same"
                )


def input_digests(
    spec: TrialSpec, train_set: DetectionDataset, val_set: DetectionDataset
) -> dict[str, str]:
    """Field of the spec that names files -> digest of what they hold."""
    digests = {"data.train": train_set.digest, "data.val": val_set.digest}
    weights = getattr(spec.model.backbone, "weights", None)
    if weights is not None:
        digests["model.backbone.weights"] = weights_digest(weights)
    if spec.training.start_from is not None:
        digests["training.start_from"] = weights_digest(spec.training.start_from)
    return digests
