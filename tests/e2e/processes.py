"""What processes there are, and below whom."""

from __future__ import annotations

import subprocess


def family_of(pid: int) -> dict[int, str]:
    """Processes below one: id -> command line."""
    listing = subprocess.run(
        ["ps", "-A", "-ww", "-o", "pid=,ppid=,args="], capture_output=True, text=True, check=True
    )
    rows = [line.split(maxsplit=2) for line in listing.stdout.splitlines()]
    found: dict[int, str] = {}
    parents = {pid}
    while parents:
        below = {int(row[0]): " ".join(row[2:]) for row in rows if int(row[1]) in parents}
        found |= below
        parents = set(below)
    return found


def is_alive(pid: int) -> bool:
    """Whether a process runs; one that waits for its parent to look does not."""
    state = subprocess.run(
        ["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True, check=False
    ).stdout.strip()
    return bool(state) and not state.startswith("Z")
