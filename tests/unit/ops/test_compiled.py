"""The compiled deformable attention on a CPU, held to the plain one in float64."""

import dataclasses
import json
import math
import os
import shutil
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.autograd import forward_ad
from torch.utils.flop_counter import FlopCounterMode

from focus_lab.ops import CompiledOpError, compiled, deformable_attention, library_state, load

STATE = library_state()
needs_library = pytest.mark.skipif(not STATE.ok, reason=f"compiled operators: {STATE.reason}")

SHAPES = ((7, 9), (4, 5), (2, 3), (1, 2))
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 5e-3, torch.float16: 5e-3}


@pytest.fixture
def threads():
    """Sets the number of torch's threads for one test."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def tokens_of(shapes):
    return sum(height * width for height, width in shapes)


def random_inputs(
    shapes=SHAPES, batch=2, queries=5, heads=2, channels=8, points=3, dtype=torch.float32, seed=0
):
    """Value, locations, weights, upstream gradient; samples lie inside, across and beyond edges.

    None is close to a pixel's centre, where the derivative has a step.
    """
    generator = torch.Generator().manual_seed(seed)

    def normal(*size):
        return torch.randn(*size, generator=generator, dtype=torch.float64)

    layout = (batch, queries, heads, len(shapes), points)
    sizes = torch.tensor([(w, h) for h, w in shapes], dtype=torch.float64)[:, None]  # [L, 1, 2]
    shares = torch.rand(*layout, 2, generator=generator, dtype=torch.float64)
    pixels = torch.floor(shares * (sizes + 4)) - 2
    pixels += torch.rand(*layout, 2, generator=generator, dtype=torch.float64) * 0.7 + 0.15
    exact = torch.float64 if dtype == torch.float64 else torch.float32
    return (
        normal(batch, tokens_of(shapes), heads, channels).to(dtype),
        ((pixels + 0.5) / sizes).to(exact),
        normal(*layout).to(exact),
        normal(batch, queries, heads * channels).to(dtype),
    )


def run(implementation, shapes, value, locations, weights, upstream):
    """Output and the gradients of value, locations and weights."""
    leaves = [x.detach().clone().requires_grad_() for x in (value, locations, weights)]
    output = deformable_attention(leaves[0], shapes, *leaves[1:], implementation=implementation)
    return [output.detach(), *torch.autograd.grad(output, leaves, upstream)]


def by_part(shapes, results, heads):
    """The results cut so that an error in one head, level or point cannot hide behind others."""
    output, of_value, of_locations, of_weights = results
    sizes = torch.tensor([(w, h) for h, w in shapes], dtype=torch.float64)[:, None]
    per_pixel = of_locations.double() / sizes
    for head in range(heads):
        yield f"output of head {head}", output.unflatten(-1, (heads, -1))[:, :, head]
        levels = of_value[:, :, head].split([h * w for h, w in shapes], dim=1)
        for level, rows in enumerate(levels):
            yield f"gradient of value, head {head}, level {level}", rows
            for point in range(of_weights.shape[-1]):
                where = f"head {head}, level {level}, point {point}"
                yield f"gradient of locations, {where}", per_pixel[:, :, head, level, point]
                yield f"gradient of weights, {where}", of_weights[:, :, head, level, point]


def assert_close(shapes, actual, expected, heads, dtype):
    parts = zip(by_part(shapes, actual, heads), by_part(shapes, expected, heads), strict=True)
    scale = max(float(x.abs().max()) if x.numel() else 0.0 for x in expected)
    for (name, ours), (_, theirs) in parts:
        error = float((ours.double() - theirs).norm())
        bound = TOLERANCE[dtype] * float(theirs.norm())
        # Where a part is almost nothing, rounding of its large terms remains.
        rounding = TOLERANCE[dtype] * 1e-2 * scale
        assert error <= bound + rounding, f"{name}: {error} is more than {bound} + {rounding}"


def check_against_reference(dtype, shapes=SHAPES, heads=2, **more):
    inputs = random_inputs(shapes, heads=heads, dtype=dtype, **more)
    actual = run("compiled", shapes, *inputs)
    assert [x.dtype for x in actual] == [x.dtype for x in (inputs[3], *inputs[:3])]
    expected = run("reference", shapes, *(x.double() for x in inputs))
    assert_close(shapes, actual, expected, heads, dtype)


# --- Numbers ---


@needs_library
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("channels", [1, 2, 4, 8, 12, 16, 30, 32, 48, 64, 71, 96, 128])
def test_it_equals_the_reference_for_any_number_of_channels(channels, dtype):
    check_against_reference(dtype, channels=channels)


@needs_library
def test_it_equals_the_reference_for_more_than_a_thousand_channels():
    check_against_reference(torch.float32, channels=1025, queries=2)


@needs_library
@settings(deadline=None, max_examples=150)
@given(
    shapes=st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9)), min_size=1, max_size=6),
    batch=st.integers(1, 3),
    queries=st.integers(1, 13),
    heads=st.integers(1, 4),
    channels=st.integers(1, 40),
    points=st.integers(1, 8),
    dtype=st.sampled_from(list(TOLERANCE)),
    seed=st.integers(0, 2**31),
)
def test_it_equals_the_reference_for_any_shapes(dtype, shapes, **sizes):
    check_against_reference(dtype, tuple(shapes), **sizes)


@needs_library
@pytest.mark.parametrize("channels", [16, 20])
def test_levels_of_which_only_some_are_read_often_equal_the_reference(channels):
    # 100 queries read a row of the first level once, one of the last 160 times.
    check_against_reference(
        torch.float32, shapes=((30, 40), (5, 6), (2, 5)), queries=100, points=4, channels=channels
    )


@needs_library
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("queries", [1, 7, 251])
def test_few_and_many_queries_take_other_ways_to_the_same_numbers(queries, dtype):
    check_against_reference(
        dtype, ((20, 31), (10, 16)), heads=3, channels=16, points=4, queries=queries
    )


@needs_library
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("subset", [(0,), (1,), (2,), (0, 1, 2)])
def test_gradients_are_those_of_finite_differences(subset, seed):
    shapes = ((3, 5), (2, 2))
    *inputs, _ = random_inputs(
        shapes, batch=1, queries=2, channels=3, points=2, dtype=torch.float64, seed=seed
    )
    inputs = [x.requires_grad_(number in subset) for number, x in enumerate(inputs)]
    assert torch.autograd.gradcheck(
        lambda value, locations, weights: deformable_attention(
            value, shapes, locations, weights, implementation="compiled"
        ),
        inputs,
    )


@needs_library
@pytest.mark.parametrize("level", range(len(SHAPES)))
@pytest.mark.parametrize("corner", range(4))
def test_each_corner_of_each_level_has_its_own_weight(corner, level):
    height, width = SHAPES[level]
    row, column = height // 2 - corner // 2, width // 2 - corner % 2
    low, right = 0.3, 0.2
    value = torch.zeros(1, tokens_of(SHAPES), 2, 16)
    token = tokens_of(SHAPES[:level]) + height // 2 * width + width // 2
    value[0, token, 1, 5] = 1  # one pixel, one head, one channel
    locations = torch.full((1, 1, 2, len(SHAPES), 1, 2), 9.0)  # outside
    locations[..., level, 0, 0] = (column + right + 0.5) / width
    locations[..., level, 0, 1] = (row + low + 0.5) / height
    weights = torch.full(locations.shape[:-1], 2.0)
    upstream = torch.ones(1, 1, 32)
    output, of_value, of_locations, of_weights = run(
        "compiled", SHAPES, value, locations, weights, upstream
    )

    down, across = (1 - low, low)[corner // 2], (1 - right, right)[corner % 2]
    expected = torch.zeros(1, 1, 32)
    expected[0, 0, 16 + 5] = 2 * down * across
    torch.testing.assert_close(output, expected)
    torch.testing.assert_close(of_value[0, token], torch.full((2, 16), 2 * down * across))
    gradient = torch.zeros_like(weights)
    gradient[0, 0, 1, level, 0] = down * across
    torch.testing.assert_close(of_weights, gradient)
    gradient = torch.zeros_like(locations)
    gradient[0, 0, 1, level, 0, 0] = 2 * width * down * (1, -1)[corner % 2 == 0]
    gradient[0, 0, 1, level, 0, 1] = 2 * height * across * (1, -1)[corner // 2 == 0]
    torch.testing.assert_close(of_locations, gradient)


# --- Edges ---


@needs_library
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("coordinate", [-1.0, 2.0, 1e6, -1e6, 3e38, math.inf, -math.inf, math.nan])
@pytest.mark.parametrize("axis", [0, 1])
def test_samples_outside_count_as_zero_and_get_zero_gradients(axis, coordinate, dtype):
    inputs = random_inputs(dtype=dtype, points=8)
    inputs[1][..., axis] = coordinate
    for result in run("compiled", SHAPES, *inputs):
        assert torch.equal(result, torch.zeros_like(result))


@needs_library
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_samples_on_edges_and_centres_equal_the_reference(dtype):
    shapes = ((4, 8), (1, 2), (1, 1))  # powers of two: edges and centres are exact
    value, _, _, _ = random_inputs(shapes, dtype=dtype, batch=1)
    marks = [-0.5, 0.0, 0.5, 1.0, 1.5, 2.0, 3.5, 4.0, 6.5, 7.0, 7.5, 8.0]  # pixels from the edge
    grid = torch.cartesian_prod(torch.tensor(marks), torch.tensor(marks)).to(dtype)
    sizes = torch.tensor([(w, h) for h, w in shapes], dtype=dtype)
    locations = (grid[:, None] / sizes)[None, :, None, :, None].expand(-1, -1, 2, -1, -1, -1)
    weights = torch.ones(locations.shape[:-1], dtype=dtype)
    actual, expected = (
        deformable_attention(value, shapes, locations, weights, implementation=name)
        for name in ("compiled", "reference")
    )
    torch.testing.assert_close(actual, expected, rtol=1e-6, atol=1e-6)


@needs_library
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_pixels_that_no_sample_touches_do_no_harm(bad):
    value, locations, weights, upstream = random_inputs(channels=16, queries=40)
    touched = run("compiled", SHAPES, value, locations, weights, upstream)[1] != 0
    assert not touched.all()
    spoilt = torch.where(touched, value, bad)
    before = run("compiled", SHAPES, value, locations, weights, upstream)
    after = run("compiled", SHAPES, spoilt, locations, weights, upstream)
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


@needs_library
@pytest.mark.parametrize(("batch", "queries"), [(0, 5), (2, 0), (0, 0)])
def test_without_images_or_queries_there_is_nothing_or_zero(batch, queries):
    inputs = random_inputs(batch=batch, queries=queries)
    output, of_value, of_locations, of_weights = run("compiled", SHAPES, *inputs)
    assert output.shape == inputs[3].shape
    assert of_value.shape == inputs[0].shape
    assert of_value.abs().sum() == 0
    assert of_locations.shape == inputs[1].shape
    assert of_weights.shape == inputs[2].shape


@needs_library
@pytest.mark.parametrize("queries", [1, 13, 101])
def test_queries_in_another_order_give_the_same_rows(queries):
    value, locations, weights, upstream = random_inputs(batch=3, queries=queries, channels=32)
    order = torch.randperm(queries, generator=torch.Generator().manual_seed(1))
    straight = run("compiled", SHAPES, value, locations, weights, upstream)
    mixed = run(
        "compiled", SHAPES, value, locations[:, order], weights[:, order], upstream[:, order]
    )
    assert torch.equal(mixed[0], straight[0][:, order])
    assert torch.equal(mixed[2], straight[2][:, order])
    assert torch.equal(mixed[3], straight[3][:, order])


# --- Memory and threads ---


@needs_library
def test_memory_layout_does_not_matter():
    inputs = random_inputs(channels=16)
    expected = run("compiled", SHAPES, *inputs)
    layers = [torch.stack((x, x + 1, x - 1), dim=2).unbind(2)[0] for x in inputs]
    swapped = [x.transpose(0, 1).contiguous().transpose(0, 1) for x in inputs]
    backwards = [x.flip(-1).contiguous().flip(-1) for x in inputs]
    shifted = []
    for x in inputs:
        room = torch.empty(x.numel() + 1, dtype=x.dtype)
        shifted.append(room[1:].view(x.shape).copy_(x))
    last = [x.movedim(-1, 0).contiguous().movedim(0, -1) for x in inputs]
    for other in (layers, swapped, backwards, shifted, last):
        value, locations, weights, upstream = other
        leaves = [x.detach().requires_grad_() for x in (value, locations, weights)]
        output = deformable_attention(leaves[0], SHAPES, *leaves[1:], implementation="compiled")
        results = [output.detach(), *torch.autograd.grad(output, leaves, upstream)]
        assert all(torch.equal(a, b) for a, b in zip(results, expected, strict=True))


@needs_library
def test_an_expanded_upstream_gradient_is_read_right():
    value, locations, weights, upstream = random_inputs()
    ones = torch.ones_like(upstream)
    expected = run("compiled", SHAPES, value, locations, weights, ones)
    value.requires_grad_()
    deformable_attention(
        value, SHAPES, locations, weights, implementation="compiled"
    ).sum().backward()
    assert torch.equal(value.grad, expected[1])


@needs_library
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("queries", [9, 300])
@pytest.mark.parametrize("heads", [1, 3])
def test_any_number_of_threads_gives_the_same_bits(heads, queries, dtype, threads):
    shapes = ((30, 41), (15, 21), (8, 11), (4, 6), (2, 3))
    inputs = random_inputs(
        shapes, batch=1, queries=queries, heads=heads, channels=48, points=5, dtype=dtype
    )
    threads(1)
    expected = run("compiled", shapes, *inputs)
    for number in (2, 3, 5, 8):
        threads(number)
        actual = run("compiled", shapes, *inputs)
        assert all(torch.equal(a, b) for a, b in zip(actual, expected, strict=True)), number


_AT_A_LEVEL = """
import ctypes, json, sys
import torch
import focus_lab.ops as ops
assert not [name for name in ("torch._dynamo", "pydantic", "ray", "mlflow") if name in sys.modules]
assert not hasattr(torch.ops.focus_lab, "deformable_attention"), "loaded by the import"
sys.path.insert(0, sys.argv[1])
import test_compiled as tests
for channels in (1, 8, 16, 32, 71):
    for dtype in tests.TOLERANCE:
        tests.check_against_reference(dtype, channels=channels, points=5)
