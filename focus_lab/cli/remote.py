"""What commands do when a service does the work: the same words, over REST."""

from __future__ import annotations

import json
import os
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import typer

from focus_lab.cli.terminal import new_table, out, print_json, talk
from focus_lab.client import Client
from focus_lab.client import models as said
from focus_lab.client.client import NotNowError, RefusedError
from focus_lab.errors import UserError
from focus_lab.lab.failure import is_users
from focus_lab.specs.experiment import ExperimentSpec

_LONG_S = 3600.0
"""For how long a sweep waits for a service that is away: it goes on meanwhile."""
_SUBMIT_S = 60.0
"""The same before anything is submitted: a restart, but no address that is mistaken."""


def connect(server: str, patience_s: float = 10.0) -> Client:
    """A client with the token of the environment: a command line is seen by others."""
    token = os.environ.get("FOCUS_LAB_TOKEN")
    if file := os.environ.get("FOCUS_LAB_TOKEN_FILE"):
        try:
            token = Path(file).read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(
                f"FOCUS_LAB_TOKEN_FILE: cannot be read, got {error}; name a file with a token of "
                "`focus-lab token create`"
            ) from None
    return Client(
        server, token, patience_s=patience_s, note=lambda text: talk.print(text, soft_wrap=True)
    )


def sweep(server: str, spec: ExperimentSpec, *, as_json: bool) -> None:
    """Queue an experiment, follow it to its end, and print what it found."""
    with connect(server, _SUBMIT_S) as client:
        sent = client.submit(spec.model_dump(mode="json"))
    verb = "queued" if sent.created else "is there already"
    _to_its_end(server, sent.experiment, verb, as_json=as_json)


def retry(server: str, name: str, *, as_json: bool) -> None:
    """Queue what failed of an experiment again, follow it to its end, and print what it found."""
    with connect(server, _SUBMIT_S) as client:
        queued = client.retry(name)
    verb = "queued again" if queued.state == "QUEUED" else "has begun already"
    _to_its_end(server, queued, verb, as_json=as_json)


def _to_its_end(server: str, experiment: said.Experiment, verb: str, *, as_json: bool) -> None:
    name = experiment.name
    talk.print(f"{name}: {verb}, {experiment.trials} trials; {server}/ui/experiments/{name}")
    with connect(server, _LONG_S) as client:
        try:
            ended = follow(client, experiment)
        except KeyboardInterrupt:
            talk.print(
                f"{name} goes on without this command; look with `focus-lab status {name} --server "
                f"{server}`, end it with `focus-lab cancel {name} --server {server}`"
            )
            raise
        show(client, ended, as_json=as_json)


def follow(client: Client, experiment: said.Experiment) -> said.Experiment:
    """Print what happens until the experiment has ended, or waits for a person."""
    if experiment.is_terminal:
        return client.experiment(experiment.name)
    begun, shown = experiment.queued_at, ""
    for _, event in client.events(experiment.id):
        if event.at < begun:
            # Of an earlier life of the same experiment.
            continue
        if event.kind in ("trial", "note"):
            talk.print(_line(event), soft_wrap=True)
            continue
        now = client.experiment(experiment.id)
        # What the event says: after a break the experiment may be further than its events.
        text = str(event.data.get("state", now.state)).lower()
        if text == "queued" and now.wait:
            text = f"waits, number {now.wait.position}: {now.wait.text}"
        if text != shown:
            shown = text
            talk.print(f"{now.name}: {text}", soft_wrap=True)
        is_newest = event.data.get("version", 0) >= now.version
        if is_newest and (now.is_terminal or now.state == "PAUSED"):
            return now
    raise AssertionError("streams of events have no end")


