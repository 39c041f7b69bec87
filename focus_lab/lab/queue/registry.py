"""Data sets, weights and storages that a service knows by name: no path of a client is opened."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

from pydantic import Field

from focus_lab.errors import SpecError
from focus_lab.specs.base import Spec
from focus_lab.specs.explain import Locate

_NAME = r"@([a-z0-9][a-z0-9_.-]{0,62})"
_INSIDE = tuple(
    f"{split}.{part}" for split in ("train", "val") for part in ("images", "annotations")
)
"""Endings of paths whose values lie below the folder of a data set."""


class Registry(Spec):
    """What may be read and written, by name. In a spec, `@name` stands for it."""

    datasets: dict[str, str] = Field(default={})
    """Name -> folder, the same on every machine; `data.root: "@name"` in a spec."""
    weights: dict[str, str] = Field(default={})
    """Name -> file, or `package:MODULE`; `model.backbone.weights: "@name"` and
    `training.start_from: "@name"`."""
    storages: dict[str, str] = Field(default={})
    """Name -> folder or URL; `compute.storage: "@name"`."""

    def resolve(self, content: dict[str, Any]) -> dict[str, Any]:
        """A spec, not yet validated, with names replaced by what they stand for.

        Names may stand in the base, in axes and in cells.

        Raises:
            SpecError: a name is not known.
        """
        problems: list[str] = []

        def place_of(path: str, value: str, places: dict[str, str]) -> str:
            match = re.fullmatch(_NAME, value)
            if match is None:
                return value
            if match[1] not in places:
                problems.append(_unknown(path, value, places))
            return places.get(match[1], value)

        resolved = self._replaced(content, (), place_of)
        if problems:
            raise SpecError(*problems)
        assert isinstance(resolved, dict)
        return resolved

    def named(self, content: dict[str, Any]) -> dict[str, Any]:
        """A spec with places replaced by their names, where they have any: `resolve` backwards."""

        def name_of(path: str, value: str, places: dict[str, str]) -> str:
            return next((f"@{name}" for name, place in places.items() if place == value), value)

        named = self._replaced(content, (), name_of)
        assert isinstance(named, dict)
        return named

    def check(self, content: dict[str, Any], locate: Locate = lambda path: None) -> None:
        """See that a spec names no place that is not registered.

        The whole of it, and not the cells of its plan: a search draws further points of the axes
        while it runs, where nobody looks at them.

        Args:
            content: the spec, with its names replaced.
            locate: path -> "file:line" for error messages.

        Raises:
            SpecError: it does; all of them at once.
        """
        problems: dict[str, None] = {}
        for path, value in _texts(content, ()):
            dotted, where = ".".join(path), locate(path)
            problem = self._problem(dotted, value)
            if problem is not None:
                problems[f"{where}: {problem}" if where else problem] = None
        if problems:
            raise SpecError(*problems)

    def _problem(self, dotted: str, value: str) -> str | None:
        kind = self._kind(dotted)
        if kind is not None:
            places = getattr(self, kind)
            return None if value in places.values() else _unknown(dotted, value, places)
        leaves = value.startswith(("/", "\\", "~")) or ".." in re.split(r"[/\\]", value)
        if dotted.endswith(_INSIDE) and leaves:
            return (
                f"{dotted}: must stay inside the data set, got {value!r}; give a path below its "
                "folder"
            )
        return None

    def _replaced(
        self, value: Any, path: tuple[str, ...], replace: Callable[[str, str, dict[str, str]], str]
    ) -> Any:
        if isinstance(value, dict):
            return {k: self._replaced(v, (*path, str(k)), replace) for k, v in value.items()}
        if isinstance(value, list | tuple):
            return [self._replaced(item, path, replace) for item in value]
        dotted = ".".join(path)
        kind = self._kind(dotted) if isinstance(value, str) else None
        return value if kind is None else replace(dotted, value, getattr(self, kind))

    @staticmethod
    def _kind(dotted: str) -> str | None:
        # Keys of axes and cells are dotted paths themselves.
        for ending, kind in (
            ("data.root", "datasets"),
            ("backbone.weights", "weights"),
            ("training.start_from", "weights"),
            ("compute.storage", "storages"),
        ):
            if dotted.endswith(ending):
                return kind
        return None


def _texts(value: Any, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], str]]:
    """Every text of a spec with its path; those of a list have the path of the list."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _texts(inner, (*path, str(key)))
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _texts(inner, path)
    elif isinstance(value, str):
        yield path, value


def _unknown(path: str, value: str, names: dict[str, str]) -> str:
    known = ", ".join(f'"@{name}"' for name in names) or "none yet"
    return f"{path}: is not registered with this service, got {value!r}; registered are {known}"
