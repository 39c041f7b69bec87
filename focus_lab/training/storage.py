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
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from fsspec.core import url_to_fs

from focus_lab.errors import OutputError
from focus_lab.training.checkpoint import BEST, KEPT, step_of

_TRIES = 3
_CHECKPOINTS = "checkpoints"
_SPOOL = ".uploads"

log = logging.getLogger(__name__)


class Storage:
    """Where copies of a trial's files are kept.

    Files are sent by a thread, one after the other: training does not wait. Within the context;
    leaving it waits for what has not been sent.

    Args:
        url: of the trial's own folder there, in fsspec's form: a path, `s3://bucket/folder` …
        pause: called before a file that failed is sent again, with the number of the try.

    Raises:
        OutputError: nothing on this machine can reach such a place.
    """

    def __init__(self, url: str, pause: Callable[[int], None] | None = None) -> None:
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
        self._stopped = threading.Event()
        self._pause = pause or (lambda number: self._stopped.wait(2.0**number) and None)
        self._waiting: dict[str, Path] = {}
        self._wake = threading.Condition()
        self._closing = False
        self._errors: dict[str, Exception] = {}
        self._thread = threading.Thread(target=self._send_all, name="storage", daemon=True)

    def __enter__(self) -> Self:
        """Start to send."""
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
                    file.unlink()
                self._waiting.clear()
                self._stopped.set()
            self._wake.notify()
        self._thread.join()
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
        spool = file.parent / _SPOOL
        spool.mkdir(exist_ok=True)
        # Not named by `name`: the one before may be on its way.
        copy = spool / uuid.uuid4().hex
        try:
            os.link(file, copy)
        except OSError:
            # A file system without links.
            shutil.copyfile(file, copy)
        with self._wake:
            if late := self._waiting.pop(name, None):
                late.unlink()
            self._waiting[name] = copy
            self._wake.notify()

    def send_folder(self, folder: Path, name: str) -> None:
        """Send all files of a folder, itself `name`."""
        for file in sorted(folder.rglob("*")):
            if file.is_file() and _SPOOL not in file.parts:
                self.send(file, f"{name}/{file.relative_to(folder)}")

    def fetch_checkpoint(self, folder: Path) -> None:
        """Bring the newest checkpoint into `folder`, if it is newer than all that are there."""
        here = max((step_of(path.name) or -1 for path in _listed(folder)), default=-1)
        steps = {step: name for name in self._names() if (step := step_of(name)) is not None}
        newer = [step for step in steps if step > here]
        if newer:
            self._fetch(f"{_CHECKPOINTS}/{steps[max(newer)]}", folder / steps[max(newer)])

    def fetch(self, name: str, folder: Path) -> None:
        """Bring a file into `folder`, unless it has it already or the storage does not."""
        if not (folder / name).exists():
            with contextlib.suppress(FileNotFoundError):
                self._fetch(name, folder / name)

    def fetch_all(self, folder: Path) -> None:
        """Bring every file that `folder` does not have."""
        with contextlib.suppress(FileNotFoundError):
            for path in self._files.find(self._root):
                self.fetch(str(path).removeprefix(f"{self._root}/"), folder)

    def _fetch(self, name: str, target: Path) -> None:
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = target.with_name(f"{target.name}.partial")
        self._files.get_file(f"{self._root}/{name}", str(partial))
        partial.replace(target)

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
            self._errors.pop(name, None)
            if failure := self._send_patiently(file, name):
                self._errors[name] = failure
            file.unlink()

    def _send_patiently(self, file: Path, name: str) -> Exception | None:
        """Send a file; returns why it could not be sent after several tries."""
        for number in range(_TRIES):
            try:
                self._send(file, name)
            except Exception as error:
                # Object stores raise whatever their client raises.
                last = error
                log.warning("%s: %s could not be sent: %s", self.url, name, error)
                if number + 1 < _TRIES:
                    self._pause(number)
            else:
                return None
        return last

    def _send(self, file: Path, name: str) -> None:
        target = f"{self._root}/{name}"
        self._files.makedirs(target.rpartition("/")[0], exist_ok=True)
        # A file is there whole or not at all: object stores see to it, others by renaming.
        if "file" in _protocols(self._files):
            self._files.put_file(str(file), f"{target}.partial")
            self._files.mv(f"{target}.partial", target)
        else:
            self._files.put_file(str(file), target)
        if step_of(name.rpartition("/")[2]) is not None:
            steps = sorted((step, n) for n in self._names() if (step := step_of(n)) is not None)
            for _, old in steps[:-KEPT]:
                self._files.rm_file(f"{self._root}/{_CHECKPOINTS}/{old}")


def checkpoint_name(path: Path) -> str:
    """Name of a checkpoint in the storage."""
    assert step_of(path.name) is not None or path.name == BEST
    return f"{_CHECKPOINTS}/{path.name}"


def _listed(folder: Path) -> list[Path]:
    return list(folder.iterdir()) if folder.is_dir() else []


def _protocols(files: Any) -> tuple[str, ...]:
    return (files.protocol,) if isinstance(files.protocol, str) else tuple(files.protocol)
