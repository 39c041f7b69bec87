"""The flattened feature pyramid: level shapes, and which part of each level is not padding.

Everything that decides a shape is a host integer computed from sizes, so that the forward pass
never waits for the device.

Shape legend: B images, L levels, N tokens of all levels (fine to coarse, row-major). A leading axis
B' is 1 when nothing is padded, because then all images agree, and B otherwise.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class FeatureLevels:
    """Shapes and valid regions of the levels of one batch."""

    shapes: tuple[tuple[int, int], ...]
    """(height, width) of each level."""
    valid_sizes: tuple[tuple[tuple[int, int], ...], ...] | None
    """Per image and level the (rows, columns) that show the image; None when nothing is padded."""
    batch_size: int
    """B."""
    device: torch.device
    """Where the tensors made here live."""

    @classmethod
    def measure(
        cls,
        maps: Sequence[Tensor],
        canvas: tuple[int, int],
        sizes: Sequence[tuple[int, int]] | None,
    ) -> FeatureLevels:
        """Levels of a batch.

        A level's padding is the nearest-neighbour resize of the pixel mask: cell i looks at pixel
        floor(i * canvas / cells), so an image of s pixels has ceil(s * cells / canvas) valid cells.

        Args:
            maps: the levels, [B, d, h, w] each.
            canvas: (height, width) of the padded images in pixels.
            sizes: (height, width) of each image without its padding; None when nothing is padded.
        """
        shapes = tuple((level.shape[-2], level.shape[-1]) for level in maps)
        valid_sizes = None
        if sizes is not None and any(tuple(size) != canvas for size in sizes):
            valid_sizes = tuple(
                tuple(
                    (_valid_cells(size[0], canvas[0], h), _valid_cells(size[1], canvas[1], w))
                    for h, w in shapes
                )
                for size in sizes
            )
        return cls(shapes, valid_sizes, maps[0].shape[0], maps[0].device)

    @property
    def lengths(self) -> tuple[int, ...]:
        """Tokens of each level."""
        return tuple(height * width for height, width in self.shapes)

    @property
    def num_tokens(self) -> int:
        """N."""
        return sum(self.lengths)

    @property
    def valid_counts(self) -> tuple[int, ...]:
        """Per image the tokens that are not padding."""
        return tuple(sum(levels) for levels in self.valid_level_counts)

    @property
    def valid_level_counts(self) -> tuple[tuple[int, ...], ...]:
        """Per image and level the tokens that are not padding."""
        if self.valid_sizes is None:
            return (self.lengths,) * self.batch_size
        return tuple(
            tuple(rows * columns for rows, columns in levels) for levels in self.valid_sizes
        )

    def valid_rows_columns(self) -> Tensor:
        """float32 [B', L, 2], valid (rows, columns) of each level."""
        sizes = (self.shapes,) if self.valid_sizes is None else self.valid_sizes
        return host_tensor(sizes, torch.float32, self.device)

    def widths_heights(self) -> Tensor:
        """float32 [L, 2], (width, height) of each level."""
        return host_tensor(
            [(width, height) for height, width in self.shapes], torch.float32, self.device
        )

    def valid_ratios(self) -> Tensor | None:
        """float32 [B, L, 2], valid share of each level in (x, y); None when nothing is padded."""
        if self.valid_sizes is None:
            return None
        return self.valid_rows_columns().flip(-1) / self.widths_heights()

    def padding_mask(self) -> Tensor | None:
        """Bool [B, N], True at padding; None when nothing is padded."""
        if self.valid_sizes is None:
            return None
        valid = self.valid_rows_columns()
        masks = []
        for level, (height, width) in enumerate(self.shapes):
            rows = torch.arange(height, device=self.device) >= valid[:, level, :1]  # [B, h]
            columns = torch.arange(width, device=self.device) >= valid[:, level, 1:]  # [B, w]
            masks.append((rows[:, :, None] | columns[:, None, :]).flatten(1))
        return torch.cat(masks, dim=1)

    def centers(self) -> Tensor:
        """float32 [B', N, 2], (x, y) of token centres, shares of the valid image (padding > 1)."""
        valid = self.valid_rows_columns()
        levels = []
        for level, (height, width) in enumerate(self.shapes):
            y = (torch.arange(height, device=self.device) + 0.5) / valid[:, level, :1]  # [B', h]
            x = (torch.arange(width, device=self.device) + 0.5) / valid[:, level, 1:]  # [B', w]
            grid = torch.stack(
                (x[:, None, :].expand(-1, height, -1), y[:, :, None].expand(-1, -1, width)), dim=-1
            )  # [B', h, w, 2]
            levels.append(grid.flatten(1, 2))
        return torch.cat(levels, dim=1)


def flatten_levels(maps: Sequence[Tensor]) -> Tensor:
    """L maps [B, d, h, w] as one token sequence [B, N, d]."""
    return torch.cat([level.flatten(2) for level in maps], dim=2).transpose(1, 2)


def on_every_level(points: Tensor, valid_ratios: Tensor | None) -> Tensor:
    """Points or boxes in shares of the valid image, in shares of each padded level.

    Args:
        points: [B', N, 2] or [B, N, 4].
        valid_ratios: [B, L, 2]; None when nothing is padded.

    Returns:
        [B, N, L, 2 or 4]; [B', N, 1, 2 or 4] when nothing is padded, as all levels agree.
    """
    if valid_ratios is None:
        return points.unsqueeze(2)
    if points.shape[-1] == 4:
        valid_ratios = torch.cat((valid_ratios, valid_ratios), dim=-1)
    return points.unsqueeze(2) * valid_ratios.unsqueeze(1)


def host_tensor(values: object, dtype: torch.dtype, device: torch.device) -> Tensor:
    """A tensor of host numbers on `device`, without waiting for the work queued there."""
    tensor = torch.tensor(values, dtype=dtype)
    if device.type == "cuda":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


def _valid_cells(size: int, canvas: int, cells: int) -> int:
    return min(cells, -(-size * cells // canvas))
