"""What torch must know about the compiled operators: schemas, shapes, gradients, autocast, FLOPs.

The library of kernels (csrc/) has none of it: the stable ABI of torch 2.11 has no tags, and Python
says the rest in fewer lines.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

_PLAIN = "deformable_attention"
_PROJECTED = "projected_deformable_attention"


def define() -> torch.library.Library:
    """Define the operators, once a process; they live as long as what is returned."""
    library = torch.library.Library("focus_lab", "DEF")  # type: ignore[no-untyped-call]
    _define(library, _PLAIN, "Tensor locations, Tensor weights", "", 3)
    _define(
        library,
        _PROJECTED,
        "Tensor reference_points, Tensor offsets, Tensor logits",
        "bool of_reference_points, ",
        4,
    )
    for name, output_like, gradients_like, setup_context, backward in (
        (_PLAIN, _output_like, _gradients_like, _setup_context, _backward),
        (
            _PROJECTED,
            _projected_output_like,
            _projected_gradients_like,
            _projected_setup_context,
            _projected_backward,
        ),
    ):
        forward = f"focus_lab::{name}"
        torch.library.register_fake(forward, output_like, lib=library)
        torch.library.register_fake(f"{forward}_backward", gradients_like, lib=library)
        torch.library.register_autograd(forward, backward, setup_context=setup_context, lib=library)
        torch.library.register_autograd(
            f"{forward}_backward", _refuse_second_derivative, lib=library
        )
        for device in ("CPU", "CUDA"):
            library.impl(  # type: ignore[no-untyped-call]
                name, _Autocast(name, device), f"Autocast{device}"
            )

    from torch.utils.flop_counter import register_flop_formula

    operators = torch.ops.focus_lab
    register_flop_formula(
        [
            operators.deformable_attention,
            operators.deformable_attention_backward,
            operators.projected_deformable_attention,
            operators.projected_deformable_attention_backward,
        ]
    )(_no_flops)
    return library


def _define(
    library: torch.library.Library, name: str, inputs: str, choices: str, gradients: int
) -> None:
    inputs = f"Tensor value, SymInt[] spatial_shapes, {inputs}"
    library.define(  # type: ignore[no-untyped-call]
        f"{name}({inputs}) -> Tensor", tags=(torch.Tag.pt2_compliant_tag,)
    )
    library.define(  # type: ignore[no-untyped-call]
        f"{name}_backward(Tensor grad_output, {inputs}, {choices}bool deterministic) "
        f"-> ({', '.join(['Tensor'] * gradients)})",
        # Unless asked to be deterministic, a GPU adds in any order.
        tags=(torch.Tag.pt2_compliant_tag, torch.Tag.nondeterministic_bitwise),
    )


# --- Locations and weights are given ---


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


# --- They are made from reference points, offsets and logits ---


def _projected_output_like(
    value: Tensor,
    spatial_shapes: Sequence[int],
    reference_points: Tensor,
    offsets: Tensor,
    logits: Tensor,
) -> Tensor:
    return _output_like(value, spatial_shapes, offsets, logits)


def _projected_gradients_like(
    grad_output: Tensor,
    value: Tensor,
    spatial_shapes: Sequence[int],
    reference_points: Tensor,
    offsets: Tensor,
    logits: Tensor,
    of_reference_points: bool,
    deterministic: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return (
        value.new_empty(value.shape),
        reference_points.new_empty(reference_points.shape if of_reference_points else (0,)),
        offsets.new_empty(offsets.shape),
        logits.new_empty(logits.shape),
    )


def _projected_setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    value, ctx.spatial_shapes, reference_points, offsets, logits = inputs
    ctx.save_for_backward(value, reference_points, offsets, logits)


def _projected_backward(
    ctx: Any, grad_output: Tensor
) -> tuple[Tensor, None, Tensor | None, Tensor, Tensor]:
    value, reference_points, offsets, logits = ctx.saved_tensors
    deterministic = torch.are_deterministic_algorithms_enabled()
    # Inputs: value, spatial_shapes, reference_points, offsets, logits.
    wanted = ctx.needs_input_grad[2]
    of_value, of_reference_points, of_offsets, of_logits = (
        torch.ops.focus_lab.projected_deformable_attention_backward.default(
            grad_output,
            value,
            ctx.spatial_shapes,
            reference_points,
            offsets,
            logits,
            wanted,
            deterministic,
        )
    )
    return of_value, None, of_reference_points if wanted else None, of_offsets, of_logits


# --- Both ---


def _refuse_second_derivative(ctx: Any, *grads: Tensor) -> tuple[None, ...]:
    raise NotImplementedError(
        "deformable_attention: the compiled implementation has no second derivatives, got a "
        "backward pass through its gradients; choose the reference implementation for them"
    )


class _Autocast:
    """Under autocast the value takes the lower precision.

    Locations, weights and reference points keep float32, offsets and logits what they have.
    """

    def __init__(self, name: str, device: str) -> None:
        self.name = name
        self.device = device.lower()
        self.keys = torch._C.DispatchKeySet(getattr(torch._C.DispatchKey, f"Autocast{device}"))

    def __call__(self, value: Tensor, *others: Any) -> Tensor:
        if value.dtype != torch.float64:  # as torch's own rules leave float64 alone
            value = value.to(torch.get_autocast_dtype(self.device))
        with torch._C._ExcludeDispatchKeyGuard(self.keys):
            output: Tensor = getattr(torch.ops.focus_lab, self.name).default(value, *others)
        return output


def _no_flops(*shapes: Any, **more: Any) -> int:
    """Bilinear sampling counts nothing, as in the reference (see focus_lab.training.cost)."""
    return 0
