"""Deformable attention in plain PyTorch: the definition that other implementations are held to."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def reference_deformable_attention(
    value: Tensor, spatial_shapes: tuple[tuple[int, int], ...], locations: Tensor, weights: Tensor
) -> Tensor:
    """See `focus_lab.ops.deformable_attention`; computes in the precision of the locations."""
    batch, _, heads, channels = value.shape
    queries, levels, points = locations.shape[1], locations.shape[3], locations.shape[4]
    precision = torch.promote_types(value.dtype, locations.dtype)

    # Heads become part of the batch: they sample independently.
    maps = value.to(precision).permute(0, 2, 3, 1).flatten(0, 1)  # [B*H, D, S]
    grids = locations.mul(2).sub(1).permute(3, 0, 2, 1, 4, 5)  # [L, B, H, Q, P, 2] in [-1, 1]
    grids = grids.reshape(levels, batch * heads, queries, points, 2).to(precision)
    level_weights = weights.permute(3, 0, 2, 1, 4).reshape(
        levels, batch * heads, 1, queries, points
    )

    # One running sum instead of a stack over levels: a third of the time on a CPU is memory
    # traffic.
    total: Tensor | None = None
    for level_map, shape, grid, weight in zip(
        torch.split(maps, [height * width for height, width in spatial_shapes], dim=-1),
        spatial_shapes,
        grids.unbind(),
        level_weights.unbind(),
        strict=True,
    ):
        samples = functional.grid_sample(
            level_map.view(batch * heads, channels, *shape),
            grid,
            mode="bilinear",
            padding_mode="zeros",
            align_corners=False,
        )  # [B*H, D, Q, P]
        attended = (samples * weight).sum(-1)  # [B*H, D, Q]
        total = attended if total is None else total + attended
    assert total is not None, "a feature pyramid has at least one level"
    return total.view(batch, heads * channels, queries).transpose(1, 2).to(value.dtype)


def reference_projected_deformable_attention(
    value: Tensor,
    spatial_shapes: tuple[tuple[int, int], ...],
    reference_points: Tensor,
    offsets: Tensor,
    logits: Tensor,
    widths_heights: Tensor | None = None,
) -> Tensor:
    """See `focus_lab.ops.projected_deformable_attention`; computes in float32 at least."""
    if widths_heights is None and reference_points.shape[-1] == 2:
        widths_heights = reference_points.new_tensor([(w, h) for h, w in spatial_shapes])  # [L, 2]
    locations, weights = samples_of(reference_points, offsets, logits, widths_heights)
    return reference_deformable_attention(value, spatial_shapes, locations, weights)


def samples_of(
    reference_points: Tensor, offsets: Tensor, logits: Tensor, widths_heights: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Locations [B, Q, H, L, P, 2] and weights [B, Q, H, L, P]; points need `widths_heights`."""
    exact = torch.promote_types(reference_points.dtype, torch.float32)
    offsets = offsets.to(torch.promote_types(offsets.dtype, exact))
    logits = logits.to(torch.promote_types(logits.dtype, exact))
    weights = logits.softmax(-1).view(offsets.shape[:-1])
    anchors = reference_points[:, :, None, :, None]  # [B', Q, 1, L or 1, 1, 2 or 4]
    if reference_points.shape[-1] == 4:
        # Offsets are in halves of the box, divided by the number of points.
        steps = anchors[..., 2:] * (0.5 / offsets.shape[4])
        return anchors[..., :2] + offsets * steps, weights
    assert widths_heights is not None, "offsets from points count pixels"
    return anchors + offsets / widths_heights[:, None], weights
