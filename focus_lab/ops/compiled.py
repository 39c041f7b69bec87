"""Deformable attention in C++ and CUDA: the shared library, and what torch must know about it.

The library holds kernels only (csrc/). Schemas, shapes, gradients, autocast and FLOPs are
registered here, on first use: importing this module does nothing.
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor

from focus_lab.errors import UserError
from focus_lab.ops.sources import source_hash

_LIBRARY = Path(__file__).with_name("focus_lab_ops.so")
_SOURCES = Path(__file__).resolve().parents[2] / "csrc"
"""Beside the package in a checkout; an installed package has none."""

_INTERFACE = 1
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
            _PROCESS.definitions = _define()
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


def compiled_deformable_attention(
    value: Tensor, spatial_shapes: tuple[tuple[int, int], ...], locations: Tensor, weights: Tensor
) -> Tensor:
    """See `focus_lab.ops.deformable_attention`; sums in float32, or float64 for float64.

    Locations and weights must be float32 (float64 with a float64 value), under autocast too.

    Raises:
        CompiledOpError: when the library cannot be used.
        RuntimeError: when shapes, dtypes or devices do not fit.
    """
    _ensure_loaded()
    sizes = [size for shape in spatial_shapes for size in shape]
    output: Tensor = torch.ops.focus_lab.deformable_attention.default(
        value, sizes, locations, weights
    )
    return output


def _define() -> torch.library.Library:
    """Tell torch the operators' schemas, shapes, gradients, autocast rule and FLOPs.

    Schemas are defined here and not in C++, because the stable ABI of torch 2.11 has no tags.
    """
    library = torch.library.Library("focus_lab", "DEF")  # type: ignore[no-untyped-call]
    library.define(  # type: ignore[no-untyped-call]
        "deformable_attention("
        "Tensor value, SymInt[] spatial_shapes, Tensor locations, Tensor weights) -> Tensor",
        tags=(torch.Tag.pt2_compliant_tag,),
    )
    library.define(  # type: ignore[no-untyped-call]
        "deformable_attention_backward("
        "Tensor grad_output, Tensor value, SymInt[] spatial_shapes, Tensor locations, "
        "Tensor weights, bool deterministic) -> (Tensor, Tensor, Tensor)",
        # Unless asked to be deterministic, a GPU adds in any order.
        tags=(torch.Tag.pt2_compliant_tag, torch.Tag.nondeterministic_bitwise),
    )
    forward = "focus_lab::deformable_attention"
    backward = "focus_lab::deformable_attention_backward"
    torch.library.register_fake(forward, _output_like, lib=library)
    torch.library.register_fake(backward, _gradients_like, lib=library)
    torch.library.register_autograd(forward, _backward, setup_context=_setup_context, lib=library)
    torch.library.register_autograd(backward, _refuse_second_derivative, lib=library)
    for device in ("CPU", "CUDA"):
        library.impl(  # type: ignore[no-untyped-call]
            "deformable_attention", _Autocast(device), f"Autocast{device}"
        )

    from torch.utils.flop_counter import register_flop_formula

    register_flop_formula(
        [
            torch.ops.focus_lab.deformable_attention,
            torch.ops.focus_lab.deformable_attention_backward,
        ]
    )(_no_flops)
    return library


def _output_like(
    value: Tensor, spatial_shapes: Sequence[int], locations: Tensor, weights: Tensor
) -> Tensor:
    heads, channels = value.shape[2:]
    return value.new_empty((locations.shape[0], locations.shape[1], heads * channels))


def _gradients_like(
    grad_output: Tensor,
    value: Tensor,
    spatial_shapes: Sequence[int],
    locations: Tensor,
    weights: Tensor,
    deterministic: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    return (
        value.new_empty(value.shape),
        locations.new_empty(locations.shape),
        weights.new_empty(weights.shape),
    )


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    value, ctx.spatial_shapes, locations, weights = inputs
    ctx.save_for_backward(value, locations, weights)


def _backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor, None, Tensor, Tensor]:
    value, locations, weights = ctx.saved_tensors
    # Read here, as the stable ABI does not tell it.
    deterministic = torch.are_deterministic_algorithms_enabled()
    of_value, of_locations, of_weights = torch.ops.focus_lab.deformable_attention_backward.default(
        grad_output, value, ctx.spatial_shapes, locations, weights, deterministic
    )
    return of_value, None, of_locations, of_weights


def _refuse_second_derivative(ctx: Any, *grads: Tensor) -> tuple[None, ...]:
    raise NotImplementedError(
        "deformable_attention: the compiled implementation has no second derivatives, got a "
        "backward pass through its gradients; choose the reference implementation for them"
    )


class _Autocast:
    """Under autocast the value takes the lower precision; locations and weights keep float32."""

    def __init__(self, device: str) -> None:
        self.device = device.lower()
        self.keys = torch._C.DispatchKeySet(getattr(torch._C.DispatchKey, f"Autocast{device}"))

    def __call__(
        self, value: Tensor, spatial_shapes: Sequence[int], locations: Tensor, weights: Tensor
    ) -> Tensor:
        if value.dtype != torch.float64:  # as torch's own rules leave float64 alone
            value = value.to(torch.get_autocast_dtype(self.device))
        with torch._C._ExcludeDispatchKeyGuard(self.keys):
            output: Tensor = torch.ops.focus_lab.deformable_attention.default(
                value, spatial_shapes, locations, weights
            )
        return output


def _no_flops(*shapes: Any, **more: Any) -> int:
    """Bilinear sampling counts nothing, as in the reference (see focus_lab.training.cost)."""
    return 0
