"""Neighbours follow each other, and every prefix that matters stays the same set."""

from __future__ import annotations

from itertools import pairwise

import torch
from hypothesis import given
from hypothesis import strategies as st

from focus_lab.model.memory_order import along_the_image, memory_order
from focus_lab.model.output import SelectedTokens

SHAPES = ((8, 12), (4, 6), (2, 3))
TOKENS = sum(height * width for height, width in SHAPES)


def selection(counts: tuple[int, ...], budgets: tuple[int, ...], seed: int = 0) -> SelectedTokens:
    generator = torch.Generator().manual_seed(seed)
    scores = torch.rand(len(budgets), TOKENS, generator=generator)
    best, order = scores.topk(max(counts), dim=1)
    return SelectedTokens(
        indices=tuple(order[:, :count] for count in counts),
        scores=best,
        counts=counts,
        budgets=budgets,
        valid_counts=(TOKENS,) * len(budgets),
        level_shapes=SHAPES,
    )


def test_the_curve_visits_quarter_after_quarter() -> None:
    along = along_the_image(((4, 4),), torch.device("cpu")).argsort()
    assert along.tolist() == [0, 1, 4, 5, 2, 3, 6, 7, 8, 9, 12, 13, 10, 11, 14, 15]


def test_levels_share_the_curve() -> None:
    along = along_the_image(((2, 2), (1, 1)), torch.device("cpu"))
    # The middle of the image is where the last quarter begins: its corner comes before its centre.
    assert along[2] < along[4] < along[3] < 4**10


@given(
    counts=st.lists(st.integers(1, TOKENS), min_size=1, max_size=4),
    budgets=st.lists(st.integers(1, TOKENS), min_size=1, max_size=3),
    seed=st.integers(0, 9),
)
def test_every_layer_and_every_image_keeps_its_set(
    counts: list[int], budgets: list[int], seed: int
) -> None:
    chosen = selection(tuple(counts), tuple(budgets), seed)
    ordered = chosen.largest.gather(1, memory_order(chosen))
    for image, budget in enumerate(budgets):
        for count in (*chosen.counts, *(min(budget, c) for c in chosen.counts)):
            assert set(ordered[image, :count].tolist()) == set(
                chosen.largest[image, :count].tolist()
            )


def test_between_two_borders_tokens_follow_the_curve() -> None:
    chosen = selection((40, 25), (33, 10))
    ordered = chosen.indices[0].gather(1, memory_order(chosen))
    along = along_the_image(SHAPES, torch.device("cpu"))[ordered]
    for image, borders in enumerate(((0, 25, 33, 40), (0, 10, 25, 40))):
        for start, end in pairwise(borders):
            band = along[image, start:end]
            assert (band.diff() >= 0).all()
