"""What an experiment has brought forth: trials, curves, report, files."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path as FilePath
from typing import Annotated, Literal

from anyio import to_thread
from fastapi import APIRouter, Depends, Header, Query
from fastapi.responses import Response

from focus_lab.client import models
from focus_lab.lab.queue.entry import Entry
from focus_lab.lab.store import Experiment, Trial
from service import views
from service.accept import preferred
from service.auth import Reader
from service.files import WholeFile, files_below
from service.guard import REPORT_CSP
from service.problems import ProblemError, declared
from service.routes.experiments import Id
from service.state import State, state_of

router = APIRouter(tags=["contents"], responses=declared(401, 403, 404, 422, 429, 503))

Lab = Annotated[State, Depends(state_of)]

REPORTS = {
    "html": "report.html",
    "md": "report.md",
    "json": "report.json",
    "txt": "report.txt",
    "csv": "tables/cells.csv",
    "tex": "tables/paper.tex",
}
"""Form of a report -> file in an experiment's folder `report`."""
Form = Literal["html", "md", "json", "txt", "csv", "tex"]
_KINDS: dict[Form, str] = {
    "html": "text/html",
    "md": "text/markdown",
    "json": "application/json",
    "txt": "text/plain",
    "csv": "text/csv",
    "tex": "text/x-tex",
}
"""Form of a report -> media type; the first is for whoever takes any."""
_SHOWN = ("report", "trials")
"""Folders of an experiment whose files may be fetched."""
_ENDINGS = {
    ".html": "text/html", ".md": "text/markdown", ".json": "application/json", ".csv": "text/csv",
    ".tex": "text/plain", ".txt": "text/plain", ".log": "text/plain", ".png": "image/png",
    ".svg": "image/svg+xml", ".jpg": "image/jpeg",
}  # fmt: skip
"""Ending of a file that may be fetched -> media type."""
_MOST_FILES = 5000


@router.get("/experiments/{experiment}/trials")
def trials(experiment: Id, state: Lab, _: Reader) -> models.TrialList:
    """The trials of the plan, running ones with where they are."""
    stored = _stored(state, state.queue.entry(experiment))
    return models.TrialList(
        items=[views.trial(stored, found) for found in state.queue.store.trials(stored.id)]
    )


@router.get("/experiments/{experiment}/curves", response_model=models.CurveList)
async def curves(
    experiment: Id,
    state: Lab,
    _: Reader,
    metric: Annotated[
        list[str] | None, Query(max_length=100, description="Only these, for example coco/AP.")
    ] = None,
) -> Response:
    """Metrics over epochs, as MLflow has them now."""

    def trials() -> list[Trial]:
        return state.queue.store.trials(_stored(state, state.queue.entry(experiment)).id)

    found = await state.curves.read(await to_thread.run_sync(trials), metric)
    return Response(found, media_type="application/json")


@router.get(
    "/experiments/{experiment}/report",
    response_class=Response,
    responses=declared(406)
    | {
        200: {
            "description": "The report",
            "content": {
                kind: {"schema": {"type": "object" if form == "json" else "string"}}
                for form, kind in _KINDS.items()
            },
            "headers": {
                "Vary": {
                    "description": "Accept, where `format` was not given.",
                    "schema": {"type": "string"},
                    "required": False,
                }
            },
        }
    },
)
def report(
    experiment: Id,
    state: Lab,
    _: Reader,
    accept: Annotated[
        str | None, Header(description="Media types of the report, with q-values.")
    ] = None,
    form: Annotated[
        Form | None,
        Query(alias="format", description="Otherwise by the Accept header."),
    ] = None,
) -> Response:
    """The report as it was written last: when trials or the attempt ended."""
    stored = _stored(state, state.queue.entry(experiment))
    # Whoever keeps the answer must know by what it was chosen, be it one or a refusal.
    negotiated = {} if form else {"Vary": "Accept"}
    liked = preferred(accept, list(_KINDS.values()))
    if not (form or liked):
        raise ProblemError(
            406, "not-acceptable",
            f"Accept: the report has none of these forms, got {str(accept)[:80]!r}; there are "
            f"{', '.join(_KINDS.values())}; or choose one by ?format=",
            negotiated,
        )  # fmt: skip
    chosen = (
        form if form is not None else next(one for one, kind in _KINDS.items() if kind == liked)
    )
    file = stored.folder / "report" / REPORTS[chosen]
    headers = {"Content-Security-Policy": REPORT_CSP, "X-Frame-Options": "SAMEORIGIN"} | negotiated
    try:
        return WholeFile(file, _KINDS[chosen], headers)
    except FileNotFoundError:
        raise ProblemError(
            404, "no-report",
            f"experiment {stored.name}: has no report ({chosen}) yet; it is written some "
            "minutes after its first trial has ended, and at its end",
            negotiated,
        ) from None  # fmt: skip


@router.get("/experiments/{experiment}/artifacts")
def artifacts(experiment: Id, state: Lab, _: Reader) -> models.ArtifactList:
    """The files that may be fetched."""
    stored = _stored(state, state.queue.entry(experiment))
    files = _files(stored)
    items = [
        models.Artifact(path=path, size=size, media_type=_ENDINGS[FilePath(path).suffix])
        for path, size in itertools.islice(files, _MOST_FILES)
    ]
    return models.ArtifactList(items=items, more=next(files, None) is not None)


@router.get(
    "/experiments/{experiment}/artifacts/{path:path}",
    response_class=Response,
    responses={
        200: {
            "description": "The file",
            "content": {
                kind: {"schema": {} if kind == "application/json" else {"type": "string"}}
                for kind in dict.fromkeys(_ENDINGS.values())
            },
        }
    },
)
def artifact(experiment: Id, path: str, state: Lab, _: Reader) -> Response:
    """One of the files."""
    stored = _stored(state, state.queue.entry(experiment))
    try:
        file = _file(stored, path)
        headers = {"Content-Security-Policy": REPORT_CSP}
        return WholeFile(file, _ENDINGS[file.suffix], headers)
    except FileNotFoundError:
        raise ProblemError(
            404, "no-such-file",
            f"experiment {stored.name}: has no such file, got {path[:80]!r}; see its artifacts",
        ) from None  # fmt: skip


def _stored(state: State, entry: Entry) -> Experiment:
    return state.queue.store.experiment(entry.id)


def _files(stored: Experiment) -> Iterator[tuple[str, int]]:
    """Paths and bytes of the files that may be fetched."""
    root = stored.folder.resolve()
    for part in _SHOWN:
        for file, size in files_below(root / part):
            if file.suffix in _ENDINGS:
                yield file.relative_to(root).as_posix(), size


def _file(stored: Experiment, path: str) -> FilePath:
    """A file by the one path that it is listed under.

    Raises:
        FileNotFoundError: none is.
    """
    root = stored.folder.resolve()
    file = root / path
    if file.suffix not in _ENDINGS or path.partition("/")[0] not in _SHOWN:
        raise FileNotFoundError(path)
    try:
        # Links, dots and doubled slashes on the way lead to another path than the one asked for.
        found = str(file.resolve()) == f"{root}/{path}" and file.is_file()
    except (OSError, ValueError):
        # No file can have such a name.
        found = False
    if not found:
        raise FileNotFoundError(path)
    return file
