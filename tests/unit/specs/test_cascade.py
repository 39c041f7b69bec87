"""Cascades made for a mean: by hand, and what all of them have in common."""

import re
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from pydantic import TypeAdapter

from focus_lab.errors import SpecError
from focus_lab.specs.cascade import Cascade, layer_shares, mean_share
from focus_lab.specs.load import load_experiment
from focus_lab.specs.model import ModelSpec

ADAPTER = TypeAdapter(Cascade)


def shares(layers, **content):
    return layer_shares(ADAPTER.validate_python(content), layers)


@pytest.mark.parametrize(
    ("layers", "content", "expected"),
    [
        (3, {"kind": "constant", "mean": 0.3}, [0.3, 0.3, 0.3]),
        (6, {"kind": "linear", "mean": 0.6}, [1, 0.84, 0.68, 0.52, 0.36, 0.2]),
        (3, {"kind": "linear", "mean": 0.3, "first": 0.5}, [0.5, 0.3, 0.1]),
        (4, {"kind": "geometric", "mean": 0.46875}, [1, 0.5, 0.25, 0.125]),
        (3, {"kind": "geometric", "mean": 0.4375, "first": 0.75}, [0.75, 0.375, 0.1875]),
        (6, {"kind": "step", "mean": 0.6}, [1, 1, 1, 0.2, 0.2, 0.2]),
        (5, {"kind": "step", "mean": 0.44, "first": 0.6}, [0.6, 0.6, 0.6, 0.2, 0.2]),
        (6, {"kind": "reversed", "mean": 0.6}, [0.2, 0.36, 0.52, 0.68, 0.84, 1]),
        (2, {"kind": "reversed", "mean": 0.3, "last": 0.4}, [0.2, 0.4]),
        (1, {"kind": "constant", "mean": 0.7}, [0.7]),
    ],
)
def test_cascades_by_hand(layers, content, expected):
    # 0.4375 of three layers from 0.75 is 0.75 (1 + q + q^2) / 3 with q = 1/2.
    assert shares(layers, **content) == pytest.approx(expected, abs=1e-9)


@given(
    kind=st.sampled_from(["constant", "linear", "geometric", "step", "reversed"]),
    mean=st.floats(0.01, 1.0),
    edge=st.floats(0.01, 1.0),
    layers=st.integers(2, 12),
)
def test_every_cascade_has_its_mean_its_edge_and_its_direction(kind, mean, edge, layers):
    content = {"kind": kind, "mean": mean}
    if kind != "constant":
        content["last" if kind == "reversed" else "first"] = edge
    try:
        found = shares(layers, **content)
    except ValueError as error:
        assume("has a mean above" not in str(error))
        raise
    assert len(found) == layers
    assert sum(found) / layers == pytest.approx(mean, abs=1e-8)
    assert all(0 <= share <= 1 for share in found)
    falling = found[::-1] if kind == "reversed" else found
    assert all(later <= earlier for earlier, later in pairwise(falling))
    if kind != "constant":
        assert falling[0] == pytest.approx(edge, abs=1e-9)


@pytest.mark.parametrize(
    ("layers", "content", "sentence"),
    [
        (6, {"kind": "linear", "mean": 0.5}, "from 1 has a mean above 0.5 and up to 1, got 0.5"),
        (4, {"kind": "geometric", "mean": 0.25}, "has a mean above 0.25 and up to 1, got 0.25"),
        (5, {"kind": "step", "mean": 0.6}, "has a mean above 0.6 and up to 1, got 0.6"),
        (6, {"kind": "reversed", "mean": 0.3}, "got 0.3; change mean or last"),
        (6, {"kind": "linear", "mean": 0.9, "first": 0.8}, "up to 0.8, got 0.9; change mean or fi"),
        (1, {"kind": "linear", "mean": 0.9}, "has nothing to fall or rise to, got kind linear"),
    ],
)
def test_what_cannot_be_is_said(layers, content, sentence):
    with pytest.raises(ValueError, match=re.escape(sentence)):
        shares(layers, **content)


def test_a_list_is_itself_and_may_rise():
    assert shares_of_list([0.2, 1]) == (0.2, 1.0)
    assert mean_share((0.2, 1.0)) == 0.6


def shares_of_list(values):
    return layer_shares(ADAPTER.validate_python(values), len(values))


def test_a_model_knows_the_shares_of_its_layers_and_their_mean():
    cascade = {"kind": "linear", "mean": 0.6}
    spec = ModelSpec.model_validate({"token_selection": {"keep_ratio": 0.5, "cascade": cascade}})
    assert spec.layer_shares == (1, 0.84, 0.68, 0.52, 0.36, 0.2)
    assert spec.token_selection.mean_keep_ratio == 0.3
    assert ModelSpec().layer_shares == (1, 0.8, 0.6, 0.6, 0.4, 0.2)
    assert ModelSpec.model_validate(spec.model_dump(mode="json")) == spec


def test_ratios_by_level_weigh_by_the_tokens_of_a_level():
    spec = ModelSpec.model_validate(
        {"token_selection": {"keep_ratio": 1, "level_keep_ratios": [0.4, 0.8, 1, 1]}}
    )
    # 64, 16, 4 and 1 tokens of 85, times the released cascade's 0.6.
    expected = 0.6 * (64 * 0.4 + 16 * 0.8 + 4 + 1) / 85
    assert spec.token_selection.mean_keep_ratio == pytest.approx(expected)


@pytest.mark.parametrize(
    ("cascade", "sentence"),
    [
        ("[1, 2, 0.5]", "cascade.1: must be at most 1, got 2"),
        ("3", "cascade: needs a `kind`, got 3; write for example {kind: constant | linear"),
        (
            "{kind: triangular, mean: 0.5}",
            "cascade.kind: is not a known kind, got 'triangular'; allowed",
        ),
        ("{kind: linear}", "cascade.mean: is missing"),
        ("{kind: linear, mean: 0.6, last: 1}", "cascade.last: is not a known key"),
        ("{kind: step, mean: 0.1}", "cascade: a step cascade of 6 layers from 1 has a mean above"),
        ("[]", "cascade: must have at least 1 values, got 0"),
    ],
)
def test_mistakes_in_a_cascade_are_explained_where_they_stand(
    tmp_path: Path, cascade: str, sentence: str
) -> None:
    path = tmp_path / "spec.yaml"
    # A model is checked as a whole once its fields are right.
    ratio = 0.5 if "a step" in sentence else 7
    path.write_text(
        "name: a\ndata: {kind: shapes}\n"
        f"model:\n  token_selection: {{cascade: {cascade}, keep_ratio: {ratio}}}\n"
    )
    with pytest.raises(SpecError) as caught:
        load_experiment(path)
    found = caught.value.problems
    start = f"{path}:4: model.token_selection."
    assert any(problem.startswith(start + sentence) for problem in found), found
    assert len(found) == (1 if ratio == 0.5 else 2)
