"""A second home for a trial's files: another disk, a shared file system, an object store.

Whoever continues the trial finds its newest checkpoint there, on whatever machine.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import threading
import uuid
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

from fsspec.core import url_to_fs

from focus_lab.errors import OutputError, StorageUnreachableError
from focus_lab.training.checkpoint import KEPT, step_of
from focus_lab.training.folder import BEST, MANIFEST
from focus_lab.training.whole_file import partial_name, whole_file

T = TypeVar("T")

_TRIES = 6
"""Half a minute, with the pauses in between."""
_CHECKPOINTS = "checkpoints"
_LAST_WORDS_S = 60.0
"""How long a worker that ends with an error goes on sending its newest checkpoint: about as long as
a machine stays that is taken back with notice."""

log = logging.getLogger(__name__)


class Storage:
    """Where copies of a trial's files are kept.

    Files are sent by a thread, one after the other: training does not wait. Within the context;
    leaving it waits for what has not been sent.

    Args:
        url: of the trial's own folder there, in fsspec's form: a path, `s3://bucket/folder` …; of
            S3 and what speaks its language the environment knows account, region and endpoint
            (`AWS_…`).
        spool: folder for what waits to be sent, of this storage alone; whoever sends has one.
        pause: called before a file that failed is tried again, with the number of the try.
        goes_on: told what is sent, for a watchdog.
        last_words_s: seconds for the newest checkpoint after an error.

    Raises:
        OutputError: nothing on this machine can reach such a place.
    """

    def __init__(
        self,
        url: str,
        spool: Path | None = None,
        pause: Callable[[int], None] | None = None,
        goes_on: Callable[[str], None] = lambda doing: None,
        last_words_s: float = _LAST_WORDS_S,
    ) -> None:
        try:
            files, root = _opened(url)
        except (ImportError, ValueError) as error:
            raise OutputError(
                f"compute.storage: cannot be reached from here, got {url!r}: {error}; "
                "install what its scheme needs, or name a folder"
            ) from None
        self.url = url
        self._files: Any = files
        self._root = str(root).rstrip("/")
        self._spool, self._goes_on, self._last_words_s = spool, goes_on, last_words_s
        self._stopped = threading.Event()
        self._pause = pause or (lambda number: self._stopped.wait(2.0**number) and None)
        self._waiting: dict[str, Path] = {}
        self._wake = threading.Condition()
        self._closing = self._sending = False
        self._errors: dict[str, Exception] = {}
        self._thread = threading.Thread(target=self._send_all, name="storage", daemon=True)

    def __enter__(self) -> Self:
        """Start to send."""
        if self._spool is not None:
            # What a process that was killed has left.
            for file in _listed(self._spool):
                if file not in self._waiting.values():
                    file.unlink()
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Send the rest; after an error what the next attempt goes on from, for a while.

        Raises:
            OutputError: the last files could not be sent.
        """
        if error is not None:
            with self._wake:
                self._drop(lambda name: name != MANIFEST and _step(name) is None)
            self.flush()
            with self._wake:
                self._drop(lambda name: True)
                # What is on its way is not tried again.
                self._stopped.set()
        with self._wake:
            self._closing = True
            self._wake.notify_all()
        if error is not None:
            return
        self._thread.join()
        if self._waiting:
            raise OutputError(f"compute.storage: {len(self._waiting)} files were not sent")
        for name, failure in self._errors.items():
            raise OutputError(
                f"compute.storage: {name} could not be kept in {self.url}, got {failure}; "
                "mend it and run the same command: the trial is trained, its files are sent again"
            ) from failure

    def send(self, file: Path, name: str) -> None:
        """Send a file as `name`, soon; a later file of this name replaces one that still waits.

        A checkpoint replaces older ones that still wait: while they do, the disk keeps them.

        Args:
            file: may be changed or removed as soon as this returns.
            name: below the trial's folder.
        """
        assert self._spool is not None
        self._spool.mkdir(parents=True, exist_ok=True)
        # Not named by `name`: the one before may be on its way.
        copy = self._spool / uuid.uuid4().hex
        try:
            os.link(file, copy)
        except OSError:
            # A file system without links.
            shutil.copyfile(file, copy)
        step = _step(name)
        with self._wake:
            self._drop(lambda other: other == name or _is_older(other, step))
            self._waiting[name] = copy
            self._wake.notify_all()

    def _drop(self, which: Callable[[str], bool]) -> None:
        """Do not send what waits under these names."""
        for name in [name for name in self._waiting if which(name)]:
            self._waiting.pop(name).unlink(missing_ok=True)

    def flush(self) -> None:
        """Wait until all is sent, but not for ever: a machine that is taken back is soon gone."""
        self._goes_on("sending files")
        with self._wake:
            self._wake.wait_for(lambda: not (self._waiting or self._sending), self._last_words_s)

    def send_folder(self, folder: Path, name: str) -> None:
        """Send all files of a folder, itself `name`."""
        for file in sorted(folder.rglob("*")):
            if file.is_file():
                self.send(file, f"{name}/{file.relative_to(folder)}")

    def newer_checkpoints(self, folder: Path, step: int) -> Iterator[Path]:
        """Bring checkpoints of more than `step` steps into `folder`, one by one, newest first.

        Whoever finds one broken takes the next.

        Raises:
            StorageUnreachableError: the storage does not answer.
        """
        names = self._tried(self._names)
        steps = {found: name for name in names if (found := step_of(name)) is not None}
        for found in sorted((found for found in steps if found > step), reverse=True):
            path = folder / steps[found]
            try:
                self._tried(partial(self._fetch, f"{_CHECKPOINTS}/{path.name}", path))
            except FileNotFoundError:
                # Another attempt has dropped it meanwhile.
                continue
            yield path

    def fetch_checkpoint(self, folder: Path) -> None:
        """Bring the newest checkpoint into `folder`, if it is newer than all that are there.

        Raises:
            StorageUnreachableError: the storage does not answer.
        """
        here = max((step_of(path.name) or -1 for path in _listed(folder)), default=-1)
        next(self.newer_checkpoints(folder, here), None)

    def put_aside(self, checkpoint: str) -> None:
        """Rename a checkpoint that was found broken, if that is allowed."""
        name = f"{self._root}/{_CHECKPOINTS}/{checkpoint}"
        # Whoever may write there need not be allowed to delete.
        with contextlib.suppress(Exception):
            self._files.mv(name, f"{name}.broken")

    def fetch(self, name: str, folder: Path, *, again: bool = False) -> None:
        """Bring a file into `folder`, unless it has it already or the storage does not.

        Args:
            name: below the trial's folder.
            folder: of the trial.
            again: whether the file that is there is replaced.

        Raises:
            StorageUnreachableError: the storage does not answer.
        """
        if again or not (folder / name).exists():
            with contextlib.suppress(FileNotFoundError):
                self._tried(lambda: self._fetch(name, folder / name))

    def fetch_results(self, folder: Path) -> None:
        """Bring what `folder` does not have: of the checkpoints the newest and the best only.

        Raises:
            StorageUnreachableError: the storage does not answer.
        """
        found: list[str] = []
        with contextlib.suppress(FileNotFoundError):
            found = self._tried(lambda: list(self._files.find(self._root)))
        for path in found:
            name = str(path).removeprefix(f"{self._root}/")
            if not name.startswith(f"{_CHECKPOINTS}/") or name == f"{_CHECKPOINTS}/{BEST}":
                self.fetch(name, folder)
        self.fetch_checkpoint(folder / _CHECKPOINTS)

    def _fetch(self, name: str, target: Path) -> None:
        target.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(target) as unfinished:
            self._files.get_file(f"{self._root}/{name}", str(unfinished))

    def _tried(self, call: Callable[[], T]) -> T:
        """Call, several times if need be.

        Raises:
            FileNotFoundError: the file is not there.
            StorageUnreachableError: the storage does not answer.
        """
        for number in range(_TRIES):
            try:
                return call()
            except FileNotFoundError:
                raise
            except Exception as error:
                # Object stores raise whatever their client raises.
                last = error
                if number + 1 < _TRIES:
                    self._pause(number)
        raise StorageUnreachableError(
            f"compute.storage: {self.url} does not answer, got {last}; "
            "check that it can be reached from here"
        ) from last

    def _names(self) -> list[str]:
        """Names of the checkpoints there."""
        try:
            # Not from what this process has listed before: others write there, too.
            self._files.invalidate_cache()
            return [
                str(path).rpartition("/")[2]
                for path in self._files.ls(f"{self._root}/{_CHECKPOINTS}", detail=False)
            ]
        except FileNotFoundError:
            return []

    def _send_all(self) -> None:
        while True:
            with self._wake:
                while not self._waiting and not self._closing:
                    self._wake.wait()
                if not self._waiting:
                    return
                name = next(iter(self._waiting))
                file = self._waiting.pop(name)
                self._sending = True
            if self._closing:
                # Before that the worker has other things to do, and says so itself.
                self._goes_on("sending files")
            try:
                self._tried(partial(self._send, file, name))
            except (OSError, StorageUnreachableError) as error:
                log.warning("%s: %s could not be sent: %s", self.url, name, error)
                self._errors[name] = error
            else:
                self._sent(name)
            file.unlink(missing_ok=True)
            with self._wake:
                self._sending = False
                self._wake.notify_all()

    def _send(self, file: Path, name: str) -> None:
        target = f"{self._root}/{name}"
        self._files.makedirs(target.rpartition("/")[0], exist_ok=True)
        # A file is there whole or not at all: object stores see to it, others by renaming.
        if "file" in _protocols(self._files):
            unfinished = partial_name(target)
            try:
                self._files.put_file(str(file), unfinished)
                self._files.mv(unfinished, target)
            except BaseException:
                with contextlib.suppress(Exception):
                    self._files.rm_file(unfinished)
                raise
        else:
            self._files.put_file(str(file), target)

    def _sent(self, name: str) -> None:
        """Forget what a newer file makes up for, and drop old checkpoints."""
        self._errors.pop(name, None)
        step = _step(name)
        if step is None:
            return
        for other in [other for other in self._errors if _is_older(other, step)]:
            del self._errors[other]
        try:
            steps = sorted((n, name) for name in self._names() if (n := step_of(name)) is not None)
            # Never the one just sent: newer ones are those that nobody could go on from.
            others = [old for n, old in steps if n != step]
            for old in others[: -(KEPT - 1)]:
                self._files.rm_file(f"{self._root}/{_CHECKPOINTS}/{old}")
        except Exception as error:
            # Whoever may write there need not be allowed to delete.
            log.warning("%s: old checkpoints stay: %s", self.url, error)


