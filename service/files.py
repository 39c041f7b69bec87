"""Files of experiments, which drivers may write and people may remove while they are looked at."""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from pathlib import Path

from fastapi.responses import FileResponse
from starlette.types import Receive, Scope, Send


def files_below(folder: Path) -> list[tuple[Path, int]]:
    """The files below a folder, sorted, with their bytes; no links, and none that vanish."""
    found = []
    # Unlike a glob, a walk leaves out a folder that is there no more.
    for inner, _, names in os.walk(folder):
        for name in names:
            file = Path(inner, name)
            try:
                about = file.lstat()
            except FileNotFoundError:
                continue
            if stat.S_ISREG(about.st_mode):
                found.append((file, about.st_size))
    return sorted(found)


class WholeFile(FileResponse):
    """A file, always all of it: parts would be answers of their own, with errors of their own.

    Args:
        file: what is sent.
        media_type: of it.
        headers: of the answer.

    Raises:
        FileNotFoundError: it is there no more.
    """

    def __init__(self, file: Path, media_type: str, headers: Mapping[str, str]) -> None:
        headers = {**headers, "Accept-Ranges": "none"}
        super().__init__(file, headers=headers, media_type=media_type, stat_result=file.stat())

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it, whichever part was asked for."""
        asked = [(name, value) for name, value in scope["headers"] if name != b"range"]
        await super().__call__({**scope, "headers": asked}, receive, send)
