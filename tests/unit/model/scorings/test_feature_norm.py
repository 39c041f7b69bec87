import torch

from focus_lab.model.feature_levels import FeatureLevels
from focus_lab.model.scorings.feature_norm import FeatureNormSelector
from focus_lab.model.token_selection import TokensToScore


def test_the_longest_features_are_kept_and_get_no_gradient():
    features = torch.tensor([[[3.0, 4.0], [0.0, 1.0], [-6.0, 8.0], [2.0, 0.0]]], requires_grad=True)
    levels = FeatureLevels.measure([torch.zeros(1, 1, 2, 2)], (16, 16), None)
    given = TokensToScore(features, levels, None, lambda: features, (8,), ())
    selector = FeatureNormSelector(0.5, (1.0,))
    assert selector.score(given).tolist() == [[5.0, 1.0, 10.0, 2.0]]
    assert not selector.score(given).requires_grad
    logits, selection = selector(given)
    assert logits is None
    assert selection.indices[0].tolist() == [[2, 0, 3]]
