"""Golden B: the foreground token selector on given feature maps."""

import pytest
import torch

from focus_lab.model.feature_levels import FeatureLevels, flatten_levels
from focus_lab.model.position import TokenPositions
from focus_lab.model.proposals import Proposals
from focus_lab.model.scorings.focus import FocusSelector
from focus_lab.model.token_selection import TokensToScore


@pytest.fixture(params=[torch.float32, torch.float64])
def selected(request, golden, formula):
    fixture = golden("B_selector")
    config, dtype = fixture.config, request.param
    maps = [
        formula.normal(config["fixture_key"], f"feat{level}", (2, config["d"], *shape)).to(dtype)
        for level, shape in enumerate(config["shapes"])
    ]
    levels = FeatureLevels.measure(maps, (128, 160), config["sizes"])
    parts = torch.nn.Module()
    parts.position = TokenPositions(config["d"], 4, config["pe_temp"], config["pe_offset"])
    parts.proposals = Proposals(config["d"], config["queries"], 0.05, 0.01)
    parts.token_selector = FocusSelector(config["d"], 4, config["rho"], config["cascade"])
    formula.fill(parts, config["fill_salt"]).to(dtype)
    padding = levels.padding_mask()
    with torch.no_grad():
        tokens = flatten_levels(maps) + parts.position(levels)
        projected = parts.proposals.project(tokens, parts.proposals.boxes(levels, padding).usable)
        logits, selection = parts.token_selector(
            TokensToScore(
                flatten_levels(maps), levels, padding, lambda: projected, (8, 16, 32, 64), ()
            )
        )
    return fixture, levels, projected, logits, selection


def test_the_scored_tokens_match_the_release(selected):
    fixture, _, projected, _, _ = selected
    fixture.check("selector_memory", projected[:, ::4])


def test_the_foreground_logits_match_the_release_on_every_level(selected):
    fixture, levels, _, logits, _ = selected
    for level, scores in enumerate(logits.split(levels.lengths, dim=1)):
        fixture.check(f"score_level{level}", scores, atol=1e-5)


def test_budgets_and_counts_equal_the_release(selected):
    fixture, _, _, _, selection = selected
    assert selection.valid_counts == tuple(fixture.tensors["valid_token_nums"].tolist())
    assert selection.budgets == tuple(fixture.tensors["focus_token_nums"].tolist())
    assert selection.counts == tuple(fixture.tensors["layer_token_nums"].tolist())


def test_the_tokens_of_every_layer_equal_the_release_in_order(selected):
    fixture, _, _, _, selection = selected
    for layer, indices in enumerate(selection.indices):
        assert torch.equal(indices, fixture.tensors[f"indices_layer{layer}"].long())


def test_the_selection_carries_the_masked_scores(selected):
    fixture, _, _, _, selection = selected
    masked = fixture.tensors["score_masked"].gather(1, selection.indices[0])
    fixture.check("score_masked", selection.scores, atol=1e-5, expected=masked)