def show(client: Client, experiment: said.Experiment, *, as_json: bool) -> None:
    """Print an experiment's result, and end with the code that it means."""
    if as_json:
        print_json(result(client, experiment.name))
    else:
        try:
            out.print(client.report(experiment.name, "txt").decode().rstrip(), soft_wrap=True)
            out.print(f"report: {client.url}/experiments/{experiment.name}/report", soft_wrap=True)
        except RefusedError as error:
            talk.print(str(error))
    trials = client.trials(experiment.name)
    if not as_json:
        for trial in trials:
            if trial.message:
                what = "failed" if trial.state == "FAILED" else "without numbers"
                talk.print(f"{what}: {trial.name}: {trial.message}", soft_wrap=True)
    if experiment.state != "SUCCEEDED":
        talk.print(
            f"{experiment.name}: {experiment.state.lower()}"
            + (f": {experiment.message}" if experiment.message else ""),
            soft_wrap=True,
        )
        failed = [trial for trial in trials if trial.state == "FAILED"]
        of_user = failed and all(is_users(trial.failure) for trial in failed)
        raise typer.Exit(2 if of_user else 1)


def result(client: Client, name: str) -> dict[str, Any]:
    """Experiment, trials and cells as `sweep --json` prints them."""
    found = client.experiment(name)
    curves = client.curves(name)
    try:
        report = json.loads(client.report(name, "json"))
    except RefusedError:
        report = {"cells": []}
    return {
        "experiment": {"id": found.id, "name": found.name, "state": found.state},
        "exploratory": report.get("exploratory", []),
        "trials": [
            {
                "id": trial.id,
                "cell": trial.cell,
                "seed": trial.seed,
                "overrides": trial.overrides,
                "status": trial.state,
                "attempts": trial.attempts,
                "metrics": {
                    metric: points[-1][1] for metric, points in curves.get(trial.id, {}).items()
                },
                "mlflow_run_id": trial.mlflow_run_id,
                "failure": trial.failure,
                "failure_is_users": is_users(trial.failure),
                "message": trial.message,
            }
            for trial in client.trials(name)
        ],
        "cells": report["cells"],
    }


def plan(server: str, spec: ExperimentSpec, cells: tuple[str, ...], *, as_json: bool) -> None:
    """Print what a spec would run on the service: these cells, or all."""
    with connect(server) as client:
        found = client.plan(spec.model_dump(mode="json"), cost=True)
    if cells:
        kept = [cell for cell in found.cells if cell.name in cells]
        trials = sum(cell.trials for cell in kept)
        found = found.model_copy(update={"cells": kept, "trials": trials, "trials_in_all": trials})
    if as_json:
        cells_said = [_planned(cell) for cell in found.cells]
        print_json({"name": found.name, "trials": found.trials, "cells": cells_said})
        return
    table = new_table("cell", "keep ratio", "mean over layers", "trials", "params", "GFLOPs")
    for cell in found.cells:
        cost = cell.cost or {}
        table.add_row(
            f"{cell.name} (baseline)" if cell.baseline else cell.name,
            f"{cell.keep_ratio:g}",
            f"{cell.mean_keep_ratio:.3g}",
            str(cell.trials),
            f"{cost.get('cost/params', 0) / 1e6:.2f} M",
            f"{cost.get('cost/gflops', 0):.3g}",
        )
    out.print(table)
    out.print(f"{found.trials} trials of {len(found.cells)} cells.")
    if found.trials_in_all > found.trials:
        out.print(f"The search begins with these; it ends with {found.trials_in_all} trials.")


def _planned(cell: said.PlannedCell) -> dict[str, Any]:
    """As `plan --json` prints it; times and memory would be those of the service's machine."""
    content = {"cell": cell.name} | cell.model_dump(exclude={"name", "cost"})
    unknown = {"steps": None, "seconds_a_trial": None, "memory_mib": None, "measured": False}
    return content | unknown | (cell.cost or {})


def list_experiments(server: str, *, as_json: bool) -> None:
    """Print the service's experiments."""
    with connect(server) as client:
        found = list(client.experiments())
    if as_json:
        print_json([_listed(one) for one in found])
        return
    table = new_table("experiment", "user", "state", "trials", "waits", "age", "description")
    for one in found:
        waits = f"{one.wait.position}: {one.wait.text}" if one.wait else ""
        age = _age(one.submitted_at)
        table.add_row(
            one.name, one.user, one.state.lower(), str(one.trials), waits, age, one.description
        )
    out.print(table if found else "no experiments yet; run `focus-lab sweep FILE --server URL`")


