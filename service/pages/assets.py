"""Styles, scripts and the mark of the pages, under addresses that change with their content."""

from __future__ import annotations

import hashlib
from pathlib import Path

from fastapi.responses import Response

_FOLDER = Path(__file__).parent / "static"
_KINDS = {".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
_YEAR = "public, max-age=31536000, immutable"


class Assets:
    """The files, read once.

    All are served below one digest, so that scripts find each other by relative addresses and no
    browser mixes two versions.
    """

    def __init__(self) -> None:
        self._files = {
            file.name: file.read_bytes()
            for file in sorted(_FOLDER.iterdir())
            if file.suffix in _KINDS
        }
        content = hashlib.sha256()
        for name, body in self._files.items():
            content.update(name.encode() + b"\0" + body + b"\0")
        self._mark = content.hexdigest()[:12]

    def address(self, name: str) -> str:
        """Where a file is.

        Raises:
            KeyError: there is none of this name.
        """
        if name not in self._files:
            raise KeyError(name)
        return f"/ui/static/{self._mark}/{name}"

    def answer(self, mark: str, name: str) -> Response | None:
        """A file; None when there is none. An older page may still ask by an older mark."""
        body = self._files.get(name)
        if body is None:
            return None
        kept = _YEAR if mark == self._mark else "no-store"
        kind = _KINDS[Path(name).suffix]
        return Response(body, media_type=kind, headers={"Cache-Control": kept})
