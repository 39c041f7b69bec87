"""Installing on different machines: with a compiler, with none, with nvcc, and in another torch.

Nothing is fetched: packages are built without isolation and installed without dependencies.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType

import pytest

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.skipif(sys.platform != "linux", reason="the library is built for Linux"),
]

ROOT = Path(__file__).parents[2]
LIBRARY = "focus_lab/ops/focus_lab_ops.so"
SECOND_PYTHON = "FOCUS_LAB_SECOND_PYTHON"
"""Names an interpreter with another torch than this one, for the test of both."""

# torch's two libraries of the stable ABI, and what every Linux has.
MAY_NEED = {
    "libtorch_cpu.so", "libc10.so", "libstdc++.so.6", "libgcc_s.so.1", "libm.so.6", "libc.so.6",
    "libpthread.so.0", "libdl.so.2", "librt.so.1", "ld-linux-x86-64.so.2",
}  # fmt: skip

# The kernels for a CPU are the same in all builds of these tests: compiled once, then remembered.
COMPILER = """
import hashlib, pathlib, shutil, subprocess, sys
command = sys.argv[2:]
def compile():
    done = subprocess.run(command)
    if done.returncode:
        sys.exit(done.returncode)
if "-c" in command:
    place = command.index("-o") + 1
    checkout = command[command.index("-c") + 1].partition("/csrc/")[0]
    words = "|".join(command[:place] + command[place + 1:]).replace(checkout, "")
    kept = pathlib.Path(sys.argv[1], hashlib.sha256(words.encode()).hexdigest())
    if not kept.exists():
        compile()
        shutil.copy(command[place], kept)
    shutil.copy(kept, command[place])
else:
    compile()
"""

# Prints a sentence of the state, then what the operator says.
USE = """
import torch
from pathlib import Path
import focus_lab
from focus_lab.ops import CompiledOpError, deformable_attention, library_state
print(Path(focus_lab.__file__).parent)
print(library_state().status)
print(library_state().remedy)
torch.manual_seed(0)
shapes = ((3, 5), (2, 2))
inputs = torch.randn(2, 19, 2, 8), shapes, torch.rand(2, 3, 2, 2, 2, 2), torch.rand(2, 3, 2, 2, 2)
expected = deformable_attention(*inputs, implementation="reference")
try:
    found = deformable_attention(*inputs, implementation="compiled")
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    print("equal")
except CompiledOpError as error:
    print(error)
"""


@pytest.fixture(scope="session")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the checkout in which nothing has been built."""
    return copied(ROOT, tmp_path_factory.mktemp("install") / "checkout")


