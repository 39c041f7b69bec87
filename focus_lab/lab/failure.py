"""Why a trial ended without its result, in the user's words."""

from __future__ import annotations

import traceback
from dataclasses import dataclass
from pathlib import Path

from focus_lab import errors
from focus_lab.errors import FocusLabError

ERROR_LOG = "error.txt"
"""File in a trial's folder: the traceback of what was not expected."""

LOST, STALLED, PREEMPTED = "WorkerLost", "Stalled", "Preempted"
OUT_OF_MEMORY, NO_ROOM = "OutOfMemory", "NoRoom"
"""Kinds of `Failure` that are not names of exceptions."""


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


def explain_failure(error: BaseException, folder: Path) -> Failure:
    """A failure in the user's words; the traceback goes into the trial's folder."""
    kind = type(error).__name__
    if isinstance(error, FocusLabError):
        return Failure(kind, str(error))
    text = "".join(traceback.format_exception(error))
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / ERROR_LOG).write_text(text)
    except OSError:
        pass
    if "out of memory" in str(error).lower():
        return Failure(OUT_OF_MEMORY, f"memory is exhausted, got {error}")
    return Failure(kind, f"{kind}: {error}; the traceback is in {folder / ERROR_LOG}")
