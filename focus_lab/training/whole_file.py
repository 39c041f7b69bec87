"""Files that appear whole or not at all, also where somebody else writes the same one."""

from __future__ import annotations

import contextlib
import os
import socket
import uuid
from collections.abc import Iterator
from pathlib import Path

_PARTIAL = ".partial"


def partial_name(name: str) -> str:
    """A name for what is not whole yet, of nobody else.

    An attempt that was cut off may still write the same file on another machine.
    """
    return f"{name}.{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:8]}{_PARTIAL}"


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Within the context the file is written under the name given; then it is `path`.

    Args:
        path: in a folder that is there; an earlier file of this name is replaced.

    Raises:
        OSError: it cannot be written; then `path` is as it was.
    """
    partial = path.with_name(partial_name(path.name))
    try:
        yield partial
        partial.replace(path)
    finally:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)


def sweep_partials(folder: Path) -> None:
    """Remove what killed processes have left unfinished in a folder."""
    for path in folder.glob(f"*{_PARTIAL}"):
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)