library = ctypes.CDLL(str(ops.load().path))
library.focus_lab_ops_cpu_level.restype = ctypes.c_char_p
print(library.focus_lab_ops_cpu_level().decode())
"""


@needs_library
@pytest.mark.parametrize("level", ["default", "avx2", "avx512"])
def test_every_instruction_set_gives_the_numbers_and_importing_loads_nothing(level):
    capability = torch.backends.cpu.get_cpu_capability()
    order = ["DEFAULT", "AVX2", "AVX512"]
    if capability not in order or order.index(level.upper()) > order.index(capability):
        pytest.skip(f"this processor has {capability} only")
    done = subprocess.run(
        [sys.executable, "-c", _AT_A_LEVEL, os.path.dirname(__file__)],  # noqa: PTH120
        env=os.environ | {"ATEN_CPU_CAPABILITY": level},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [level]


# --- torch ---


@needs_library
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # the checks' own
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_torch_s_own_checks_of_operators_pass(dtype):
    load()
    value, locations, weights, upstream = random_inputs(dtype=dtype)
    sizes = [size for shape in SHAPES for size in shape]
    leaves = [x.requires_grad_() for x in (value, locations, weights)]
    operators = torch.ops.focus_lab
    torch.library.opcheck(operators.deformable_attention.default, (leaves[0], sizes, *leaves[1:]))
    torch.library.opcheck(
        operators.deformable_attention_backward.default,
        (upstream, value.detach(), sizes, locations.detach(), weights.detach(), True),
    )


@needs_library
@pytest.mark.parametrize("dynamic", [True, False])
def test_it_compiles_whole_and_once_for_all_sizes(dynamic):
    from torch._dynamo.testing import CompileCounterWithBackend

    def attend(value, height, width, locations, weights):
        shapes = ((height, width), (3, 3))
        return deformable_attention(
            value * 2, shapes, locations, weights, implementation="compiled"
        )

    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(attend, fullgraph=True, dynamic=dynamic, backend=counter)
    sizes = [(5, 6, 7), (8, 7, 9), (9, 12, 11)] if dynamic else [(5, 6, 7)]
    for height, width, queries in sizes:
        shapes = ((height, width), (3, 3))
        *leaves, upstream = random_inputs(shapes, queries=queries)
        leaves = [x.requires_grad_() for x in leaves]
        results = []
        for function in (compiled, attend):
            output = function(leaves[0], height, width, *leaves[1:])
            results.append([output, *torch.autograd.grad(output, leaves, upstream)])
        assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))
    assert counter.frame_count == 1
    torch._dynamo.reset()


@needs_library
def test_it_exports_as_one_node_for_any_number_of_queries():
    class Attend(torch.nn.Module):
        def forward(self, value, locations, weights):
            return deformable_attention(value, SHAPES, locations, weights, "compiled")

    *inputs, _ = random_inputs()
    some = {1: torch.export.Dim("queries")}
    program = torch.export.export(
        Attend(),
        tuple(inputs),
        dynamic_shapes={"value": None, "locations": some, "weights": some},
    )
    called = [node.target for node in program.graph.nodes if node.op == "call_function"]
    assert called == [torch.ops.focus_lab.deformable_attention.default]
    *others, _ = random_inputs(queries=11)
    assert torch.equal(program.module()(*others), Attend()(*others))


@needs_library
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_under_autocast_only_the_value_loses_precision(dtype):
    value, locations, weights, upstream = random_inputs()
    leaves = [x.requires_grad_() for x in (value, locations, weights)]
    with torch.autocast("cpu", dtype):
        output = deformable_attention(leaves[0], SHAPES, *leaves[1:], implementation="compiled")
    assert output.dtype == dtype
    gradients = torch.autograd.grad(output, leaves, upstream.to(dtype))
    assert [x.dtype for x in gradients] == [torch.float32] * 3
    rounded = run("compiled", SHAPES, value.to(dtype), locations, weights, upstream.to(dtype))
    assert torch.equal(output, rounded[0])
    assert torch.equal(gradients[1], rounded[2])
    assert torch.equal(gradients[0], rounded[1].float())


@needs_library
def test_under_autocast_a_value_in_float64_stays():
    value, locations, weights, _ = random_inputs(dtype=torch.float64)
    with torch.autocast("cpu", torch.bfloat16):
        output = deformable_attention(value, SHAPES, locations, weights, implementation="compiled")
    assert output.dtype == torch.float64


@needs_library
def test_a_checkpoint_computes_it_again():
    from torch.utils.checkpoint import checkpoint

    inputs = random_inputs()
    expected = run("compiled", SHAPES, *inputs)
    leaves = [x.clone().requires_grad_() for x in inputs[:3]]
    output = checkpoint(
        lambda *tensors: deformable_attention(
            tensors[0], SHAPES, *tensors[1:], implementation="compiled"
        ),
        *leaves,
        use_reentrant=False,
    )
    actual = [output.detach(), *torch.autograd.grad(output, leaves, inputs[3])]
    assert all(torch.equal(a, b) for a, b in zip(actual, expected, strict=True))


@needs_library
def test_sampling_counts_no_flops_as_in_the_reference():
    counts = []
    for name in ("compiled", "reference"):
        value, locations, weights, _ = (x.to("meta") for x in random_inputs())
        value.requires_grad_()
        with FlopCounterMode(display=False) as counter:
            output = deformable_attention(value, SHAPES, locations, weights, implementation=name)
            output.sum().backward()
        assert output.shape == (2, 5, 16)
        counts.append(counter.get_total_flops())
    assert counts == [0, 0]


@needs_library
def test_second_derivatives_are_refused_in_a_sentence():
    value, locations, weights, _ = random_inputs()
    value.requires_grad_()
    locations.requires_grad_()
    output = deformable_attention(value, SHAPES, locations, weights, implementation="compiled")
    (gradient,) = torch.autograd.grad(output.sum(), locations, create_graph=True)
    with pytest.raises(NotImplementedError, match=r"no second derivatives.*choose the reference"):
        gradient.sum().backward()


@needs_library
@pytest.mark.filterwarnings("ignore:There is a performance drop")  # torch's word for a loop
def test_vmap_is_a_loop_over_its_calls():
    *inputs, _ = random_inputs()
    batches = [torch.stack((x, x.flip(0), x + 0.5)) for x in inputs]

    def attend(value, locations, weights):
        return deformable_attention(value, SHAPES, locations, weights, "compiled")

    expected = torch.stack([attend(*one) for one in zip(*batches, strict=True)])
    assert torch.equal(torch.vmap(attend)(*batches), expected)


@needs_library
@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")  # torch's own use of it
@pytest.mark.parametrize("number", range(3))
def test_forward_mode_and_functional_derivatives_are_refused_in_a_sentence(number):
    *inputs, _ = random_inputs()

    def attend(x):
        tensors = [*inputs[:number], x, *inputs[number + 1 :]]
        return deformable_attention(tensors[0], SHAPES, *tensors[1:], "compiled")

    x = inputs[number]
    with pytest.raises(NotImplementedError, match=r"no forward-mode derivatives.*the reference"):
        torch.func.jvp(attend, (x,), (x,))
    with forward_ad.dual_level():
        attend(x)  # none is asked for
        with pytest.raises(NotImplementedError, match="no forward-mode derivatives"):
            attend(forward_ad.make_dual(x, x))
    with pytest.raises(NotImplementedError, match=r"no derivatives of torch\.func.*torch\.auto"):
        torch.func.grad(lambda x: attend(x).sum())(x)


# --- Refusals ---


@needs_library
@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (
            {"value": lambda x: x[0]},
            r"value must be \[batch, tokens, heads, channels\], got \[91, 2, 8\]",
        ),
        (
            {"locations": lambda x: x[..., :1]},
            r"locations must be \[.*, 2\], got \[2, 5, 2, 4, 3, 1\]",
        ),
        ({"weights": lambda x: x[..., 0]}, r"weights must be \[.*\], got \[2, 5, 2, 4\]"),
        ({"weights": lambda x: x[:, :4]}, r"weights must have the shape of locations without"),
        (
            {"value": lambda x: x[:1]},
            r"must have the same batch and heads, got value \[1, 91, 2, 8\]",
        ),
        (
            {"value": lambda x: x[:, 1:]},
            r"must cover the levels 7x9, 4x5, 2x3, 1x2, got value .*; 91 tokens are needed",
        ),
        (
            {"sizes": lambda x: x[:-1]},
            r"a height and a width for each level, got 7 numbers.* 8 are",
        ),
        ({"sizes": lambda x: [0, *x[1:]]}, r"a level's size is out of range, got height 0"),
        ({"sizes": lambda x: [1 << 20, 1 << 20, *x[2:]]}, r"out of range, got height 1048576"),
        ({"value": lambda x: x.int()}, r"dtype that is not supported, got int32; float64, float32"),
        ({"locations": lambda x: x.half()}, r"wrong dtype, got float16 and float32; float32 with"),
        (
            {"value": lambda x: x.double()},
            r"got float32 and float32; float64 with a value in float64",
        ),
        (
            {"locations": lambda x: x[..., :0, :], "weights": lambda x: x[..., :0]},
            r"there must be heads, channels and points",
        ),
    ],
)
def test_what_does_not_fit_is_refused_in_a_sentence(changes, sentence):
    load()
    value, locations, weights, _ = random_inputs()
    inputs = {
        "value": value,
        "sizes": [size for shape in SHAPES for size in shape],
        "locations": locations,
        "weights": weights,
    }
    inputs |= {name: change(inputs[name]) for name, change in changes.items()}
    with pytest.raises(RuntimeError, match=f"^deformable_attention: .*{sentence}"):
        torch.ops.focus_lab.deformable_attention(*inputs.values())


@needs_library
def test_an_upstream_gradient_of_another_shape_or_dtype_is_refused():
    load()
    value, locations, weights, upstream = random_inputs()
    sizes = [size for shape in SHAPES for size in shape]
    backward = torch.ops.focus_lab.deformable_attention_backward
    with pytest.raises(RuntimeError, match=r"got \[2, 4, 16\]; \[2, 5, 16\] is needed"):
        backward(upstream[:, 1:], value, sizes, locations, weights, False)
    with pytest.raises(RuntimeError, match="the dtype of value, got float64 and float32"):
        backward(upstream.double(), value, sizes, locations, weights, False)


@needs_library
def test_a_value_beyond_32_bit_offsets_is_refused_before_it_is_read():
    load()
    height = 1 << 14
    value = torch.zeros(1).expand(1, height * height, 2, 8)
    locations, weights = torch.zeros(1, 1, 2, 1, 1, 2), torch.zeros(1, 1, 2, 1, 1)
    with pytest.raises(RuntimeError, match="one image has too many values"):
        torch.ops.focus_lab.deformable_attention(value, [height, height], locations, weights)


# --- The library ---


def test_a_missing_library_is_named_with_its_remedy(tmp_path):
    state = library_state(tmp_path / "none.so")
    assert (state.status, state.ok, state.build) == ("missing", False, {})
    with pytest.raises(CompiledOpError, match=r"none\.so is missing, it has not been built; build"):
        load(state.path)


@pytest.mark.parametrize("content", [b"", b"text", b'focus_lab_ops_build={"interface": \0'])
def test_a_file_that_is_no_such_library_is_broken(content, tmp_path):
    path = tmp_path / "broken.so"
    path.write_bytes(content)
    assert library_state(path).status == "broken"
    with pytest.raises(CompiledOpError, match=r"broken\.so is broken"):
        load(path)


def test_a_library_of_other_sources_is_stale(tmp_path):
    (tmp_path / "deformable_attention.h").write_text("other")
    facts = {"interface": 2, "source_hash": "0123456789abcdef"}
    path = tmp_path / "old.so"
    path.write_bytes(b"focus_lab_ops_build=" + json.dumps(facts).encode() + b"\0")
    state = library_state(path, tmp_path)
    assert state.status == "stale"
    assert "built from sources 0123456789abcdef" in state.reason
    assert library_state(path, tmp_path / "nowhere").status == "ok"  # an installed package


def test_a_library_of_another_interface_is_stale(tmp_path):
    path = tmp_path / "old.so"
    path.write_bytes(b'focus_lab_ops_build={"interface": 0}\0')
    state = library_state(path)
    assert (state.status, state.reason) == ("stale", "it has interface 0, 2 is needed")


@needs_library
def test_a_process_loads_one_library(tmp_path):
    loaded = load()
    assert load() is loaded
    assert {"source_hash", "torch", "cuda", "architectures"} <= loaded.build.keys()
    copy = tmp_path / loaded.path.name
    shutil.copy(loaded.path, copy)
    with pytest.raises(CompiledOpError, match="this process has loaded"):
        load(copy)


@needs_library
def test_a_tensor_on_a_gpu_and_a_library_without_cuda_are_a_sentence(monkeypatch):
    class OnGpu:
        is_cuda, device = True, torch.device("cuda:0")

    cpu_only = dataclasses.replace(load(), build={**load().build, "cuda": "none"})
    monkeypatch.setattr(compiled._PROCESS, "loaded", cpu_only)
    with pytest.raises(CompiledOpError, match=r"without CUDA kernels, got a tensor on cuda:0"):
        compiled.compiled_deformable_attention(OnGpu(), ((1, 1),), None, None)
