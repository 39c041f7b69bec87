"""A curve over keep ratios from one checkpoint."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from focus_lab.errors import SpecError, WeightsError
from focus_lab.specs.experiment import TrialSpec
from focus_lab.training.curve import evaluate_checkpoint
from focus_lab.training.fit import TrialResult, fit
from focus_lab.training.folder import checkpoint_folder
from focus_lab.training.reporter import MemoryReporter

MakeTrial = Callable[..., TrialSpec]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("trained")


@pytest.fixture
def result(tiny_trial: MakeTrial, trained: Path) -> TrialResult:
    """A complete trial; only the first use trains it."""
    return fit(tiny_trial(training={"epochs": 1}), MemoryReporter(), trained)


def test_its_own_ratio_gives_the_numbers_of_training(result: TrialResult, trained: Path) -> None:
    [row] = evaluate_checkpoint(trained, [], [])
    assert row["tokens/keep_ratio"] == 0.5
    for name, value in row.items():
        if name.startswith(("coco/", "cost/")):
            assert value == result.metrics[name], name


def test_cost_and_tokens_rise_with_the_ratio(result: TrialResult, trained: Path) -> None:
    told: list[float] = []
    rows = evaluate_checkpoint(trained, [0.1, 0.4, 1.0], [], told.append)
    assert told == [row["tokens/keep_ratio"] for row in rows] == [0.1, 0.4, 1.0]
    for name in ("cost/encoder_gflops", "tokens/kept"):
        values = [row[name] for row in rows]
        assert values == sorted(values)
        assert values[0] < values[-1]
    assert rows[-1]["tokens/foreground_recall"] == 1.0


def test_a_file_and_its_folders_mean_the_same(result: TrialResult, trained: Path) -> None:
    [file] = checkpoint_folder(trained).glob("step_*.pt")
    rows = [evaluate_checkpoint(path, [], []) for path in (file, file.parent)]
    assert rows[0] == rows[1]


def test_a_folder_without_checkpoints_is_explained(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="holds no checkpoint; give a trial's folder or a"):
        evaluate_checkpoint(tmp_path, [], [])


def test_an_override_reaches_the_evaluation(result: TrialResult, trained: Path) -> None:
    [row] = evaluate_checkpoint(trained, [], ["data.num_val=2"])
    assert row["tokens/total"] == result.metrics["tokens/total"]
    with pytest.raises(SpecError, match=r"model\.num_querys: is not a known key; did you mean"):
        evaluate_checkpoint(trained, [], ["model.num_querys=3"])


def test_other_classes_are_refused(result: TrialResult, trained: Path) -> None:
    with pytest.raises(SpecError, match=r"data: has other classes than the checkpoint, got \["):
        evaluate_checkpoint(trained, [], ["data.num_classes=2"])


def test_weights_that_do_not_fit_the_override_are_explained(
    result: TrialResult, trained: Path
) -> None:
    with pytest.raises(WeightsError, match="its weights do not fit its spec"):
        evaluate_checkpoint(trained, [], ["model.hidden_dim=32"])
