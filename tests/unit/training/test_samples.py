"""The pictures of a trial."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from focus_lab.data.dataset import build_dataset
from focus_lab.data.shapes import ShapesDataset
from focus_lab.model.focus_detr import build_model
from focus_lab.specs.experiment import TrialSpec
from focus_lab.training.samples import choose_samples, write_samples

MakeTrial = Callable[..., TrialSpec]


def test_samples_are_spread_over_the_images_that_have_boxes(tiny_trial: MakeTrial) -> None:
    dataset = build_dataset(tiny_trial(data={"num_val": 20, "objects": [0, 1]}).data, "val")
    empty = [index for index in range(20) if len(dataset.labels(index)) == 0]
    chosen = choose_samples(dataset, 5)
    assert len(empty) > 2
    assert len(chosen) == 5
    assert chosen == sorted(set(chosen))
    assert not set(chosen) & set(empty)
    assert chosen == choose_samples(dataset, 5)


def test_few_images_are_all_shown_once(tiny_trial: MakeTrial) -> None:
    assert choose_samples(build_dataset(tiny_trial().data, "val"), 10) == [0, 1, 2, 3]


def test_a_data_set_without_boxes_has_no_samples() -> None:
    class Empty:
        def __len__(self) -> int:
            return 3

        def labels(self, index: int) -> list[int]:
            return []

    assert choose_samples(Empty()) == []  # type: ignore[arg-type]


def test_each_entry_describes_its_picture(tiny_trial: MakeTrial, tmp_path: Path) -> None:
    spec = tiny_trial(data={"image_size": [64, 48]})
    dataset = ShapesDataset(spec.data, "val")
    torch.manual_seed(0)
    model = build_model(spec.model, 3)
    write_samples(model, dataset, spec, torch.device("cpu"), tmp_path, score_threshold=0.0)
    content = json.loads((tmp_path / "samples.json").read_text())
    assert content["class_names"] == list(dataset.class_names)
    assert content["num_encoder_layers"] == 1
    assert [entry["image_id"] for entry in content["images"]] == [1, 2, 3, 4]
    for index, entry in enumerate(content["images"]):
        pixels = np.asarray(Image.open(tmp_path / entry["file"]))
        assert pixels.shape == (64, 48, 3)
        truth = dataset.load(index)
        assert np.abs(pixels.astype(int) - truth.image.permute(1, 2, 0).numpy()).mean() < 12
        assert entry["truth"]["boxes_xyxy"] == truth.boxes_xyxy.tolist()
        assert entry["original_size"] == entry["input_size"] == entry["padded_size"] == [64, 48]
        tokens = sum(height * width for height, width in entry["level_shapes"])
        assert len(entry["kept_depth"]) == tokens
        assert sum(entry["kept_depth"]) == int(tokens * 0.5) + 1
        found = entry["detections"]
        assert len(found["boxes_xyxy"]) == len(found["labels"]) == len(found["scores"]) > 0


def test_weak_detections_are_left_out(tiny_trial: MakeTrial, tmp_path: Path) -> None:
    spec = tiny_trial()
    dataset = build_dataset(spec.data, "val")
    model = build_model(spec.model, 3)
    write_samples(model, dataset, spec, torch.device("cpu"), tmp_path, score_threshold=1.0)
    content = json.loads((tmp_path / "samples.json").read_text())
    assert all(entry["detections"]["scores"] == [] for entry in content["images"])
