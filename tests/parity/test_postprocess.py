"""Golden G: logits and boxes to detections in the original image."""

import json
from pathlib import Path

import torch
from safetensors.torch import load_file

from focus_lab.model.postprocess import postprocess

FIXTURES = Path(__file__).parent / "fixtures"
CONFIG = json.loads((FIXTURES / "manifest_losses.json").read_text())["G_postprocess"]["config"]


def test_detections_equal_the_release():
    tensors = load_file(FIXTURES / "G_postprocess.safetensors")
    detections = postprocess(
        tensors["pred_logits"],
        tensors["pred_boxes"],
        CONFIG["network_input_sizes"],
        CONFIG["original_sizes"],
        CONFIG["select"],
    )
    for image, found in enumerate(detections):
        assert torch.equal(found.labels, tensors[f"img{image}.labels"])
        assert torch.allclose(found.scores, tensors[f"img{image}.scores"], rtol=0, atol=1e-6)
        assert torch.allclose(found.boxes_xyxy, tensors[f"img{image}.boxes"], rtol=0, atol=1e-4)


def test_boxes_before_scaling_to_the_original_equal_the_release():
    tensors = load_file(FIXTURES / "G_postprocess.safetensors")
    sizes = CONFIG["network_input_sizes"]
    detections = postprocess(
        tensors["pred_logits"], tensors["pred_boxes"], sizes, sizes, CONFIG["select"]
    )
    for image, ((height, width), found) in enumerate(zip(sizes, detections, strict=True)):
        raw = tensors[f"img{image}.raw_boxes"].clamp(min=0)
        raw = raw.minimum(torch.tensor([width, height, width, height]))
        raw = raw[(raw[:, 2:] > raw[:, :2]).all(dim=1)]
        assert torch.allclose(found.boxes_xyxy, raw, rtol=0, atol=1e-4)
