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
