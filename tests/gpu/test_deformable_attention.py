"""The compiled deformable attention on a GPU, held to the plain one in float64.

Needs torch, pytest and the built library only: from the checkout, without the rest,
`python -m pytest -c /dev/null --noconftest tests/gpu/test_deformable_attention.py`.
"""

import ctypes
import math
from collections.abc import Iterator, Sequence

import pytest
import torch
from torch import Tensor

from focus_lab.ops import (
    deformable_attention,
    library_state,
    load,
    projected_deformable_attention,
)

STATE = library_state()
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU"),
    pytest.mark.skipif(not STATE.ok, reason=f"compiled operators: {STATE.reason}"),
]

Shapes = tuple[tuple[int, int], ...]

PYRAMID: Shapes = ((7, 9), (4, 5), (2, 3), (1, 1))
STANDARD: Shapes = ((100, 167), (50, 84), (25, 42), (13, 21))  # 800 x 1333, strides 8 to 64
DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 5e-3, torch.float16: 1e-3}
DIRECT, SORTED, DETERMINISTIC = 1, 2, 3


def tokens_of(shapes: Shapes) -> int:
    return sum(height * width for height, width in shapes)


def random_inputs(
    shapes: Shapes = PYRAMID,
    batch: int = 2,
    queries: int = 5,
    heads: int = 2,
    channels: int = 32,
    points: int = 4,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
    device: str = "cuda",
) -> list[Tensor]:
    """Value, locations, weights, upstream gradient; samples lie inside, across and beyond edges.

    None is close to a pixel's centre, where the derivative has a step.
    """
    generator = torch.Generator(device).manual_seed(seed)

    def normal(*size: int) -> Tensor:
        return torch.randn(*size, generator=generator, dtype=torch.float64, device=device)

    layout = (batch, queries, heads, len(shapes), points)
    sizes = sizes_of(shapes, device)
    shares = torch.rand(*layout, 2, generator=generator, dtype=torch.float64, device=device)
    pixels = torch.floor(shares * (sizes + 4)) - 2
    pixels += 0.15 + 0.7 * torch.rand(
        *layout, 2, generator=generator, dtype=torch.float64, device=device
    )
    exact = torch.float64 if dtype == torch.float64 else torch.float32
    return [
        normal(batch, tokens_of(shapes), heads, channels).to(dtype),
        ((pixels + 0.5) / sizes).to(exact),
        normal(*layout).to(exact),
        normal(batch, queries, heads * channels).to(dtype),
    ]


def sizes_of(shapes: Shapes, device: str | torch.device) -> Tensor:
    """[L, 1, 2]: width and height."""
    return torch.tensor([(w, h) for h, w in shapes], dtype=torch.float64, device=device)[:, None]


def run(implementation: str, shapes: Shapes, inputs: Sequence[Tensor]) -> list[Tensor]:
    """Output and the gradients of value, locations and weights."""
    leaves = [x.detach().clone().requires_grad_() for x in inputs[:3]]
    output = deformable_attention(leaves[0], shapes, *leaves[1:], implementation=implementation)
    return [output.detach(), *torch.autograd.grad(output, leaves, inputs[3])]


def expected_results(shapes: Shapes, inputs: Sequence[Tensor]) -> list[Tensor]:
    return run("reference", shapes, [x.double() for x in inputs])


def assert_close(actual: Tensor, expected: Tensor, tolerance: float) -> None:
    """Not by the mean: each element, against the size of all."""
    if expected.numel() == 0:
        assert actual.shape == expected.shape
        return
    error = (actual.double() - expected).abs().nan_to_num(nan=math.inf).max()
    assert error <= tolerance * expected.abs().max(), f"error {error}"


def assert_results_close(
    shapes: Shapes, actual: Sequence[Tensor], expected: Sequence[Tensor], dtype: torch.dtype
) -> None:
    # Gradients of locations and weights are as precise as the arithmetic, not as the values.
    exact = 1e-12 if dtype == torch.float64 else 1e-5
    sizes = sizes_of(shapes, expected[0].device)
    assert_close(actual[0], expected[0], TOLERANCE[dtype])
    assert_close(actual[1], expected[1], TOLERANCE[dtype])
    assert_close(actual[2] / sizes, expected[2] / sizes, exact)
    assert_close(actual[3], expected[3], exact)


