"""Golden A: the sampling operation with its gradients, and the block with its projections."""

import pytest
import torch

from focus_lab.model.deformable_attention import DeformableAttention, project_values
from focus_lab.ops import deformable_attention, library_state

STATE = library_state()
IMPLEMENTATIONS = [
    "reference",
    pytest.param(
        "compiled",
        marks=pytest.mark.skipif(not STATE.ok, reason=f"compiled operators: {STATE.reason}"),
    ),
]


def operation_inputs(fixture, formula, dtype):
    config, tensors = fixture.config, fixture.tensors
    key, shapes = config["fixture_key"], tuple(tuple(shape) for shape in config["levels_hw"])
    layout = (config["B"], config["queries"], config["heads"], len(shapes), config["points"])
    channels = config["channels_per_head"]
    tokens = sum(h * w for h, w in shapes)
    if "value" in tensors:
        value, locations, upstream = (
            tensors[name] for name in ("value", "locations", "grad_output")
        )
    else:
        value = formula.normal(key, "value", (layout[0], tokens, layout[2], channels))
        locations = formula.uniform(key, "locations", (*layout, 2), -0.3, 1.3)
        upstream = formula.normal(key, "grad_output", (*layout[:2], layout[2] * channels))
    leaves = [x.to(dtype).requires_grad_() for x in (value, locations, tensors["weights"])]
    return shapes, leaves, upstream.to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", ["A_msda_small", "A_msda_h8c32", "A_msda_edges"])
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_the_operation_and_its_gradients_match_the_release(
    implementation, name, dtype, golden, formula
):
    fixture = golden(name)
    shapes, (value, locations, weights), upstream = operation_inputs(fixture, formula, dtype)
    output = deformable_attention(value, shapes, locations, weights, implementation)
    output.backward(upstream)
    fixture.check("output", output.detach(), atol=1e-9)
    fixture.check("grad_value", value.grad, atol=1e-9)
    fixture.check("grad_weights", weights.grad, atol=1e-9)
    if "grad_locations" in fixture.tensors:  # has kinks where the edge case samples
        fixture.check("grad_locations", locations.grad, atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("coordinates", [2, 4])
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_the_block_with_projections_matches_the_release(
    implementation, coordinates, dtype, golden, formula
):
    fixture = golden("A_msda_module")
    config, tensors = fixture.config, fixture.tensors
    shapes = tuple(tuple(shape) for shape in config["levels_hw"])
    block = DeformableAttention(
        config["d_model"],
        config["heads"],
        len(shapes),
        config["points"],
        implementation=implementation,
    )
    state = {
        name: formula.parameter(name, tensor.shape, config["fill_salt"])
        for name, tensor in block.state_dict().items()
    }
    block.load_state_dict(state)
    block.to(dtype)
    query, position, value = (tensors[name].to(dtype) for name in ("query", "query_pos", "value"))
    projected = project_values([block], value, tensors["padding_mask"].bool())[0]
    references = tensors[f"reference_points_{coordinates}"].to(dtype)
    widths_heights = torch.tensor([(w, h) for h, w in shapes], dtype=torch.float32)
    with torch.no_grad():
        attended = block(query + position, references, projected, shapes, widths_heights)
    fixture.check(f"output_ref{coordinates}", query + attended, atol=1e-9)
