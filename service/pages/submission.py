"""The page on which an experiment is written and submitted."""

from __future__ import annotations

from typing import Annotated, Any

import yaml
from fastapi import APIRouter, Depends, Query, Request
from fastapi.responses import Response

from focus_lab.client.models import NAME
from focus_lab.errors import SpecError
from focus_lab.specs.experiment import ExperimentSpec
from focus_lab.specs.explain import validate_as
from focus_lab.specs.reference import sections
from service import views
from service.auth import Writer
from service.pages.site import PageRoute, Site, site_of
from service.state import State, state_of

router = APIRouter(route_class=PageRoute)

Lab = Annotated[State, Depends(state_of)]
Pages = Annotated[Site, Depends(site_of)]

_EXAMPLE = """\
name: my-keep-ratio
description: How many foreground tokens does the encoder need?
data:
  kind: shapes
sweep:
  axes:
    model.token_selection.keep_ratio: [0.1, 0.3, 0.5, 1.0]
  seeds: [0, 1]
objectives: {coco/AP: max, cost/gflops: min}
"""


@router.get("/ui/submit")
def submit(
    request: Request,
    state: Lab,
    site: Pages,
    principal: Writer,
    origin: Annotated[str, Query(alias="from", pattern=f"^({NAME})?$")] = "",
) -> Response:
    """An empty beginning, or a copy of an experiment."""
    text = _EXAMPLE
    if origin:
        entry = state.queue.entry(origin)
        text = as_yaml(views.shown_spec(state, state.queue.store.experiment(entry.id)))
    return site.page(
        request, "submit.html.jinja", principal,
        text=text, origin=origin, sections=sections(), project=principal.project,
        most_bytes=state.settings.max_body,
    )  # fmt: skip


def as_yaml(spec: dict[str, Any]) -> str:
    """A stored spec as a person would write it: without what is default anyway.

    One of an older version, which is not valid any more, is shown whole.
    """
    content = spec
    try:
        whole = validate_as(ExperimentSpec, spec, lambda path: None)
        full = whole.model_dump(mode="json")
        short = _with_kinds(whole.model_dump(mode="json", exclude_defaults=True), full)
        if validate_as(ExperimentSpec, short, lambda path: None) == whole:
            content = {key: short[key] for key in full if key in short}
    except SpecError:
        content = spec
    return as_text(content)


def as_text(content: dict[str, Any]) -> str:
    """YAML in which the innermost lists and mappings take a line each."""
    return yaml.safe_dump(
        content, sort_keys=False, allow_unicode=True, width=96, default_flow_style=None
    )


def _with_kinds(short: dict[str, Any], full: dict[str, Any]) -> dict[str, Any]:
    """Tags of variants must be written even where they are default."""
    found = {
        key: _with_kinds(value, full[key]) if isinstance(value, dict) else value
        for key, value in short.items()
        if key in full
    }
    return {"kind": full["kind"]} | found if "kind" in full else found