def _listed(one: said.ListedExperiment) -> dict[str, Any]:
    """As `list --json` prints it, and what only a service knows."""
    content = one.model_dump(mode="json", exclude={"trial_states", "submitted_at"})
    created = one.submitted_at.isoformat(timespec="seconds")
    return {"name": one.name, "created": created, "states": one.trial_states} | content


def status(server: str, name: str, *, as_json: bool) -> None:
    """Print an experiment's trials."""
    with connect(server) as client:
        if as_json:
            print_json(result(client, name))
            return
        found, trials = client.experiment(name), client.trials(name)
        try:
            curves = client.curves(name, ("coco/AP",))
        except NotNowError:
            # MLflow is away; where the trials are is known without it.
            curves = {}
    out.print(
        f"{found.name}: {found.state.lower()}" + (f", {found.message}" if found.message else "")
    )
    if found.wait:
        out.print(f"waits, number {found.wait.position}: {found.wait.text}", soft_wrap=True)
    table = new_table("trial", "state", "attempts", "epoch", "AP", "message")
    for trial in trials:
        points = curves.get(trial.id, {}).get("coco/AP")
        evaluated, ap = points[-1] if points else (0, None)
        epoch = trial.progress.epoch if trial.progress else evaluated
        table.add_row(
            trial.name,
            trial.state.lower(),
            str(trial.attempts),
            f"{epoch}/{trial.epochs}",
            "" if ap is None else f"{ap:.3f}",
            trial.message or "",
        )
    out.print(table)


def act(server: str, name: str, action: str) -> None:
    """Cancel, pause or resume."""
    with connect(server) as client:
        done: said.Experiment = getattr(client, action)(name)
    out.print(f"{done.name}: {done.state.lower()}")


def logs(server: str, name: str, trial: str | None, rank: int, *, follow_on: bool) -> None:
    """Print a log."""
    with connect(server) as client:
        shown = ""
        while True:
            ended = client.experiment(name).state not in _ADMITTED
            text = client.log(name, trial, rank)
            done = ended or not follow_on
            if not done:
                # The last character may be half written; it comes whole the next time.
                text = text.rstrip(_HALF)
            out.print(unseen(shown, text), end="", soft_wrap=True)
            shown = text
            if done:
                return
            time.sleep(2.0)


_HALF = "\ufffd"
"""What stands for bytes that are no whole character, as where a log was cut."""
_MARK = 200
"""Characters by which the place where a log begins is looked for."""


def unseen(shown: str, text: str) -> str:
    """What of a log is new; of long ones only the end is sent, so that its beginning moves.

    Args:
        shown: the log as it was known.
        text: as it is now.
    """
    if text.startswith(shown):
        return text[len(shown) :]
    kept = text.lstrip(_HALF)
    place = shown.find(kept[:_MARK]) if kept else -1
    while place >= 0:
        if kept.startswith(shown[place:]):
            return kept[len(shown) - place :]
        place = shown.find(kept[:_MARK], place + 1)
    return text


_ADMITTED = ("QUEUED", "STARTING", "RUNNING", "PAUSING", "CANCELLING")


def report(server: str, name: str, *, as_json: bool) -> None:
    """Print an experiment's result as it stands, and fetch its page."""
    with connect(server) as client:
        if as_json:
            print_json(result(client, name))
            return
        text = client.report(name, "txt").decode()
        page = Path(f"{name}.html")
        page.write_bytes(client.report(name, "html"))
    out.print(text.rstrip(), soft_wrap=True)
    out.print(f"report: {page}")


def _line(event: said.Event) -> str:
    data = event.data
    if event.kind == "note":
        return str(data.get("text", ""))
    parts = [str(data.get("trial")), str(data.get("state", "")).lower()]
    if data.get("state") == "RUNNING" and data.get("epoch"):
        parts[1] = f"epoch {data['epoch']}/{data['epochs']}"
        parts += [f"loss {data['loss']:.3f}"] if data.get("loss") is not None else []
        parts += [f"AP {data['ap']:.3f}"] if data.get("ap") is not None else []
    if data.get("message"):
        parts.append(str(data["message"]))
    return "  ".join(parts)


def _age(moment: datetime) -> str:
    from focus_lab.lab.progress import duration

    return duration((datetime.now(UTC) - moment).total_seconds())
