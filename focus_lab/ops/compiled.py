"""Deformable attention in C++ and CUDA: the shared library that holds its kernels (csrc/).

What torch must know about them is registered on first use (`registration`): importing this module
does nothing.
"""

from __future__ import annotations

import json
import re
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor
from torch.autograd import forward_ad

from focus_lab.errors import UserError
from focus_lab.ops.registration import define
from focus_lab.ops.sources import source_hash

_LIBRARY = Path(__file__).with_name("focus_lab_ops.so")
_SOURCES = Path(__file__).resolve().parents[2] / "csrc"
"""Beside the package in a checkout; an installed package has none."""

_INTERFACE = 2
"""Of this module with the library; csrc/binding.cpp counts the same."""

_FACTS = re.compile(rb"focus_lab_ops_build=(\{[^\0]*\})\0")
_REMEDY = (
    f"build it with `python {_SOURCES.name}/build.py`"
    if _SOURCES.is_dir()
    else "install focus-lab again where a C++ compiler is"
) + ", or choose the reference implementation"

Status: TypeAlias = Literal["ok", "missing", "stale", "broken"]


class CompiledOpError(UserError):
    """The compiled operators cannot be used; build them with `python csrc/build.py`."""


@dataclass(frozen=True)
class LibraryState:
    """Whether the compiled operators can be used, found out without loading them."""

    status: Status
    path: Path
    reason: str = ""
    """What is wrong, as a part of a sentence; empty when nothing is."""
    remedy: str = ""
    build: dict[str, Any] = field(default_factory=dict)
    """Of the library: source_hash, torch and cuda that it was built with, architectures."""

    @property
    def ok(self) -> bool:
        """Whether it may be loaded."""
        return self.status == "ok"


def library_state(path: Path | None = None, sources: Path | None = None) -> LibraryState:
    """Look at the library, without loading it.

    Args:
        path: of another library than the package's own.
        sources: folder of the sources that it must have been built from; without it the checkout's,
            and none for an installed package.
    """
    path = _LIBRARY if path is None else path
    sources = _SOURCES if sources is None else sources
    if not path.is_file():
        return LibraryState("missing", path, "it has not been built", _REMEDY)
    try:
        found = _FACTS.search(path.read_bytes())
        build: dict[str, Any] = json.loads(found[1]) if found else {}
    except (OSError, ValueError) as error:
        return LibraryState("broken", path, f"it cannot be read, got {error}", _REMEDY)
    if not build:
        return LibraryState("broken", path, "it is not a library of this project", _REMEDY)
    if build.get("interface") != _INTERFACE:
        reason = f"it has interface {build.get('interface')}, {_INTERFACE} is needed"
        return LibraryState("stale", path, reason, _REMEDY, build)
    if (sources / "deformable_attention.h").is_file():
        expected = source_hash(sources)
        if build.get("source_hash") != expected:
            reason = (
                f"it was built from sources {build.get('source_hash')}, now they are {expected}"
            )
            return LibraryState("stale", path, reason, _REMEDY, build)
    return LibraryState("ok", path, build=build)


