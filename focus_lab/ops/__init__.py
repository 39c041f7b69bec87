"""Multi-scale deformable attention: one function, implementations with the same numbers."""

from __future__ import annotations

from typing import Literal, TypeAlias, get_args

import torch
from torch import Tensor

from focus_lab.ops.compiled import (
    CompiledOpError,
    LibraryState,
    compiled_deformable_attention,
    compiled_projected_deformable_attention,
    library_state,
    load,
)
from focus_lab.ops.reference import (
    reference_deformable_attention,
    reference_projected_deformable_attention,
)

__all__ = [
    "CompiledOpError",
    "Implementation",
    "LevelShapes",
    "LibraryState",
    "choose_implementation",
    "deformable_attention",
    "library_state",
    "load",
    "projected_deformable_attention",
]

Implementation: TypeAlias = Literal["reference", "compiled"]
"""How the operation is carried out; chosen by the caller, never swapped silently."""

LevelShapes: TypeAlias = tuple[tuple[int, int], ...]
"""(height, width) of each feature level, fine to coarse; host integers, never a device tensor."""


def choose_implementation(wanted: Literal["auto", "compiled", "reference"]) -> Implementation:
    """The implementation that a wish comes to here, ready to use.

    Args:
        wanted: `auto` takes the compiled one where it is built, and the reference where it is not,
            or has no CUDA kernels though there is a GPU.

    Raises:
        CompiledOpError: the compiled one is asked for and not built; or it is built, but out of
            date or broken: that is a mistake to mend, not a machine without a compiler.
    """
    if wanted == "reference":
        return "reference"
    if wanted == "auto":
        state = library_state()
        lacks_cuda = state.ok and state.build["cuda"] == "none" and torch.cuda.is_available()
        if state.status == "missing" or lacks_cuda:
            return "reference"
    load()
    return "compiled"


def deformable_attention(
    value: Tensor,
    spatial_shapes: LevelShapes,
    locations: Tensor,
    weights: Tensor,
    implementation: Implementation = "reference",
) -> Tensor:
    """Weighted sum of bilinear samples of a feature pyramid (Deformable DETR, Eq. 3).

    out[b, q, h] = sum over levels l and points p of weights[b, q, h, l, p] x the value of head h of
    level l, interpolated at pixel (x * W_l - 0.5, y * H_l - 0.5); what lies outside a level counts
    as zero.

    Args:
        value: [B, S, H, D], S = tokens of all levels, levels in order, row-major.
        spatial_shapes: (height, width) of each of the L levels.
        locations: [B, Q, H, L, P, 2], (x, y) where 0 and 1 are the outer edges of a level; at least
            float32.
        weights: [B, Q, H, L, P]; they need not sum to 1.
        implementation: how to compute it.

    Returns:
        [B, Q, H * D] in the dtype of `value`; the head is the outer factor of the last axis.

    Raises:
        ValueError: when the shapes contradict each other or the implementation is unknown.
        CompiledOpError: when the compiled implementation is asked for and cannot be used.
    """
    tokens = sum(height * width for height, width in spatial_shapes)
    if value.shape[1] != tokens or locations.shape[3] != len(spatial_shapes):
        raise ValueError(
            f"deformable_attention: value and locations must cover levels {spatial_shapes}, got "
            f"value {tuple(value.shape)} and locations {tuple(locations.shape)}; "
            f"{tokens} tokens are needed"
        )
    if implementation == "compiled":
        return compiled_deformable_attention(value, spatial_shapes, locations, weights)
    if implementation == "reference":
        return reference_deformable_attention(value, spatial_shapes, locations, weights)
    raise _no_such_implementation("deformable_attention", implementation)


def projected_deformable_attention(
    value: Tensor,
    spatial_shapes: LevelShapes,
    reference_points: Tensor,
    offsets: Tensor,
    logits: Tensor,
    implementation: Implementation = "reference",
    widths_heights: Tensor | None = None,
) -> Tensor:
    """`deformable_attention` at places and with weights that a module projects its queries to.

    The weights are the softmax of the logits over all samples of a query and head. The locations
    are (x, y) + offsets / (W_l, H_l) around reference points, and (x, y) + offsets x (w, h) x 0.5 /
    P around reference boxes (Deformable DETR, A.4).

    Args:
        value: [B, S, H, D], S = tokens of all levels, levels in order, row-major.
        spatial_shapes: (height, width) of each of the L levels.
        reference_points: [B or 1, Q, L or 1, 2 or 4], points (x, y) or boxes (x, y, w, h), where 0
            and 1 are the outer edges of a level; at least float32.
        offsets: [B, Q, H, L, P, 2]; 16 bits are enough, as they count pixels or parts of a box.
        logits: [B, Q, H, L * P], in the dtype of the offsets.
        implementation: how to compute it.
        widths_heights: [L, 2], `spatial_shapes` as (width, height) on the device, for a caller who
            has it: the reference implementation makes it otherwise, and a GPU waits for that.

    Returns:
        [B, Q, H * D] in the dtype of `value`; the head is the outer factor of the last axis.

    Raises:
        ValueError: when the shapes contradict each other or the implementation is unknown.
        CompiledOpError: when the compiled implementation is asked for and cannot be used.
    """
    tokens = sum(height * width for height, width in spatial_shapes)
    if value.shape[1] != tokens or offsets.shape[3] != len(spatial_shapes):
        raise ValueError(
            f"projected_deformable_attention: value and offsets must cover levels "
            f"{spatial_shapes}, got value {tuple(value.shape)} and offsets "
            f"{tuple(offsets.shape)}; {tokens} tokens are needed"
        )
    if implementation == "compiled":
        return compiled_projected_deformable_attention(
            value, spatial_shapes, reference_points, offsets, logits
        )
    if implementation == "reference":
        return reference_projected_deformable_attention(
            value, spatial_shapes, reference_points, offsets, logits, widths_heights
        )
    raise _no_such_implementation("projected_deformable_attention", implementation)


def _no_such_implementation(where: str, got: str) -> ValueError:
    return ValueError(
        f"{where}: no such implementation, got {got!r}; one of "
        f"{', '.join(get_args(Implementation))}"
    )
