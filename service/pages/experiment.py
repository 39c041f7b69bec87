"""An experiment's page: its life, its trials, what they have brought forth."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from fastapi import APIRouter, Depends, Request
from fastapi.responses import Response

from focus_lab.client import models
from focus_lab.lab.driver import trial_folder
from focus_lab.lab.states import TrialState
from focus_lab.lab.store import Experiment
from focus_lab.lab.store import Trial as StoredTrial
from focus_lab.training.folder import SAMPLES
from service import views
from service.auth import Reader
from service.pages.history import Histories, Mark
from service.pages.offers import offers
from service.pages.site import PageRoute, Site, site_of
from service.pages.submission import as_text
from service.routes.contents import REPORTS
from service.routes.experiments import Id
from service.state import State, state_of

router = APIRouter(route_class=PageRoute)

Lab = Annotated[State, Depends(state_of)]
Pages = Annotated[Site, Depends(site_of)]

_FORMS = {"html": "report", "md": "Markdown", "csv": "CSV", "tex": "LaTeX", "json": "JSON"}
_POLL_S = 4
"""How often a page looks at steps within an epoch: nobody writes events of them."""


@dataclass(frozen=True)
class Row:
    """A trial with where it is."""

    trial: models.Trial
    epoch: float
    """Epochs done, the running one by its share."""
    loss: float | None
    ap: float | None


@router.get("/ui/experiments/{experiment}")
def show(experiment: Id, request: Request, state: Lab, site: Pages, principal: Reader) -> Response:
    """One experiment."""
    entry = state.queue.entry(experiment)
    stored = state.queue.store.experiment(entry.id)
    detail = views.detail(state, entry)
    history = site.histories.of(state.events, entry.id)
    trials = state.queue.store.trials(entry.id)
    rows = [_row(stored, trial, history.trials.get(trial.name)) for trial in trials]
    quality, cost, directions = objectives(stored)
    return site.page(
        request, "experiment.html.jinja", principal,
        experiment=detail,
        offers=offers(principal, entry),
        may_move=principal.may_change(entry) and not entry.state.is_terminal,
        rows=rows,
        done=sum(row.trial.state == "SUCCEEDED" for row in rows),
        reports={
            form: label
            for form, label in _FORMS.items()
            if (stored.folder / "report" / REPORTS[form]).is_file()
        },
        history=history,
        samples=_samples(stored, trials),
        names=trial_names(rows),
        quality=quality, cost=cost, directions=directions,
        spec_text=as_text(detail.spec),
        poll=_POLL_S if entry.state.is_admitted else 0,
        after=str(history.cursor),
    )  # fmt: skip


def trial_names(rows: list[Row]) -> dict[str, dict[str, str | int]]:
    """Trial id -> cell and seed: what the scripts need to name curves."""
    return {row.trial.id: {"cell": row.trial.cell, "seed": row.trial.seed} for row in rows}


def trials_of(state: State, site: Histories, experiment_id: str) -> list[Row]:
    """The trials of an experiment."""
    stored = state.queue.store.experiment(experiment_id)
    marks = site.of(state.events, experiment_id).trials
    return [
        _row(stored, trial, marks.get(trial.name))
        for trial in state.queue.store.trials(experiment_id)
    ]


def objectives(stored: Experiment) -> tuple[str, str, dict[str, str]]:
    """The metrics of quality and of cost that an experiment is ranked by; which way is better."""
    directions = dict(stored.spec.get("objectives") or {})
    names = list(directions)
    quality = names[0] if names else "coco/AP"
    return quality, names[1] if len(names) > 1 else "cost/gflops", directions


def _row(stored: Experiment, found: StoredTrial, mark: Mark | None) -> Row:
    trial = views.trial(stored, found)
    epoch = float(mark.epoch if mark else 0)
    loss, ap = (mark.loss, mark.ap) if mark else (None, None)
    if trial.state == "SUCCEEDED":
        epoch = float(trial.epochs)
    if (step := trial.progress) is not None:
        epoch = max(epoch, min(trial.epochs, step.epoch - 1 + step.step / max(1, step.steps)))
        loss = step.loss if step.loss is not None else loss
    return Row(trial, epoch, loss, ap)


def _samples(stored: Experiment, trials: list[StoredTrial]) -> list[dict[str, str]]:
    """Trials that have written pictures: the first seed of each cell."""
    found: dict[str, dict[str, str]] = {}
    for trial in trials:
        # Written at the end; looking for the folders of hundreds of trials takes time.
        if trial.state is not TrialState.SUCCEEDED or trial.cell in found:
            continue
        folder = trial_folder(stored, trial) / SAMPLES
        if (folder / "samples.json").is_file():
            path = folder.relative_to(stored.folder).as_posix()
            found[trial.cell] = {"trial": trial.name, "path": path}
    return list(found.values())
