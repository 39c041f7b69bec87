"""Copies of a trial's files elsewhere: sent without waiting, found again, never torn."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from uuid import uuid4

import fsspec
import pytest
import torch

from focus_lab.errors import OutputError, StorageUnreachableError
from focus_lab.specs.experiment import TrialSpec
from focus_lab.training import checkpoint as checkpoints
from focus_lab.training.fit import fit
from focus_lab.training.folder import BEST, MANIFEST, SAMPLES, SPOOL, checkpoint_folder, storage_url
from focus_lab.training.reporter import MemoryReporter, Metrics
from focus_lab.training.storage import Storage


def at_once(number: int) -> None:
    """No pause between tries."""


@pytest.fixture(params=["folder", "object store"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """A place in either kind of storage."""
    if request.param == "folder":
        yield str(tmp_path / "elsewhere" / "trial")
        return
    place = f"memory://{uuid4().hex}"
    yield place
    with contextlib.suppress(FileNotFoundError):
        fsspec.filesystem("memory").rm(place, recursive=True)


def names(url: str) -> set[str]:
    files, root = fsspec.core.url_to_fs(url)
    return {str(path).removeprefix(f"{root.rstrip('/')}/") for path in files.find(root)}


def step(number: int) -> str:
    return f"step_{number:09d}.pt"


def write(folder: Path, name: str, content: str = "x") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    path.write_text(content)
    return path


def test_the_newest_checkpoints_stay_and_the_newest_is_fetched(url: str, tmp_path: Path) -> None:
    here = tmp_path / "here"
    for number in (1, 2, 3, 10):
        with Storage(url, tmp_path / SPOOL) as storage:
            storage.send(write(here, step(number), str(number)), f"checkpoints/{step(number)}")
    assert names(url) == {f"checkpoints/{step(3)}", f"checkpoints/{step(10)}"}
    there = tmp_path / "there"
    Storage(url).fetch_checkpoint(there)
    assert [path.name for path in there.iterdir()] == [step(10)]
    assert (there / step(10)).read_text() == "10"
    # What is newer here stays.
    write(there, step(11), "mine")
    Storage(url).fetch_checkpoint(there)
    assert {path.name for path in there.iterdir()} == {step(10), step(11)}


def test_a_file_may_go_as_soon_as_it_was_given(url: str, tmp_path: Path) -> None:
    file = write(tmp_path / "here", "manifest.json", "kept")
    storage = Storage(url, tmp_path / SPOOL)
    storage.send(file, "manifest.json")
    file.unlink()
    with storage:
        pass
    Storage(url).fetch_results(tmp_path / "there")
    assert (tmp_path / "there" / "manifest.json").read_text() == "kept"
    assert not list((tmp_path / SPOOL).iterdir())


def test_training_does_not_wait_and_the_last_of_a_name_wins(url: str, tmp_path: Path) -> None:
    gate = threading.Event()
    storage = Storage(url, tmp_path / SPOOL)
    original, sent = storage._send, list[str]()

    def slow(file: Path, name: str) -> None:
        assert gate.wait(60)
        sent.append(file.read_text())
        original(file, name)

    storage._send = slow  # type: ignore[method-assign]
    with storage:
        for number in range(5):
            storage.send(write(tmp_path, "progress.json", str(number)), "progress.json")
        gate.set()
    assert sent[-1] == "4"
    assert len(sent) <= 2
    Storage(url).fetch_results(tmp_path / "there")
    assert (tmp_path / "there" / "progress.json").read_text() == "4"


@pytest.mark.parametrize("failures", [5, 6])
def test_a_storage_that_fails_now_and_then_is_tried_again_and_then_named(
    url: str, tmp_path: Path, failures: int
) -> None:
    storage = Storage(url, tmp_path / SPOOL, at_once)
    original, left = storage._send, [failures]

    def flaky(file: Path, name: str) -> None:
        if left[0]:
            left[0] -= 1
            raise OSError("slow down")
        original(file, name)

    storage._send = flaky  # type: ignore[method-assign]
    storage.send(write(tmp_path, "a"), "a")
    if failures < 6:
        with storage:
            pass
        assert names(url) == {"a"}
        return
    with (
        pytest.raises(OutputError, match=r"compute\.storage: a could not be kept in .*slow"),
        storage,
    ):
        pass


def test_a_newer_checkpoint_makes_up_for_one_that_could_not_be_sent(
    url: str, tmp_path: Path
) -> None:
    storage = Storage(url, tmp_path / SPOOL, at_once)
    original = storage._send

    def away_for_the_first(file: Path, name: str) -> None:
        if name.endswith(step(1)):
            raise OSError("away")
        original(file, name)

    storage._send = away_for_the_first  # type: ignore[method-assign]
    with storage:
        for number in (1, 2):
            storage.send(write(tmp_path, step(number)), f"checkpoints/{step(number)}")
    assert names(url) == {f"checkpoints/{step(2)}"}


def test_who_may_not_delete_keeps_all_checkpoints(url: str, tmp_path: Path) -> None:
    storage = Storage(url, tmp_path / SPOOL, at_once)

    def refused(path: str) -> None:
        raise PermissionError(path)

    storage._files = SimpleNamespace(
        **{
            name: getattr(storage._files, name)
            for name in ("makedirs", "put_file", "mv", "ls", "invalidate_cache", "protocol")
        },
        rm_file=refused,
    )
    with storage:
        for number in (1, 2, 3):
            storage.send(write(tmp_path, step(number)), f"checkpoints/{step(number)}")
    assert len(names(url)) == 3


def test_what_a_killed_process_wanted_to_send_is_swept_away(url: str, tmp_path: Path) -> None:
    write(tmp_path / SPOOL, "left")
    with Storage(url, tmp_path / SPOOL):
        pass
    assert not list((tmp_path / SPOOL).iterdir())


def test_a_storage_that_does_not_answer_is_a_sentence(url: str, tmp_path: Path) -> None:
    storage = Storage(url, pause=at_once)

    def away() -> list[str]:
        raise OSError("away")

    storage._names = away  # type: ignore[method-assign]
    with pytest.raises(StorageUnreachableError, match=r"compute\.storage: .* does not answer"):
        storage.fetch_checkpoint(tmp_path)


def test_a_scheme_that_nothing_here_knows_is_a_sentence() -> None:
    with pytest.raises(OutputError, match=r"compute\.storage: cannot be reached from here, got"):
        Storage("nonsense://bucket/a")


def test_the_place_of_a_trial_mirrors_its_folder(tmp_path: Path) -> None:
    folder = tmp_path / "keep-ratio" / "trials" / "a-seed0-1234"
    spec = {"compute": {"storage": "s3://bucket/lab/"}}
    assert storage_url(spec, folder) == "s3://bucket/lab/keep-ratio/a-seed0-1234"
    assert storage_url({"compute": {}}, folder) is None


class StoppedError(Exception):
    """Stands for the end of the machine."""


class Stopper(MemoryReporter):
    def report(self, epoch: int, metrics: Metrics) -> None:
        super().report(epoch, metrics)
        raise StoppedError


def test_a_trial_goes_on_from_the_storage_on_a_machine_that_has_nothing(
    url: str, tmp_path: Path, tiny_trial: Callable[..., TrialSpec]
) -> None:
    spec = tiny_trial(training={"epochs": 3})
    undisturbed = fit(spec, MemoryReporter(), tmp_path / "undisturbed")
    stopped = Storage(url, tmp_path / "one" / SPOOL)
    with pytest.raises(StoppedError):
        fit(spec, Stopper(), tmp_path / "one", storage=stopped)
    with stopped:
        pass
    told = MemoryReporter()
    with Storage(url, tmp_path / "two" / SPOOL) as storage:
        resumed = fit(spec, told, tmp_path / "two", storage=storage)
    assert [epoch for epoch, _ in told.epochs] == [2, 3]
    for (_, mine), (_, theirs) in zip(undisturbed.history, resumed.history, strict=True):
        assert mine["loss/total"] == theirs["loss/total"]
        assert mine["coco/AP"] == theirs["coco/AP"]
    kept = names(url)
    wanted = {f"{SAMPLES}/samples.json", f"{SAMPLES}/breakdown.json"}
    assert {MANIFEST, f"checkpoints/{BEST}"} | wanted <= kept
    saved: list[Any] = [
        checkpoints.latest(checkpoint_folder(tmp_path / name)) for name in ("undisturbed", "two")
    ]
    for name, weights in saved[0].model.items():
        assert torch.equal(weights, saved[1].model[name])


def test_the_best_epoch_has_a_checkpoint_of_its_own(
    tmp_path: Path, tiny_trial: Callable[..., TrialSpec]
) -> None:
    result = fit(tiny_trial(training={"epochs": 3}), MemoryReporter(), tmp_path)
    best = checkpoints.load(checkpoint_folder(tmp_path) / BEST)
    highest = max(metrics["coco/AP"] for _, metrics in result.history)
    assert best.history[-1][1]["coco/AP"] == highest
