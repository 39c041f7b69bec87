"""Atomic checkpoints: a file is either whole or not there; the newest whole one is found again."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import warnings
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import torch

from focus_lab.errors import OutputError, WeightsError
from focus_lab.training.folder import BEST
from focus_lab.training.reporter import Metrics
from focus_lab.training.whole_file import whole_file

KEPT = 2
"""Newest checkpoints that stay: one may be torn by what ended the process."""

_NAME = re.compile(r"step_(\d{9})\.pt")
_BROKEN = ".broken"
"""Ends the names of files that could not be read."""


def step_of(name: str) -> int | None:
    """Optimizer steps done in a checkpoint of this file name; None for other files."""
    found = _NAME.fullmatch(name)
    return int(found[1]) if found else None


@dataclass
class Checkpoint:
    """All that a trial needs to go on as if nothing had happened."""

    spec: dict[str, Any]
    """The trial's spec as JSON data; rebuilds the model."""
    class_names: list[str]
    epoch: int
    """Epochs that are done."""
    batch: int
    """Batches done in the epoch after those."""
    step: int
    """Optimizer steps done."""
    model: dict[str, torch.Tensor]
    optimizer: dict[str, Any]
    averages: dict[str, float]
    """Sums of the running epoch's metrics."""
    history: list[tuple[int, Metrics]] = field(default_factory=list)
    """(epoch, metrics) of every epoch done."""
    ema: dict[str, torch.Tensor] | None = None
    scaler: dict[str, Any] | None = None


def save(checkpoint: Checkpoint, folder: Path, *, best: bool = False) -> Path:
    """Write the checkpoint under its step, then drop all but the newest ones.

    When the disk is full, older ones make room: the newest whole one stays until this is written.

    Args:
        checkpoint: what to write.
        folder: made when missing.
        best: whether it is kept as the best one, too.

    Raises:
        OutputError: the folder cannot be written or the disk is full.
    """
    path = folder / f"step_{checkpoint.step:09d}.pt"
    try:
        write(checkpoint, path)
    except OutputError:
        older = [file for file in _files(folder) if file != path][1:]
        older += folder.glob(f"*{_BROKEN}")
        if not older:
            raise
        for old in older:
            old.unlink(missing_ok=True)
        write(checkpoint, path)
    # Never the one just written, whatever newer names there are: those nobody could go on from.
    for old in [file for file in _files(folder) if file != path][KEPT - 1 :]:
        old.unlink(missing_ok=True)
    if best:
        keep_as_best(path)
    return path


def keep_as_best(path: Path) -> Path:
    """Keep a checkpoint beside its name as the best one; returns where."""
    kept = path.with_name(BEST)
    with whole_file(kept) as partial:
        try:
            os.link(path, partial)
        except OSError:
            # A file system without links.
            shutil.copyfile(path, partial)
    return kept


def write(checkpoint: Checkpoint, path: Path) -> None:
    """Write the checkpoint whole or not at all.

    Raises:
        OutputError: the place cannot be written or the disk is full.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(path) as partial, partial.open("wb") as file:
            torch.save(vars(checkpoint), file)
            file.flush()
            os.fsync(file.fileno())
    except (OSError, RuntimeError) as error:
        raise OutputError(
            f"{path}: the checkpoint cannot be written, got {error}; free space or choose --out DIR"
        ) from error


def load(path: Path) -> Checkpoint:
    """Read a checkpoint; nothing in it is executed.

    Raises:
        WeightsError: the file is missing or is not a checkpoint of focus_lab.
    """
    try:
        with warnings.catch_warnings():
            # A foreign pickle is refused below, in our words.
            warnings.filterwarnings("ignore", "Detected pickle protocol", UserWarning)
            saved = torch.load(path, map_location="cpu", weights_only=True)
        # Versions before this one kept more.
        known = {part.name for part in fields(Checkpoint)}
        return Checkpoint(**{name: part for name, part in saved.items() if name in known})
    except FileNotFoundError:
        raise WeightsError(
            f"{path}: no such checkpoint; trials keep theirs under checkpoints/"
        ) from None
    except MemoryError:
        # Says nothing of the file.
        raise
    except Exception as error:
        # A torn file may break the reader in any way.
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise WeightsError(
            f"{path}: is not a whole checkpoint of focus_lab, got {reason}; "
            "give one written by a trial"
        ) from error


def latest(folder: Path) -> Checkpoint | None:
    """The newest whole checkpoint; broken ones are passed over."""
    for path in _files(folder):
        try:
            return load(path)
        except WeightsError:
            continue
    return None


def load_or_put_aside(path: Path) -> Checkpoint | None:
    """Read a checkpoint to go on from; one that is broken gets another name.

    Under its own it would count among the newest that are kept, in place of a whole one.
    """
    try:
        return load(path)
    except WeightsError as error:
        # A disk that does not answer says nothing of the file.
        if not isinstance(error.__cause__, OSError):
            with contextlib.suppress(OSError):
                path.replace(path.with_name(path.name + _BROKEN))
        return None


def resumed(folder: Path) -> Checkpoint | None:
    """The newest whole checkpoint, after those that are broken were put aside."""
    return next((saved for path in _files(folder) if (saved := load_or_put_aside(path))), None)


def newest_and_best(folder: Path) -> list[Path]:
    """The newest checkpoint and the best one, as far as they are there."""
    best = folder / BEST
    return _files(folder)[:1] + ([best] if best.exists() else [])


def latest_path(folder: Path) -> Path | None:
    """Path of the newest checkpoint file."""
    return next(iter(_files(folder)), None)


def _files(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return sorted((path for path in folder.iterdir() if _NAME.fullmatch(path.name)), reverse=True)
