"""Fingerprint of the compiled operators' sources; standard library only, for packaging too."""

from __future__ import annotations

import hashlib
from pathlib import Path

_SUFFIXES = frozenset({".h", ".cpp", ".cu", ".cuh", ".inl", ".py"})


def source_hash(csrc: Path) -> str:
    """Fingerprint of names and contents of all sources and the build script, 16 hex digits.

    A library carries the fingerprint of what it was built from, so that one that is out of date is
    found out. Line ends count as they are: a checkout with others builds anew.
    """
    digest = hashlib.sha256()
    files = {
        path.relative_to(csrc).as_posix(): path
        for path in csrc.rglob("*")
        if path.suffix in _SUFFIXES and path.is_file()
    }
    for name, path in sorted(files.items()):
        content = path.read_bytes()
        digest.update(f"{name}\0{len(content)}\0".encode())
        digest.update(content)
    return digest.hexdigest()[:16]
