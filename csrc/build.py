"""Builds the compiled operators: one shared library for every Python and every torch since 2.11.

Run by the install (`setup.py`), by `make`, and by hand: `python csrc/build.py`. It needs a C++
compiler and an installed torch, whose headers and libraries it uses; with nvcc it builds the CUDA
kernels too, and needs no GPU for that. It imports neither torch nor focus_lab.

Environment:
    FOCUS_LAB_OPS: `auto` (default) builds what it can, `off` nothing, `on` insists on a compiler.
    FOCUS_LAB_CUDA: `auto` (default) uses nvcc where it serves, `off` never, `on` fails without.
    FOCUS_LAB_CUDA_ARCHS: architectures, for example "90 120"; default: see `ARCHITECTURES`.
    CXX, CUDA_HOME: the compiler, the CUDA toolkit.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

CSRC = Path(__file__).resolve().parent
LIBRARY = "focus_lab_ops.so"
PLACE = CSRC.parent / "focus_lab" / "ops"
ARCHITECTURES = ("75", "80", "86", "89", "90", "100", "120")
"""Turing to Blackwell; PTX of the last one serves what comes after."""

_USUAL_HOME = Path("/usr/local/cuda")

# torch's stable interface of 2.11: the oldest torch that the library must load in.
_TORCH_TARGET = "-DTORCH_TARGET_VERSION=0x020b000000000000ULL"
# No -ffast-math: NaN must fail every comparison. Contraction gives the fused multiply-adds.
_CXX_FLAGS = (
    "-O3", "-fPIC", "-fvisibility=hidden", "-fvisibility-inlines-hidden", "-ffp-contract=fast",
    "-Wall", "-Wextra", "-Werror=return-type", _TORCH_TARGET,
)  # fmt: skip
_NVCC_FLAGS = (
    "-O3", "-std=c++17", "--compress-mode=size", "-Xcompiler=-fPIC,-fvisibility=hidden",
    "-diag-suppress=186",
)  # fmt: skip


_CPU_ONLY = "the operators are compiled for the CPU only"


class BuildError(Exception):
    """Why nothing was built, with the remedy."""


@dataclass(frozen=True)
class Cuda:
    """A CUDA toolkit: its compiler, and its runtime as a static library."""

    nvcc: Path
    runtime: Path
    version: str


def build(place: Path = PLACE) -> Path | None:
    """Compile and link the library into a folder.

    Args:
        place: the folder; the library appears in it whole or not at all.

    Returns:
        The library; None when the environment asks for none, or `auto` finds no compiler.

    Raises:
        BuildError: a compiler, torch or toolkit that was asked for is missing, or a source does not
            compile.
    """
    if _choice("FOCUS_LAB_OPS") == "off":
        return None
    try:
        compiler, torch, cuda = find_compiler(), find_torch(), find_cuda()
    except BuildError as error:
        if is_asked_for():
            raise
        print(f"focus_lab: operators are not compiled: {error}", file=sys.stderr)
        return None
    if cuda:
        try:
            return _build(place, compiler, torch, cuda)
        except BuildError as error:
            # A toolkit too old, or one that does not take this compiler, must keep nobody from
            # the kernels for the CPU.
            if _choice("FOCUS_LAB_CUDA") == "on":
                raise
            print(f"focus_lab: {_CPU_ONLY}: {error}", file=sys.stderr)
    return _build(place, compiler, torch, None)


def is_asked_for() -> bool:
    """Whether the environment insists on kernels, so that an install without them must fail."""
    return "on" in (_choice("FOCUS_LAB_OPS"), _choice("FOCUS_LAB_CUDA"))


def find_compiler() -> list[str]:
    """The C++ compiler as a command.

    Raises:
        BuildError: there is none.
    """
    for name in (os.environ.get("CXX"), "c++", "g++", "clang++"):
        if name and shutil.which(shlex.split(name)[0]):
            return shlex.split(name)
    raise BuildError("no C++ compiler, got none of $CXX, c++, g++, clang++; install g++ 9 or later")


def find_torch() -> Path:
    """The folder of the installed torch.

    Raises:
        BuildError: it is missing.
    """
    spec = importlib.util.find_spec("torch")
    if spec is None or not spec.submodule_search_locations:
        raise BuildError(f"torch is not installed for {sys.executable}; install torch>=2.11 first")
    return Path(next(iter(spec.submodule_search_locations)))


def find_cuda() -> Cuda | None:
    """The toolkit in CUDA_HOME, of the nvcc on PATH, in its usual place, or of PyPI's packages.

    Raises:
        BuildError: FOCUS_LAB_CUDA is `on` and there is none, or the one found is not whole.
    """
    wanted = _choice("FOCUS_LAB_CUDA")
    if wanted == "off":
        return None
    homes = [Path(os.environ["CUDA_HOME"])] if os.environ.get("CUDA_HOME") else []
    if on_path := shutil.which("nvcc"):
        homes.append(Path(on_path).resolve().parent.parent)
    homes.append(_USUAL_HOME)
    homes += sorted(Path(sysconfig.get_paths()["purelib"]).glob("nvidia/cu*"), reverse=True)
    bare = None
    for home in homes:
        nvcc = home / "bin" / "nvcc"
        if not nvcc.is_file():
            continue
        said = subprocess.run([nvcc, "--version"], capture_output=True, text=True).stdout
        version = re.search(r"release (\d+\.\d+)", said)
        folders = ("lib64", "lib", "targets/x86_64-linux/lib")
        runtimes = [home / folder / "libcudart_static.a" for folder in folders]
        runtime = next((path for path in runtimes if path.is_file()), None)
        if version and runtime:
            return Cuda(nvcc, runtime, version[1])
        bare = bare or nvcc  # on PATH it may be no more than a pointer to the toolkit's
    if bare:
        message = f"{bare}: no libcudart_static.a beside it; set CUDA_HOME to a whole toolkit"
        if wanted == "on":
            raise BuildError(message)
        print(f"focus_lab: {_CPU_ONLY}: {message}", file=sys.stderr)
    if wanted == "on":
        raise BuildError("FOCUS_LAB_CUDA=on, but no nvcc was found; set CUDA_HOME to the toolkit")
    return None


def architecture_flags(architectures: Sequence[str]) -> list[str]:
    """Flags of nvcc for machine code of each architecture, and PTX of the newest."""
    flags = [f"-gencode=arch=compute_{a},code=sm_{a}" for a in architectures]
    return [*flags, f"-gencode=arch=compute_{architectures[-1]},code=compute_{architectures[-1]}"]


def architectures(cuda: Cuda) -> tuple[str, ...]:
    """What FOCUS_LAB_CUDA_ARCHS says ("9.0" and "90" are the same), or all that nvcc knows.

    Raises:
        BuildError: nvcc knows none of ours.
    """
    asked = re.split(r"[\s,;]+", os.environ.get("FOCUS_LAB_CUDA_ARCHS", "").strip())
    if chosen := tuple(a.replace(".", "") for a in asked if a):
        return chosen
    said = subprocess.run([cuda.nvcc, "--list-gpu-arch"], capture_output=True, text=True).stdout
    known = set(re.findall(r"compute_(\d+)", said))
    if found := tuple(a for a in ARCHITECTURES if a in known):
        return found
    raise BuildError(
        f"{cuda.nvcc}: knows none of the architectures {', '.join(ARCHITECTURES)}, got "
        f"CUDA {cuda.version}; set CUDA_HOME to a toolkit of CUDA 12.8 or later"
    )


def _build(place: Path, compiler: list[str], torch: Path, cuda: Cuda | None) -> Path:
    archs = architectures(cuda) if cuda else ()
    facts = {
        "FOCUS_LAB_SOURCE_HASH": _source_hash(CSRC),
        "FOCUS_LAB_TORCH_VERSION": importlib.metadata.version("torch"),
        "FOCUS_LAB_CUDA_VERSION": cuda.version if cuda else "none",
        "FOCUS_LAB_CUDA_ARCHITECTURES": " ".join(archs),
    }
    defines = [f'-D{name}="{value}"' for name, value in facts.items()]
    include = torch / "include"
    # Messages of the library name a source by its place in the checkout or torch, not in this disk.
    shorter = [f"-ffile-prefix-map={folder}/=" for folder in (CSRC.parent, torch.parent)]
    headers = ["-isystem", str(include), "-isystem", str(include / "torch/csrc/api/include")]
    with tempfile.TemporaryDirectory(prefix="focus-lab-build-") as scratch:
        jobs: list[list[str]] = []
        objects: list[str] = []

        def add(source: Path, command: list[str]) -> None:
            objects.append(str(Path(scratch) / f"{source.parent.name}-{source.name}.o"))
            jobs.append([*command, "-c", str(source), "-o", objects[-1]])

        # The slowest first.
        if cuda:
            nvcc = [str(cuda.nvcc), *_NVCC_FLAGS, *architecture_flags(archs), f"-I{CSRC}"]
            nvcc += [f"-Xcompiler={flag}" for flag in shorter]
            if len(compiler) == 1:
                nvcc.append(f"-ccbin={compiler[0]}")
            for source in sorted((CSRC / "cuda").glob("*.cu")):
                add(source, [*nvcc, *defines])
            defines.append("-DFOCUS_LAB_WITH_CUDA")
        for source in sorted((CSRC / "cpu").glob("*.cpp")):
            add(source, [*compiler, "-std=c++17", *_CXX_FLAGS, *shorter, f"-I{CSRC}"])
        # Newer torch headers need C++20; the source itself is C++17.
        standard = "-std=c++17" if _torch_series() < (2, 13) else "-std=c++20"
        binding = [*compiler, standard, *_CXX_FLAGS, *shorter, *headers, f"-I{CSRC}", *defines]
        add(CSRC / "binding.cpp", binding)
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            list(pool.map(_run, jobs))
        place.mkdir(parents=True, exist_ok=True)
        partial = place / f".{LIBRARY}.{os.getpid()}"
        # --as-needed: without a GPU build of torch, its CUDA libraries must not be asked for. The
        # runtime is linked in for the same reason: a CPU-only torch brings none.
        _run(
            [*compiler, "-shared", "-o", str(partial), *objects, "-Wl,--as-needed",
             "-Wl,--exclude-libs,ALL", f"-L{torch / 'lib'}", "-ltorch_cpu", "-lc10",
             *([str(cuda.runtime)] if cuda else []), "-lrt", "-lpthread", "-ldl", "-s"]
        )  # fmt: skip
        partial.replace(place / LIBRARY)
    return place / LIBRARY


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.stderr.strip():
        print(done.stderr.strip(), file=sys.stderr)
    if done.returncode:
        raise BuildError(
            f"{shlex.join(command)}: failed, got exit {done.returncode}; see above. "
            "FOCUS_LAB_CUDA=off builds for the CPU only, FOCUS_LAB_OPS=off nothing"
        )


def _choice(name: str) -> str:
    value = os.environ.get(name, "auto").lower()
    if value not in ("auto", "on", "off"):
        raise BuildError(f"{name}: must be auto, on or off, got {value!r}")
    return value


def _torch_series() -> tuple[int, int]:
    major, minor = importlib.metadata.version("torch").split(".")[:2]
    return int(major), int(minor)


def _source_hash(csrc: Path) -> str:
    """As the loader computes it: loaded by path, because importing the package may fail."""
    path = PLACE / "sources.py"
    spec = importlib.util.spec_from_file_location("focus_lab_ops_sources", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    digest: str = module.source_hash(csrc)
    return digest


if __name__ == "__main__":
    try:
        library = build()
    except BuildError as error:
        sys.exit(f"focus_lab: {error}")
    print(f"built {library}" if library else "nothing built")
