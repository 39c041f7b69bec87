"""Deformable attention from projections: the compiled operator, held to the plain one."""

import math
import os
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.autograd import forward_ad
from torch.utils.flop_counter import FlopCounterMode

from focus_lab.ops import (
    deformable_attention,
    library_state,
    load,
    projected_deformable_attention,
)

STATE = library_state()
needs_library = pytest.mark.skipif(not STATE.ok, reason=f"compiled operators: {STATE.reason}")

SHAPES = ((7, 9), (4, 5), (2, 3), (1, 2))
SIZES = [size for shape in SHAPES for size in shape]
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 5e-3, torch.float16: 5e-3}
INPUTS = ("value", "reference points", "offsets", "logits")


@pytest.fixture
def threads():
    """Sets the number of torch's threads for one test."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def random_inputs(
    shapes=SHAPES,
    batch=2,
    queries=5,
    heads=2,
    channels=8,
    points=3,
    dtype=torch.float32,
    projected=None,
    size=2,
    shared=False,
    one_level=False,
    seed=0,
):
    """Value, reference points, offsets, logits, upstream gradient.

    Samples lie inside, across and beyond edges, none close to a pixel's centre, where the
    derivative has a step.
    """
    generator = torch.Generator().manual_seed(seed)

    def uniform(*layout):
        return torch.rand(*layout, generator=generator, dtype=torch.float64)

    def normal(*layout):
        return torch.randn(*layout, generator=generator, dtype=torch.float64)

    levels = len(shapes)
    layout = (batch, queries, heads, levels, points)
    sizes = torch.tensor([(w, h) for h, w in shapes], dtype=torch.float64)[:, None]  # [L, 1, 2]
    pixels = torch.floor(uniform(*layout, 2) * (sizes + 4)) - 2 + uniform(*layout, 2) * 0.6 + 0.2
    reference = uniform(1 if shared else batch, queries, 1 if one_level else levels, size)
    anchors = reference[:, :, None, :, None]
    exact = torch.float64 if dtype == torch.float64 else torch.float32
    reference = reference.to(exact)
    offsets = (pixels + 0.5) / sizes - anchors[..., :2]
    offsets = offsets * sizes if size == 2 else offsets / (anchors[..., 2:] * (0.5 / points))
    return (
        normal(batch, sum(h * w for h, w in shapes), heads, channels).to(dtype),
        reference,
        offsets.to(projected or exact),
        (2 * normal(batch, queries, heads, levels * points)).to(projected or exact),
        normal(batch, queries, heads * channels).to(dtype),
    )


def run(implementation, shapes, *inputs, wanted=(0, 1, 2, 3)):
    """Output and the gradients of value, reference points, offsets and logits."""
    *inputs, upstream = inputs
    leaves = [x.detach().clone().requires_grad_(n in wanted) for n, x in enumerate(inputs)]
    output = projected_deformable_attention(
        leaves[0], shapes, *leaves[1:], implementation=implementation
    )
    return [
        output.detach(),
        *torch.autograd.grad(output, [leaves[number] for number in wanted], upstream),
    ]


def check_against_reference(dtype, shapes=SHAPES, projected=None, **more):
    inputs = random_inputs(shapes, dtype=dtype, projected=projected, **more)
    actual = run("compiled", shapes, *inputs)
    assert [x.dtype for x in actual] == [x.dtype for x in (inputs[4], *inputs[:4])]
    assert [x.shape for x in actual] == [x.shape for x in (inputs[4], *inputs[:4])]
    expected = run("reference", shapes, *(x.double() for x in inputs))
    for number, name in enumerate(("output", *INPUTS)):
        ours, theirs = actual[number].double(), expected[number]
        tolerance = TOLERANCE[dtype if number < 2 else actual[number].dtype]
        if dtype in (torch.bfloat16, torch.float16):
            tolerance = max(tolerance, 1e-4)
        # Heads and levels apart, so that an error in one cannot hide behind the others.
        if name == "offsets":
            ours, theirs = (x.movedim((2, 3), (0, 1)).flatten(0, 1) for x in (ours, theirs))
        elif name == "logits":
            ours, theirs = (x.movedim(2, 0) for x in (ours, theirs))
        else:
            ours, theirs = ours[None], theirs[None]
        scale = float(theirs.abs().max()) if theirs.numel() else 0.0
        for part, (our, their) in enumerate(zip(ours, theirs, strict=True)):
            error, bound = float((our - their).norm()), tolerance * float(their.norm())
            assert error <= bound + tolerance * 0.1 * scale, f"{name}, part {part}: {error}"


# --- Numbers ---


@needs_library
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("size", [2, 4])
@pytest.mark.parametrize("points", [1, 3, 4, 8])
def test_it_equals_the_definition_around_points_and_boxes(points, size, dtype):
    check_against_reference(dtype, points=points, size=size, channels=16)


@needs_library
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("projected", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("size", [2, 4])
def test_16_bit_projections_make_locations_and_weights_in_float32(size, projected, dtype):
    check_against_reference(dtype, projected=projected, size=size, channels=16, points=4)


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
    size=st.sampled_from([2, 4]),
    shared=st.booleans(),
    one_level=st.booleans(),
    seed=st.integers(0, 2**31),
)
def test_it_equals_the_definition_for_any_shapes(dtype, shapes, **more):
    check_against_reference(dtype, tuple(shapes), **more)


@needs_library
@pytest.mark.parametrize("size", [2, 4])
@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("wanted", [(0,), (1,), (2,), (3,), (0, 1, 2, 3)])
def test_gradients_are_those_of_finite_differences(wanted, shared, size):
    shapes = ((3, 5), (2, 2))
    *inputs, _ = random_inputs(
        shapes,
        queries=2,
        channels=3,
        points=2,
        dtype=torch.float64,
        size=size,
        shared=shared,
        one_level=shared,
    )
    inputs = [x.requires_grad_(number in wanted) for number, x in enumerate(inputs)]
    assert torch.autograd.gradcheck(
        lambda value, *others: projected_deformable_attention(
            value, shapes, *others, implementation="compiled"
        ),
        inputs,
    )


@needs_library
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_weights_are_the_softmax_whatever_the_range_of_the_logits(dtype):
    # One pixel of one token each: the output is the weight of the level that has it.
    levels = 24
    shapes = ((1, 1),) * levels
    value = torch.eye(levels, dtype=dtype)[None, :, None]
    reference = torch.full((1, 200, 1, 2), 0.5, dtype=dtype)
    offsets = torch.zeros(1, 200, 1, levels, 1, 2, dtype=dtype)
    generator = torch.Generator().manual_seed(0)
    ranges = torch.logspace(-3, 4, 200)[:, None, None]
    logits = (torch.randn(1, 200, 1, levels, generator=generator) * ranges).to(dtype)
    logits[:, ::7, :, ::3] = -math.inf
    output = projected_deformable_attention(value, shapes, reference, offsets, logits, "compiled")
    expected = logits.double().softmax(-1)[:, :, 0]
    # The difference to the largest logit is rounded before its power is taken.
    difference = (logits.amax(-1, keepdim=True) - logits)[:, :, 0].double().clamp(max=1e3)
    bound = torch.finfo(dtype).eps * (8 + difference) * expected + 4 * torch.finfo(dtype).tiny
    assert ((output - expected).abs() <= bound).all()


@needs_library
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_logits_that_have_no_softmax_give_nan_to_their_head_alone(bad):
    *inputs, _ = random_inputs(channels=16, points=4)
    before = projected_deformable_attention(inputs[0], SHAPES, *inputs[1:], "compiled")
    inputs[2][0, 1] = 0  # all of its samples inside
    inputs[1][0, 1] = 0.5
    inputs[3][0, 1, 1, 5] = bad
    after = projected_deformable_attention(inputs[0], SHAPES, *inputs[1:], "compiled")
    assert after[0, 1, 16:].isnan().all()
    assert not after[0, 1, :16].isnan().any()
    before[0, 1] = after[0, 1] = 0
    assert torch.equal(before, after)


@needs_library
@pytest.mark.parametrize("size", [2, 4])
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("offset", [1e6, -1e6, 3e38, math.inf, -math.inf, math.nan])
@pytest.mark.parametrize("axis", [0, 1])
def test_samples_outside_count_as_zero_and_get_zero_gradients(axis, offset, dtype, size):
    inputs = random_inputs(dtype=dtype, size=size, points=8)
    inputs[1][..., 2:] += 0.1
    inputs[2][..., axis] = offset
    # The gradient of a box is the sum of gradients times offsets: nothing times infinity.
    wanted = (0, 2, 3) if size == 4 and not math.isfinite(offset) else (0, 1, 2, 3)
    for result in run("compiled", SHAPES, *inputs, wanted=wanted):
        assert torch.equal(result, torch.zeros_like(result))


@needs_library
@pytest.mark.parametrize(("batch", "queries"), [(0, 5), (2, 0), (0, 0)])
@pytest.mark.parametrize("shared", [False, True])
def test_without_images_or_queries_there_is_nothing_or_zero(shared, batch, queries):
    inputs = random_inputs(batch=batch, queries=queries, shared=shared)
    results = run("compiled", SHAPES, *inputs)
    assert [x.shape for x in results] == [x.shape for x in (inputs[4], *inputs[:4])]
    assert sum(float(x.abs().sum()) for x in results) == 0


# --- Memory and threads ---


@needs_library
@pytest.mark.parametrize("size", [2, 4])
def test_memory_layout_does_not_matter(size):
    inputs = random_inputs(channels=16, size=size)
    expected = run("compiled", SHAPES, *inputs)
    layers = [torch.stack((x, x + 1, x - 1), dim=2).unbind(2)[0] for x in inputs]
    swapped = [x.transpose(0, 1).contiguous().transpose(0, 1) for x in inputs]
    last = [x.movedim(-1, 0).contiguous().movedim(0, -1) for x in inputs]
    for other in (layers, swapped, last):
        leaves = [x.detach().requires_grad_() for x in other[:4]]
        output = projected_deformable_attention(leaves[0], SHAPES, *leaves[1:], "compiled")
        results = [output.detach(), *torch.autograd.grad(output, leaves, other[4])]
        assert all(torch.equal(a, b) for a, b in zip(results, expected, strict=True))


@needs_library
@pytest.mark.parametrize("projected", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("queries", [9, 300])
@pytest.mark.parametrize("heads", [1, 3])
@pytest.mark.parametrize("size", [2, 4])
def test_neither_threads_nor_wanted_gradients_change_a_bit(
    size, heads, queries, projected, threads
):
    shapes = ((30, 41), (15, 21), (8, 11), (4, 6), (2, 3))
    inputs = random_inputs(
        shapes,
        batch=1,
        queries=queries,
        heads=heads,
        channels=48,
        points=5,
        projected=projected,
        size=size,
    )
    threads(1)
    expected = run("compiled", shapes, *inputs)
    for number in (1, 2, 3, 5, 8):
        threads(number)
        actual = run("compiled", shapes, *inputs)
        assert all(torch.equal(a, b) for a, b in zip(actual, expected, strict=True)), number
        del actual[2]
        fewer = run("compiled", shapes, *inputs, wanted=(0, 2, 3))
        assert all(torch.equal(a, b) for a, b in zip(actual, fewer, strict=True)), number


_AT_A_LEVEL = """
import sys
sys.path.insert(0, sys.argv[1])
import test_projected as tests
for size in (2, 4):
    for points in (1, 4, 5):
        for dtype in tests.TOLERANCE:
            tests.check_against_reference(dtype, channels=16, points=points, size=size)
        for dtype in (tests.torch.bfloat16, tests.torch.float16):
            tests.check_against_reference(dtype, projected=dtype, points=points, size=size)