def _opened(url: str) -> tuple[Any, str]:
    """The file system of a URL, and the path there."""
    if not url.startswith("s3://"):
        files, root = url_to_fs(url)
        return files, root
    # pyarrow is there in any case, for Ray and MLflow; fsspec would want a package of its own.
    from fsspec.implementations.arrow import ArrowFSWrapper
    from pyarrow.fs import AwsStandardS3RetryStrategy, S3FileSystem

    files = S3FileSystem(
        endpoint_override=os.environ.get("AWS_ENDPOINT_URL"),
        # Small files in one request instead of three.
        allow_delayed_open=True,
        # Whoever calls tries again.
        retry_strategy=AwsStandardS3RetryStrategy(max_attempts=1),
    )
    # Not kept by fsspec, which would tell one from another by its place in memory.
    return ArrowFSWrapper(files, skip_instance_cache=True), url.removeprefix("s3://")


def checkpoint_name(path: Path) -> str:
    """Name of a checkpoint in the storage."""
    assert step_of(path.name) is not None or path.name == BEST
    return f"{_CHECKPOINTS}/{path.name}"


def _step(name: str) -> int | None:
    return step_of(name.rpartition("/")[2])


def _is_older(name: str, step: int | None) -> bool:
    """Whether a file is a checkpoint of fewer steps."""
    other = _step(name)
    return step is not None and other is not None and other < step


def _listed(folder: Path) -> list[Path]:
    return list(folder.iterdir()) if folder.is_dir() else []


def _protocols(files: Any) -> tuple[str, ...]:
    return (files.protocol,) if isinstance(files.protocol, str) else tuple(files.protocol)