# --- The same numbers, otherwise in memory ---


def moved(x: Tensor) -> Tensor:
    return x.transpose(0, 1).contiguous().transpose(0, 1)


def shifted(x: Tensor) -> Tensor:
    """One element behind an aligned address."""
    memory = x.new_empty(x.numel() + 1)
    memory[1:] = x.flatten()
    return memory[1:].view(x.shape)


def sliced(x: Tensor) -> Tensor:
    return torch.stack([x, x], dim=-1)[..., 0]


# --- The kernels by themselves, with choices that are otherwise made by rule ---


class Level(ctypes.Structure):
    _fields_ = [(name, ctypes.c_int32) for name in ("height", "width", "start")]


class Problem(ctypes.Structure):
    """As in csrc/deformable_attention.h."""

    _fields_ = [
        *((name, ctypes.c_int64) for name in ("batch", "tokens", "queries", "heads", "channels")),
        *((name, ctypes.c_int32) for name in ("levels", "points", "dtype")),
        ("level", Level * 32),
        *((name, ctypes.c_int64) for name in ("value_batch_stride", "value_token_stride")),
        *((name, ctypes.c_int32) for name in ("reference_size", "reference_levels")),
        ("reference_batch_stride", ctypes.c_int64),
        ("projected", ctypes.c_int32),
    ]


def problem_of(shapes: Shapes, value: Tensor, locations: Tensor) -> Problem:
    batch, tokens, heads, channels = value.shape
    problem = Problem(batch, tokens, locations.shape[1], heads, channels)
    problem.levels, problem.points = locations.shape[3:5]
    problem.dtype = DTYPES.index(value.dtype)
    start = 0
    for number, (height, width) in enumerate(shapes):
        problem.level[number] = Level(height, width, start)
        start += height * width
    problem.value_batch_stride = tokens * heads * channels
    problem.value_token_stride = heads * channels
    return problem


def call_kernel(name: str, problem: Problem, arrays: Sequence[Tensor], *numbers: int) -> None:
    function = getattr(ctypes.CDLL(str(load().path)), name)
    function.restype = ctypes.c_char_p
    pointers = [ctypes.c_void_p(array.data_ptr()) for array in arrays]
    stream = ctypes.c_void_p(torch.cuda.current_stream().cuda_stream)
    error = function(ctypes.byref(problem), *pointers, *map(ctypes.c_int, numbers), stream)
    if error is not None:
        raise RuntimeError(error.decode())


def run_kernels(shapes: Shapes, inputs: Sequence[Tensor], variant: int, split: int) -> list[Tensor]:
    value, locations, weights, upstream = inputs
    problem = problem_of(shapes, value, locations)
    output = torch.full_like(upstream, math.nan)
    call_kernel(
        "focus_lab_cuda_forward_variant", problem, [value, locations, weights, output], split
    )
    gradients = [torch.full_like(x, math.nan) for x in inputs[:3]]
    workspace = torch.empty(value.numel() * 8 + 256, dtype=torch.uint8, device=value.device)
    call_kernel(
        "focus_lab_cuda_backward_variant",
        problem,
        [upstream, value, locations, weights, *gradients, workspace],
        variant,
        split,
    )
    return [output, *gradients]


