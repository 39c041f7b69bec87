"""Data sets, weights and storages that a service knows by name: no path of a client is opened."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from pydantic import Field

from focus_lab.errors import SpecError
from focus_lab.specs.base import Spec
from focus_lab.specs.data import CocoData
from focus_lab.specs.experiment import TrialSpec
from focus_lab.specs.plan import Plan

_NAME = r"@([a-z0-9][a-z0-9_.-]{0,62})"


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

    def check(self, plan: Plan) -> None:
        """See that no cell names a place that is not registered.

        Raises:
            SpecError: some do; all of them at once.
        """
        problems: dict[str, None] = {}
        for cell in plan.cells:
            problems |= dict.fromkeys(self._strangers(cell.spec))
        if problems:
            raise SpecError(*problems)

    def _strangers(self, spec: TrialSpec) -> list[str]:
        found = []
        if isinstance(spec.data, CocoData):
            if spec.data.root not in self.datasets.values():
                found.append(_unknown("data.root", spec.data.root, self.datasets))
            for split in ("train", "val"):
                files = getattr(spec.data, split)
                for part in ("images", "annotations"):
                    path = getattr(files, part)
                    if path.startswith(("/", "\\", "~")) or ".." in re.split(r"[/\\]", path):
                        found.append(
                            f"data.{split}.{part}: must stay inside the data set, got {path!r}; "
                            "give a path below its folder"
                        )
        weights = getattr(spec.model.backbone, "weights", None)
        if weights is not None and weights not in self.weights.values():
            found.append(_unknown("model.backbone.weights", weights, self.weights))
        start = spec.training.start_from
        if start is not None and start not in self.weights.values():
            found.append(_unknown("training.start_from", start, self.weights))
        storage = spec.compute.storage
        if storage is not None and storage not in self.storages.values():
            found.append(_unknown("compute.storage", storage, self.storages))
        return found

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


def _unknown(path: str, value: str, names: dict[str, str]) -> str:
    known = ", ".join(f'"@{name}"' for name in names) or "none yet"
    return f"{path}: is not registered with this service, got {value!r}; registered are {known}"
