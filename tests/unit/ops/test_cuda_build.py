"""The CUDA kernels without a GPU: run on the host, and compiled for every architecture.

The host runs the kernels and their launchers as they are (cuda_on_host/), a thread at a time, under
an address sanitizer. What only a GPU can show is in tests/gpu/test_deformable_attention.py.
"""

import importlib.util
import math
import os
import re
import shutil
import struct
import subprocess
import sys
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from focus_lab.ops.reference import (
    reference_deformable_attention,
    reference_projected_deformable_attention,
)

pytestmark = pytest.mark.slow

HERE = Path(__file__).parent
CSRC = HERE.parents[2] / "csrc"

DTYPES = {torch.float64: 0, torch.float32: 1, torch.bfloat16: 2, torch.float16: 3}
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 5e-3, torch.float16: 1e-3}
DIRECT, SORTED, DETERMINISTIC = 1, 2, 3
KIB = 1024

PYRAMID = ((7, 9), (4, 5), (2, 3), (1, 1))


def load_build_script():
    spec = importlib.util.spec_from_file_location("focus_lab_csrc_build", CSRC / "build.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where its dataclasses look for their module
    spec.loader.exec_module(module)
    return module


BUILD = load_build_script()


# --- On the host ---


@dataclass(frozen=True)
class Host:
    """A GPU made of host threads."""

    program: Path

    def run(self, shapes, value, locations, weights, upstream=None, **choices):
        """The output, or with `upstream` the three gradients; a sentence if the call is refused."""
        return self._run(shapes, value, (locations, weights), (0, 0, 0, 0), upstream, **choices)

    def run_projected(self, shapes, value, reference, offsets, logits, upstream=None, **choices):
        """The same from projections: four gradients."""
        batch, _, levels, size = reference.shape
        facts = (size, levels, batch, DTYPES[offsets.dtype])
        return self._run(shapes, value, (reference, offsets, logits), facts, upstream, **choices)

    def _run(self, shapes, value, others, facts, upstream, **choices):
        batch, tokens, heads, channels = value.shape
        queries, levels, points = (others[-2].shape[axis] for axis in (1, 3, 4))
        numbers = {
            **{"split": 0, "variant": 0, "order": 0, "shared": 227 * KIB, "multiprocessors": 132},
            **{"misalign": 0, "has_kernels": 1},
            **choices,
        }
        call = struct.pack(
            "<20q",
            *(upstream is not None, DTYPES[value.dtype]),
            *(batch, tokens, queries, heads, channels, levels, points),
            *numbers.values(),
            *facts,
        )
        call += b"".join(struct.pack("<2i", *shape) for shape in shapes)
        arrays = (value, *others, *(() if upstream is None else (upstream,)))
        call += b"".join(map(bytes_of, arrays))
        done = subprocess.run([self.program], input=call, capture_output=True)
        assert done.returncode == 0, done.stderr.decode()
        (length,) = struct.unpack_from("<q", done.stdout)
        if length:
            return done.stdout[8:].decode()
        if upstream is None:
            likes = [value.new_empty(batch, queries, heads * channels)]
        else:
            likes = [value, *others]
        results, at = [], 8
        for like in likes:
            size = like.numel() * like.element_size()
            results.append(from_bytes(done.stdout[at : at + size], like))
            at += size
        assert at == len(done.stdout)
        return results[0] if upstream is None else results


def bytes_of(tensor):
    return tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes()


def from_bytes(content, like):
    if not content:
        return torch.empty_like(like)
    return torch.frombuffer(bytearray(content), dtype=like.dtype).reshape(like.shape)


@pytest.fixture(scope="module")
def host(tmp_path_factory):
    """The kernels and launchers, compiled for the host."""
    try:
        compiler = BUILD.find_compiler()
    except BUILD.BuildError as error:
        pytest.skip(str(error))
    folder = tmp_path_factory.mktemp("cuda_on_host")
    flags = ["-std=c++17", "-O1", "-g", "-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas"]
    sanitize = ["-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"]
    sources = (*sorted((CSRC / "cuda").glob("*.cu")), HERE / "cuda_host.cpp")
    objects = [folder / f"{source.name}.o" for source in sources]
    include = [f"-I{HERE / 'cuda_on_host'}", '-DFOCUS_LAB_CUDA_ARCHITECTURES="75 90"']
    # Kernels of whole arrays get so few blocks that their threads go on in steps of the grid.
    include.append("-DFOCUS_LAB_ARRAY_BLOCKS=2")
    in_parallel(
        [*compiler, *flags, *sanitize, *include, "-x", "c++", "-c", source, "-o", target]
        for source, target in zip(sources, objects, strict=True)
    )
    in_parallel([[*compiler, *sanitize, *objects, "-o", folder / "host"]])
    return Host(folder / "host")


def in_parallel(commands):
    """What the commands print on standard error; each must succeed."""
    running = [
        subprocess.Popen(list(map(str, command)), stderr=subprocess.PIPE, text=True)
        for command in commands
    ]
    said = [process.communicate()[1] for process in running]
    for process, text in zip(running, said, strict=True):
        assert process.returncode == 0, text
    return "".join(said)


def random_inputs(
    shapes=PYRAMID, batch=2, queries=5, heads=2, channels=32, points=3, dtype=torch.float32, seed=0
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
        normal(batch, sum(h * w for h, w in shapes), heads, channels).to(dtype),
        ((pixels + 0.5) / sizes).to(exact),
        normal(*layout).to(exact),
        normal(batch, queries, heads * channels).to(dtype),
    )


def expected_results(shapes, value, locations, weights, upstream):
    """Output and gradients of the plain implementation in float64."""
    leaves = [x.double().requires_grad_() for x in (value, locations, weights)]
    output = reference_deformable_attention(leaves[0], shapes, *leaves[1:])
    return output.detach(), *torch.autograd.grad(output, leaves, upstream.double())


def assert_close(actual, expected, tolerance):
    """Not by the mean: each row or sample, against the size of all."""
    assert not isinstance(actual, str), actual
    error = (actual.double() - expected).abs().nan_to_num(nan=math.inf).max()
    assert error <= tolerance * expected.abs().max(), f"error {error}"


def assert_gradients_close(shapes, actual, expected, dtype):
    assert not isinstance(actual, str), actual
    sizes = torch.tensor([(w, h) for h, w in shapes], dtype=torch.float64)[:, None]
    # Sums of products of rows: their precision is the arithmetic's, not the values'.
    exact = 1e-12 if dtype == torch.float64 else 1e-5
    assert_close(actual[0], expected[0], TOLERANCE[dtype])
    assert_close(actual[1] / sizes, expected[1] / sizes, exact)
    assert_close(actual[2], expected[2], exact)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("channels", [4, 8, 12, 16, 32, 36, 64, 128])
def test_kernels_equal_the_reference_for_every_row_length(host, channels, dtype):
    # A prime number of queries, a level of one pixel, as many points as make no whole slab.
    inputs = random_inputs(batch=1, channels=channels, dtype=dtype)
    output, *gradients = expected_results(PYRAMID, *inputs)
    for split, order in ((1, 0), (2, 1), (4, 2)):
        assert_close(
            host.run(PYRAMID, *inputs[:3], split=split, order=order), output, TOLERANCE[dtype]
        )
    for variant in (DIRECT, SORTED) if dtype != torch.float64 else (DIRECT,):
        choices = {"variant": variant, "split": variant, "order": channels % 3}
        assert_gradients_close(PYRAMID, host.run(PYRAMID, *inputs, **choices), gradients, dtype)


@pytest.mark.parametrize(("levels", "points"), [(1, 1), (1, 7), (2, 8), (4, 4), (4, 5), (3, 11)])
@pytest.mark.parametrize("split", [1, 2, 4])
def test_any_number_of_samples_is_summed_whole(host, levels, points, split):
    shapes = PYRAMID[:levels]
    inputs = random_inputs(shapes, batch=1, queries=7, heads=1, channels=16, points=points)
    output, *gradients = expected_results(shapes, *inputs)
    choices = {"split": split, "order": 5 + split}
    assert_close(host.run(shapes, *inputs[:3], **choices), output, 1e-5)
    actual = host.run(shapes, *inputs, variant=DIRECT, **choices)
    assert_gradients_close(shapes, actual, gradients, torch.float32)
    actual = host.run(shapes, *inputs, variant=SORTED, order=split)
    assert_gradients_close(shapes, actual, gradients, torch.float32)


def test_the_most_levels_are_as_good_as_few(host):
    shapes = tuple((1 + level % 3, 1 + level % 5) for level in range(32))
    inputs = random_inputs(shapes, batch=1, queries=3, heads=1, points=2)
    output, *gradients = expected_results(shapes, *inputs)
    assert_close(host.run(shapes, *inputs[:3]), output, 1e-5)
    for variant in (DIRECT, SORTED):
        actual = host.run(shapes, *inputs, variant=variant)
        assert_gradients_close(shapes, actual, gradients, torch.float32)


@pytest.mark.parametrize("dtype", DTYPES)
def test_samples_on_edges_and_pixel_centres_have_the_same_output(host, dtype):
    shapes = ((3, 5), (1, 1), (1, 4))
    value, locations, weights, _ = random_inputs(shapes, queries=60, points=4, dtype=dtype)
    sizes = torch.tensor([(w, h) for h, w in shapes])[:, None]
    generator = torch.Generator().manual_seed(1)
    halves = torch.rand(locations.shape, generator=generator) * 2 * (sizes + 3)
    pixels = torch.floor(halves) / 2 - 2  # from -2 to beyond the last pixel in steps of a half
    locations = ((pixels + 0.5) / sizes).to(locations.dtype)
    expected = reference_deformable_attention(
        value.double(), shapes, locations.double(), weights.double()
    )
    # Locations are thirds and fifths, so that rounding decides on which side of an edge they lie.
    assert_close(host.run(shapes, value, locations, weights), expected, max(TOLERANCE[dtype], 1e-6))


@pytest.mark.parametrize("strange", [math.nan, math.inf, -math.inf, 1e30, -1e6, 2.0, -1.0])
@pytest.mark.parametrize("variant", [DIRECT, SORTED, DETERMINISTIC])
def test_strange_locations_add_nothing_and_get_no_gradient(host, strange, variant):
    value, locations, weights, upstream = random_inputs()
    generator = torch.Generator().manual_seed(2)
    chosen = torch.rand(locations.shape[:-1], generator=generator) < 0.4
    chosen[0, 0] = True  # a query without any sample inside
    axis = torch.rand(locations.shape, generator=generator) < 0.5
    axis[..., 0] |= ~axis[..., 1]
    away = torch.where(chosen[..., None] & axis, torch.full_like(locations, 9.0), locations)
    output, *gradients = expected_results(PYRAMID, value, away, weights, upstream)
    locations = torch.where(away == 9.0, torch.full_like(locations, strange), locations)
    assert_close(host.run(PYRAMID, value, locations, weights), output, 1e-5)
    actual = host.run(PYRAMID, value, locations, weights, upstream, variant=variant)
    assert_gradients_close(PYRAMID, actual, gradients, torch.float32)
    assert actual[1][chosen].abs().max() == 0
    assert actual[2][chosen].abs().max() == 0


@pytest.mark.parametrize("split", [1, 4])
def test_nan_stays_with_the_queries_that_read_it(host, split):
    shapes = ((4, 4), (2, 2))
    value, locations, weights, upstream = random_inputs(shapes, channels=12, queries=40)
    clean, *gradients = expected_results(shapes, value, locations, weights, upstream)
    poisoned = value.clone()
    poisoned[:, 5] = math.nan
    marked = torch.zeros_like(value)
    marked[:, 5] = 1.0
    ones = torch.ones_like(weights)
    read = reference_deformable_attention(marked, shapes, locations, ones) != 0
    output = host.run(shapes, poisoned, locations, weights, split=split)
    assert 0.1 < read.float().mean() < 0.9
    assert output[read].isnan().all()
    assert_close(output[~read], clean[~read], 1e-5)
    actual = host.run(shapes, poisoned, locations, weights, upstream, variant=DIRECT, split=split)
    assert_close(actual[0], gradients[0], 1e-5)
    per_query = read.unflatten(-1, (2, 12)).any(-1)
    assert actual[2][~per_query].isfinite().all()


@pytest.mark.parametrize(
    ("shapes", "shared"),
    [
        (((9, 200),), 227 * KIB),
        # Levels of more pixels than there are buckets, with rows that fall into the same ones.
        (((40, 128),), 227 * KIB),
        (((1, 9000), (3, 4096)), 227 * KIB),
        # Less memory makes smaller blocks.
        (((9, 20), (3, 3)), 64 * KIB),
        (((9, 20), (3, 3)), 28 * KIB),
    ],
)
def test_sorting_adds_every_contribution_once(host, shapes, shared):
    inputs = random_inputs(shapes, batch=1, queries=300, heads=1, points=5, dtype=torch.float32)
    # Most samples in a few pixels, as a crowd of neighbouring queries has them.
    locations = inputs[1]
    locations[:, ::3] = locations[:, :1] * 0.5 + locations[:, ::3] * 1e-3
    actual = host.run(shapes, *inputs, variant=SORTED, order=3, shared=shared)
    # On levels as wide as these float32 rounds locations: both round alike.
    direct = host.run(shapes, *inputs, variant=DIRECT)
    assert_close(actual[0], direct[0].double(), 1e-6)
    assert_close(actual[0], expected_results(shapes, *inputs)[1], 2e-3)


def test_the_rule_sorts_for_many_queries_only(host):
    # One multiprocessor: 256 queries and heads are many; at 132 they are few. Either is right.
    shapes = ((5, 5),)
    inputs = random_inputs(shapes, batch=1, queries=256, heads=1, channels=8, points=1)
    _, *gradients = expected_results(shapes, *inputs)
    few = host.run(shapes, *inputs, multiprocessors=132)
    many = host.run(shapes, *inputs, multiprocessors=1)
    for actual in (few, many):
        assert_gradients_close(shapes, actual, gradients, torch.float32)
    assert torch.equal(few[0], host.run(shapes, *inputs, variant=DIRECT)[0])
    assert torch.equal(many[0], host.run(shapes, *inputs, variant=SORTED)[0])


@pytest.mark.parametrize("dtype", DTYPES)
def test_deterministic_sums_have_the_same_bits_in_any_order(host, dtype):
    value, locations, weights, upstream = random_inputs(queries=23, channels=16, dtype=dtype)
    results = [
        host.run(
            PYRAMID, value, locations, weights, upstream, variant=DETERMINISTIC, order=o, split=s
        )
        for o, s in ((0, 1), (1, 2), (7, 4))
    ]
    shuffled = torch.randperm(23, generator=torch.Generator().manual_seed(3))
    moved = (locations[:, shuffled], weights[:, shuffled], upstream[:, shuffled])
    results.append(host.run(PYRAMID, value, *moved, variant=DETERMINISTIC))
    for other in results[1:]:
        assert torch.equal(results[0][0], other[0])
    _, *gradients = expected_results(PYRAMID, value, locations, weights, upstream)
    tolerance = max(TOLERANCE[dtype], 1e-12)
    assert_close(results[0][0], gradients[0], tolerance)


@pytest.mark.parametrize(
    ("scale", "share"), [(1e-30, 1.0), (1e30, 1.0), (1e-34, 1e-3), (1.0, 0.0), (0.0, 1.0)]
)
def test_deterministic_sums_keep_their_precision_for_tiny_and_huge_gradients(host, scale, share):
    value, locations, weights, upstream = random_inputs(queries=3)
    weights = weights * share
    upstream = upstream * scale
    _, *gradients = expected_results(PYRAMID, value, locations, weights, upstream)
    actual = host.run(PYRAMID, value, locations, weights, upstream, variant=DETERMINISTIC)
    assert_close(actual[0], gradients[0], 1e-6)


@pytest.mark.parametrize("strange", [math.nan, math.inf])
def test_deterministic_sums_of_strange_gradients_are_nan(host, strange):
    value, locations, weights, upstream = random_inputs()
    upstream[1, 2, 3] = strange
    actual = host.run(PYRAMID, value, locations, weights, upstream, variant=DETERMINISTIC)
    assert actual[0].isnan().all()


def test_permuted_queries_give_permuted_outputs_bit_by_bit(host):
    value, locations, weights, _ = random_inputs(queries=19)
    order = torch.randperm(19, generator=torch.Generator().manual_seed(4))
    output = host.run(PYRAMID, value, locations, weights)
    moved = host.run(PYRAMID, value, locations[:, order], weights[:, order])
    assert torch.equal(moved, output[:, order])


def test_without_queries_the_gradient_of_value_is_zero(host):
    inputs = random_inputs(queries=0, dtype=torch.bfloat16)
    assert host.run(PYRAMID, *inputs[:3]).numel() == 0
    assert host.run(PYRAMID, *inputs)[0].abs().max() == 0


def test_without_images_nothing_happens(host):
    inputs = random_inputs(batch=0)
    assert host.run(PYRAMID, *inputs[:3]).numel() == 0
    assert host.run(PYRAMID, *inputs)[0].numel() == 0


@pytest.mark.parametrize(
    ("change", "choices", "sentence"),
    [
        ({"channels": 6}, {}, "channels of a head, got 6; a multiple of 4 up to 128"),
        ({"channels": 132}, {}, "channels of a head, got 132"),
        ({"points": 8193, "queries": 1}, {}, "points, got 8193; 1 to 8192"),
        ({}, {"misalign": 4}, "aligned to 16 bytes"),
        ({"dtype": torch.float64}, {"variant": SORTED}, "needs float32 or 16-bit values"),
        ({}, {"variant": SORTED, "shared": 8 * KIB}, "needs float32 or 16-bit values"),
    ],
)
def test_what_the_kernels_cannot_do_is_said(host, change, choices, sentence):
    inputs = random_inputs(**{"heads": 1, "channels": 4, **change})
    assert sentence in host.run(PYRAMID, *inputs, **choices)


def test_a_device_without_kernels_is_told_what_there_is(host):
    value, locations, weights, upstream = random_inputs()
    for more in ((), (upstream,)):
        said = host.run(PYRAMID, value, locations, weights, *more, has_kernels=0)
        assert "built for architectures 75 90, got cuda:0 of architecture 99; build the" in said


# --- From projections, on the host ---


def projected_inputs(size=2, shared=False, one_level=False, projected=None, **more):
    """Value, reference points, offsets, logits, upstream gradient: the samples of random_inputs."""
    shapes = more.get("shapes", PYRAMID)
    value, locations, weights, upstream = random_inputs(**more)
    generator = torch.Generator().manual_seed(1)
    batch, queries, _, levels, points = weights.shape
    layout = (1 if shared else batch, queries, 1 if one_level else levels, size)
    reference = torch.rand(layout, generator=generator, dtype=torch.float64) * 0.8 + 0.1
    anchors = reference[:, :, None, :, None]
    sizes = torch.tensor([(w, h) for h, w in shapes], dtype=torch.float64)[:, None]
    steps = 1 / sizes if size == 2 else anchors[..., 2:] * (0.5 / points)
    offsets = (locations.double() - anchors[..., :2]) / steps
    logits = torch.randn(*weights.shape[:3], levels * points, generator=generator) * 2
    kind = projected or weights.dtype
    return value, reference.to(weights.dtype), offsets.to(kind), logits.to(kind), upstream


def check_projected(host, shapes, inputs, dtype, **choices):
    value, *others, upstream = inputs
    exact = [x.double().requires_grad_() for x in (value, *others)]
    output = reference_projected_deformable_attention(exact[0], shapes, *exact[1:])
    expected = torch.autograd.grad(output, exact, upstream.double())
    assert_close(host.run_projected(shapes, value, *others), output.detach(), TOLERANCE[dtype])
    gradients = host.run_projected(shapes, value, *others, upstream, **choices)
    for actual, gradient in zip(gradients, expected, strict=True):
        assert_close(actual, gradient, max(TOLERANCE[dtype], TOLERANCE[actual.dtype]))
    return gradients


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [2, 4])
@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("one_level", [False, True])
def test_projections_equal_the_reference(host, one_level, shared, size, dtype):
    inputs = projected_inputs(
        size, shared, one_level, dtype=dtype, channels=16, points=4, queries=11
    )
    check_projected(host, PYRAMID, inputs, dtype)


