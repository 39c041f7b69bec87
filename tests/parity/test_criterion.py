"""Golden E (denoising, one empty image) and E2 (no denoising): matches, losses, gradients."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from focus_lab.model.criterion import build_criterion
from focus_lab.model.output import DenoisingMeta
from focus_lab.model.padded_targets import pad_targets
from focus_lab.specs.model import ModelSpec

FIXTURES = Path(__file__).parent / "fixtures"
GOLDEN = json.loads((FIXTURES / "manifest_losses.json").read_text())
NAMES = ["E_criterion", "E2_criterion_no_dn"]


def is_input(name):
    return not name.startswith(("match_", "grad_", "target_"))


def load(name, dtype):
    """Inputs as leaves, the output built from them, and the targets."""
    tensors = load_file(FIXTURES / f"{name}.safetensors")
    config = GOLDEN[name]["config"]
    leaves = {
        key: value.to(dtype).requires_grad_() for key, value in tensors.items() if is_input(key)
    }

    def layer(key):
        return {"pred_logits": leaves[f"{key}_logits"], "pred_boxes": leaves[f"{key}_boxes"]}

    denoising = meta = None
    if config["dn"] is not None:
        groups, single = config["dn"]["dn_num"], config["dn"]["single_padding"]
        meta = DenoisingMeta(groups, single, groups * single)
        aux = [layer(f"dn_aux{index}") for index in range(config["aux_layers"])]
        denoising = {**layer("dn"), "aux_outputs": aux}
    output = {
        **layer("main"),
        "aux_outputs": [layer(f"aux{index}") for index in range(config["aux_layers"])],
        "enc_outputs": layer("enc"),
        "enc_aux_outputs": [],
        "category_outputs": None,
        "foreground_logits": leaves["scores"].squeeze(-1),
        "decoder_attention": None,
        "token_selection": None,
        "level_shapes": tuple(tuple(shape) for shape in config["level_shapes"]),
        "strides": (8, 16, 32, 64),
        "denoising": denoising,
        "denoising_meta": meta,
    }
    targets = [
        {
            "labels": tensors[f"target_labels{image}"],
            "boxes": tensors[f"target_boxes{image}"].to(dtype),
        }
        for image in range(len(config["target_counts"]))
    ]
    return tensors, leaves, output, targets


def released(name):
    """Our name of a released loss."""
    return name.replace("select_loss", "loss_foreground")


@pytest.mark.parametrize("name", NAMES)
def test_matches_equal_the_release(name):
    tensors, _, output, targets = load(name, torch.float32)
    criterion = build_criterion(ModelSpec(), GOLDEN[name]["config"]["num_classes"])
    outputs = {"main": output, "enc": output["enc_outputs"]}
    outputs |= {f"aux{index}": layer for index, layer in enumerate(output["aux_outputs"])}
    with torch.no_grad():
        logits = torch.stack([layer["pred_logits"] for layer in outputs.values()])
        boxes = torch.stack([layer["pred_boxes"] for layer in outputs.values()])
        matches = criterion.matcher(logits, boxes, pad_targets(targets))
    for index, key in enumerate(outputs):
        for image in range(len(targets)):
            mine = matches.images == image
            assert torch.equal(matches.queries[index][mine], tensors[f"match_{key}_img{image}_src"])
            assert torch.equal(matches.targets[index][mine], tensors[f"match_{key}_img{image}_tgt"])


@pytest.mark.parametrize(
    ("dtype", "twin", "tolerance"),
    [(torch.float32, "f32", 1e-5), (torch.float64, "f64", 1e-9)],
    ids=["f32", "f64"],
)
@pytest.mark.parametrize("name", NAMES)
def test_every_loss_equals_the_release(name, dtype, twin, tolerance):
    _, _, output, targets = load(name, dtype)
    config = GOLDEN[name]["config"]
    criterion = build_criterion(ModelSpec(), config["num_classes"])
    losses = criterion(output, targets, config["sizes"])
    golden = {released(key): value[twin] for key, value in GOLDEN[name]["scalars"].items()}
    total = golden.pop("total_weighted")
    assert losses.keys() == golden.keys()
    for key, value in losses.items():
        assert value.item() == pytest.approx(golden[key], rel=tolerance, abs=1e-12), key
    assert criterion.total(losses).item() == pytest.approx(total, rel=tolerance)


@pytest.mark.parametrize("name", NAMES)
def test_weights_equal_the_release(name):
    criterion = build_criterion(ModelSpec(), GOLDEN[name]["config"]["num_classes"])
    for key, weight in GOLDEN[name]["config"]["weights"].items():
        assert criterion.weight(released(key)) == weight


@pytest.mark.parametrize("name", NAMES)
def test_gradients_of_the_total_equal_the_release(name):
    tensors, leaves, output, targets = load(name, torch.float32)
    config = GOLDEN[name]["config"]
    criterion = build_criterion(ModelSpec(), config["num_classes"])
    criterion.total(criterion(output, targets, config["sizes"])).backward()
    for key, leaf in leaves.items():
        atol = GOLDEN[name]["atol"][f"grad_{key}"]
        assert torch.allclose(leaf.grad, tensors[f"grad_{key}"], rtol=1e-5, atol=atol), key
