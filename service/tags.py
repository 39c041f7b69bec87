"""Entity tags: is an answer still what a client has, and an experiment still what it decided on?"""

from __future__ import annotations

import hashlib
import re
from typing import Annotated

from fastapi import Header

IfNoneMatch = Annotated[
    str | None,
    Header(description="ETag of an answer that you have: 304 if it would be the same again."),
]
IfMatch = Annotated[
    str | None,
    Header(
        description="ETag of the experiment that you have decided on, or its version in quotes: "
        "412 if it has been changed since.",
        examples=['"3"'],
    ),
]


def tag_of(version: int, body: bytes) -> str:
    """The tag of an answer about an experiment.

    Of the whole body: its place in the queue, its trials and its report change without its version.
    The version comes first, for it is all that a change is compared with: who stands at another
    place than a moment ago has not been changed by anybody.
    """
    return f'"{version}-{hashlib.sha256(body).hexdigest()[:16]}"'


def has(tag: str, if_none_match: str | None) -> bool:
    """Whether a client has what the tag stands for."""
    if if_none_match is None:
        return False
    return if_none_match.strip() == "*" or tag.strip('"') in _tags(if_none_match)


def versions(if_match: str | None) -> frozenset[int] | None:
    """The versions that a client would change; None for any.

    A weak tag counts as well: proxies that compress make one of every tag, and its version is as
    good as before.
    """
    if if_match is None or if_match.strip() == "*":
        return None
    numbers = [tag.partition("-")[0] for tag in _tags(if_match)]
    return frozenset(int(number) for number in numbers if re.fullmatch(r"[0-9]{1,9}", number))


def _tags(header: str) -> list[str]:
    return re.findall(r'"([^"]*)"', header)
