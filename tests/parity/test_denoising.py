"""Golden F: denoising queries from given draws."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from focus_lab.model.boxes import inverse_sigmoid
from focus_lab.model.denoising import DenoisingQueries, NoiseDraws
from focus_lab.model.output import DenoisingMeta

FIXTURES = Path(__file__).parent / "fixtures"
GOLDEN = json.loads((FIXTURES / "manifest_losses.json").read_text())["F_denoising_queries"]
CONFIG = GOLDEN["config"]
CASES = {name: case for name, case in CONFIG["cases"].items() if "result" not in case}


@pytest.fixture(scope="module")
def tensors():
    return load_file(FIXTURES / "F_denoising_queries.safetensors")


def queries_of(case, formula, draws=None):
    module = DenoisingQueries(
        CONFIG["num_classes"],
        CONFIG["label_enc_shape"][1],
        case["dn_number"],
        case["label_noise_ratio"],
        case["box_noise_scale"],
        inverse_sigmoid_eps=1e-3,
        noise_source=lambda count, classes, generator: draws,
    )
    weight = formula.parameter("label_enc.weight", CONFIG["label_enc_shape"], CONFIG["fill_salt"])
    module.label_embedding.load_state_dict({"weight": weight})
    return module


def run(name, case, tensors, formula):
    draws = NoiseDraws(
        u_label=tensors[f"{name}.u_label"],
        new_label=tensors[f"{name}.new_label"],
        sign=tensors[f"{name}.sign01"] * 2.0 - 1.0,
        part=tensors[f"{name}.rand_part"],
    )
    targets = [
        {"labels": tensors[f"{name}.labels{image}"], "boxes": tensors[f"{name}.boxes{image}"]}
        for image in range(len(case["counts"]))
    ]
    return queries_of(case, formula, draws)(targets, CONFIG["num_queries"])


@pytest.mark.parametrize("name", CASES)
def test_layout_equals_the_release(name, tensors, formula):
    case = CASES[name]
    batch = run(name, case, tensors, formula)
    assert batch.meta == DenoisingMeta(case["dn_num"], case["single_padding"], case["pad_size"])
    assert torch.equal(batch.attention_mask, tensors[f"{name}.attn_mask"])


@pytest.mark.parametrize("name", CASES)
def test_content_and_references_equal_the_release(name, tensors, formula):
    batch = run(name, CASES[name], tensors, formula)
    assert torch.equal(batch.content, tensors[f"{name}.query_label"])
    assert torch.allclose(
        batch.reference_logits, tensors[f"{name}.query_box"], rtol=1e-6, atol=1e-6
    )


@pytest.mark.parametrize("name", CASES)
def test_noised_boxes_equal_the_release(name, tensors, formula):
    case = CASES[name]
    batch = run(name, case, tensors, formula)
    width, total = max(case["counts"]), sum(case["counts"])
    golden = tensors[f"{name}.noised_boxes"].view(-1, total, 4)
    flat = [(image, k) for image, count in enumerate(case["counts"]) for k in range(count)]
    for box, (image, k) in enumerate(flat):
        slots = batch.reference_logits[image, k::width]
        expected = inverse_sigmoid(golden[:, box], 1e-3)
        assert torch.allclose(slots, expected, rtol=1e-6, atol=1e-6)


def test_a_batch_without_boxes_has_no_denoising_queries(formula):
    case = CONFIG["cases"]["none"]
    targets = [
        {"labels": torch.zeros(0).long(), "boxes": torch.zeros(0, 4)} for _ in case["counts"]
    ]
    assert queries_of(case, formula)(targets, CONFIG["num_queries"]) is None