# --- Numbers ---


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("channels", [4, 8, 12, 16, 32, 36, 64, 128])
@pytest.mark.parametrize(
    ("batch", "queries", "heads", "levels", "points"),
    [(2, 5, 2, 4, 4), (3, 37, 3, 3, 1), (1, 1, 8, 4, 4), (1, 301, 1, 2, 8), (5, 13, 2, 1, 3)],
)
def test_a_gpu_computes_what_the_definition_says(
    channels: int,
    dtype: torch.dtype,
    batch: int,
    queries: int,
    heads: int,
    levels: int,
    points: int,
) -> None:
    shapes = PYRAMID[:levels]
    inputs = random_inputs(shapes, batch, queries, heads, channels, points, dtype)
    expected = expected_results(shapes, inputs)
    actual = run("compiled", shapes, inputs)
    assert [x.dtype for x in actual] == [x.dtype for x in (inputs[3], *inputs[:3])]
    assert_results_close(shapes, actual, expected, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("channels", [4, 12, 16, 32, 64, 128])
@pytest.mark.parametrize("variant", [DIRECT, SORTED, DETERMINISTIC])
def test_every_way_to_sum_gives_the_same(variant: int, channels: int, dtype: torch.dtype) -> None:
    if variant == SORTED and dtype == torch.float64:
        pytest.skip("float64 is not sorted")
    for points, split in ((3, 1), (4, 2), (6, 4)):
        inputs = random_inputs(queries=523, channels=channels, points=points, dtype=dtype)
        expected = expected_results(PYRAMID, inputs)
        actual = run_kernels(PYRAMID, inputs, variant, split)
        assert_results_close(PYRAMID, actual, expected, dtype)


@pytest.mark.parametrize("shapes", [((40, 128),), ((1, 9000), (3, 4096)), ((200, 300), (9, 200))])
def test_sorting_adds_every_contribution_once(shapes: Shapes) -> None:
    inputs = random_inputs(shapes, queries=3000, points=5)
    # Most samples in a few pixels, as a crowd of neighbouring queries has them.
    inputs[1][:, ::3] = inputs[1][:, :1] * 0.5 + inputs[1][:, ::3] * 1e-3
    direct = run_kernels(shapes, inputs, DIRECT, 1)
    assert_close(run_kernels(shapes, inputs, SORTED, 1)[1], direct[1].double(), 1e-5)


def test_six_levels_and_thirty_two_are_as_good_as_four() -> None:
    for count in (6, 32):
        shapes = tuple((1 + level % 5, 1 + level % 7) for level in range(count))
        inputs = random_inputs(shapes, queries=61, points=2)
        expected = expected_results(shapes, inputs)
        for variant in (DIRECT, SORTED):
            actual = run_kernels(shapes, inputs, variant, 1)
            assert_results_close(shapes, actual, expected, torch.float32)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("queries", [900, 22223])
def test_a_standard_layer_computes_what_the_definition_says(
    queries: int, dtype: torch.dtype
) -> None:
    inputs = random_inputs(STANDARD, batch=1, queries=queries, heads=8, dtype=dtype)
    inputs[2] = inputs[2].flatten(-2).softmax(-1).unflatten(-1, (4, 4))
    expected = expected_results(STANDARD, inputs)
    actual = run("compiled", STANDARD, inputs)
    # Float32 holds a column around 167 to 1e-5 of a pixel: the norm seldom feels that, the worst of
    # millions of elements does. Coarse pixels sum thousands of terms of either sign.
    error = (actual[0].double() - expected[0]).norm() / expected[0].norm()
    assert error <= TOLERANCE[dtype], f"error {error}"
    assert_close(actual[0], expected[0], max(TOLERANCE[dtype], 3e-5))
    assert_close(actual[1], expected[1], max(TOLERANCE[dtype], 2e-5))
    sizes = sizes_of(STANDARD, "cuda")
    assert_close(actual[2] / sizes, expected[2] / sizes, 5e-5)
    assert_close(actual[3], expected[3], 5e-5)


def test_gradients_are_those_of_finite_differences() -> None:
    value, locations, weights, _ = random_inputs(((3, 4), (2, 2)), 1, 3, 2, 4, 2, torch.float64)
    leaves = [x.requires_grad_() for x in (value, locations, weights)]
    assert torch.autograd.gradcheck(
        lambda *x: deformable_attention(
            x[0], ((3, 4), (2, 2)), x[1], x[2], implementation="compiled"
        ),
        leaves,
        nondet_tol=1e-12,
    )


@pytest.mark.parametrize("dtype", DTYPES)
def test_samples_on_edges_and_pixel_centres_have_the_same_output(dtype: torch.dtype) -> None:
    shapes = ((3, 5), (1, 1), (1, 4))
    value, locations, weights, _ = random_inputs(shapes, queries=600, dtype=dtype)
    sizes = sizes_of(shapes, "cuda")
    halves = torch.rand(locations.shape, device="cuda") * 2 * (sizes + 3)
    pixels = torch.floor(halves) / 2 - 2  # from -2 to beyond the last pixel in steps of a half
    locations = ((pixels + 0.5) / sizes).to(locations.dtype)
    exact = [x.double() for x in (value, locations, weights)]
    expected = deformable_attention(exact[0], shapes, *exact[1:])
    actual = deformable_attention(value, shapes, locations, weights, implementation="compiled")
    # Locations are thirds and fifths: rounding decides on which side of an edge they lie.
    assert_close(actual, expected, max(TOLERANCE[dtype], 1e-6))


@pytest.mark.parametrize("strange", [math.nan, math.inf, -math.inf, 1e30, -1e6, 2.0, -1.0])
@pytest.mark.parametrize("variant", [DIRECT, SORTED, DETERMINISTIC])
def test_strange_locations_add_nothing_and_get_no_gradient(variant: int, strange: float) -> None:
    inputs = random_inputs(queries=301)
    chosen = torch.rand(inputs[1].shape[:-1], device="cuda") < 0.4
    chosen[0, 0] = True  # a query without any sample inside
    away = torch.where(chosen[..., None], torch.full_like(inputs[1], 9.0), inputs[1])
    expected = expected_results(PYRAMID, [inputs[0], away, *inputs[2:]])
    inputs[1][..., variant % 2][chosen] = strange
    actual = run_kernels(PYRAMID, inputs, variant, 1)
    assert_results_close(PYRAMID, actual, expected, torch.float32)
    assert actual[2][chosen].abs().max() == 0
    assert actual[3][chosen].abs().max() == 0


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_bad_pixels_stay_with_the_queries_that_read_them(bad: float) -> None:
    shapes = ((4, 4), (2, 2))
    inputs = random_inputs(shapes, queries=40, channels=12, points=3)
    clean = expected_results(shapes, inputs)
    marked = torch.zeros_like(inputs[0])
    marked[:, 5] = 1.0
    read = deformable_attention(marked, shapes, inputs[1], torch.ones_like(inputs[2])) != 0
    inputs[0][:, 5] = bad
    actual = run("compiled", shapes, inputs)
    assert 0.1 < read.float().mean() < 0.9
    assert not actual[0][read].isfinite().any()
    assert_close(actual[0][~read], clean[0][~read], 1e-5)
    assert_close(actual[1], clean[1], 1e-5)


def test_permuted_queries_give_permuted_outputs_bit_by_bit() -> None:
    value, locations, weights, _ = random_inputs(queries=977)
    order = torch.randperm(977, device="cuda")
    output = deformable_attention(value, PYRAMID, locations, weights, implementation="compiled")
    moved = deformable_attention(
        value, PYRAMID, locations[:, order], weights[:, order], implementation="compiled"
    )
    assert torch.equal(moved, output[:, order])


@pytest.mark.parametrize(("batch", "queries"), [(0, 3), (2, 0), (0, 0)])
@pytest.mark.parametrize("dtype", DTYPES)
def test_without_images_or_queries_there_is_nothing_or_zero(
    batch: int, queries: int, dtype: torch.dtype
) -> None:
    inputs = random_inputs(batch=batch, queries=queries, dtype=dtype)
    output, *gradients = run("compiled", PYRAMID, inputs)
    assert output.shape == (batch, queries, 64)
    assert all(x.count_nonzero() == 0 for x in gradients)


# --- From projections ---


def projections(
    dtype: torch.dtype,
    size: int = 2,
    shared: bool = False,
    narrow: bool = False,
    queries: int = 300,
    batch: int = 2,
    seed: int = 0,
) -> tuple[list[Tensor], Tensor]:
    """Value, references, offsets and logits for the samples of `random_inputs`; upstream gradient.

    Args:
        size: of a reference, point (2) or box (4).
        shared: whether all images have the same references.
        narrow: whether offsets and logits are in the value's dtype.
    """
    value, locations, weights, upstream = random_inputs(
        batch=batch, dtype=dtype, queries=queries, seed=seed
    )
    batch, queries, _, levels, points = weights.shape
    generator = torch.Generator("cuda").manual_seed(1 + seed)
    layout = (1 if shared else batch, queries, levels, size)
    reference = torch.rand(layout, generator=generator, device="cuda").to(weights) * 0.8 + 0.1
    anchors = reference[:, :, None, :, None]
    sizes = sizes_of(PYRAMID, "cuda").to(weights)
    steps = 1 / sizes if size == 2 else anchors[..., 2:] * (0.5 / points)
    offsets = (locations - anchors[..., :2]) / steps
    logits = weights.flatten(3) * 2
    if narrow:
        offsets, logits = offsets.to(dtype), logits.to(dtype)
    return [value, reference, offsets, logits], upstream


def run_projected(implementation: str, inputs: Sequence[Tensor], upstream: Tensor) -> list[Tensor]:
    """Output and the gradients of all inputs."""
    leaves = [x.detach().requires_grad_() for x in inputs]
    output = projected_deformable_attention(leaves[0], PYRAMID, *leaves[1:], implementation)
    return [output.detach(), *torch.autograd.grad(output, leaves, upstream.to(output))]


def assert_projected_close(actual: Sequence[Tensor], expected: Sequence[Tensor]) -> None:
    for ours, theirs in zip(actual, expected, strict=True):
        error = (ours.double() - theirs).norm() / theirs.norm()
        assert error < {8: 1e-11, 4: 1e-4, 2: 1e-2}[ours.element_size()], f"error {error}"


def expected_of(inputs: Sequence[Tensor], upstream: Tensor) -> list[Tensor]:
    return run_projected("reference", [x.double() for x in inputs], upstream)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [2, 4])
