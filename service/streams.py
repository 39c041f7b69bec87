"""Streams that stay open: counted, so that there are not too many, and one user's are not all."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator

from service.problems import ProblemError


class Streams:
    """Places for open streams of one kind.

    Args:
        what: the kind, as errors call it.
        most: at once.
        most_of_user: of one user at once.
    """

    def __init__(self, what: str, most: int, most_of_user: int) -> None:
        self._what, self._most, self._most_of_user = what, most, most_of_user
        self._open: Counter[str] = Counter()

    @property
    def open(self) -> int:
        """How many are open."""
        return self._open.total()

    @contextlib.contextmanager
    def place(self, user: str) -> Iterator[None]:
        """A place for a user's stream, held within the context.

        Raises:
            ProblemError: there is none left.
        """
        if self.open >= self._most:
            raise ProblemError(
                503, "too-many-streams",
                f"{self._what}: {self._most} streams are open already; try again later",
            )  # fmt: skip
        if self._open[user] >= self._most_of_user:
            raise ProblemError(
                429, "too-many-streams-of-yours",
                f"{self._what}: {user} has as many streams open as one user may have, got "
                f"{self._most_of_user}; end one of them first",
            )  # fmt: skip
        self._open[user] += 1
        try:
            yield
        finally:
            self._open[user] -= 1
            # Whoever has gone need not be remembered.
            self._open += Counter()
