"""Statistics against experiments whose truth is known.

`pytest --log-cli-level=INFO` on this file tells the measured shares; the lab log keeps them.
"""

import logging

import numpy as np
import pytest
from statsmodels.stats.multitest import multipletests

from focus_lab.analysis.bootstrap import bootstrap_interval
from focus_lab.analysis.chances import chances
from focus_lab.analysis.power import ALPHA, POWER, detectable_effect
from focus_lab.analysis.statistics import estimate, holm, paired_difference

log = logging.getLogger(__name__)

EXPERIMENTS = 2_000
SPREAD, COMMON = 0.008, 0.02
"""Deviation of AP between seeds: each cell's own, and what a seed does to all cells alike."""


def _aps(truth, seeds, *, number, experiments=EXPERIMENTS, heavy=False):
    """APs [experiments, cells, seeds] around true means [cells]."""
    generator = np.random.default_rng(number)
    shape = (experiments, len(truth), seeds)
    own = generator.standard_t(5, shape) * np.sqrt(3 / 5) if heavy else generator.normal(size=shape)
    common = generator.normal(size=(experiments, 1, seeds))
    return np.asarray(truth)[:, None] + SPREAD * own + COMMON * common


@pytest.mark.parametrize("heavy", [False, True])
@pytest.mark.parametrize("seeds", [2, 3, 5])
def test_intervals_of_means_cover_the_truth(seeds, heavy):
    found = [estimate(v[0]) for v in _aps([0.4], seeds, number=seeds, heavy=heavy)]
    covered = np.mean([one.low <= 0.4 <= one.high for one in found])
    log.info("covered %.3f", covered)
    assert abs(covered - 0.95) <= 0.02


@pytest.mark.parametrize("heavy", [False, True])
@pytest.mark.parametrize("seeds", [2, 3, 5])
def test_intervals_of_paired_differences_cover_the_truth(seeds, heavy):
    aps = _aps([0.4, 0.41], seeds, number=10 + seeds, heavy=heavy)
    found = [paired_difference(dict(enumerate(b)), dict(enumerate(a))) for a, b in aps]
    covered = np.mean([one.low <= 0.01 <= one.high for one in found])
    log.info("covered %.3f", covered)
    assert abs(covered - 0.95) <= 0.02


@pytest.mark.parametrize("seeds", [6, 8, 12])
def test_bootstrap_intervals_cover_the_truth(seeds):
    aps = _aps([0.4, 0.41], seeds, number=20 + seeds)
    found = [bootstrap_interval(b - a) for a, b in aps]
    covered = np.mean([low <= 0.01 <= high for low, high in found])
    log.info("covered %.3f", covered)
    assert abs(covered - 0.95) <= 0.02


def _p_values(aps):
    """p-values of all cells against the first, [experiments, cells - 1]."""
    return np.array(
        [
            [
                paired_difference(dict(enumerate(cell)), dict(enumerate(cells[0]))).p_value
                for cell in cells[1:]
            ]
            for cells in aps
        ]
    )


@pytest.mark.parametrize("truth", [[0.4] * 5, [0.4, 0.4, 0.4, 0.45, 0.5]])
def test_holm_keeps_the_chance_of_any_false_finding(truth):
    p_values = _p_values(_aps(truth, 3, number=30))
    null = np.array(truth[1:]) == truth[0]
    adjusted = [holm({str(i): p for i, p in enumerate(row)}) for row in p_values]
    false = np.mean([any(one[str(i)] < ALPHA for i in np.flatnonzero(null)) for one in adjusted])
    plain = (p_values[:, null] < ALPHA).any(axis=1).mean()
    log.info("false %.3f", false)
    # Without the correction the same experiments would claim more.
    assert false <= 0.05 < plain


def test_holm_is_that_of_statsmodels():
    for row in _p_values(_aps([0.4, 0.4, 0.41, 0.42], 3, number=31, experiments=5)):
        ours = holm({str(i): p for i, p in enumerate(row)})
        theirs = multipletests(row, method="holm")[1]
        assert [ours[str(i)] for i in range(len(row))] == pytest.approx(theirs)


def test_the_smallest_detectable_difference_is_detected_four_times_of_five():
    seeds = 4
    size = detectable_effect(seeds) * SPREAD * np.sqrt(2)
    found = (_p_values(_aps([0.4, 0.4 + size], seeds, number=40)) < ALPHA).mean()
    log.info("found %.3f", found)
    assert abs(found - POWER) <= 0.03


def test_chances_of_being_on_the_front_come_true():
    """Where the truth is drawn as well, cells with a chance of p are on the true front p times."""
    generator = np.random.default_rng(50)
    costs = np.array([10.0, 20.0, 30.0])
    objectives = {"coco/AP": "max", "cost/gflops": "min"}
    said, true = [], []
    for _ in range(150):
        truth = 0.4 + generator.normal(0, 0.5, 3)  # a wide prior, as the draws take for granted
        truth[1] = truth[0] + generator.normal(0, 0.01)
        seen = _aps(truth, 4, number=int(generator.integers(2**31)), experiments=1)[0]
        cells = {
            str(i): {
                "coco/AP": dict(enumerate(aps)),
                "cost/gflops": dict.fromkeys(range(4), float(cost)),
            }
            for i, (aps, cost) in enumerate(zip(seen, costs, strict=True))
        }
        said.append(chances(cells, objectives).front["1"])
        true.append(bool(truth[1] > truth[0]))
    said, true = np.array(said), np.array(true)
    sure = (said > 0.9) | (said < 0.1)
    right = np.where(said > 0.5, true, ~true)[sure].mean()
    log.info("right %.3f", right)
    assert sure.sum() > 25
    assert right >= 0.9
