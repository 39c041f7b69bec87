"""Checkpoints: whole or not there, found again, and nothing in them is run."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest
import torch

from focus_lab.errors import OutputError, WeightsError
from focus_lab.training import checkpoint as checkpoints
from focus_lab.training.checkpoint import Checkpoint


def checkpoint(step: int = 1) -> Checkpoint:
    return Checkpoint(
        spec={"seed": 0},
        class_names=["a"],
        epoch=1,
        batch=2,
        step=step,
        model={"weight": torch.arange(3.0) + step},
        optimizer={"state": {}},
        averages={"loss/total": 0.5},
        history=[(1, {"coco/AP": 0.25})],
    )


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    saved = checkpoint(step=7)
    loaded = checkpoints.load(checkpoints.save(saved, tmp_path))
    assert torch.equal(loaded.model["weight"], saved.model["weight"])
    assert (loaded.spec, loaded.step, loaded.batch) == (saved.spec, 7, 2)
    assert [(epoch, metrics) for epoch, metrics in loaded.history] == [(1, {"coco/AP": 0.25})]


def test_what_an_older_version_kept_besides_is_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "step_000000001.pt"
    torch.save({**vars(checkpoint()), "rng": {"cpu": torch.get_rng_state()}}, path)
    assert checkpoints.load(path).step == 1


def test_a_crash_while_writing_leaves_the_old_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoints.save(checkpoint(step=1), tmp_path)

    def crash(content: Any, file: Any) -> None:
        file.write(b"half of it")
        raise KeyboardInterrupt

    monkeypatch.setattr(torch, "save", crash)
    with pytest.raises(KeyboardInterrupt):
        checkpoints.save(checkpoint(step=2), tmp_path)
    found = checkpoints.latest(tmp_path)
    assert found is not None
    assert found.step == 1


def test_a_full_disk_is_said_and_leaves_no_rest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(content: Any, file: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(OutputError, match=r"cannot be written, got .*No space.*; free space"):
        checkpoints.save(checkpoint(), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_broken_newest_file_is_passed_over(tmp_path: Path) -> None:
    checkpoints.save(checkpoint(step=1), tmp_path)
    newest = checkpoints.save(checkpoint(step=2), tmp_path)
    newest.write_bytes(newest.read_bytes()[:100])
    found = checkpoints.latest(tmp_path)
    assert found is not None
    assert found.step == 1


def test_the_newest_two_are_kept(tmp_path: Path) -> None:
    for step in (9, 10, 11, 100):
        checkpoints.save(checkpoint(step), tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "step_000000011.pt",
        "step_000000100.pt",
    ]
    assert checkpoints.latest_path(tmp_path) == tmp_path / "step_000000100.pt"


def test_an_empty_or_missing_folder_has_no_checkpoint(tmp_path: Path) -> None:
    assert checkpoints.latest(tmp_path) is None
    assert checkpoints.latest(tmp_path / "nowhere") is None
    assert checkpoints.latest_path(tmp_path / "nowhere") is None


def test_a_missing_file_is_explained(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"no\.pt: no such checkpoint; trials keep theirs"):
        checkpoints.load(tmp_path / "no.pt")


class Evil:
    """Would write a file when unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.target,)


def test_code_in_a_checkpoint_is_refused_and_not_run(tmp_path: Path) -> None:
    target = tmp_path / "was-run"
    path = tmp_path / "evil.pt"
    torch.save({"model": Evil(target)}, path)
    with pytest.raises(WeightsError, match="not a whole checkpoint"):
        checkpoints.load(path)
    assert not target.exists()


@pytest.mark.parametrize(
    "content",
    [b"", b"not a checkpoint", b"torn", pickle.dumps([1, 2])],
    ids=["empty", "text", "torn", "pickle"],
)
def test_other_files_are_explained(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "file.pt"
    path.write_bytes(content)
    with pytest.raises(
        WeightsError, match=r"file\.pt: is not a whole checkpoint of focus_lab, got "
    ):
        checkpoints.load(path)


def test_a_bare_state_dict_is_explained(tmp_path: Path) -> None:
    path = tmp_path / "weights.pt"
    torch.save({"weight": torch.zeros(1)}, path)
    with pytest.raises(WeightsError, match="is not a whole checkpoint"):
        checkpoints.load(path)
