"""An implementation that is to be timed: it must be right, then there is something to time."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from focus_lab.ops.clock import Step
from focus_lab.ops.compiled import (
    compiled_deformable_attention,
    compiled_projected_deformable_attention,
)
from focus_lab.ops.peers import Call, Inputs, NotInstalled, Peer
from focus_lab.ops.reference import samples_of

# Largest error, as the norm of the difference to the float64 reference over the norm of that, of
# the output and of each gradient. Rounding stays below it, any wrong head, level or corner does
# not, nor do 16-bit locations. A location's gradient jumps where a sample crosses a pixel's centre,
# and float32 puts a few on the other side.
_TOLERANCES = {
    torch.float32: (1e-4, 2e-2),
    torch.bfloat16: (2e-2, 6e-2),
    torch.float16: (5e-3, 6e-2),
}


@dataclass(frozen=True)
class Contender:
    """An implementation that has passed the check on the inputs at hand."""

    name: str
    steps: dict[str, Step]
    """What is timed, by direction."""
    error: float


def ours() -> Peer:
    """The compiled operators: the one that makes its samples where the inputs are projections."""

    def bind(inputs: Inputs) -> tuple[Call, Inputs]:
        shapes, points = inputs.spatial_shapes, inputs.reference_points
        if points is None:
            return lambda v, x, w: compiled_deformable_attention(v, shapes, x, w), inputs
        return (
            lambda v, x, w: compiled_projected_deformable_attention(
                v, shapes, points, x, w.flatten(3)
            ),
            inputs,
        )

    return Peer("compiled", bind)


def glue_and_compiled() -> Peer:
    """Projections turned into locations and weights by plain PyTorch, then our operator."""

    def bind(inputs: Inputs) -> tuple[Call, Inputs]:
        shapes, points = inputs.spatial_shapes, inputs.reference_points
        assert points is not None, "the inputs are projections"
        sizes = points.new_tensor([(width, height) for height, width in shapes])

        def call(value: Tensor, offsets: Tensor, logits: Tensor) -> Tensor:
            locations, weights = samples_of(points, offsets, logits.flatten(3), sizes)
            return compiled_deformable_attention(value, shapes, locations, weights)

        return call, inputs

    return Peer("glue + compiled", bind)


def contender(
    peer: Peer, inputs: Inputs, grad_output: Tensor, expected: Sequence[Tensor]
) -> Contender | str:
    """What is to be timed, or why it is not."""
    try:
        call, wanted = peer.bind(inputs)
        found_results = results(call, wanted, grad_output)
    except NotInstalled:
        raise
    except Exception as error:  # whatever somebody else's code raises is a finding
        first = (str(error).strip() or "no message").splitlines()[0]
        return f"fails with {type(error).__name__}: {first}"
    limits = _TOLERANCES[inputs.value.dtype]
    errors = [
        _relative_error(found, exact) for found, exact in zip(found_results, expected, strict=True)
    ]
    names = ("output", "gradient of value", "gradient of locations", "gradient of weights")
    for name, found, limit in zip(names, errors, (limits[0], *limits[1:] * 3), strict=True):
        if not found <= limit:  # a NaN is no agreement
            return f"differs from the reference, {name} by {found:.2g} of its norm"
    return Contender(peer.name, _steps(call, wanted, grad_output), errors[0])


def results(call: Call, inputs: Inputs, grad_output: Tensor) -> tuple[Tensor, ...]:
    """Output and the three gradients."""
    leaves = _leaves(inputs)
    output = call(*leaves)
    gradients = torch.autograd.grad(output, leaves, grad_output.to(output.dtype))
    return output.detach(), *gradients


def _steps(call: Call, inputs: Inputs, grad_output: Tensor) -> dict[str, Step]:
    leaves = _leaves(inputs)
    output = call(*leaves)
    upstream = grad_output.to(output.dtype)

    def forward() -> Tensor:
        with torch.no_grad():
            return call(*inputs.tensors)

    return {
        "forward": forward,
        "backward": lambda: torch.autograd.grad(output, leaves, upstream, retain_graph=True),
        "forward+backward": lambda: torch.autograd.grad(call(*leaves), leaves, upstream),
    }


def _leaves(inputs: Inputs) -> tuple[Tensor, Tensor, Tensor]:
    value, locations, weights = (tensor.detach().requires_grad_() for tensor in inputs.tensors)
    return value, locations, weights


def _relative_error(found: Tensor, expected: Tensor) -> float:
    if found.shape != expected.shape:
        return math.inf
    difference = (found.double() - expected).norm() / expected.norm().clamp_min(1e-30)
    return float(difference)
