"""The Accept header: which of several forms of the same thing a client would rather have."""

from __future__ import annotations

from collections.abc import Sequence


def preferred(accept: str | None, offers: Sequence[str]) -> str | None:
    """The media type that suits best; None when none does.

    Of those with the highest q-value the one that was named most exactly, then the one that was
    named first; where that says nothing, the first that is offered.

    Args:
        accept: the header; without one, or with an empty one, everything is welcome.
        offers: media types, the usual one first.
    """
    ranges = list(_ranges(accept)) if accept and accept.strip() else [("*/*", 1.0)]
    found: list[tuple[float, int, int, str]] = []
    for offer in offers:
        fitting = [
            (_exactness(name, offer), -place, quality)
            for place, (name, quality) in enumerate(ranges)
            if _exactness(name, offer)
        ]
        if fitting:
            # What names it most exactly decides: `text/*, text/html;q=0` is not for HTML.
            exactness, place, quality = max(fitting)
            found.append((quality, exactness, place, offer))
    acceptable = [one for one in found if one[0] > 0]
    return max(acceptable, key=lambda one: one[:3])[3] if acceptable else None


def _ranges(accept: str) -> list[tuple[str, float]]:
    """Media ranges with their q-values; what is none is passed over."""
    found = []
    for part in accept.split(","):
        name, *parameters = (piece.strip().lower() for piece in part.split(";"))
        quality = 1.0
        for parameter in parameters:
            key, _, value = parameter.partition("=")
            if key.strip() == "q":
                try:
                    quality = float(value)
                except ValueError:
                    quality = -1.0
        if "/" in name and 0 <= quality <= 1:
            found.append((name, quality))
    return found


def _exactness(name: str, offer: str) -> int:
    """3 for the type itself, 2 for `type/*`, 1 for any, 0 where it does not fit."""
    if name == offer:
        return 3
    if name == f"{offer.partition('/')[0]}/*":
        return 2
    return int(name == "*/*")
