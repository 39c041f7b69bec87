"""A trial's folder: what lies where, and whether it was made from the same inputs.

Without torch: a driver reads it too.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from focus_lab.errors import DataError, OutputError

MANIFEST = "manifest.json"
SAMPLES = "samples"
SPOOL = ".uploads"
BEST = "best.pt"
"""The checkpoint of the epoch with the highest AP; never resumed from."""
STEPS = "step_*.pt"
"""Names of all other checkpoints."""
STOPPED = "stopped"
"""A file that is there when the trial shall end with the epoch that it is in."""


def checkpoint_folder(folder: Path) -> Path:
    """Where a trial keeps its checkpoints."""
    return folder / "checkpoints"


def storage_url(spec: Mapping[str, Any], folder: Path) -> str | None:
    """Where a trial's second copy is: below `compute.storage`, as its folder is below the lab's."""
    storage = spec.get("compute", {}).get("storage")
    if storage is None:
        return None
    experiment = folder.parent.parent.name
    return f"{storage.rstrip('/')}/{experiment}/{folder.name}"


def make_folder(folder: Path) -> Path:
    """Make a folder, or say why not.

    Raises:
        OutputError: it cannot be made or written.
    """
    probe = folder / f".writable-{threading.get_ident()}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise OutputError(
            f"{folder}: cannot be written, got {error}; choose another --out DIR"
        ) from None
    return folder


def check_same_inputs(folder: Path, digests: Mapping[str, str]) -> None:
    """A trial must not go on, or be compared, with other images or weights than it began with.

    Args:
        folder: the trial's folder; without a readable manifest nothing is known, and all is well.
        digests: field of the spec that names a file or a data set -> digest of its content now.

    Raises:
        DataError: something has another content than the manifest says.
    """
    try:
        began = json.loads((folder / MANIFEST).read_text())["inputs"]
    except (OSError, ValueError, KeyError):
        return
    for field, digest in digests.items():
        if began.get(field, digest) != digest:
            raise DataError(
                f"{field}: has changed since the trial in {folder} began, got digest "
                f"{digest[:12]} instead of {began[field][:12]}; "
                "restore it, or give the experiment a new name"
            )