@pytest.fixture(scope="session")
def build_module(tree: Path) -> ModuleType:
    """csrc/build.py, to ask what it finds on this machine."""
    spec = importlib.util.spec_from_file_location("csrc_build", tree / "csrc" / "build.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["csrc_build"] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def compiler(build_module: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> str:
    """This machine's compiler, with a memory."""
    try:
        command = build_module.find_compiler()
    except build_module.BuildError as error:
        pytest.skip(str(error))
    folder = tmp_path_factory.mktemp("compiler")
    program = folder / "compiler.py"
    program.write_text(COMPILER)
    return " ".join([sys.executable, "-S", str(program), str(folder), *command])


def copied(checkout: Path, place: Path) -> Path:
    """What a build needs of a checkout, without what has been built in it."""
    ignored = shutil.ignore_patterns("*.so", "__pycache__", "*.egg-info")
    for name in ("csrc", "focus_lab"):
        shutil.copytree(checkout / name, place / name, ignore=ignored)
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(checkout / name, place / name)
    return place


def environment(**changes: str | None) -> dict[str, str]:
    """This process's, without what would steer a build, and with changes."""
    ours = ("FOCUS_LAB_", "PYTHONPATH", "CXX", "CUDA_HOME", "PIP_")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    return kept | {name: value for name, value in changes.items() if value is not None}


def run(
    *command: str | Path, env: Mapping[str, str] | None = None, cwd: Path, fails: bool = False
) -> str:
    done = subprocess.run(
        [str(word) for word in command], env=env or environment(), cwd=cwd,
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert bool(done.returncode) is fails, done.stdout + done.stderr
    return done.stderr if fails else done.stdout


def make_wheel(tree: Path, place: Path, env: Mapping[str, str]) -> Path:
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet")
    offline = ("--no-index", "--no-deps", "--no-build-isolation", "--no-cache-dir")
    run(*pip, "wheel", *offline, "--wheel-dir", place, tree, env=env, cwd=place)
    (wheel,) = place.glob("*.whl")
    return wheel


def installed(wheel: Path, place: Path) -> Path:
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet")
    run(*pip, "install", "--no-index", "--no-deps", "--target", place, wheel, cwd=wheel.parent)
    return place


def use(
    place: Path, python: str | Path = sys.executable, program: str = USE
) -> tuple[Path, list[str]]:
    """Where the package lies that was imported, and the lines that the program printed."""
    lines = run(
        python, "-c", program, env=environment(PYTHONPATH=str(place)), cwd=place.parent
    ).splitlines()
    return Path(lines[0]), lines[1:]


def needed(library: Path) -> set[str]:
    """What the loader will look for."""
    said = run("objdump", "-p", library, cwd=library.parent)
    assert "RPATH" not in said
    assert "RUNPATH" not in said
    return set(re.findall(r"NEEDED\s+(\S+)", said))


@pytest.fixture(scope="session")
def wheel(tree: Path, compiler: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """For a CPU, with every kernel compiled."""
    env = environment(CXX=compiler, FOCUS_LAB_OPS="on", FOCUS_LAB_CUDA="off")
    return make_wheel(tree, tmp_path_factory.mktemp("wheel"), env)


@pytest.fixture(scope="session")
def site(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which that wheel is installed."""
    return installed(wheel, tmp_path_factory.mktemp("site") / "packages")


@pytest.fixture(scope="session")
def cuda_tree(
    tree: Path, compiler: str, build_module: ModuleType, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A checkout with the library built in place, for one GPU architecture."""
    if not list((tree / "csrc" / "cuda").glob("*.cu")):
        pytest.skip("csrc/cuda has no kernels")
    if build_module.find_cuda() is None:
        pytest.skip("no nvcc on this machine")
    env = environment(
        CXX=compiler,
        CUDA_HOME=os.environ.get("CUDA_HOME"),
        FOCUS_LAB_OPS="on",
        FOCUS_LAB_CUDA="on",
        FOCUS_LAB_CUDA_ARCHS="9.0",
    )
    copy = copied(tree, tmp_path_factory.mktemp("cuda") / "checkout")
    run(sys.executable, "csrc/build.py", env=env, cwd=copy)
    return copy


@pytest.fixture
def no_tools(tmp_path: Path) -> dict[str, str]:
    """The environment of a machine without a compiler."""
    tools = tmp_path / "tools"
    tools.mkdir()
    (tools / "python").symlink_to(sys.executable)
    return environment(PATH=str(tools))


def test_the_wheel_serves_every_python_and_carries_one_library(wheel: Path) -> None:
    assert re.search(r"-py3-none-(manylinux_2_\d+|linux)_\w+\.whl$", wheel.name), wheel.name
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    assert [name for name in names if name.endswith((".so", ".o", ".a"))] == [LIBRARY]
    tops = {name.partition("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"focus_lab"}
    assert not [name for name in names if name.endswith((".cpp", ".cu", ".cuh", ".h", ".inl"))]


def test_the_library_is_linked_to_torchs_stable_interface_alone(site: Path) -> None:
    library = site / LIBRARY
    found = needed(library)
    assert "libtorch_cpu.so" in found
    assert found <= MAY_NEED
    wanted = re.findall(r"\*UND\*.*\s(\S+)$", run("objdump", "-T", library, cwd=site), re.M)
    assert wanted
    assert not [name for name in wanted if re.match(r"_?Py[A-Z_]", name)]


def test_the_library_tells_nothing_of_the_machine_it_was_built_on(site: Path, tree: Path) -> None:
    content = (site / LIBRARY).read_bytes()
    for folder in (tree, Path(sys.prefix), ROOT):
        assert str(folder).encode() not in content, folder


def test_the_installed_library_equals_the_reference(site: Path) -> None:
    place, (status, _, answer) = use(site)
    assert place == site / "focus_lab"
    assert (status, answer) == ("ok", "equal")


def test_an_editable_install_builds_the_library_in_place(
    tree: Path, compiler: str, wheel: Path, tmp_path: Path
) -> None:
    checkout = copied(tree, tmp_path / "checkout")
    program = "import sys; from setuptools import build_meta as b; b.build_editable(sys.argv[1])"
    env = environment(CXX=compiler, FOCUS_LAB_OPS="on", FOCUS_LAB_CUDA="off")
    run(sys.executable, "-c", program, tmp_path, env=env, cwd=checkout)
    assert (checkout / LIBRARY).is_file()


def test_without_a_compiler_the_install_succeeds_and_the_library_is_missing(
    tree: Path, no_tools: dict[str, str], tmp_path: Path
) -> None:
    # Whatever was built in this tree before, for another wheel, must not get into this one.
    wheel = make_wheel(tree, tmp_path, no_tools)
    assert wheel.name.endswith("-py3-none-any.whl")
    with zipfile.ZipFile(wheel) as archive:
        assert not [name for name in archive.namelist() if name.endswith(".so")]
    site = installed(wheel, tmp_path / "packages")
    place, (status, remedy, answer) = use(site)
    assert place == site / "focus_lab"
    assert status == "missing"
    assert remedy
    assert answer.startswith("compiled operators: focus_lab_ops.so is missing")
    assert remedy in answer


@pytest.mark.parametrize(
    ("name", "sentence"),
    [("FOCUS_LAB_OPS", "no C++ compiler"), ("FOCUS_LAB_CUDA", "no C++ compiler")],
)
def test_what_is_asked_for_and_cannot_be_built_is_an_error(
    name: str, sentence: str, tree: Path, no_tools: dict[str, str]
) -> None:
    said = run(sys.executable, "csrc/build.py", env={**no_tools, name: "on"}, cwd=tree, fails=True)
    assert sentence in said
    assert "Traceback" not in said


def test_a_library_of_changed_sources_is_stale_and_refused(
    tree: Path, site: Path, tmp_path: Path
) -> None:
    copy = copied(tree, tmp_path / "checkout")
    shutil.copy(site / LIBRARY, copy / LIBRARY)
    program = f"""
from pathlib import Path
import focus_lab
from focus_lab.ops import CompiledOpError, library_state, load
print(Path(focus_lab.__file__).parent)
print(library_state().status)
with Path({str(copy / "csrc" / "cpu" / "kernels.h")!r}).open("a") as source:
    source.write("// changed")
print(library_state().status)
try:
    load()
except CompiledOpError as error:
    print(error)
"""
    place, (before, after, answer) = use(copy, program=program)
    assert place == copy / "focus_lab"
    assert (before, after) == ("ok", "stale")
    assert answer.startswith("compiled operators: focus_lab_ops.so is stale")
    assert "csrc/build.py" in answer


def test_with_nvcc_both_kinds_of_kernels_are_registered(cuda_tree: Path) -> None:
    program = """
from pathlib import Path
import torch
import focus_lab
from focus_lab.ops import load
print(Path(focus_lab.__file__).parent)
print(load().build["architectures"])
for name in ("deformable_attention", "deformable_attention_backward"):
    for key in ("CPU", "CUDA"):
        has = torch._C._dispatch_has_kernel_for_dispatch_key(f"focus_lab::{name}", key)
        print(name, key, has)
"""
    place, (architectures, *kernels) = use(cuda_tree, program=program)
    assert place == cuda_tree / "focus_lab"
    assert architectures == "90"
    assert len(kernels) == 4
    assert all(line.endswith("True") for line in kernels), kernels


def test_the_library_with_cuda_needs_no_cuda_library(cuda_tree: Path) -> None:
    # It must load in a torch for CPUs, where there is none.
    assert needed(cuda_tree / LIBRARY) <= MAY_NEED
    assert str(cuda_tree).encode() not in (cuda_tree / LIBRARY).read_bytes()


@pytest.mark.parametrize("built", ["site", "cuda_tree"])
def test_built_once_it_works_in_a_second_torch(built: str, request: pytest.FixtureRequest) -> None:
    python = os.environ.get(SECOND_PYTHON)
    if not python:
        pytest.skip(f"{SECOND_PYTHON} names no interpreter with another torch")
    place: Path = request.getfixturevalue(built)
    program = f"""
{USE}
from torch.library import opcheck
print(torch.__version__)
value, _, locations, weights = inputs
arguments = value, [3, 5, 2, 2], locations, weights
opcheck(torch.ops.focus_lab.deformable_attention.default, arguments)
backward = torch.ops.focus_lab.deformable_attention_backward.default
opcheck(backward, (torch.randn(2, 3, 16), *arguments, True))
leaves = [tensor.requires_grad_() for tensor in (value, locations, weights)]
def loss(implementation):
    output = deformable_attention(value, shapes, locations, weights, implementation)
    return output.square().sum()
expected = torch.autograd.grad(loss("reference"), leaves)
compiled = torch.compile(loss, fullgraph=True, dynamic=True)
found = torch.autograd.grad(compiled("compiled"), leaves)
torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
print("compiles")
"""
    _, (status, _, answer, version, *more) = use(place, python, program)
    assert version != importlib.import_module("torch").__version__
    assert (status, answer, more) == ("ok", "equal", ["compiles"])
