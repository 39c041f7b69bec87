"""The whole detector: sizes, switches, gradients."""

import copy
import pickle

import pytest
import torch

from focus_lab.errors import SpecError
from focus_lab.model.denoising import BatchShare
from focus_lab.model.focus_detr import build_model
from focus_lab.specs.model import ModelSpec

CLASSES = 3
TINY = {
    "backbone": {"kind": "residual", "widths": [8, 8, 16, 16, 16]},
    "hidden_dim": 32,
    "num_heads": 4,
    "num_points": 2,
    "dim_feedforward": 32,
    "num_encoder_layers": 2,
    "num_decoder_layers": 2,
    "num_queries": 12,
    "norm_groups": 8,
    "token_selection": {"cascade": [1.0, 0.5]},
    "dual_attention": {"num_tokens": 8},
    "denoising": {"num_queries": 4},
}


BY_CATEGORY = {"dual_attention": {"num_tokens": 8, "score_product": "category"}}


def build(**changes):
    torch.manual_seed(0)
    return build_model(ModelSpec.model_validate({**TINY, **changes}), CLASSES)


def selection(**changes):
    return {"token_selection": {**TINY["token_selection"], **changes}}


def boxes(*counts):
    return [
        {"labels": torch.arange(count) % CLASSES, "boxes": torch.rand(count, 4) * 0.4 + 0.3}
        for count in counts
    ]


def predictions(output):
    return output["pred_logits"], output["pred_boxes"]


def everything(output):
    """A scalar that depends on all that losses read."""
    layers = [output, output["enc_outputs"], *output["aux_outputs"]]
    if output["denoising"] is not None:
        layers += [output["denoising"], *output["denoising"]["aux_outputs"]]
    if output["category_outputs"] is not None:
        layers.append(output["category_outputs"])
    total = sum(
        layer["pred_logits"].square().mean() + layer["pred_boxes"].mean() for layer in layers
    )
    if output["foreground_logits"] is not None:
        total = total + output["foreground_logits"].square().mean()
    return total


@pytest.mark.parametrize("size", [(32, 32), (64, 48), (33, 130)])
def test_images_of_any_size_are_detected_in(size):
    output = build().eval()(torch.randn(1, 3, *size))
    tokens = sum(h * w for h, w in output["level_shapes"])
    assert output["pred_boxes"].shape == (1, min(12, tokens), 4)
    assert output["foreground_logits"].shape == (1, tokens)
    assert output["strides"] == (8, 16, 32, 64)
    assert all(tensor.isfinite().all() for tensor in predictions(output))


def test_the_smallest_image_trains():
    model = build().train()
    output = model(torch.randn(2, 3, 32, 32), [(32, 32), (1, 1)], boxes(2, 1))
    everything(output).backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


def test_sizes_that_fill_the_canvas_change_nothing():
    model, images = build().eval(), torch.randn(2, 3, 64, 96)
    plain, sized = model(images), model(images, [(64, 96), (64, 96)])
    for a, b in zip(predictions(plain), predictions(sized), strict=True):
        assert torch.equal(a, b)


def test_padding_moves_detections_no_more_than_the_backbones_view_of_it():
    """Boxes stay shares of the valid image, so a padded image keeps its initial boxes' range."""
    model = build().eval()
    images = torch.zeros(2, 3, 128, 160)
    images[0] = torch.randn(3, 128, 160)
    images[1, :, :40, :56] = torch.randn(3, 40, 56)
    output = model(images, [(128, 160), (40, 56)])
    assert output["token_selection"].valid_counts[1] < output["token_selection"].valid_counts[0] / 5
    assert all(tensor.isfinite().all() for tensor in predictions(output))


def test_sizes_are_ignored_in_evaluation_when_asked():
    model = build(mask_padding_in_evaluation=False)
    images, sizes = torch.randn(2, 3, 64, 64), [(64, 64), (32, 40)]
    model.eval()
    assert torch.equal(model(images, sizes)["pred_boxes"], model(images)["pred_boxes"])
    model.train()
    assert model(images, sizes)["token_selection"].valid_counts[1] < 85


