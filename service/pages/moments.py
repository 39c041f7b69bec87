"""Moments and durations as a person says them."""

from __future__ import annotations

from datetime import UTC, datetime

from markupsafe import Markup

from focus_lab.lab.progress import duration

_DAYS_SHOWN = 60


def moment(at: datetime, now: datetime | None = None) -> Markup:
    """A moment as `<time>`: how long ago, the exact time as its title."""
    exact = at.astimezone(UTC)
    return Markup('<time datetime="{}" title="{}">{}</time>').format(
        exact.isoformat(timespec="seconds").replace("+00:00", "Z"),
        exact.strftime("%Y-%m-%d %H:%M:%S UTC"),
        ago(at, now),
    )


def ago(at: datetime, now: datetime | None = None) -> str:
    """How long ago: now, 5 min ago, 3 h ago, 2 d ago, or the day."""
    seconds = ((now or datetime.now(UTC)) - at).total_seconds()
    # The same steps as in live.js, which keeps them right while a page is open.
    if seconds < 45:
        return "now"
    if seconds < 90 * 60:
        return f"{max(1, round(seconds / 60))} min ago"
    if seconds < 36 * 3600:
        return f"{round(seconds / 3600)} h ago"
    days = round(seconds / 86400)
    return f"{days} d ago" if days < _DAYS_SHOWN else at.astimezone(UTC).strftime("%Y-%m-%d")


def lasting(begin: datetime, end: datetime | None, now: datetime | None = None) -> str:
    """How long something took, or has taken until now."""
    return duration(max(0.0, ((end or now or datetime.now(UTC)) - begin).total_seconds()))
