"""The pictures of a trial."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from focus_lab.analysis.samples import read_samples
from focus_lab.data.dataset import build_dataset
from focus_lab.data.loader import build_eval_loader
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
        assert entry["kept_by_layer"] == [int(tokens * 0.5) + 1]
        found = entry["detections"]
        assert len(found["boxes_xyxy"]) == len(found["labels"]) == len(found["scores"]) > 0


def test_weak_detections_are_left_out(tiny_trial: MakeTrial, tmp_path: Path) -> None:
    spec = tiny_trial()
    dataset = build_dataset(spec.data, "val")
    model = build_model(spec.model, 3)
    write_samples(model, dataset, spec, torch.device("cpu"), tmp_path, score_threshold=1.0)
    content = json.loads((tmp_path / "samples.json").read_text())
    assert all(entry["detections"]["scores"] == [] for entry in content["images"])


@pytest.mark.parametrize(
    "cascade",
    [
        {"kind": "reversed", "mean": 0.6},
        {"kind": "constant", "mean": 0.6},
        {"kind": "linear", "mean": 0.6},
        [0.3, 1.0, 0.6],
        [0.6, 1.0, 0.6],
    ],
    ids=["rising", "constant", "falling", "neither", "two alike"],
)
@pytest.mark.parametrize("levels", [None, [0.4, 0.8, 1.0, 1.0]], ids=["together", "by level"])
def test_what_is_read_of_a_layer_are_the_tokens_that_it_refined(
    tiny_trial: MakeTrial, tmp_path: Path, cascade: object, levels: list[float] | None
) -> None:
    parts = {"num_encoder_layers": 3, "num_feature_levels": 4}
    selection = {"keep_ratio": 0.5, "cascade": cascade, "level_keep_ratios": levels}
    spec = tiny_trial(model={**parts, "token_selection": selection}, data={"image_size": [64, 48]})
    dataset = build_dataset(spec.data, "val")
    torch.manual_seed(0)
    model = build_model(spec.model, 3).eval()
    write_samples(model, dataset, spec, torch.device("cpu"), tmp_path)
    samples = read_samples(tmp_path)
    assert samples is not None
    loader = build_eval_loader(dataset, spec.data, batch_size=1)
    for image, batch in zip(samples.images.values(), loader, strict=True):
        with torch.inference_mode():
            selected = model(batch.images, batch.sizes)["token_selection"]
        for layer in range(3):
            refined = np.concatenate([level.ravel() for level in image.refined_by(layer)])
            truly = selected.indices[layer][0, : selected.budgets[0]].tolist()
            assert sorted(truly) == np.flatnonzero(refined).tolist()


def test_every_layer_of_dense_scoring_refines_all_tokens(
    tiny_trial: MakeTrial, tmp_path: Path
) -> None:
    selection = {"scoring": {"kind": "dense"}, "keep_ratio": 1.0, "cascade": [1.0, 1.0]}
    spec = tiny_trial(
        model={
            "num_encoder_layers": 2,
            "token_selection": selection,
            "dual_attention": {"enabled": False},
        }
    )
    dataset = build_dataset(spec.data, "val")
    model = build_model(spec.model, 3)
    write_samples(model, dataset, spec, torch.device("cpu"), tmp_path)
    samples = read_samples(tmp_path)
    assert samples is not None
    for image in samples.images.values():
        assert all(level.all() for layer in range(2) for level in image.refined_by(layer))