@pytest.mark.parametrize("count", [1, 3, 5])
def test_any_number_of_levels_trains(count):
    model = build(num_feature_levels=count).train()
    output = model(torch.randn(2, 3, 96, 96), [(96, 96), (64, 90)], boxes(1, 2))
    assert len(output["level_shapes"]) == len(output["strides"]) == count
    everything(output).backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []


@pytest.mark.parametrize(
    "changes",
    [
        {},
        selection(keep_ratio=1.0),
        selection(keep_ratio=0.01, cascade=[0.5, 0.01]),
        selection(score_modulation={"enabled": False}),
        {"dual_attention": {"enabled": False}},
        {"dual_attention": {"num_tokens": 8, "share_class_head": False}},
        {"dual_attention": {"num_tokens": 8, "score_product": "probabilities"}},
        {"dual_attention": {"num_tokens": 8, "order": "deformable_first"}},
        {"value_source": "updated_tokens"},
        {"denoising": {"enabled": False}},
        {"dropout": 0.1},
        selection(level_keep_ratios=[0.2, 0.6, 1.0, 1.0], keep_ratio=1.0),
        selection(background_embedding={"enabled": True, "size": 9}),
        selection(scoring={"kind": "objectness"}),
        selection(scoring={"kind": "decoder_attention"}),
        {**selection(scoring={"kind": "feature_norm"}), **BY_CATEGORY},
        {**selection(scoring={"kind": "random"}), **BY_CATEGORY},
        {**selection(scoring={"kind": "oracle"}), **BY_CATEGORY},
        {
            **selection(scoring={"kind": "dense"}, keep_ratio=1.0, cascade=[1.0, 1.0]),
            **BY_CATEGORY,
        },
        {
            **selection(scoring={"kind": "dense"}, keep_ratio=1.0, cascade=[1.0, 1.0]),
            "dual_attention": {"enabled": False},
        },
    ],
)
def test_every_variant_trains_all_its_parameters(changes):
    model = build(**changes).train()
    output = model(torch.randn(2, 3, 96, 96), [(96, 96), (64, 90)], boxes(3, 1))
    everything(output).backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []


def test_the_scorer_learns_from_its_own_loss_alone():
    model = build().train()
    output = model(torch.randn(1, 3, 64, 64), None, boxes(2))
    output["foreground_logits"] = None
    everything(output).backward()
    assert all(p.grad is None for p in model.token_selector.parameters())


@pytest.mark.parametrize("kind", ["feature_norm", "random", "oracle"])
def test_a_scoring_without_learning_has_no_parameters_and_no_foreground_logits(kind):
    model = build(**selection(scoring={"kind": kind}), **BY_CATEGORY).train()
    assert not any("token_selector" in name for name in model.state_dict())
    output = model(torch.randn(2, 3, 64, 64), None, boxes(2, 1))
    assert output["foreground_logits"] is None
    assert output["decoder_attention"] is None
    assert output["token_selection"].counts == (43, 21)


@pytest.mark.parametrize("kind", ["oracle", "random"])
def test_what_an_image_keeps_does_not_depend_on_what_is_beside_it(kind):
    model = build(**selection(scoring={"kind": kind}), **BY_CATEGORY).eval()
    images, targets = torch.randn(2, 3, 64, 64), boxes(2, 3)
    kept = model(images, None, targets, image_ids=[7, 9])["token_selection"].indices[0]
    again = model(images[1:], None, targets[1:], image_ids=[9])["token_selection"].indices[0]
    assert torch.equal(kept[1:], again)
    assert not torch.equal(kept[0], kept[1])


def test_a_step_of_training_draws_other_random_tokens_than_the_next():
    model = build(**selection(scoring={"kind": "random"}), **BY_CATEGORY).train()
    images, targets = torch.randn(1, 3, 64, 64), boxes(1)
    kept = [
        model(images, None, targets, BatchShare(0, 1, 1, seed), [5])["token_selection"].indices[0]
        for seed in (11, 12, 11)
    ]
    assert torch.equal(kept[0], kept[2])
    assert not torch.equal(kept[0], kept[1])


