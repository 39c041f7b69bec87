"""From all detections of a data set to AP: a pure function, by pycocotools or a faster equal."""

from __future__ import annotations

import contextlib
import gc
import importlib
import importlib.metadata
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from focus_lab.errors import UserError
from focus_lab.model.postprocess import Detections
from focus_lab.training.reporter import Metrics

Evaluator: TypeAlias = Literal["pycocotools", "faster-coco-eval"]
"""Who computes AP; see `ComputeSpec.evaluator`."""

# Order of COCOeval.stats; faster-coco-eval appends others.
_STATS = ("AP", "AP50", "AP75", "APS", "APM", "APL", "AR1", "AR10", "AR100", "ARS", "ARM", "ARL")


class CocoRun(Protocol):
    """What both packages give after `summarize`."""

    stats: Sequence[float]
    eval: dict[str, Any]
    params: Any


@dataclass(frozen=True)
class Found:
    """Detections of many images, n of them, as arrays: small to send, quick to join."""

    image_ids: npt.NDArray[np.int64]
    """[n], ids in the data set's annotations; images in any order, each by falling score."""
    category_ids: npt.NDArray[np.int64]
    """[n], the data set's own ids."""
    boxes_xywh: npt.NDArray[np.float64]
    """[n, 4], left, top, width, height in pixels of the original image."""
    scores: npt.NDArray[np.float64]
    """[n]."""

    def __len__(self) -> int:
        """Number of detections."""
        return len(self.scores)

    @classmethod
    def of_image(cls, image_id: int, detections: Detections, category_ids: Sequence[int]) -> Found:
        """Detections of one image.

        Args:
            image_id: its id in the annotations.
            detections: what the model found.
            category_ids: contiguous label -> id in the annotations.
        """
        boxes = detections.boxes_xyxy.double().numpy()
        return cls(
            np.full(len(boxes), image_id, dtype=np.int64),
            np.asarray(category_ids, dtype=np.int64)[detections.labels.numpy()],
            np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], axis=1),
            detections.scores.double().numpy(),
        )

    @classmethod
    def joined(cls, parts: Sequence[Found]) -> Found:
        """All parts in one, in their order; none at all is fine."""
        return cls(
            np.concatenate([np.zeros(0, np.int64), *(part.image_ids for part in parts)]),
            np.concatenate([np.zeros(0, np.int64), *(part.category_ids for part in parts)]),
            np.concatenate([np.zeros((0, 4)), *(part.boxes_xywh for part in parts)]),
            np.concatenate([np.zeros(0), *(part.scores for part in parts)]),
        )

    def rows(self) -> list[dict[str, Any]]:
        """COCO's result format."""
        columns = (self.image_ids, self.category_ids, self.boxes_xywh, self.scores)
        return [
            {"image_id": image_id, "category_id": category_id, "bbox": box, "score": score}
            for image_id, category_id, box, score in zip(
                *(column.tolist() for column in columns), strict=True
            )
        ]


@dataclass(frozen=True)
class Scores:
    """What an evaluator found."""

    metrics: Metrics
    """`coco/AP` … `coco/ARL`, -1 where no box is of that size, and `coco/AP_class/<name>` for every
    class with a box."""
    precision: npt.NDArray[np.float64]
    """[10 IoUs, 101 recalls, K classes], boxes of all sizes; -1 = no box of the class."""
    category_ids: tuple[int, ...]
    """[K]."""


def coco_metrics(
    truth: dict[str, Any], found: Found, evaluator: Evaluator = "pycocotools"
) -> Metrics:
    """The metrics of `coco_scores`."""
    return coco_scores(truth, found, evaluator).metrics


def coco_scores(
    truth: dict[str, Any], found: Found, evaluator: Evaluator = "pycocotools"
) -> Scores:
    """AP of detections against the truth.

    Args:
        truth: COCO instances, crowd included; annotation ids from 1. It gains keys.
        found: all detections; every image id is one of the truth's.
        evaluator: who computes; both give the same numbers, up to 1e-12.

    Raises:
        UserError: the evaluator is not installed.
    """
    check_evaluator(evaluator)
    with _quiet(), _without_garbage_collection():
        run = _by_pycocotools(truth, found) if evaluator == "pycocotools" else _faster(truth, found)
    stats = [float(value) for value in run.stats[: len(_STATS)]]
    metrics = {f"coco/{name}": value for name, value in zip(_STATS, stats, strict=True)}
    metrics["coco/AR"] = metrics["coco/AR100"]
    # precision [T IoUs, R recalls, K classes, A areas, M max detections]; -1 = no box of the class.
    precision = run.eval["precision"][:, :, :, 0, -1]
    names = {category["id"]: category["name"] for category in truth["categories"]}
    for index, category_id in enumerate(run.params.catIds):
        values = precision[:, :, index]
        if (values > -1).any():
            name = names[int(category_id)]
            metrics[f"coco/AP_class/{name}"] = float(values[values > -1].mean())
    return Scores(metrics, precision, tuple(int(category) for category in run.params.catIds))


def check_evaluator(evaluator: Evaluator) -> str:
    """The version of an evaluator that can be used.

    Raises:
        UserError: it is not installed.
    """
    try:
        importlib.import_module(evaluator.replace("-", "_"))
        return importlib.metadata.version(evaluator)
    except ImportError as error:
        raise UserError(
            f"compute.evaluator: {evaluator} cannot be used, got {error}; install it with "
            f"`uv pip install {evaluator}`, or set compute.evaluator to pycocotools"
        ) from error


def _by_pycocotools(truth: dict[str, Any], found: Found) -> CocoRun:
    """The definition."""
    expected = COCO()
    expected.dataset = truth
    expected.createIndex()
    if len(found):
        results = expected.loadRes(found.rows())
    else:
        # loadRes refuses an empty list; a copy without annotations has no detections either.
        results = COCO()
        results.dataset = {**truth, "annotations": []}
        results.createIndex()
    return _carried_out(COCOeval(expected, results, "bbox"))


def _faster(truth: dict[str, Any], found: Found) -> CocoRun:
    import faster_coco_eval

    expected, results = faster_coco_eval.COCO(), faster_coco_eval.COCO()
    expected.dataset = truth
    # What loadRes makes, less the polygons, which nobody reads.
    annotations = found.rows()
    areas = (found.boxes_xywh[:, 2] * found.boxes_xywh[:, 3]).tolist()
    for number, (row, area) in enumerate(zip(annotations, areas, strict=True)):
        row["id"], row["area"], row["iscrowd"] = number + 1, area, 0
    results.dataset = {**truth, "annotations": annotations}
    expected.createIndex()
    results.createIndex()
    return _carried_out(faster_coco_eval.COCOeval_faster(expected, results, "bbox"))


def _carried_out(run: Any) -> CocoRun:
    run.evaluate()
    run.accumulate()
    run.summarize()
    done: CocoRun = run
    return done


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    with contextlib.redirect_stdout(io.StringIO()):
        yield


@contextlib.contextmanager
def _without_garbage_collection() -> Iterator[None]:
    """Both packages keep a dict a detection: looking through millions of them finds nothing."""
    before = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if before:
            gc.enable()
