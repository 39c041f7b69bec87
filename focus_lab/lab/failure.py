"""Why a trial ended without its result, in the user's words."""

from __future__ import annotations

import contextlib
import errno
import re
import traceback
from dataclasses import dataclass
from pathlib import Path

from focus_lab import errors
from focus_lab.errors import FocusLabError, OutputError, PreemptedError, StorageUnreachableError

ERROR_LOG = "error.txt"
"""File in a trial's folder: the traceback of what was not expected."""
MEMORY = "memory.txt"
"""File in a trial's folder: what a worker held when its memory was exhausted."""

LOST, STALLED, PREEMPTED = "WorkerLost", "Stalled", "Preempted"
OUT_OF_MEMORY, NO_ROOM = "OutOfMemory", "NoRoom"
"""Kinds of `Failure` that are not names of exceptions."""
STORAGE_AWAY = StorageUnreachableError.__name__
TAKEN_BACK = "a machine of the trial was taken back"

_NO_MEMORY = re.compile(
    # torch on a GPU; torch on a CPU; the system; Ray, which ends processes before the system does.
    "out of memory|can(no|')t allocate memory|low on memory|memory usage threshold",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Failure:
    """Why a trial ended without its result."""

    kind: str
    """Class of the failure: the exception's name."""
    message: str
    """A sentence for the user."""


def is_users(kind: str | None) -> bool:
    """Whether a kind of failure is a mistake that only the user can mend."""
    found = vars(errors).get(kind or "")
    return isinstance(found, type) and issubclass(found, errors.UserError)


def says_no_memory(text: str) -> bool:
    """Whether the words of an error say that memory was exhausted."""
    return _NO_MEMORY.search(text) is not None


def explain_failure(error: BaseException, folder: Path) -> Failure:
    """A failure in the user's words; traceback or memory profile go into the trial's folder.

    Args:
        error: caught where it was raised, in the worker's process.
        folder: the trial's folder.
    """
    kind = type(error).__name__
    if isinstance(error, PreemptedError):
        return Failure(PREEMPTED, TAKEN_BACK)
    if isinstance(error, FocusLabError):
        return Failure(kind, str(error))
    _write(folder / ERROR_LOG, "".join(traceback.format_exception(error)))
    if _is_no_memory(error):
        from focus_lab.training.memory import memory_held, memory_profile

        _write(folder / MEMORY, memory_profile())
        return Failure(
            OUT_OF_MEMORY,
            f"memory is exhausted, got {_said(error)}; {memory_held()} ({folder / MEMORY})",
        )
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return Failure(
            OutputError.__name__,
            f"{error.filename or folder}: the disk is full, got {error}; "
            "free space or choose another --out DIR",
        )
    return Failure(kind, f"{kind}: {error}; the traceback is in {folder / ERROR_LOG}")


def _is_no_memory(error: BaseException) -> bool:
    if isinstance(error, MemoryError):
        return True
    return getattr(error, "errno", None) == errno.ENOMEM or says_no_memory(str(error))


def _said(error: BaseException) -> str:
    return str(error) or type(error).__name__


def _write(path: Path, text: str) -> None:
    # It explains; the failure itself must come through.
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
