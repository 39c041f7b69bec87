"""Any COCO-format folder as a data set."""

from __future__ import annotations

import hashlib
import stat
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from focus_lab.data.annotations import read_annotations
from focus_lab.data.ground_truth import GroundTruth
from focus_lab.data.images import read_image, read_size
from focus_lab.data.sample import Sample
from focus_lab.errors import DataError
from focus_lab.specs.data import CocoData

_SHOWN = 3


class CocoDataset:
    """One split of a COCO-format folder; see `DetectionDataset` for the members.

    Crowd regions never train; they stay in the ground truth, which holds every image of the split
    that this data set holds. Segmentations are not used. The training split leaves out images
    without a usable box, unless the spec keeps them; the validation split leaves out none.

    Args:
        spec: the folder.
        split: which of its two splits.

    Raises:
        DataError: if files are missing or broken, or no image is left.
    """

    def __init__(self, spec: CocoData, split: Literal["train", "val"]) -> None:
        root = Path(spec.root)
        if not root.is_dir():
            raise DataError(
                f"data.root: no such folder, got {spec.root!r}; name the folder of a COCO data set"
            )
        paths = spec.train if split == "train" else spec.val
        self._folder = root / paths.images
        if not self._folder.is_dir():
            raise DataError(
                f"data.{split}.images: no such folder, got {str(self._folder)!r}; "
                "name the image folder"
            )
        self._annotations = read_annotations(
            root / paths.annotations, lambda name: read_size(self._folder / name)
        )
        self.class_names = self._annotations.class_names
        self.category_ids = self._annotations.category_ids
        self.repairs = dict(self._annotations.repairs)
        self.digest = self._digest_of_files()
        self._kept = np.arange(len(self._annotations.image_ids))
        if split == "train" and not spec.keep_empty:
            self._leave_out_empty()
        if not len(self._kept):
            raise DataError(
                f"{root / paths.annotations}: no usable image, got "
                f"{len(self._annotations.image_ids)} in the file, "
                "none with a box; annotate some, or set data.keep_empty: true"
            )

    def __len__(self) -> int:
        """Number of images."""
        return len(self._kept)

    @property
    def sizes(self) -> tuple[tuple[int, int], ...]:
        """(height, width) of every image as annotated."""
        return tuple(
            (height, width) for height, width in self._annotations.sizes[self._kept].tolist()
        )

    def load(self, index: int) -> Sample:
        """Decode image `index`; see `read_image` for what is converted.

        Raises:
            DataError: if the file cannot be decoded or has another size than annotated.
        """
        image = int(self._kept[index])
        height, width = self._annotations.sizes[image].tolist()
        return Sample(
            image=read_image(self._folder / self._annotations.file_names[image], (height, width)),
            boxes_xyxy=self.boxes_xyxy(index),
            labels=self.labels(index),
            image_id=int(self._annotations.image_ids[image]),
            original_size=(height, width),
        )

    def boxes_xyxy(self, index: int) -> Tensor:
        """Boxes of image `index` without crowd, float32 [n, 4] in pixels."""
        boxes = self._annotations.boxes_xywh[self._rows(index)]
        corners = np.concatenate((boxes[:, :2], boxes[:, :2] + boxes[:, 2:]), axis=1)
        return torch.from_numpy(corners.astype(np.float32))

    def labels(self, index: int) -> Tensor:
        """Contiguous classes of `boxes_xyxy(index)`, int64 [n]."""
        return torch.from_numpy(self._annotations.labels[self._rows(index)])

    def coco_ground_truth(self) -> dict[str, Any]:
        """COCO instances dict of the images held, crowd included, with the file's own ids."""
        found = self._annotations
        truth = GroundTruth(self.category_ids, self.class_names)
        for image in self._kept.tolist():
            image_id = int(found.image_ids[image])
            truth.add_image(image_id, found.file_names[image], *found.sizes[image].tolist())
            for row in range(int(found.starts[image]), int(found.starts[image + 1])):
                left, top, width, height = found.boxes_xywh[row].tolist()
                truth.add_box(
                    image_id,
                    int(found.labels[row]),
                    (left, top, width, height),
                    area=float(found.areas[row]),
                    crowd=bool(found.crowd[row]),
                )
        return truth.as_dict()

    def _rows(self, index: int) -> NDArray[np.int64]:
        """Rows of the annotations that are objects of image `index`."""
        start, stop = self._annotations.starts[self._kept[index] :][:2]
        return np.arange(start, stop)[~self._annotations.crowd[start:stop]]

    def _leave_out_empty(self) -> None:
        objects = np.concatenate(([0], np.cumsum(~self._annotations.crowd)))[
            self._annotations.starts
        ]
        kept = np.flatnonzero(np.diff(objects) > 0)
        if len(kept) < len(self._kept):
            self.repairs["images without a usable box, left out of training"] = len(
                self._kept
            ) - len(kept)
        self._kept = kept

    def _digest_of_files(self) -> str:
        """Hash of the annotations and of each image's name and length; all must exist."""
        digest = hashlib.sha256(self._annotations.digest.encode())
        missing = []
        for name in self._annotations.file_names:
            try:
                status = (self._folder / name).stat()
            except (OSError, ValueError):
                missing.append(name)
                continue
            if not stat.S_ISREG(status.st_mode):
                missing.append(name)
            digest.update(f"{name}\0{status.st_size}\n".encode())
        if missing:
            raise DataError(
                f"{self._folder}: image files are missing, "
                f"got {len(missing)} of {len(self._annotations.file_names)}, "
                f"first {missing[:_SHOWN]}; copy them there or correct data.root"
            )
        return digest.hexdigest()
