"""Where the embedding is added, and where not."""

import torch

from focus_lab.model.background_embedding import BackgroundEmbedding
from focus_lab.model.feature_levels import FeatureLevels
from focus_lab.model.token_selection import TokenSelector


def test_background_gets_its_row_and_column_and_nothing_else_changes():
    torch.manual_seed(0)
    levels = FeatureLevels.measure(
        [torch.zeros(2, 1, 4, 4), torch.zeros(2, 1, 2, 2)], (32, 32), [(32, 32), (16, 32)]
    )
    padding = levels.padding_mask()
    selection = TokenSelector(0.5, (1.0, 0.5)).select(torch.randn(2, 20), levels, padding)
    embedding, memory = BackgroundEmbedding(6, size=3), torch.randn(2, 20, 6)
    added = (embedding(memory, levels, padding, selection) - memory).detach()
    places = [(y, x) for y in range(4) for x in range(4)] + [(0, 0), (0, 1), (1, 0), (1, 1)]
    for image in range(2):
        count = min(selection.budgets[image], selection.counts[-1])
        refined = set(selection.indices[-1][image, :count].tolist())
        assert refined
        for token, (y, x) in enumerate(places):
            expected = torch.zeros(6)
            if token not in refined and not padding[image, token]:
                # The fourth row and column share the third's.
                row, column = embedding.rows.weight[min(y, 2)], embedding.columns.weight[min(x, 2)]
                expected = torch.cat((row, column)).detach()
            torch.testing.assert_close(added[image, token], expected)
