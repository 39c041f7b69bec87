"""Two experiments side by side: where their specs differ, and what came of it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Request
from fastapi.responses import Response

from focus_lab.client import models
from focus_lab.client.models import NAME
from focus_lab.lab.queue.entry import Filters
from service import views
from service.auth import Reader
from service.pages.experiment import objectives, trial_names, trials_of
from service.pages.site import PageRoute, Site, site_of
from service.state import State, state_of

router = APIRouter(route_class=PageRoute)

Lab = Annotated[State, Depends(state_of)]
Pages = Annotated[Site, Depends(site_of)]
Name = Annotated[str, Query(pattern=f"^({NAME})?$")]

_SUGGESTED = 200


@dataclass(frozen=True)
class Difference:
    """A key that is not the same in both specs; None where it is absent."""

    path: str
    a: str | None
    b: str | None


@dataclass(frozen=True)
class Side:
    """One of the two."""

    experiment: models.ExperimentDetail
    names: dict[str, dict[str, str | int]]
    """Trial id -> cell and seed."""


@router.get("/ui/compare")
def compare(
    request: Request, state: Lab, site: Pages, principal: Reader, a: Name = "", b: Name = ""
) -> Response:
    """The form, and with two names the comparison."""
    known = [entry.name for entry in state.queue.page(Filters(), _SUGGESTED).entries]
    sides: list[Side] = []
    quality, cost = "coco/AP", "cost/gflops"
    directions: dict[str, str] = {}
    for name in (a, b) if a and b else ():
        entry = state.queue.entry(name)
        rows = trials_of(state, site.histories, entry.id)
        sides.append(Side(views.detail(state, entry), trial_names(rows)))
        if len(sides) == 1:
            quality, cost, directions = objectives(state.queue.store.experiment(entry.id))
    found = differences(*(side.experiment.spec for side in sides)) if sides else []
    return site.page(
        request, "compare.html.jinja", principal,
        a=a, b=b, known=known, sides=sides, differences=found, quality=quality,
        cost=cost, directions=directions,
    )  # fmt: skip


def differences(a: dict[str, Any], b: dict[str, Any]) -> list[Difference]:
    """The keys whose values differ, names and descriptions left out, in the order of the specs.

    Lists are compared whole, as they are replaced whole.
    """
    left, right = dict(_leaves(a)), dict(_leaves(b))
    return [
        Difference(path, left.get(path), right.get(path))
        for path in dict.fromkeys([*left, *right])
        if left.get(path) != right.get(path) and path not in ("name", "description")
    ]


def _leaves(value: Any, path: str = "") -> Iterator[tuple[str, str]]:
    if isinstance(value, dict) and value:
        for key, inner in value.items():
            yield from _leaves(inner, f"{path}.{key}".lstrip("."))
    else:
        yield path, json.dumps(value, ensure_ascii=False)