@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("narrow", [False, True])
def test_projections_give_what_the_definition_says(
    narrow: bool, shared: bool, size: int, dtype: torch.dtype
) -> None:
    if narrow and dtype.itemsize > 2:
        pytest.skip("offsets are as narrow as the value")
    inputs, upstream = projections(dtype, size, shared, narrow)
    actual = run_projected("compiled", inputs, upstream)
    assert [x.dtype for x in actual] == [dtype, *(x.dtype for x in inputs)]
    assert_projected_close(actual, expected_of(inputs, upstream))


@pytest.mark.parametrize(("batch", "queries"), [(0, 3), (2, 0)])
def test_projections_of_nothing_give_nothing_or_zero(batch: int, queries: int) -> None:
    inputs, upstream = projections(torch.float32, batch=batch, queries=queries)
    output, *gradients = run_projected("compiled", inputs, upstream)
    assert output.shape == (batch, queries, 64)
    assert all(x.count_nonzero() == 0 for x in gradients)


def test_projections_may_lie_in_memory_as_they_like() -> None:
    inputs, upstream = projections(torch.float32, queries=61)
    expected = expected_of(inputs, upstream)
    for change in (moved, shifted, sliced):
        actual = run_projected("compiled", [change(x) for x in inputs], change(upstream))
        assert_projected_close(actual, expected)