@dataclass
class _Process:
    """What this process has loaded: torch's dispatcher is one a process, so this is too."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    definitions: torch.library.Library | None = None
    loaded: LibraryState | None = None


_PROCESS = _Process()


def load(path: Path | None = None) -> LibraryState:
    """Load the library, once a process; later calls answer with what was loaded.

    Args:
        path: of another library than the package's own.

    Raises:
        CompiledOpError: when it is missing, out of date or does not load; it is then not used. Also
            when another library has been loaded: a process has room for one.
    """
    with _PROCESS.lock:
        loaded = _PROCESS.loaded
        if loaded is not None and path in (None, loaded.path):
            return loaded
        state = library_state(path)
        if not state.ok:
            raise CompiledOpError(
                f"compiled operators: {state.path.name} is {state.status}, {state.reason}; "
                f"{state.remedy}"
            )
        if loaded is not None:
            raise CompiledOpError(
                f"compiled operators: this process has loaded {loaded.path}, got {state.path}; "
                "start another process"
            )
        if _PROCESS.definitions is None:
            _PROCESS.definitions = define()
        try:
            torch.ops.load_library(state.path)  # type: ignore[no-untyped-call]
        except OSError as error:
            raise CompiledOpError(
                f"compiled operators: {state.path.name} does not load, got {error}; {_REMEDY}"
            ) from error
        _PROCESS.loaded = state
        return state


def _ensure_loaded() -> bool:
    """Load, or do nothing; torch.compile carries this out while it traces."""
    if _PROCESS.loaded is None:
        load()
    return True


# As torch.compiler.assume_constant_result does, which would import torch's compiler here.
_ensure_loaded._dynamo_marked_constant = True  # type: ignore[attr-defined]


def _refuse_what_is_missing(*tensors: Tensor) -> None:
    """What torch would leave out without a word, or refuse in words about itself."""
    if torch.compiler.is_compiling():
        return
    loaded = _PROCESS.loaded
    if tensors[0].is_cuda and loaded is not None and loaded.build["cuda"] == "none":
        raise CompiledOpError(
            f"compiled operators: built without CUDA kernels, got a tensor on {tensors[0].device}; "
            "install the CUDA toolkit (nvcc) and build again with `python csrc/build.py`, or "
            "choose the reference implementation"
        )
    forward_mode = forward_ad._current_level >= 0 and any(
        forward_ad.unpack_dual(tensor).tangent is not None  # type: ignore[no-untyped-call]
        for tensor in tensors
    )
    if forward_mode or any(map(torch._C._functorch.is_gradtrackingtensor, tensors)):
        mode = "forward-mode derivatives" if forward_mode else "derivatives of torch.func"
        raise NotImplementedError(
            f"deformable_attention: the compiled implementation has no {mode}, got a tensor that "
            "asks for them; use torch.autograd, or choose the reference implementation"
        )


def compiled_deformable_attention(
    value: Tensor, spatial_shapes: tuple[tuple[int, int], ...], locations: Tensor, weights: Tensor
) -> Tensor:
    """See `focus_lab.ops.deformable_attention`; sums in float32, or float64 for float64.

    Locations and weights must be float32 (float64 with a float64 value), under autocast too.

    Raises:
        CompiledOpError: when the library cannot be used, or has no kernels for the device.
        RuntimeError: when shapes, dtypes or devices do not fit.
        NotImplementedError: forward-mode derivatives, or those of torch.func, are asked for.
    """
    _ensure_loaded()
    _refuse_what_is_missing(value, locations, weights)
    sizes = [size for shape in spatial_shapes for size in shape]
    output: Tensor = torch.ops.focus_lab.deformable_attention.default(
        value, sizes, locations, weights
    )
    return output


def compiled_projected_deformable_attention(
    value: Tensor,
    spatial_shapes: tuple[tuple[int, int], ...],
    reference_points: Tensor,
    offsets: Tensor,
    logits: Tensor,
) -> Tensor:
    """See `focus_lab.ops.projected_deformable_attention`; sums as the operator above does.

    Reference points must be float32 (float64 with a float64 value), under autocast too; offsets and
    logits the same, or both of 16 bits: locations and weights are made from them in float32.

    Raises:
        CompiledOpError: when the library cannot be used, or has no kernels for the device.
        RuntimeError: when shapes, dtypes or devices do not fit.
        NotImplementedError: forward-mode derivatives, or those of torch.func, are asked for.
    """
    _ensure_loaded()
    _refuse_what_is_missing(value, reference_points, offsets, logits)
    sizes = [size for shape in spatial_shapes for size in shape]
    output: Tensor = torch.ops.focus_lab.projected_deformable_attention.default(
        value, sizes, reference_points, offsets, logits
    )
    return output