for dtype in (tests.torch.float32, tests.torch.float64):
    tests.test_weights_are_the_softmax_whatever_the_range_of_the_logits(dtype)
"""


@needs_library
@pytest.mark.parametrize("level", ["default", "avx2", "avx512"])
def test_every_instruction_set_gives_the_numbers(level):
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


# --- torch ---


@needs_library
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # the checks' own
@pytest.mark.parametrize("size", [2, 4])
@pytest.mark.parametrize("of_reference_points", [False, True])
def test_torch_s_own_checks_of_operators_pass(of_reference_points, size):
    load()
    *inputs, upstream = random_inputs(size=size)
    leaves = [
        x.requires_grad_(number != 1 or of_reference_points) for number, x in enumerate(inputs)
    ]
    operators = torch.ops.focus_lab
    torch.library.opcheck(
        operators.projected_deformable_attention.default, (leaves[0], SIZES, *leaves[1:])
    )
    value, *others = (x.detach() for x in inputs)
    torch.library.opcheck(
        operators.projected_deformable_attention_backward.default,
        (upstream, value, SIZES, *others, of_reference_points, True),
    )


@needs_library
@pytest.mark.parametrize("dynamic", [True, False])
def test_it_compiles_whole_and_once_for_all_sizes(dynamic):
    from torch._dynamo.testing import CompileCounterWithBackend

    def attend(value, height, width, *others):
        shapes = ((height, width), (3, 3))
        return projected_deformable_attention(value * 2, shapes, *others, "compiled")

    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(attend, fullgraph=True, dynamic=dynamic, backend=counter)
    sizes = [(5, 6, 7), (8, 7, 9), (9, 12, 11)] if dynamic else [(5, 6, 7)]
    for height, width, queries in sizes:
        *leaves, upstream = random_inputs(((height, width), (3, 3)), queries=queries)
        leaves = [x.requires_grad_() for x in leaves]
        results = []
        for function in (compiled, attend):
            output = function(leaves[0], height, width, *leaves[1:])
            results.append([output, *torch.autograd.grad(output, leaves, upstream)])
        assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))
    assert counter.frame_count == 1
    torch._dynamo.reset()


@needs_library
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_under_autocast_only_the_value_is_cast(dtype):
    value, reference, offsets, logits, upstream = random_inputs(projected=dtype)
    leaves = [x.requires_grad_() for x in (value, reference, offsets, logits)]
    with torch.autocast("cpu", dtype):
        output = projected_deformable_attention(leaves[0], SHAPES, *leaves[1:], "compiled")
    assert output.dtype == dtype
    gradients = torch.autograd.grad(output, leaves, upstream.to(dtype))
    assert [x.dtype for x in gradients] == [torch.float32, torch.float32, dtype, dtype]
    rounded = run(
        "compiled", SHAPES, value.to(dtype), reference, offsets, logits, upstream.to(dtype)
    )
    assert torch.equal(output, rounded[0])
    assert all(torch.equal(a, b) for a, b in zip(gradients[1:], rounded[2:], strict=True))


@needs_library
def test_it_counts_no_flops_as_in_the_reference():
    counts = []
    for name in ("compiled", "reference"):
        leaves = [x.to("meta").requires_grad_() for x in random_inputs()[:4]]
        sizes = torch.empty(4, 2, device="meta")
        with FlopCounterMode(display=False) as counter:
            output = projected_deformable_attention(
                leaves[0], SHAPES, *leaves[1:], name, widths_heights=sizes
            )
            output.sum().backward()
        assert output.shape == (2, 5, 16)
        assert all(leaf.grad.shape == leaf.shape for leaf in leaves)
        counts.append(counter.get_total_flops())
    assert counts == [0, 0]


@needs_library
def test_second_derivatives_are_refused_in_a_sentence():
    *inputs, _ = random_inputs()
    leaves = [x.requires_grad_() for x in inputs]
    output = projected_deformable_attention(leaves[0], SHAPES, *leaves[1:], "compiled")
    (gradient,) = torch.autograd.grad(output.sum(), leaves[2], create_graph=True)
    with pytest.raises(NotImplementedError, match=r"no second derivatives.*choose the reference"):
        gradient.sum().backward()


@needs_library
@pytest.mark.filterwarnings("ignore:There is a performance drop")  # torch's word for a loop
def test_vmap_is_a_loop_over_its_calls():
    *inputs, _ = random_inputs()
    batches = [torch.stack((x, x.flip(0), x + 0.5)) for x in inputs]

    def attend(value, *others):
        return projected_deformable_attention(value, SHAPES, *others, "compiled")

    expected = torch.stack([attend(*one) for one in zip(*batches, strict=True)])
    assert torch.equal(torch.vmap(attend)(*batches), expected)


@needs_library
@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")  # torch's own use of it
@pytest.mark.parametrize("number", range(4))
def test_forward_mode_and_functional_derivatives_are_refused_in_a_sentence(number):
    *inputs, _ = random_inputs()

    def attend(x):
        tensors = [*inputs[:number], x, *inputs[number + 1 :]]
        return projected_deformable_attention(tensors[0], SHAPES, *tensors[1:], "compiled")

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
    ("number", "change", "sentence"),
    [
        (2, lambda x: x[..., :1], r"offsets must be \[.*, 2\], got \[2, 5, 2, 4, 3, 1\]"),
        (2, lambda x: x[:1], r"value and offsets must have the same batch and heads, got value"),
        (
            2,
            lambda x: x.half(),
            r"offsets and logits have the wrong dtype, got float16 and float32",
        ),
        (
            1,
            lambda x: x.half(),
            r"reference_points have the wrong dtype, got float16; float32 with",
        ),
        (1, lambda x: x[:, :4], r"reference_points must be \[.*, 2 or 4\], got \[2, 4, 4, 2\]"),
        (1, lambda x: x[:, :, :3], r"reference_points must be .*, got \[2, 5, 3, 2\]"),
        (1, lambda x: x[..., :1], r"reference_points must be .*, got \[2, 5, 4, 1\]"),
        (1, lambda x: x[0], r"reference_points must be .*, got \[5, 4, 2\]"),
        (3, lambda x: x[..., 1:], r"logits must be .*, got logits \[2, 5, 2, 11\] and offsets"),
        (3, lambda x: x[:, 1:], r"logits must be \[batch, queries, heads, levels \* points\]"),
        (0, lambda x: x.double(), r"reference_points have the wrong dtype, got float32; float64"),
        (0, lambda x: x.int(), r"dtype that is not supported, got int32; float64, float32"),
        (0, lambda x: x[:, 1:], r"must cover the levels 7x9, 4x5, 2x3, 1x2, got value"),
    ],
)
def test_what_does_not_fit_is_refused_in_a_sentence(number, change, sentence):
    load()
    inputs = list(random_inputs()[:4])
    inputs[number] = change(inputs[number])
    with pytest.raises(RuntimeError, match=f"^deformable_attention: .*{sentence}"):
        torch.ops.focus_lab.projected_deformable_attention(inputs[0], SIZES, *inputs[1:])


def test_levels_that_do_not_fit_and_unknown_implementations_are_refused():
    value, *others, _ = random_inputs()
    with pytest.raises(ValueError, match=r"value and offsets must cover levels.*91 tokens are"):
        projected_deformable_attention(value[:, 1:], SHAPES, *others)
    with pytest.raises(ValueError, match="got 'best'; one of reference, compiled"):
        projected_deformable_attention(value, SHAPES, *others, "best")


# --- The definition ---


@pytest.mark.parametrize("size", [2, 4])
def test_the_definition_is_a_softmax_and_offsets_in_pixels_or_parts_of_a_box(size):
    value, reference, offsets, logits, _ = random_inputs(size=size, dtype=torch.float64)
    weights = logits.exp() / logits.exp().sum(-1, keepdim=True)
    locations = torch.empty_like(offsets)
    for level, (height, width) in enumerate(SHAPES):
        for axis, length in enumerate((width, height)):
            start = reference[:, :, level, axis, None, None]
            box = reference[:, :, level, -2:][..., axis, None, None]
            step = 1 / length if size == 2 else box / 2 / offsets.shape[4]
            locations[..., level, :, axis] = start + offsets[..., level, :, axis] * step
    expected = deformable_attention(value, SHAPES, locations, weights.view(offsets.shape[:-1]))
    output = projected_deformable_attention(value, SHAPES, reference, offsets, logits)
    torch.testing.assert_close(output, expected)