def test_oracle_scoring_says_what_it_needs():
    model = build(**selection(scoring={"kind": "oracle"}), **BY_CATEGORY).eval()
    with pytest.raises(SpecError, match="`oracle` looks at the boxes of the images, got images w"):
        model(torch.randn(1, 3, 64, 64))


def test_the_scorer_that_imitates_the_decoder_is_told_where_it_looked():
    model = build(**selection(scoring={"kind": "decoder_attention"})).train()
    images, sizes = torch.randn(2, 3, 64, 64), [(64, 64), (32, 64)]
    output = model(images, sizes, boxes(2, 1))
    looked = output["decoder_attention"]
    assert looked.shape == output["foreground_logits"].shape == (2, 85)
    assert not looked.requires_grad
    # 12 queries of 4 heads in 2 layers, each with a total attention of 1; some leave the image.
    assert (looked.clamp(min=0).sum(dim=1) <= 12 * 4 * 2 + 1e-3).all()
    assert (looked.clamp(min=0).sum(dim=1) > 0).all()
    assert (looked[1] == -1).sum() == 85 - output["token_selection"].valid_counts[1]
    assert model.eval()(images, sizes)["decoder_attention"] is None


def test_denoising_queries_do_not_teach_the_scorer_where_the_boxes_are():
    model = build(
        **selection(scoring={"kind": "decoder_attention"}),
        backbone={"kind": "resnet", "depth": 18},
    ).train()
    images = torch.randn(1, 3, 64, 64)
    with_boxes, without = model(images, None, boxes(2)), model(images, None, boxes(0))
    assert with_boxes["denoising"] is not None
    torch.testing.assert_close(with_boxes["decoder_attention"], without["decoder_attention"])


@pytest.mark.parametrize(
    ("changes", "gone"),
    [
        ({"dual_attention": {"enabled": False}}, "dual_attention"),
        ({"denoising": {"enabled": False}}, "denoising"),
        (selection(score_modulation={"enabled": False}), "modulation"),
        (
            {
                **selection(scoring={"kind": "dense"}, keep_ratio=1.0, cascade=[1.0, 1.0]),
                "dual_attention": {"enabled": False},
            },
            "token_selector",
        ),
    ],
)
def test_what_is_switched_off_leaves_no_parameters(changes, gone):
    assert any(gone in name for name in build().state_dict())
    assert not any(gone in name for name in build(**changes).state_dict())


def test_the_effective_selection_is_reported():
    assert build(**selection(keep_ratio=0.3)).effective_token_selection == {
        "keep_ratio": 0.3,
        "cascade": (1.0, 0.5),
        "level_keep_ratios": None,
    }
    dense = build(
        **selection(scoring={"kind": "dense"}, keep_ratio=1.0, cascade=[1.0, 1.0]),
        dual_attention={"enabled": False},
    )
    assert dense.effective_token_selection == {
        "keep_ratio": 1.0,
        "cascade": (1.0, 1.0),
        "level_keep_ratios": None,
    }
    assert dense.eval()(torch.randn(1, 3, 64, 64))["token_selection"] is None


def test_ratios_by_level_reach_the_selection():
    model = build(**selection(level_keep_ratios=[0.2, 0.6, 1.0, 1.0], keep_ratio=1.0)).eval()
    chosen = model(torch.randn(1, 3, 64, 64))["token_selection"]
    assert chosen.budgets == (12 + 9 + 4 + 1,)
    assert chosen.counts == (26, 13)
    kept = chosen.indices[0][0]
    assert [int(((kept >= a) & (kept < b)).sum()) for a, b in ((0, 64), (64, 80), (80, 85))] == [
        *(12, 9, 5)
    ]


