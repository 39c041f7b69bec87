"""A worker's log has what it printed, warned and raised."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path

import pytest

from focus_lab.lab.trial_log import LOGS, trial_log


def lines_of(folder: Path, rank: int) -> list[str]:
    text = (folder / LOGS / f"rank-{rank}.log").read_text()
    return [line.partition("Z ")[2] for line in text.splitlines()]


def test_what_is_printed_is_kept_and_passed_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with trial_log(tmp_path, 3, "a-seed0") as log:
        sys.stdout.write("half a ")
        sys.stdout.write("line\nand an open one")
        log.line("for the file alone")
        sys.stderr.flush()
    first, *rest = lines_of(tmp_path, 3)
    assert first.startswith("a-seed0: rank 3, process ")
    assert rest == ["half a line", "for the file alone", "done", "and an open one"]
    assert capsys.readouterr().err == "half a line\nand an open one"


def test_a_full_disk_costs_lines_and_no_trial(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("this system has no file that is always full")
    (tmp_path / LOGS).mkdir()
    (tmp_path / LOGS / "rank-0.log").symlink_to("/dev/full")
    with trial_log(tmp_path, 0, "a") as log:
        log.line("not written")
        sys.stderr.write("passed on\n")
    assert capsys.readouterr().err == "passed on\n"
    # Nor does one on which no file can be made.
    (tmp_path / "file").touch()
    with trial_log(tmp_path / "file", 0, "a") as log:
        log.line("not written")


def test_warnings_and_errors_are_kept(tmp_path: Path) -> None:
    shown = warnings.showwarning

    def careless() -> None:
        with warnings.catch_warnings(), trial_log(tmp_path, 0, "a"):
            warnings.simplefilter("always")
            warnings.warn("be careful", UserWarning, stacklevel=1)
            raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        careless()
    text = "\n".join(lines_of(tmp_path, 0))
    assert "UserWarning: be careful (" in text
    assert "ValueError: broken" in text
    assert "done" not in text
    assert warnings.showwarning is shown


def test_a_second_attempt_goes_on_below(tmp_path: Path) -> None:
    for _ in range(2):
        with trial_log(tmp_path, 0, "a"):
            pass
    assert sum("a: rank 0" in line for line in lines_of(tmp_path, 0)) == 2
