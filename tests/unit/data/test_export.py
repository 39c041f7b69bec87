from __future__ import annotations

import pytest
import torch

from focus_lab.data.dataset import build_dataset, build_datasets
from focus_lab.data.export import write_coco, write_shapes
from focus_lab.errors import OutputError
from focus_lab.specs.data import ShapesData

SPEC = ShapesData(
    kind="shapes", image_size=(48, 64), num_train=5, num_val=3, objects=(0, 4), object_size=(8, 30)
)


def test_written_scenes_are_read_back_bit_for_bit(tmp_path):
    written = write_shapes(SPEC, tmp_path / "new" / "scenes")
    for split, scenes in zip(build_datasets(written), build_datasets(SPEC), strict=True):
        assert len(split) == len(scenes)
        assert split.class_names == scenes.class_names
        assert split.coco_ground_truth()["annotations"] == scenes.coco_ground_truth()["annotations"]
        for index in range(len(split)):
            ours, theirs = split.load(index), scenes.load(index)
            assert torch.equal(ours.image, theirs.image)
            assert torch.equal(ours.boxes_xyxy, theirs.boxes_xyxy)
            assert torch.equal(ours.labels, theirs.labels)
            assert ours.image_id == theirs.image_id


def test_nothing_is_overwritten(tmp_path):
    dataset = build_dataset(SPEC, "val")
    write_coco(dataset, tmp_path, "val")
    with pytest.raises(OutputError, match="already holds the split 'val'"):
        write_coco(dataset, tmp_path, "val")


def test_a_folder_that_cannot_be_written_is_an_error(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OutputError, match="cannot be written"):
        write_coco(build_dataset(SPEC, "val"), tmp_path / "file", "val")