def test_a_background_embedding_is_drawn_as_it_should_be_and_changes_detections():
    plain = build(**selection(keep_ratio=0.2)).eval()
    embedded = build(**selection(keep_ratio=0.2, background_embedding={"enabled": True})).eval()
    table = embedded.encoder.background_embedding.rows.weight
    assert table.shape == (200, 16)
    assert 0 <= table.min() < table.max() < 1
    state = plain.state_dict()
    embedded.load_state_dict(state | {
        name: tensor for name, tensor in embedded.state_dict().items() if "background" in name
    })  # fmt: skip
    images = torch.randn(1, 3, 64, 64)
    assert not torch.equal(embedded(images)["pred_logits"], plain(images)["pred_logits"])


def test_denoising_queries_come_with_targets_in_training_only():
    model, images = build(), torch.randn(2, 3, 64, 64)
    model.train()
    output = model(images, None, boxes(2, 1))
    meta = output["denoising_meta"]
    assert (meta.groups, meta.single_padding, meta.padded_size) == (2, 4, 8)
    assert output["denoising"]["pred_boxes"].shape == (2, 8, 4)
    assert output["pred_boxes"].shape == (2, 12, 4)
    assert len(output["denoising"]["aux_outputs"]) == len(output["aux_outputs"]) == 1
    assert model(images)["denoising"] is None
    assert model.eval()(images, None, boxes(2, 1))["denoising"] is None


def test_a_batch_without_boxes_still_gives_the_label_embedding_a_gradient():
    model = build().train()
    output = model(torch.randn(2, 3, 64, 64), None, boxes(0, 0))
    assert output["denoising"] is None
    everything(output).backward()
    assert model.denoising.label_embedding.weight.grad.abs().max() == 0


def test_matching_queries_do_not_see_denoising_queries():
    model = build(backbone={"kind": "resnet", "depth": 18}).train()  # no batch statistics
    images = torch.randn(1, 3, 64, 64)
    a, b = model(images), model(images, None, boxes(2))
    for x, y in zip(predictions(a), predictions(b), strict=True):
        torch.testing.assert_close(x, y)


def test_class_heads_start_at_the_prior_and_box_heads_at_zero():
    model = build(class_prior=0.02)
    for head in model.class_heads:
        torch.testing.assert_close(head.bias.sigmoid(), torch.full((CLASSES,), 0.02))
    assert all(head.layers[-1].weight.abs().max() == 0 for head in model.box_heads)
    assert len(model.class_heads) == len(model.box_heads) == 3
    assert not torch.equal(model.class_heads[0].weight, model.class_heads[1].weight)


def test_scores_and_boxes_are_float32_under_autocast():
    model = build().train()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = model(torch.randn(2, 3, 64, 64), [(64, 64), (40, 64)], boxes(1, 2))
    for layer in (output, output["enc_outputs"], output["denoising"], *output["aux_outputs"]):
        assert layer["pred_boxes"].dtype == layer["pred_logits"].dtype == torch.float32
    assert output["foreground_logits"].dtype == torch.float32
    everything(output).backward()


def test_results_are_the_same_twice_and_after_copying():
    model, images = build().eval(), torch.randn(2, 3, 64, 64)
    expected = model(images)["pred_logits"]
    assert torch.equal(model(images)["pred_logits"], expected)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(other(images)["pred_logits"], expected)


def test_the_first_image_alone_has_the_numbers_that_it_has_beside_its_twin():
    model, image = build().eval(), torch.randn(1, 3, 64, 96)
    alone, twins = model(image), model(image.expand(2, -1, -1, -1))
    for a, b in zip(predictions(alone), predictions(twins), strict=True):
        torch.testing.assert_close(b[:1], a, rtol=1e-4, atol=1e-5)


def test_parameters_are_grouped_by_part():
    parts = {name.split(".")[0] for name, _ in build().named_parameters()}
    assert parts == {
        "backbone",
        "neck",
        "position",
        "token_selector",
        "encoder",
        "proposals",
        "decoder",
        "class_heads",
        "box_heads",
        "denoising",
    }
