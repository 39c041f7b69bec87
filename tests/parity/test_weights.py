"""Released tensor names: R50 has the release's parameters; checkpoints go in and out."""

import json
from pathlib import Path

import pytest
import torch

from focus_lab.errors import WeightsError
from focus_lab.model.focus_detr import build_model
from focus_lab.model.weights import convert_released, released_name, to_released
from focus_lab.specs.model import ModelSpec

NAMES = json.loads((Path(__file__).parent / "fixtures" / "r50_names.json").read_text())
SMALL = ModelSpec.model_validate(
    {
        "backbone": {"kind": "resnet", "depth": 18},
        "hidden_dim": 32,
        "num_heads": 4,
        "dim_feedforward": 32,
        "num_encoder_layers": 2,
        "num_decoder_layers": 2,
        "num_queries": 20,
        "token_selection": {"cascade": [1.0, 0.5]},
    }
)


def small_state():
    return build_model(SMALL, 5).state_dict()


def test_resnet50_has_exactly_the_released_names_and_shapes():
    with torch.device("meta"):
        model = build_model(ModelSpec(), 80)
    released = {
        name: tuple(int(size) for size in shape.split("x"))
        for shape, names in NAMES["names_by_shape"].items()
        for name in names
    }
    ours = {released_name(name): tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    assert ours == released
    assert len(to_released(model.state_dict())) == NAMES["state_dict_entries"]
    parameters = list(model.parameters())
    assert sum(p.numel() for p in parameters) == NAMES["total_parameters"]
    assert sum(p.numel() for p in parameters if p.requires_grad) == NAMES["trainable_parameters"]


@pytest.mark.parametrize("nested", [False, True])
def test_a_checkpoint_survives_the_way_out_and_in(nested):
    state = small_state()
    released = to_released(state)
    assert "transformer.encoder.enhance_MCSP.1.weight" in released
    assert "transformer.decoder.bbox_embed.2.layers.2.bias" in released
    back = convert_released({"model": released, "iteration": 7} if nested else released, SMALL)
    assert back.keys() == state.keys()
    assert all(torch.equal(back[name], state[name]) for name in state)


def test_the_number_of_classes_is_read_from_the_checkpoint():
    spec = SMALL.model_copy(update={"num_queries": 20})
    released = to_released(build_model(spec, 9).state_dict())
    build_model(spec, 9).load_state_dict(convert_released(released, spec))


def test_what_does_not_fit_is_named():
    released = to_released(small_state())
    del released["transformer.alpha"]
    released["transformer.surplus"] = torch.zeros(1)
    released["transformer.level_embeds"] = torch.zeros(5, 32)
    with pytest.raises(WeightsError) as error:
        convert_released(released, SMALL)
    text = str(error.value)
    assert "transformer.alpha" in text
    assert "transformer.surplus" in text
    assert "transformer.level_embeds (5, 32) instead of (4, 32)" in text


def test_other_files_are_not_taken_for_a_release():
    with pytest.raises(WeightsError, match="not a released Focus-DETR"):
        convert_released({"layer.weight": torch.zeros(1)}, SMALL)


def test_models_without_a_released_counterpart_are_refused():
    tiny = ModelSpec.model_validate({"backbone": {"kind": "residual"}})
    with pytest.raises(WeightsError, match="only ResNet backbones"):
        convert_released(to_released(small_state()), tiny)
    with pytest.raises(WeightsError, match="no such tensors"):
        to_released(build_model(tiny, 2).state_dict())
    own_head = ModelSpec.model_validate(
        {**SMALL.model_dump(), "dual_attention": {"share_class_head": False}}
    )
    with pytest.raises(WeightsError, match="share_class_head"):
        convert_released(to_released(small_state()), own_head)