@pytest.mark.parametrize(("levels", "points"), [(1, 1), (1, 7), (2, 8), (4, 5), (3, 11), (4, 20)])
def test_any_number_of_samples_has_its_softmax(host, levels, points):
    shapes = PYRAMID[:levels]
    inputs = projected_inputs(shapes=shapes, points=points, queries=9, heads=3, size=4)
    check_projected(host, shapes, inputs, torch.float32)


@pytest.mark.parametrize("projected", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("size", [2, 4])
def test_16_bit_projections_are_computed_in_float32(host, size, projected):
    inputs = projected_inputs(size, projected=projected, dtype=projected, points=4)
    check_projected(host, PYRAMID, inputs, projected)


@pytest.mark.parametrize("variant", [DIRECT, SORTED, DETERMINISTIC])
def test_every_way_to_sum_takes_projections(host, variant):
    inputs = projected_inputs(queries=300, batch=1)
    check_projected(host, PYRAMID, inputs, torch.float32, variant=variant)


# --- For every architecture ---


@dataclass(frozen=True)
class Kernel:
    architecture: str
    name: str
    registers: int
    spilled: int
    static_shared: int


@dataclass(frozen=True)
class Objects:
    paths: list[Path]
    kernels: list[Kernel]


@pytest.fixture(scope="module")
def objects(tmp_path_factory):
    """The kernels as the build compiles them, with what the assembler says of them."""
    cuda = BUILD.find_cuda()
    if cuda is None:
        pytest.skip("needs nvcc")
    folder = tmp_path_factory.mktemp("cuda")
    sources = sorted((CSRC / "cuda").glob("*.cu"))
    paths = [folder / f"{source.name}.o" for source in sources]
    flags = [*BUILD._NVCC_FLAGS, *BUILD.architecture_flags(BUILD.ARCHITECTURES), "-Xptxas=-v"]
    said = in_parallel(
        [cuda.nvcc, *flags, f"-I{CSRC}", "-c", source, "-o", path]
        for source, path in zip(sources, paths, strict=True)
    )
    return Objects(paths, list(kernels_in(said)))


def kernels_in(said):
    """What `ptxas -v` reports: a kernel's name, then its spills, then its registers."""
    name = architecture = spilled = None
    for line in said.splitlines():
        if found := re.search(r"Compiling entry function '(\w+)' for 'sm_(\d+)'", line):
            name, architecture = readable(found[1]), found[2]
        elif found := re.search(r"(\d+) bytes spill stores, (\d+) bytes spill loads", line):
            spilled = int(found[1]) + int(found[2])
        elif found := re.search(r"Used (\d+) registers", line):
            shared = re.search(r"(\d+) bytes smem", line)
            yield Kernel(
                architecture, name, int(found[1]), spilled, int(shared[1]) if shared else 0
            )


def readable(symbol):
    """`backward<float, 4, 3>` of a mangled name; the last number is -1 for any lanes."""
    what = re.search(r"\d+([a-z]+)_kernelI(.*?)EE?v", symbol)
    types = {"f": "float", "d": "double", "N": "16 bit"}
    if what[1] in ("make", "finish", "reference"):  # of locations and of offsets
        second = "16 bit" if len(what[2]) > 2 else types[what[2][1]]
        return f"{what[1]}<{types[what[2][0]]}, {second}>"
    numbers = [n.replace("n", "-") for n in re.findall(r"Li(n?\d+)E?", what[2])]
    first = types.get(what[2][0])
    return f"{what[1]}<{', '.join([*([first] if first else []), *numbers])}>"


def budget(name):
    """Registers of a kernel: they decide how many warps a multiprocessor holds."""
    if name.startswith("forward"):
        return 128 if "double" in name else 64
    if name.startswith("backward"):
        return 128 if "-1" in name else 80 if "16 bit" in name else 64
    if name.startswith(("make", "finish", "reference")):
        return 64
    return 80 if name.startswith("scatter") else 64


def test_every_kernel_is_compiled_for_every_architecture(objects):
    names = defaultdict(list)
    for kernel in objects.kernels:
        names[kernel.architecture].append(kernel.name)
    assert sorted(names, key=int) == list(BUILD.ARCHITECTURES)
    for kernels in names.values():
        assert sorted(kernels) == sorted(names["90"])
    for name in (
        *("forward<float, 4, 3>", "backward<float, 4, 3>", "scatter<32>"),
        *("make<float, float>", "finish<float, 16 bit>", "reference<double, double>"),
    ):
        assert name in names["90"]


def test_no_kernel_spills_registers(objects):
    assert [kernel for kernel in objects.kernels if kernel.spilled] == []


def test_kernels_keep_to_their_registers(objects):
    assert [kernel for kernel in objects.kernels if kernel.registers > budget(kernel.name)] == []


def test_shared_memory_is_only_what_a_launch_asks_for(objects):
    assert [kernel for kernel in objects.kernels if kernel.static_shared] == []


@pytest.fixture(scope="module")
def machine_code(objects):
    """The instructions of each kernel for architectures 75 and 90: (address, text) pairs."""
    tool = shutil.which("cuobjdump")
    if tool is None:
        triton = importlib.util.find_spec("triton")
        folder = Path(triton.origin).parent / "backends/nvidia/bin" if triton else HERE
        tool = folder / "cuobjdump"
        if not (tool.is_file() and (folder / "nvdisasm").is_file()):
            pytest.skip("needs cuobjdump and nvdisasm")
    path = f"{Path(tool).parent}{os.pathsep}{os.environ['PATH']}"
    code = {}
    for architecture in ("75", "90"):
        for place in objects.paths:
            text = subprocess.run(
                [tool, "-arch", f"sm_{architecture}", "-sass", place],
                capture_output=True,
                text=True,
                check=True,
                env={**os.environ, "PATH": path},
            ).stdout
            for function in text.split("Function : ")[1:]:
                lines = re.findall(r"^\s+/\*([0-9a-f]{4,})\*/\s+(.*?);", function, re.MULTILINE)
                name = readable(function.split(maxsplit=1)[0])
                code[architecture, name] = [(int(at, 16), line.strip()) for at, line in lines]
    return code


def innermost_loop(code, instruction):
    """The shortest loop with the instruction in it."""
    places = {at: number for number, (at, _) in enumerate(code)}
    loops = []
    for number, (at, line) in enumerate(code):
        target = re.search(r"\bBRA\b.*?(0x[0-9a-f]+)", line)
        if target and int(target[1], 16) < at and int(target[1], 16) in places:
            body = [line for _, line in code[places[int(target[1], 16)] : number + 1]]
            if any(re.search(instruction, line) for line in body):
                loops.append(body)
    return min(loops, key=len)


def test_nothing_is_kept_in_local_memory_or_added_by_trial(machine_code):
    for (architecture, name), code in machine_code.items():
        # 16-bit kernels share names between the two types; each is looked at in turn.
        found = {line for _, line in code if re.search(r"\b(LDL|STL|CAS|CAST)\b|\.CAS", line)}
        assert not found, f"{name} on sm_{architecture}: {found}"


def test_sorting_counts_with_native_integer_additions(machine_code):
    for architecture in ("75", "90"):
        code = machine_code[architecture, "scatter<32>"]
        assert sum("ATOMS" in line for _, line in code) == 16
        assert not [line for _, line in code if re.search(r"\bATOM\b", line)]


@pytest.mark.parametrize("name", ["backward<float, 4, 3>", "backward<16 bit, 8, 2>", "scatter<32>"])
def test_hopper_adds_four_numbers_at_once(machine_code, name):
    additions = [line for _, line in machine_code["90", name] if re.search(r"\bREDG?\b", line)]
    assert additions
    assert all("F32x4" in line for line in additions)


@pytest.mark.parametrize(
    ("name", "instruction", "most"),
    [
        # Four samples of four queries: 16 loads, 64 multiply-adds, 16 addresses, 8 shared reads.
        ("forward<float, 4, 3>", r"LDG\.E\.128", 112),
        # Of eight queries; 128 of them turn 16 bits into 32.
        ("forward<16 bit, 8, 2>", r"LDG\.E\.128", 308),
        # One sample of four queries (eight), with the rare way at the edges of a level.
        ("backward<float, 4, 3>", r"LDG\.E\.128", 140),
        ("backward<16 bit, 8, 2>", r"LDG\.E\.128", 230),
        # One contribution of eight pixels.
        ("scatter<32>", r"REDG", 52),
    ],
)
def test_inner_loops_stay_short(machine_code, name, instruction, most):
    assert len(innermost_loop(machine_code["90", name], instruction)) <= most
