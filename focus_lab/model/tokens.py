"""Taking tokens out of a sequence by number, and putting them back.

Shape legend: B images, N tokens, K chosen tokens, d width.
"""

from __future__ import annotations

from torch import Tensor


def take_tokens(sequence: Tensor, indices: Tensor) -> Tensor:
    """The chosen rows of each image.

    Args:
        sequence: [B, N, ...], or [1, N, ...] for one that all images share.
        indices: int64 [B, K].

    Returns:
        [B, K, ...].
    """
    tail = sequence.shape[2:]
    if sequence.shape[0] == 1 and indices.shape[0] > 1:
        rows = sequence[0].index_select(0, indices.flatten())
        return rows.view(*indices.shape, *tail)
    where = indices.view(*indices.shape, *(1,) * len(tail)).expand(*indices.shape, *tail)
    return sequence.gather(1, where)


def put_tokens(sequence: Tensor, indices: Tensor, rows: Tensor) -> Tensor:
    """Copy of `sequence` [B, N, d] with `rows` [B, K, d] at the different `indices` [B, K]."""
    return sequence.scatter(1, indices.unsqueeze(-1).expand_as(rows), rows.to(sequence.dtype))
