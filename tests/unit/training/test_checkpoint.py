"""Checkpoints: whole or not there, found again, and nothing in them is run."""

from __future__ import annotations

import errno
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


def test_on_a_full_disk_older_checkpoints_make_room_for_the_new_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for step in (1, 2):
        checkpoints.save(checkpoint(step), tmp_path)
    (tmp_path / "step_000000003.pt.broken").touch()
    original = torch.save

    def full_until_there_is_room(content: Any, file: Any) -> None:
        if (tmp_path / "step_000000001.pt").exists():
            file.write(b"half of it")
            raise OSError(errno.ENOSPC, "No space left on device")
        original(content, file)

    monkeypatch.setattr(torch, "save", full_until_there_is_room)
    checkpoints.save(checkpoint(step=4), tmp_path)
    # The newest whole one stayed until there was another.
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "step_000000002.pt",
        "step_000000004.pt",
    ]


def test_two_attempts_that_write_the_same_step_do_not_meet(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = torch.save

    def overtaken(content: Any, file: Any) -> None:
        original(content, file)
        monkeypatch.setattr(torch, "save", original)
        checkpoints.save(checkpoint(step=3), tmp_path)

    monkeypatch.setattr(torch, "save", overtaken)
    checkpoints.save(checkpoint(step=3), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["step_000000003.pt"]


def test_broken_files_are_put_aside_and_cost_no_later_checkpoint(tmp_path: Path) -> None:
    checkpoints.save(checkpoint(step=1), tmp_path)
    for step in (8, 9):
        (tmp_path / f"step_{step:09d}.pt").write_bytes(b"torn")
    # Even if nobody has looked: what was just written stays.
    written = checkpoints.save(checkpoint(step=2), tmp_path, best=True)
    assert written.exists()
    (tmp_path / "step_000000008.pt").write_bytes(b"torn")
    found = checkpoints.resumed(tmp_path)
    assert found is not None
    assert found.step == 2
    assert sorted(path.name for path in tmp_path.glob("*.broken")) == [
        "step_000000008.pt.broken",
        "step_000000009.pt.broken",
    ]
    assert checkpoints.latest_path(tmp_path) == written


def test_a_disk_that_does_not_answer_condemns_no_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = checkpoints.save(checkpoint(step=1), tmp_path)

    def away(*_: Any, **__: Any) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(torch, "load", away)
    assert checkpoints.resumed(tmp_path) is None
    assert path.exists()

    def exhausted(*_: Any, **__: Any) -> None:
        raise MemoryError

    monkeypatch.setattr(torch, "load", exhausted)
    with pytest.raises(MemoryError):
        checkpoints.resumed(tmp_path)


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
