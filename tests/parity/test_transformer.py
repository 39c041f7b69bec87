"""Golden C: everything behind the neck, on given feature maps of a padded batch."""

import pytest
import torch

from focus_lab.model.feature_levels import FeatureLevels
from focus_lab.model.focus_detr import build_model
from focus_lab.model.memory_order import memory_order
from focus_lab.specs.model import ModelSpec


@pytest.fixture(scope="module", params=[torch.float32, torch.float64])
def detected(request, golden, formula):
    """The model's output, with what its parts saw on the way."""
    fixture = golden("C_transformer_small")
    config, dtype = fixture.config, request.param
    spec = ModelSpec.model_validate(
        {
            "backbone": {"kind": "residual", "widths": [8, 8, 8, 8, 8]},
            "hidden_dim": config["d"],
            "num_heads": config["heads"],
            "dim_feedforward": config["ffn"],
            "num_encoder_layers": config["enc"],
            "num_decoder_layers": config["dec"],
            "num_queries": config["queries"],
            "token_selection": {"keep_ratio": config["rho"], "cascade": config["cascade"]},
            "dual_attention": {"num_tokens": config["topk_sa"]},
        }
    )
    model = formula.fill(build_model(spec, config["classes"]), config["fill_salt"]).to(dtype).eval()
    seen = {"layers": [], "fine_grained": []}

    def record_layer(_, inputs, output):
        seen["layers"].append(output)
        tokens, _, choose = inputs[:3]
        seen["fine_grained"].append(choose(tokens))

    for layer in model.encoder.layers:
        layer.register_forward_hook(record_layer)
    for name in ("encoder", "proposals", "decoder"):
        getattr(model, name).register_forward_hook(
            lambda _, __, output, name=name: seen.update({name: output})
        )
    maps = [
        formula.normal(config["fixture_key"], f"feat{level}", (2, config["d"], *shape)).to(dtype)
        for level, shape in enumerate(config["shapes"])
    ]
    with torch.no_grad():
        levels = FeatureLevels.measure(maps, (128, 160), config["sizes"])
        output = model.detect(maps, levels, config["sizes"])
    return fixture, seen, output


def test_selections_equal_the_release(detected):
    fixture, seen, output = detected
    selection = output["token_selection"]
    assert selection.budgets == tuple(fixture.tensors["focus_token_nums"].tolist())
    for layer, indices in enumerate(selection.indices):
        assert torch.equal(indices, fixture.tensors[f"indices_layer{layer}"].long())
        worked_on = indices.gather(1, memory_order(selection)[:, : indices.shape[1]])
        chosen = worked_on.gather(1, seen["fine_grained"][layer])
        assert torch.equal(chosen, fixture.tensors[f"dual_attention_tokens_layer{layer}"].long())
    assert torch.equal(seen["proposals"].indices, fixture.tensors["topk_proposals"].long())


def test_every_encoder_layer_matches_the_release(detected):
    fixture, seen, output = detected
    order = memory_order(output["token_selection"])
    for layer, tokens in enumerate(seen["layers"]):
        # The release keeps tokens by falling score, ours follow each other in the image.
        where = order[:, : tokens.shape[1], None].expand_as(tokens)
        by_score = torch.zeros_like(tokens).scatter(1, where, tokens)
        fixture.check(f"enc_layer{layer}_first16", by_score[:, :16], atol=1e-5)
    fixture.check("memory", seen["encoder"][:, ::3], atol=1e-5)


def test_the_proposals_match_the_release(detected):
    fixture, seen, output = detected
    fixture.check("init_references", seen["proposals"].pred_boxes, atol=1e-5)
    fixture.check("enc_boxes", output["enc_outputs"]["pred_boxes"], atol=1e-5)
    fixture.check("enc_logits", output["enc_outputs"]["pred_logits"], atol=1e-5)


def test_decoder_states_and_references_match_the_release(detected):
    fixture, seen, _ = detected
    fixture.check("decoder_states", torch.stack(seen["decoder"].states), atol=1e-5)
    # The release refines once more behind the last layer; nothing reads it.
    references = torch.stack(seen["decoder"].references[1:])
    fixture.check(
        "decoder_references",
        references,
        atol=1e-5,
        expected=fixture.tensors["decoder_references"][:-1],
    )


def test_predictions_of_every_decoder_layer_match_the_release(detected):
    fixture, _, output = detected
    fixture.check("pred_logits", output["pred_logits"], atol=1e-5)
    fixture.check("pred_boxes", output["pred_boxes"], atol=1e-5)
    for layer, auxiliary in enumerate(output["aux_outputs"]):
        fixture.check(f"aux{layer}_logits", auxiliary["pred_logits"], atol=1e-5)
        fixture.check(f"aux{layer}_boxes", auxiliary["pred_boxes"], atol=1e-5)
