"""The inputs that the compiled operator is measured on: what a detector's layers really ask for."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from focus_lab.ops.peers import Inputs

Order: TypeAlias = Literal["index", "score", "morton"]
"""Of kept tokens: as they lie in memory; by their scores, which is next to random; along the image,
as `focus_lab.model.memory_order` has them."""


@dataclass(frozen=True)
class Case:
    """One call of the operator."""

    name: str
    shapes: tuple[tuple[int, int], ...]
    """(height, width) of the levels."""
    batch: int = 1
    heads: int = 8
    channels: int = 32
    points: int = 4
    kept: float = 1.0
    """Share of the tokens that are queries, each at its own centre."""
    order: Order = "index"
    queries: int | None = None
    """Decoder: as many queries, anywhere, instead of tokens."""
    projected: bool = False
    """The operator that makes locations and weights itself; around boxes in a decoder."""


# 800 x 1333 pixels at strides 8 to 64.
_PAPER = ((100, 167), (50, 84), (25, 42), (13, 21))
# experiments/base/shapes_tiny.yaml: 128 x 128 pixels, width 64 in 4 heads, 4 images, 30 object
# queries and 20 denoising ones.
_DEMO = ((16, 16), (8, 8), (4, 4), (2, 2))

CASES = (
    Case("dense", _PAPER),
    Case("kept-30-index", _PAPER, kept=0.3),
    Case("kept-30-score", _PAPER, kept=0.3, order="score"),
    Case("kept-30-morton", _PAPER, kept=0.3, order="morton"),
    Case("kept-10-index", _PAPER, kept=0.1),
    Case("kept-10-score", _PAPER, kept=0.1, order="score"),
    Case("kept-10-morton", _PAPER, kept=0.1, order="morton"),
    Case("decoder", _PAPER, queries=900),
    Case("demo", _DEMO, batch=4, heads=4, channels=16),
    Case("demo-decoder", _DEMO, batch=4, heads=4, channels=16, queries=50),
    Case("projected-dense", _PAPER, projected=True),
    Case("projected-kept-30", _PAPER, kept=0.3, order="morton", projected=True),
    Case("projected-decoder", _PAPER, queries=900, projected=True),
    Case("projected-demo", _DEMO, batch=4, heads=4, channels=16, projected=True),
    Case("projected-demo-decoder", _DEMO, 4, 4, 16, queries=50, projected=True),
)


def make_inputs(
    case: Case, dtype: torch.dtype, device: torch.device, seed: int = 0
) -> tuple[Inputs, Tensor]:
    """Inputs like a trained layer's, and a gradient of the output [B, Q, H * D].

    A location is the query's reference point, plus the initial pattern (each head in its own
    direction, point p at p pixels of each level), plus noise of one pixel. A GPU gets two images of
    the cases in which a CPU gets one.
    """
    if device.type == "cuda" and case.batch == 1:
        case = replace(case, batch=2)
    generator = torch.Generator().manual_seed(seed)
    tokens = sum(height * width for height, width in case.shapes)
    centres = reference_points(case, generator)  # [B, Q, 2]
    grid = (*centres.shape[:2], case.heads, len(case.shapes), case.points)  # [B, Q, H, L, P]
    offsets = _pattern(case.heads, case.points)[:, None] + torch.randn(
        *grid, 2, generator=generator
    )
    widths_heights = torch.tensor([(width, height) for height, width in case.shapes])
    locations = centres[:, :, None, None, None] + offsets / widths_heights[:, None]
    logits = torch.randn(*grid, generator=generator)
    weights = logits.flatten(3).softmax(-1).view(grid)
    value = torch.randn(case.batch, tokens, case.heads, case.channels, generator=generator)
    grad_output = torch.randn(*grid[:2], case.heads * case.channels, generator=generator)
    inputs = Inputs(value.to(device, dtype), case.shapes, locations.to(device), weights.to(device))
    if case.projected:
        points = centres[:, :, None].expand(-1, -1, len(case.shapes), -1)  # [B, Q, L, 2]
        if case.queries is not None:
            # Boxes of which half, divided by the points, is a pixel: the same locations.
            boxes = (2 * case.points / widths_heights).expand_as(points)
            points = torch.cat((points, boxes), dim=-1)
        inputs = replace(
            inputs,
            locations=offsets.to(device),
            weights=logits.to(device),
            reference_points=points.contiguous().to(device),
        )
    return inputs, grad_output.to(device, dtype)


def reference_points(case: Case, generator: torch.Generator) -> Tensor:
    """[B, Q, 2], (x, y) in [0, 1]."""
    if case.queries is not None:
        return torch.rand(case.batch, case.queries, 2, generator=generator)
    centres = torch.cat([_centres(height, width) for height, width in case.shapes])  # [S, 2]
    kept = max(1, int(len(centres) * case.kept))
    images = []
    for _ in range(case.batch):
        chosen = torch.randperm(len(centres), generator=generator)[:kept]
        if case.order == "index":
            chosen = chosen.sort().values
        elif case.order == "morton":
            chosen = chosen[_along_the_image(centres[chosen]).argsort()]
        images.append(centres[chosen])
    return torch.stack(images)


def _along_the_image(points: Tensor, bits: int = 10) -> Tensor:
    """[N], the place of each point on a Z-shaped curve: the bits of x and y, interleaved."""
    x, y = (points * 2**bits).long().unbind(-1)
    place = torch.zeros_like(x)
    for bit in range(bits):
        place |= (x >> bit & 1) << 2 * bit | (y >> bit & 1) << 2 * bit + 1
    return place


def _centres(height: int, width: int) -> Tensor:
    rows = (torch.arange(height) + 0.5) / height
    columns = (torch.arange(width) + 0.5) / width
    return torch.stack(
        (columns.expand(height, width), rows[:, None].expand(height, width)), dim=-1
    ).flatten(0, 1)


def _pattern(heads: int, points: int) -> Tensor:
    """[H, P, 2] in pixels, as `focus_lab.model.deformable_attention` starts from."""
    angles = torch.arange(heads) * (2 * math.pi / heads)
    directions = torch.stack((angles.cos(), angles.sin()), dim=-1)
    directions = directions / directions.abs().amax(dim=-1, keepdim=True)
    return directions[:, None] * torch.arange(1, points + 1)[:, None]
