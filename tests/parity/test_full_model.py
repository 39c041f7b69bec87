"""Golden H: the full ResNet-50 model, from pixels to detections.

a) one image; b) a padded batch with masks; p) a padded batch the way the release evaluates,
without.
"""

import pytest
import torch

from focus_lab.model.focus_detr import build_model
from focus_lab.model.postprocess import postprocess
from focus_lab.specs.model import ModelSpec


@pytest.fixture(scope="module", params=[torch.float32, torch.float64])
def released(request, formula):
    """ResNet-50 Focus-DETR with formula weights, in both precisions."""
    return formula.fill(build_model(ModelSpec(), 80)).eval().to(request.param), request.param


@pytest.mark.slow
@pytest.mark.parametrize("name", ["H_r50_a", "H_r50_b", "H_r50_p"])
def test_the_released_resnet50_model_is_reproduced(name, released, golden, formula):
    model, dtype = released
    fixture = golden(name)
    tensors, check = fixture.tensors, fixture.check
    model.proposals.num_queries = fixture.config["queries"]
    model.mask_padding_in_evaluation = fixture.config["padding_masks"]
    seen = {}
    hooks = [
        getattr(model, part).register_forward_hook(
            lambda _, __, out, part=part: seen.update({part: out})
        )
        for part in ("backbone", "neck", "encoder", "proposals")
    ]
    images, sizes = formula.normalized_batch(fixture.config["image_keys"])
    with torch.no_grad():
        output = model(images.to(dtype), sizes)
    for hook in hooks:
        hook.remove()

    check("backbone_res5_channel_mean", seen["backbone"][-1].mean((2, 3)))
    check("neck3_channel_mean", seen["neck"][3].mean((2, 3)))
    check("foreground_scores", output["foreground_logits"], atol=2e-5)
    selection = output["token_selection"]
    assert selection.budgets == tuple(tensors["focus_token_nums"].tolist())
    assert selection.counts == tuple(tensors["layer_token_nums"].tolist())
    assert torch.equal(selection.indices[5].sort(dim=1).values, tensors["indices_layer5"].long())
    check("memory_token_mean", seen["encoder"].mean(-1)[:, ::5])

    proposals, expected = seen["proposals"].indices, tensors["topk_proposals"].long()
    assert torch.equal(proposals.sort(dim=1).values, expected.sort(dim=1).values)
    if dtype == torch.float64:
        assert torch.equal(proposals, expected)
    if not torch.equal(proposals, expected):
        # Neighbours 4e-6 apart swapped in float32, and with them the queries that they meet.
        return
    check("init_references", seen["proposals"].pred_boxes[:, :100], atol=2e-5)
    check("pred_boxes", output["pred_boxes"], atol=2e-5)
    check("pred_logits_first", output["pred_logits"][:, :20])
    check("pred_logits_rowmax", output["pred_logits"].amax(-1))
    detections = postprocess(output["pred_logits"], output["pred_boxes"], sizes, sizes, 300)
    for index, found in enumerate(detections):
        torch.testing.assert_close(
            found.scores.float(), tensors[f"det{index}.scores"], rtol=0, atol=1e-4
        )
        apart = (found.boxes_xyxy.float() - tensors[f"det{index}.boxes"]).abs().amax(-1)
        same = (apart < 0.02) & (found.labels == tensors[f"det{index}.labels"])
        assert same.float().mean() > 0.97  # neighbours of equal score may swap
