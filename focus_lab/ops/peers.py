"""Other implementations of deformable attention, measured beside ours where they are installed.

None is a dependency: each is imported when it is asked for, and a peer that is missing or refuses
says why.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor

from focus_lab.ops.reference import (
    reference_deformable_attention,
    reference_projected_deformable_attention,
)


@dataclass(frozen=True)
class Inputs:
    """Arguments of one call; tensors as `focus_lab.ops.deformable_attention` takes them."""

    value: Tensor  # [B, S, H, D]
    spatial_shapes: tuple[tuple[int, int], ...]
    locations: Tensor  # [B, Q, H, L, P, 2], at least float32
    weights: Tensor  # [B, Q, H, L, P], at least float32
    reference_points: Tensor | None = None
    """[B, Q, L, 2 or 4] where the samples are to be made: `locations` are offsets then, `weights`
    logits, as `focus_lab.ops.projected_deformable_attention` takes them but for their shape."""

    def to(self, dtype: torch.dtype) -> Inputs:
        """All tensors in one dtype."""
        value, locations, weights = (tensor.to(dtype) for tensor in self.tensors)
        points = None if self.reference_points is None else self.reference_points.to(dtype)
        return replace(
            self, value=value, locations=locations, weights=weights, reference_points=points
        )

    @property
    def tensors(self) -> tuple[Tensor, Tensor, Tensor]:
        """Value, locations, weights: what has a gradient."""
        return self.value, self.locations, self.weights


Call: TypeAlias = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Value, locations, weights to the output [B, Q, H * D]; differentiable."""

Bind: TypeAlias = Callable[[Inputs], tuple[Call, Inputs]]
"""The call for inputs of these shapes, and the inputs in the dtypes that it wants."""


class NotInstalled(Exception):  # noqa: N818 - a state, not a fault
    """A peer cannot be imported here."""


@dataclass(frozen=True)
class Peer:
    """An implementation with a name."""

    name: str
    bind: Bind
    """Raises what the peer raises when it cannot do it, NotInstalled when it is not there."""


def reference() -> Peer:
    """Plain PyTorch: the definition."""

    def bind(inputs: Inputs) -> tuple[Call, Inputs]:
        shapes, points = inputs.spatial_shapes, inputs.reference_points
        if points is None:
            return lambda v, x, w: reference_deformable_attention(v, shapes, x, w), inputs
        sizes = points.new_tensor([(width, height) for height, width in shapes])
        return (
            lambda v, x, w: reference_projected_deformable_attention(
                v, shapes, points, x, w.flatten(3), sizes
            ),
            inputs,
        )

    return Peer("reference", bind)


def compiled_reference() -> Peer:
    """The definition through torch.compile, which fuses it into kernels of its own."""

    def bind(inputs: Inputs) -> tuple[Call, Inputs]:
        shapes = inputs.spatial_shapes
        functorch = importlib.import_module("torch._functorch.config")
        # Fresh caches for each case, as the recompilations of one function are limited.
        torch.compiler.reset()

        @torch.compile(dynamic=False)
        def compiled(value: Tensor, locations: Tensor, weights: Tensor) -> Tensor:
            return reference_deformable_attention(value, shapes, locations, weights)

        def call(value: Tensor, locations: Tensor, weights: Tensor) -> Tensor:
            # The backward pass is timed on a graph that is kept: it must not reuse its inputs.
            with functorch.patch(donated_buffer=False):
                return compiled(value, locations, weights)

        return call, inputs

    return Peer("reference, torch.compile", bind)


def peers(device: torch.device) -> list[Peer]:
    """Every other implementation known to the project, strongest claims first."""
    found = [Peer("deformops", _deformops)]
    if device.type == "cuda":
        # Its own choice on a recent GPU adds 16-bit gradients in 16 bits; this one does not.
        found.append(Peer("deformops triton, fp32 sums", lambda i: _deformops(i, "TRITON")))
        found.append(Peer("deformops cuda", lambda i: _deformops(i, "CUDA")))
    found += [
        Peer("torch-ms-deform-attn", _torch_ms_deform_attn),
        Peer("transformers", _transformers),
    ]
    if device.type == "cuda":
        found.append(Peer("transformers kernel", _transformers_kernel))
    return found


def _import(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        if isinstance(error, ModuleNotFoundError) and error.name == name.partition(".")[0]:
            raise NotInstalled("not installed") from error
        raise NotInstalled(f"cannot be imported: {error}") from error


def _on_device(inputs: Inputs) -> tuple[Tensor, Tensor]:
    """Level shapes [L, 2] and start of each level [L], int64 on the device: the old signature."""
    sizes = torch.tensor(inputs.spatial_shapes)
    starts = torch.cat((sizes.new_zeros(1), sizes.prod(1).cumsum(0)[:-1]))
    return sizes.to(inputs.value.device), starts.to(inputs.value.device)


def _deformops(inputs: Inputs, backend: str | None = None) -> tuple[Call, Inputs]:
    """PyPI deformops >= 3: Triton by default on a GPU, plain PyTorch on a CPU."""
    registry = _import("deformops.registry")
    sizes, starts = _on_device(inputs)
    options = {} if backend is None else {"backend": registry.Backend[backend]}

    def call(value: Tensor, locations: Tensor, weights: Tensor) -> Tensor:
        output: Tensor = registry.msda(
            value, sizes, starts, locations, weights, method="linear", **options
        )
        return output

    # It keeps locations in float32, but wants weights in the dtype of value.
    return call, replace(inputs, weights=inputs.weights.to(inputs.value.dtype))


def _torch_ms_deform_attn(inputs: Inputs) -> tuple[Call, Inputs]:
    """PyPI torch-ms-deform-attn: the original CUDA kernels, and a CPU kernel of its own."""
    ms_deform_attn = _import("torch_ms_deform_attn").ms_deform_attn
    sizes, starts = _on_device(inputs)

    def call(value: Tensor, locations: Tensor, weights: Tensor) -> Tensor:
        # What it does under autocast. Outside it would take 16-bit values only with 16-bit
        # locations.
        output: Tensor = ms_deform_attn(
            value.to(locations.dtype), sizes, starts, locations, weights
        )
        return output.to(value.dtype)

    return call, inputs


def _transformers(inputs: Inputs) -> tuple[Call, Inputs]:
    """Transformers' plain PyTorch module, what its models run without a downloaded kernel."""
    modeling = _import("transformers.models.deformable_detr.modeling_deformable_detr")
    return _old_module(modeling.MultiScaleDeformableAttention(), inputs)


def _transformers_kernel(inputs: Inputs) -> tuple[Call, Inputs]:
    """The kernel that transformers would download, if it lies in the local cache already."""
    kernels, hub = _import("kernels"), _import("huggingface_hub")
    try:
        folder = hub.snapshot_download("kernels-community/deformable-detr", local_files_only=True)
    except Exception as error:
        raise NotInstalled("not in the local cache, and nothing is downloaded") from error
    kernel = kernels.get_local_kernel(Path(folder))
    return _old_module(kernel.layers.MultiScaleDeformableAttention(), inputs)


def _old_module(module: Any, inputs: Inputs) -> tuple[Call, Inputs]:
    sizes, starts = _on_device(inputs)
    levels = list(inputs.spatial_shapes)

    def call(value: Tensor, locations: Tensor, weights: Tensor) -> Tensor:
        output: Tensor = module(value, sizes, levels, starts, locations, weights, 64)
        return output

    # It takes one dtype for all: 16-bit values bring 16-bit locations.
    return call, inputs.to(inputs.value.dtype)
