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
import s3
import torch

from focus_lab.errors import OutputError, PreemptedError, StorageUnreachableError
from focus_lab.specs.experiment import TrialSpec
from focus_lab.training import checkpoint as checkpoints
from focus_lab.training import fit as training_fit
from focus_lab.training.fit import fit
from focus_lab.training.folder import BEST, MANIFEST, SAMPLES, SPOOL, checkpoint_folder, storage_url
from focus_lab.training.reporter import MemoryReporter, Metrics
from focus_lab.training.storage import Storage


def at_once(number: int) -> None:
    """No pause between tries."""


@pytest.fixture(scope="module")
def bucket() -> Iterator[str]:
    """A bucket of a server that speaks S3."""
    with s3.server() as address:
        yield s3.new_bucket(address)


@pytest.fixture(params=["folder", "object store", "s3"])
def url(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[str]:
    """A place in each kind of storage."""
    if request.param == "folder":
        yield str(tmp_path / "elsewhere" / "trial")
        return
    if request.param == "s3":
        yield f"{request.getfixturevalue('bucket')}/{uuid4().hex}"
        return
    place = f"memory://{uuid4().hex}"
    yield place
    with contextlib.suppress(FileNotFoundError):
        fsspec.filesystem("memory").rm(place, recursive=True)


def names(url: str) -> set[str]:
    opened = Storage(url)
    return {str(path).removeprefix(f"{opened._root}/") for path in opened._files.find(opened._root)}


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


def test_after_an_error_the_newest_checkpoint_is_sent_and_nothing_else(
    url: str, tmp_path: Path
) -> None:
    with contextlib.suppress(PreemptedError), Storage(url, tmp_path / SPOOL) as storage:
        # The thread that sends stands until all is given.
        with storage._wake:
            storage.send(write(tmp_path, MANIFEST), MANIFEST)
            storage.send(write(tmp_path, "a"), f"{SAMPLES}/a")
            storage.send(write(tmp_path, step(7)), f"checkpoints/{step(7)}")
        raise PreemptedError
    assert f"checkpoints/{step(7)}" in names(url)
    assert MANIFEST in names(url)
    assert not list((tmp_path / SPOOL).iterdir())


def test_after_an_error_a_storage_that_hangs_is_not_waited_for(url: str, tmp_path: Path) -> None:
    gate = threading.Event()
    storage = Storage(url, tmp_path / SPOOL, last_words_s=0.05)

    def hanging(file: Path, name: str) -> None:
        gate.wait(60)

    storage._send = hanging  # type: ignore[method-assign]
    with contextlib.suppress(PreemptedError), storage:
        storage.send(write(tmp_path, step(1)), f"checkpoints/{step(1)}")
        raise PreemptedError
    gate.set()
    storage._thread.join()


def test_a_slow_storage_pins_one_checkpoint_and_not_all(url: str, tmp_path: Path) -> None:
    gate = threading.Event()
    storage = Storage(url, tmp_path / SPOOL)
    original, begun = storage._send, threading.Event()

    def slow(file: Path, name: str) -> None:
        begun.set()
        assert gate.wait(60)
        original(file, name)

    storage._send = slow  # type: ignore[method-assign]
    with storage:
        storage.send(write(tmp_path, step(0)), f"checkpoints/{step(0)}")
        assert begun.wait(60)
        for number in range(1, 9):
            storage.send(write(tmp_path, step(number)), f"checkpoints/{step(number)}")
        # The one on its way, and the newest.
        assert len(list((tmp_path / SPOOL).iterdir())) == 2
        gate.set()
    assert names(url) == {f"checkpoints/{step(0)}", f"checkpoints/{step(8)}"}


def test_newer_names_that_nobody_could_read_cost_no_checkpoint_just_sent(
    url: str, tmp_path: Path
) -> None:
    for number in (8, 9, 3):
        with Storage(url, tmp_path / SPOOL) as storage:
            storage.send(write(tmp_path, step(number)), f"checkpoints/{step(number)}")
    assert names(url) == {f"checkpoints/{step(9)}", f"checkpoints/{step(3)}"}


def test_two_who_send_the_same_file_do_not_meet(tmp_path: Path) -> None:
    url = str(tmp_path / "elsewhere")
    storage, other = Storage(url, tmp_path / "1"), Storage(url, tmp_path / "2")
    original = storage._files.put_file

    def overtaken(file: str, target: str) -> None:
        original(file, target)
        storage._files = other._files
        other._send(write(tmp_path, "theirs"), step(1))

    storage._files = SimpleNamespace(
        makedirs=other._files.makedirs, put_file=overtaken, mv=other._files.mv, protocol="file"
    )
    storage._send(write(tmp_path, "mine", "mine"), step(1))
    assert names(url) == {step(1)}


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
            storage.flush()
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


def test_a_trial_goes_on_from_the_newest_whole_checkpoint_of_the_storage(
    url: str, tmp_path: Path, tiny_trial: Callable[..., TrialSpec]
) -> None:
    spec = tiny_trial(training={"epochs": 3})
    stopped = Storage(url, tmp_path / "one" / SPOOL)
    with pytest.raises(StoppedError), stopped:
        fit(spec, Stopper(), tmp_path / "one", storage=stopped)
    for number in (98, 99):
        with Storage(url, tmp_path / SPOOL) as torn:
            torn._sent = lambda name: None  # type: ignore[method-assign]
            torn.send(write(tmp_path, step(number), "torn"), f"checkpoints/{step(number)}")
    told = MemoryReporter()
    with Storage(url, tmp_path / "two" / SPOOL) as storage:
        fit(spec, told, tmp_path / "two", storage=storage)
    assert [epoch for epoch, _ in told.epochs] == [2, 3]
    kept = {name for name in names(url) if name.startswith("checkpoints/step")}
    assert {f"checkpoints/{step(number)}.broken" for number in (98, 99)} <= kept
    assert len(kept) == 4


def test_a_torn_checkpoint_here_is_not_sent(
    url: str, tmp_path: Path, tiny_trial: Callable[..., TrialSpec]
) -> None:
    spec = tiny_trial(training={"epochs": 1})
    write(checkpoint_folder(tmp_path / "one"), step(50), "torn")
    with Storage(url, tmp_path / "one" / SPOOL) as storage:
        fit(spec, MemoryReporter(), tmp_path / "one", storage=storage)
    assert f"checkpoints/{step(50)}" not in names(url)


def test_the_best_of_an_earlier_attempt_here_does_not_replace_a_later_one_there(
    tmp_path: Path, tiny_trial: Callable[..., TrialSpec]
) -> None:
    url = str(tmp_path / "elsewhere")
    spec = tiny_trial(training={"epochs": 2})
    with Storage(url, tmp_path / "one" / SPOOL) as storage:
        fit(spec, MemoryReporter(), tmp_path / "one", storage=storage)
    there = (tmp_path / "elsewhere" / "checkpoints" / BEST).read_bytes()
    write(checkpoint_folder(tmp_path / "two"), BEST, "of an earlier attempt")
    with Storage(url, tmp_path / "two" / SPOOL) as storage:
        fit(spec, MemoryReporter(), tmp_path / "two", storage=storage)
    for folder in (tmp_path / "elsewhere" / "checkpoints", checkpoint_folder(tmp_path / "two")):
        assert (folder / BEST).read_bytes() == there


class Preempted(MemoryReporter):
    """Has notice from the first step on."""

    def should_stop(self) -> bool:
        return True


def test_a_machine_that_is_taken_back_leaves_its_last_step_in_the_storage(
    url: str, tmp_path: Path, tiny_trial: Callable[..., TrialSpec]
) -> None:
    spec = tiny_trial(training={"epochs": 2})
    storage = Storage(url, tmp_path / "one" / SPOOL)
    with pytest.raises(PreemptedError), storage:
        fit(spec, Preempted(), tmp_path / "one", storage=storage)
    assert {f"checkpoints/{step(1)}", MANIFEST} <= names(url)


def test_the_best_checkpoint_comes_back_with_the_results(url: str, tmp_path: Path) -> None:
    with Storage(url, tmp_path / SPOOL) as storage:
        for number in (1, 2):
            storage.send(write(tmp_path, step(number)), f"checkpoints/{step(number)}")
            storage.flush()
        storage.send(write(tmp_path, BEST), f"checkpoints/{BEST}")
    Storage(url).fetch_results(tmp_path / "there")
    found = {path.name for path in (tmp_path / "there" / "checkpoints").iterdir()}
    assert found == {BEST, step(2)}


def evaluate_to(monkeypatch: pytest.MonkeyPatch, *aps: float) -> None:
    """Evaluations find these AP, one after the other."""
    original, left = training_fit.evaluate, iter(aps)

    def evaluated(*given: Any, **more: Any) -> Metrics:
        return {**original(*given, **more), "coco/AP": next(left)}

    monkeypatch.setattr(training_fit, "evaluate", evaluated)


def test_the_best_epoch_has_a_checkpoint_although_none_was_due(
    tmp_path: Path, tiny_trial: Callable[..., TrialSpec], monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluate_to(monkeypatch, 0.1, 0.3, 0.2)
    spec = tiny_trial(training={"epochs": 3}, compute={"checkpoint_every": 3})
    fit(spec, MemoryReporter(), tmp_path)
    assert checkpoints.load(checkpoint_folder(tmp_path) / BEST).epoch == 2


def test_a_best_epoch_that_was_saved_but_not_kept_as_such_is_kept_by_the_next_attempt(
    tmp_path: Path, tiny_trial: Callable[..., TrialSpec], monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluate_to(monkeypatch, 0.3, 0.1)
    spec = tiny_trial(training={"epochs": 2})
    with pytest.raises(StoppedError):
        fit(spec, Stopper(), tmp_path)
    best = checkpoint_folder(tmp_path) / BEST
    best.unlink()
    fit(spec, MemoryReporter(), tmp_path)
    assert checkpoints.load(best).epoch == 1


def test_the_best_epoch_has_a_checkpoint_of_its_own(
    tmp_path: Path, tiny_trial: Callable[..., TrialSpec]
) -> None:
    result = fit(tiny_trial(training={"epochs": 3}), MemoryReporter(), tmp_path)
    best = checkpoints.load(checkpoint_folder(tmp_path) / BEST)
    highest = max(metrics["coco/AP"] for _, metrics in result.history)
    assert best.history[-1][1]["coco/AP"] == highest