def test_projections_are_worked_on_in_their_own_stream() -> None:
    inputs, upstream = projections(torch.float32)
    expected = expected_of(inputs, upstream)
    stream = torch.cuda.Stream()
    late = [torch.zeros_like(x) for x in (*inputs, upstream)]
    torch.cuda.synchronize()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(100_000_000)
        for to, x in zip(late, (*inputs, upstream), strict=True):
            to.copy_(x)
        actual = run_projected("compiled", late[:-1], late[-1])
    stream.synchronize()
    assert_projected_close(actual, expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_graph_captures_projections(dtype: torch.dtype) -> None:
    inputs, upstream = projections(dtype, queries=900, narrow=dtype != torch.float32)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        run_projected("compiled", inputs, upstream)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = run_projected("compiled", inputs, upstream)
    fresh, later = projections(dtype, queries=900, narrow=dtype != torch.float32, seed=7)
    for to, x in zip((*inputs, upstream), (*fresh, later), strict=True):
        to.copy_(x)
    graph.replay()
    torch.cuda.synchronize()
    assert_projected_close(captured, expected_of(fresh, later))


def test_compiled_graphs_contain_projections_whole() -> None:
    compiled = torch.compile(run_projected_output, fullgraph=True, dynamic=True)
    for queries in (7, 12):
        inputs, upstream = projections(torch.float32, queries=queries)
        leaves = [x.detach().requires_grad_() for x in inputs]
        output = compiled(*leaves)
        actual = [output.detach(), *torch.autograd.grad(output, leaves, upstream)]
        assert_projected_close(actual, expected_of(inputs, upstream))


def run_projected_output(*inputs: Tensor) -> Tensor:
    return projected_deformable_attention(inputs[0], PYRAMID, *inputs[1:], "compiled")


def test_torch_s_own_checks_find_nothing() -> None:
    flat = [size for shape in PYRAMID for size in shape]
    value, locations, weights, _ = random_inputs(queries=7)
    torch.library.opcheck(
        torch.ops.focus_lab.deformable_attention.default, (value, flat, locations, weights)
    )
    inputs, _ = projections(torch.float32, queries=7)
    torch.library.opcheck(
        torch.ops.focus_lab.projected_deformable_attention.default,
        (inputs[0], flat, *inputs[1:]),
    )


# --- Deterministic mode ---


@pytest.fixture
def deterministic() -> Iterator[None]:
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("dtype", DTYPES)
def test_deterministic_gradients_have_the_same_bits(
    dtype: torch.dtype, deterministic: None
) -> None:
    inputs = random_inputs(queries=4001, heads=8, dtype=dtype)
    first = run("compiled", PYRAMID, inputs)
    for _ in range(5):
        assert all(map(torch.equal, run("compiled", PYRAMID, inputs), first))
    order = torch.randperm(4001, device="cuda")
    moved = run("compiled", PYRAMID, [inputs[0], *(x[:, order] for x in inputs[1:])])
    assert torch.equal(moved[1], first[1])


def test_deterministic_gradients_of_projections_have_the_same_bits(deterministic: None) -> None:
    inputs, upstream = projections(torch.bfloat16, size=4, narrow=True, queries=4001)
    first = run_projected("compiled", inputs, upstream)
    for _ in range(5):
        assert all(map(torch.equal, run_projected("compiled", inputs, upstream), first))


def test_deterministic_gradients_of_nan_are_nan(deterministic: None) -> None:
    inputs = random_inputs()
    inputs[3][1, 2, 3] = math.nan
    assert run("compiled", PYRAMID, inputs)[1].isnan().all()


# --- Streams, graphs, devices ---


def test_it_waits_for_its_own_stream_and_no_other() -> None:
    inputs = random_inputs(queries=301)
    expected = expected_results(PYRAMID, inputs)
    stream = torch.cuda.Stream()
    late = [torch.zeros_like(x) for x in inputs]
    torch.cuda.synchronize()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(100_000_000)  # the inputs arrive when a wrong stream has long begun
        for to, x in zip(late, inputs, strict=True):
            to.copy_(x)
        actual = run("compiled", PYRAMID, late)
    stream.synchronize()
    assert_results_close(PYRAMID, actual, expected, torch.float32)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("queries", [31, 5000])
@pytest.mark.parametrize("exact", [False, True])
def test_a_graph_captures_forward_and_backward(
    queries: int, dtype: torch.dtype, exact: bool
) -> None:
    shapes = PYRAMID
    inputs = random_inputs(queries=queries, heads=8, dtype=dtype)
    leaves = [x.clone().requires_grad_() for x in inputs[:3]]
    upstream = inputs[3].clone()

    def step() -> list[Tensor]:
        output = deformable_attention(leaves[0], shapes, *leaves[1:], implementation="compiled")
        return [output, *torch.autograd.grad(output, leaves, upstream)]

    torch.use_deterministic_algorithms(exact)
    try:
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            step()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            captured = step()
    finally:
        torch.use_deterministic_algorithms(False)
    for seed in (1, 2):
        fresh = random_inputs(queries=queries, heads=8, dtype=dtype, seed=seed)
        with torch.no_grad():
            for to, x in zip([*leaves, upstream], fresh, strict=True):
                to.copy_(x)
        graph.replay()
        torch.cuda.synchronize()
        assert_results_close(shapes, captured, expected_results(shapes, fresh), dtype)


def test_nothing_waits_for_the_device() -> None:
    inputs = random_inputs(queries=3000, heads=8, dtype=torch.bfloat16)
    run("compiled", PYRAMID, inputs)
    torch.cuda.set_sync_debug_mode("error")
    try:
        run("compiled", PYRAMID, inputs)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_a_second_device_is_used_without_being_the_current_one() -> None:
    inputs = [x.to("cuda:1") for x in random_inputs(queries=301)]
    assert torch.cuda.current_device() == 0
    actual = run("compiled", PYRAMID, inputs)
    assert all(x.device == torch.device("cuda:1") for x in actual)
    assert_results_close(PYRAMID, actual, expected_results(PYRAMID, inputs), torch.float32)


# --- Memory layout ---


def test_memory_layout_does_not_matter() -> None:
    inputs = random_inputs(queries=61)
    expected = expected_results(PYRAMID, inputs)
    for change in (moved, shifted, sliced):
        value, locations, weights, upstream = map(change, inputs)
        leaves = [x.detach().requires_grad_() for x in (value, locations, weights)]
        output = deformable_attention(leaves[0], PYRAMID, *leaves[1:], implementation="compiled")
        gradients = torch.autograd.grad(output, leaves, upstream)
        assert_results_close(PYRAMID, [output.detach(), *gradients], expected, torch.float32)


def test_an_expanded_upstream_gradient_is_read_right() -> None:
    inputs = random_inputs(queries=61)
    inputs[3] = torch.ones((), device="cuda").expand_as(inputs[3])
    actual = run("compiled", PYRAMID, inputs)
    assert_results_close(PYRAMID, actual, expected_results(PYRAMID, inputs), torch.float32)


@pytest.mark.parametrize("wanted", [(0,), (1,), (2,), (0, 2), (1, 2)])
def test_some_gradients_alone_are_the_same(wanted: tuple[int, ...]) -> None:
    inputs = random_inputs(queries=61)
    expected = expected_results(PYRAMID, inputs)
    leaves = [x.clone().requires_grad_(i in wanted) for i, x in enumerate(inputs[:3])]
    output = deformable_attention(leaves[0], PYRAMID, *leaves[1:], implementation="compiled")
    gradients = torch.autograd.grad(output, [leaves[i] for i in wanted], inputs[3])
    for number, gradient in zip(wanted, gradients, strict=True):
        scale = sizes_of(PYRAMID, "cuda") if number == 1 else 1.0
        assert_close(gradient / scale, expected[1 + number] / scale, 1e-5)


# --- With the rest of torch ---


@pytest.mark.parametrize("dynamic", [False, True])
def test_compiled_graphs_contain_it_whole(dynamic: bool) -> None:
    def layer(value: Tensor, locations: Tensor, weights: Tensor) -> Tensor:
        return deformable_attention(value, PYRAMID, locations, weights, implementation="compiled")

    compiled = torch.compile(layer, fullgraph=True, dynamic=dynamic)
    for queries in (7, 12):
        inputs = random_inputs(queries=queries)
        leaves = [x.clone().requires_grad_() for x in inputs[:3]]
        output = compiled(*leaves)
        actual = [output.detach(), *torch.autograd.grad(output, leaves, inputs[3])]
        assert_results_close(PYRAMID, actual, expected_results(PYRAMID, inputs), torch.float32)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_lowers_the_value_only(dtype: torch.dtype) -> None:
    value, locations, weights, _ = random_inputs(queries=61)
    with torch.autocast("cuda", dtype):
        output = deformable_attention(value, PYRAMID, locations, weights, implementation="compiled")
    expected = deformable_attention(
        value.to(dtype), PYRAMID, locations, weights, implementation="compiled"
    )
    assert output.dtype == dtype
    assert torch.equal(output, expected)


def test_what_the_kernels_cannot_do_is_raised() -> None:
    inputs = random_inputs(channels=6)
    with pytest.raises(RuntimeError, match="channels of a head, got 6; a multiple of 4"):
        run("compiled", PYRAMID, inputs)
    inputs = random_inputs(dtype=torch.float64)
    with pytest.raises(RuntimeError, match="needs float32 or 16-bit values"):
        run_kernels(PYRAMID, inputs, SORTED, 1)
    # And leaves the device as it was.
    inputs = random_inputs()
    actual = run("compiled", PYRAMID, inputs)
    assert_results_close(PYRAMID, actual, expected_results(PYRAMID, inputs), torch.float32)


# --- Size ---


def needs_memory(gigabytes: int) -> None:
    free, _ = torch.cuda.mem_get_info()
    if free < gigabytes * 2**30:
        pytest.skip(f"needs {gigabytes} GiB of free GPU memory")


def test_more_images_than_a_grid_has_room_for() -> None:
    shapes = ((2, 2),)
    inputs = random_inputs(shapes, batch=70_001, queries=1, heads=1, channels=4, points=1)
    expected = expected_results(shapes, inputs)
    for variant in (DIRECT, SORTED, DETERMINISTIC):
        actual = run_kernels(shapes, inputs, variant, 1)
        assert_results_close(shapes, actual, expected, torch.float32)


def test_values_beyond_two_to_the_31_are_found() -> None:
    needs_memory(40)
    # Three images of 10^9 values each; the gradient is as large again, and summed in float32.
    shapes = ((2000, 1953),)
    value = torch.zeros(3, tokens_of(shapes), 8, 32, dtype=torch.bfloat16, device="cuda")
    value[-1, -8000:].normal_()
    locations = torch.rand(3, 101, 8, 1, 4, 2, device="cuda")
    locations[..., 1] = 1 - 0.001 * locations[..., 1]  # the last rows
    weights = torch.rand(3, 101, 8, 1, 4, device="cuda")
    upstream = torch.randn(3, 101, 256, dtype=torch.bfloat16, device="cuda")
    whole = run("compiled", shapes, [value, locations, weights, upstream])
    parts = [x[-1:].clone() for x in (value, locations, weights, upstream)]
    alone = run("compiled", shapes, parts)
    assert alone[0].abs().max() > 0
    assert_close(whole[0][-1:], alone[0].double(), 5e-3)
    assert_close(whole[1][-1:, -8000:], alone[1][:, -8000:].double(), 5e-3)
    assert whole[1][-1, :-8000].count_nonzero() == 0
    assert_close(whole[2][-1:], alone[2].double(), 1e-5)


def test_samples_beyond_two_to_the_31_are_found() -> None:
    needs_memory(40)
    shapes = ((4, 4),)
    queries, heads, points = 8_500_001, 8, 16
    locations = torch.rand(1, queries, heads, 1, points, 2, device="cuda")
    weights = torch.rand(1, queries, heads, 1, points, device="cuda")
    value = torch.randn(1, 16, heads, 4, device="cuda")
    assert locations.numel() > 2**31
    output = deformable_attention(value, shapes, locations, weights, implementation="compiled")
    tail = [x[:, -1000:].contiguous() for x in (locations, weights)]
    expected = deformable_attention(value, shapes, *tail, implementation="compiled")
    assert_close(output[:, -1000:], expected.double(), 1e-6)
