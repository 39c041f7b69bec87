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
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

from fsspec.core import url_to_fs

from focus_lab.errors import OutputError, StorageUnreachableError
from focus_lab.training.checkpoint import KEPT, step_of
from focus_lab.training.folder import BEST

T = TypeVar("T")

_TRIES = 6
"""Half a minute, with the pauses in between."""
_CHECKPOINTS = "checkpoints"

log = logging.getLogger(__name__)


class Storage:
    """Where copies of a trial's files are kept.

    Files are sent by a thread, one after the other: training does not wait. Within the context;
    leaving it waits for what has not been sent.

    Args:
        url: of the trial's own folder there, in fsspec's form: a path, `s3://bucket/folder` …
        spool: folder for what waits to be sent, of this storage alone; whoever sends has one.
        pause: called before a file that failed is tried again, with the number of the try.
        goes_on: told what is sent, for a watchdog.

    Raises:
        OutputError: nothing on this machine can reach such a place.
    """

    def __init__(
        self,
        url: str,
        spool: Path | None = None,
        pause: Callable[[int], None] | None = None,
        goes_on: Callable[[str], None] = lambda doing: None,
    ) -> None:
        try:
            files, root = url_to_fs(url)
        except (ImportError, ValueError) as error:
            raise OutputError(
                f"compute.storage: cannot be reached from here, got {url!r}: {error}; "
                "install what its scheme needs, or name a folder"
            ) from None
        self.url = url
        self._files: Any = files
        self._root = str(root).rstrip("/")
        self._spool, self._goes_on = spool, goes_on
        self._stopped = threading.Event()
        self._pause = pause or (lambda number: self._stopped.wait(2.0**number) and None)
        self._waiting: dict[str, Path] = {}
        self._wake = threading.Condition()
        self._closing = False
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
        """Send the rest; after an error, not.

        Raises:
            OutputError: the last files could not be sent.
        """
        with self._wake:
            self._closing = True
            if error is not None:
                for file in self._waiting.values():
                    file.unlink(missing_ok=True)
                self._waiting.clear()
                self._stopped.set()
            self._wake.notify()
        self._thread.join()
        if error is None and self._waiting:
            raise OutputError(f"compute.storage: {len(self._waiting)} files were not sent")
        for name, failure in self._errors.items() if error is None else ():
            raise OutputError(
                f"compute.storage: {name} could not be kept in {self.url}, got {failure}; "
                "mend it and run the same command: the trial is trained, its files are sent again"
            ) from failure

    def send(self, file: Path, name: str) -> None:
        """Send a file as `name`, soon; a later file of this name replaces one that still waits.

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
        with self._wake:
            if late := self._waiting.pop(name, None):
                late.unlink(missing_ok=True)
            self._waiting[name] = copy
            self._wake.notify()

    def send_folder(self, folder: Path, name: str) -> None:
        """Send all files of a folder, itself `name`."""
        for file in sorted(folder.rglob("*")):
            if file.is_file():
                self.send(file, f"{name}/{file.relative_to(folder)}")

    def fetch_checkpoint(self, folder: Path) -> None:
        """Bring the newest checkpoint into `folder`, if it is newer than all that are there.

        Raises:
            StorageUnreachableError: the storage does not answer.
        """
        here = max((step_of(path.name) or -1 for path in _listed(folder)), default=-1)
        names = self._tried(self._names)
        steps = {step: name for name in names if (step := step_of(name)) is not None}
        newer = [step for step in steps if step > here]
        if newer:
            name = steps[max(newer)]
            self._tried(lambda: self._fetch(f"{_CHECKPOINTS}/{name}", folder / name))

    def fetch(self, name: str, folder: Path) -> None:
        """Bring a file into `folder`, unless it has it already or the storage does not.

        Raises:
            StorageUnreachableError: the storage does not answer.
        """
        if not (folder / name).exists():
            with contextlib.suppress(FileNotFoundError):
                self._tried(lambda: self._fetch(name, folder / name))

    def fetch_results(self, folder: Path) -> None:
        """Bring what `folder` does not have: all files, but of the checkpoints the newest only.

        Raises:
            StorageUnreachableError: the storage does not answer.
        """
        found: list[str] = []
        with contextlib.suppress(FileNotFoundError):
            found = self._tried(lambda: list(self._files.find(self._root)))
        for path in found:
            name = str(path).removeprefix(f"{self._root}/")
            if not name.startswith(f"{_CHECKPOINTS}/"):
                self.fetch(name, folder)
        self.fetch_checkpoint(folder / _CHECKPOINTS)

    def _fetch(self, name: str, target: Path) -> None:
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = target.with_name(f"{target.name}.partial")
        self._files.get_file(f"{self._root}/{name}", str(partial))
        partial.replace(target)

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

    def _send(self, file: Path, name: str) -> None:
        target = f"{self._root}/{name}"
        self._files.makedirs(target.rpartition("/")[0], exist_ok=True)
        # A file is there whole or not at all: object stores see to it, others by renaming.
        if "file" in _protocols(self._files):
            self._files.put_file(str(file), f"{target}.partial")
            self._files.mv(f"{target}.partial", target)
        else:
            self._files.put_file(str(file), target)

    def _sent(self, name: str) -> None:
        """Forget what a newer file makes up for, and drop old checkpoints."""
        self._errors.pop(name, None)
        step = step_of(name.rpartition("/")[2])
        if step is None:
            return
        for other in list(self._errors):
            older = step_of(other.rpartition("/")[2])
            if older is not None and older < step:
                del self._errors[other]
        try:
            steps = sorted((n, name) for name in self._names() if (n := step_of(name)) is not None)
            for _, old in steps[:-KEPT]:
                self._files.rm_file(f"{self._root}/{_CHECKPOINTS}/{old}")
        except Exception as error:
            # Whoever may write there need not be allowed to delete.
            log.warning("%s: old checkpoints stay: %s", self.url, error)


def checkpoint_name(path: Path) -> str:
    """Name of a checkpoint in the storage."""
    assert step_of(path.name) is not None or path.name == BEST
    return f"{_CHECKPOINTS}/{path.name}"


def _listed(folder: Path) -> list[Path]:
    return list(folder.iterdir()) if folder.is_dir() else []


def _protocols(files: Any) -> tuple[str, ...]:
    return (files.protocol,) if isinstance(files.protocol, str) else tuple(files.protocol)
