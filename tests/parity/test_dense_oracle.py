"""The dense path against `transformers`' Deformable DETR, with its weights copied."""

import pytest
import torch

from focus_lab.model.decoder import DecoderLayer
from focus_lab.model.deformable_attention import project_values
from focus_lab.model.encoder import Encoder, EncoderLayer
from focus_lab.model.feature_levels import FeatureLevels, flatten_levels, on_every_level
from focus_lab.model.position import TokenPositions
from focus_lab.model.token_selection import TokenSelector

theirs = pytest.importorskip("transformers.models.deformable_detr.modeling_deformable_detr")

WIDTH, HEADS, POINTS, HIDDEN, LAYERS = 32, 4, 3, 48, 2
SHAPES = ((8, 10), (4, 5), (2, 3))
SIZES = ((64, 56), (40, 80))
CANVAS = (64, 80)


@pytest.fixture
def oracle():
    config = theirs.DeformableDetrConfig(
        d_model=WIDTH,
        encoder_layers=LAYERS,
        encoder_attention_heads=HEADS,
        decoder_attention_heads=HEADS,
        encoder_n_points=POINTS,
        decoder_n_points=POINTS,
        encoder_ffn_dim=HIDDEN,
        decoder_ffn_dim=HIDDEN,
        num_feature_levels=len(SHAPES),
        dropout=0.0,
        disable_custom_kernels=True,
    )
    config._attn_implementation = "eager"
    return config


@pytest.fixture
def inputs():
    torch.manual_seed(0)
    maps = [torch.randn(2, WIDTH, *shape) for shape in SHAPES]
    levels = FeatureLevels.measure(maps, CANVAS, SIZES)
    positions = TokenPositions(WIDTH, len(SHAPES), 10000.0, -0.5)(levels).detach()
    return flatten_levels(maps), positions, levels, levels.padding_mask()


def scatter_weights(module):
    """Weights far from their start, so that offsets and attention weights matter."""
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.15)
    return module.eval()


def copied(source, target):
    """Their layer's weights under our names."""
    attention = "self_attn" if hasattr(source.self_attn, "value_proj") else "encoder_attn"
    state = {}
    for name, tensor in source.state_dict().items():
        for theirs_name, ours_name in (
            (f"{attention}_layer_norm.", "deformable_attention_norm."),
            (f"{attention}.", "deformable_attention."),
            ("mlp.fc1.", "feed_forward.expand."),
            ("mlp.fc2.", "feed_forward.contract."),
            ("final_layer_norm.", "feed_forward_norm."),
            ("self_attn_layer_norm.", "self_attention_norm."),
            ("self_attn.o_proj.", "self_attention.out_proj."),
        ):
            if name.startswith(theirs_name):
                state[ours_name + name.removeprefix(theirs_name)] = tensor
                break
    if attention == "encoder_attn":
        for kind in ("weight", "bias"):
            parts = [getattr(source.self_attn, f"{part}_proj") for part in "qkv"]
            state[f"self_attention.in_proj_{kind}"] = torch.cat(
                [getattr(part, kind) for part in parts]
            )
    target.load_state_dict(state)
    return target.eval()


@pytest.mark.parametrize("way", ["dense scoring", "keep ratio 1"])
def test_the_encoder_equals_the_oracle_on_every_image_token(way, oracle, inputs):
    tokens, positions, levels, padding = inputs
    reference = scatter_weights(theirs.DeformableDetrEncoder(oracle))
    layers = [
        copied(layer, EncoderLayer(WIDTH, HEADS, len(SHAPES), POINTS, HIDDEN, dual_attention=False))
        for layer in reference.layers
    ]
    ours = Encoder(layers, dual_attention_tokens=None, value_source="updated_tokens")
    selection = None
    if way == "keep ratio 1":
        scores = torch.rand(tokens.shape[:2])
        selection = TokenSelector(1.0, (1.0,) * LAYERS).select(scores, levels, padding)
    with torch.no_grad():
        expected = reference(
            inputs_embeds=tokens,
            attention_mask=~padding,
            spatial_position_embeddings=positions,
            spatial_shapes=torch.tensor(SHAPES),
            spatial_shapes_list=list(SHAPES),
            level_start_index=torch.tensor([0, 80, 100]),
            valid_ratios=levels.valid_ratios(),
        ).last_hidden_state
        memory = ours(tokens, positions, levels, padding, selection, torch.nn.Identity())
    torch.testing.assert_close(memory[~padding], expected[~padding], rtol=0, atol=2e-5)
    assert (memory - tokens)[~padding].abs().max() > 0.1


def test_a_decoder_layer_equals_the_oracle(oracle, inputs):
    memory, _, levels, padding = inputs
    reference = scatter_weights(theirs.DeformableDetrDecoderLayer(oracle))
    ours = copied(reference, DecoderLayer(WIDTH, HEADS, len(SHAPES), POINTS, HIDDEN))
    queries, positions = torch.randn(2, 2, 7, WIDTH).unbind()
    boxes = on_every_level(torch.rand(2, 7, 4), levels.valid_ratios())
    with torch.no_grad():
        expected = reference(
            queries,
            object_queries_position_embeddings=positions,
            reference_points=boxes,
            spatial_shapes=torch.tensor(SHAPES),
            spatial_shapes_list=list(SHAPES),
            level_start_index=torch.tensor([0, 80, 100]),
            encoder_hidden_states=memory,
            encoder_attention_mask=~padding,
        )
        value = project_values([ours.deformable_attention], memory, padding)[0]
        output = ours(queries, positions, boxes, value, SHAPES, levels.widths_heights(), None)
    torch.testing.assert_close(output, expected, rtol=0, atol=2e-5)
