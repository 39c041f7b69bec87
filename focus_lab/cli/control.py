"""Commands that look into, end, or begin again what was started: here or by a service."""

from __future__ import annotations

import os
import signal
from typing import Annotated

import typer

from focus_lab.cli.experiments import run_sweep
from focus_lab.cli.terminal import RUNS, Json, Name, Out, Server, StoreUrl, Tracking, out
from focus_lab.errors import UserError

app = typer.Typer()


@app.command()
def logs(
    name: Name,
    trial: Annotated[
        str | None, typer.Option(help="Name of a trial; none: the driver's, of a service.")
    ] = None,
    rank: Annotated[int, typer.Option(help="Worker of the trial.")] = 0,
    follow: Annotated[bool, typer.Option("--follow", help="Print what comes, to the end.")] = False,
    out_dir: Out = RUNS,
    store: StoreUrl = None,
    server: Server = None,
) -> None:
    """What a trial's worker, or a driver of a service, has printed."""
    if server:
        from focus_lab.cli import remote

        remote.logs(server, name, trial, rank, follow_on=follow)
        return
    from focus_lab.lab.driver import trial_folder
    from focus_lab.lab.lab import store_url
    from focus_lab.lab.store import Store
    from focus_lab.lab.trial_log import LOGS

    opened = Store(store or store_url(out_dir), create=False)
    try:
        experiment = opened.experiment(name)
        trials = {found.name: found for found in opened.trials(experiment.id)}
    finally:
        opened.close()
    if trial not in trials:
        raise UserError(f"--trial: must be one of {', '.join(trials)}, got {trial!r}")
    file = trial_folder(experiment, trials[trial]) / LOGS / f"rank-{rank}.log"
    if not file.is_file():
        raise UserError(f"trial {trial}: rank {rank} has no log yet, got none at {file}")
    if follow:
        os.execvp("tail", ["tail", "-n", "+1", "-f", str(file)])
    out.print(file.read_text(errors="replace").rstrip(), soft_wrap=True)


@app.command()
def cancel(
    name: Name, out_dir: Out = RUNS, store: StoreUrl = None, server: Server = None
) -> None:  # fmt: skip
    """End an experiment; what is done is kept."""
    if server:
        from focus_lab.cli import remote

        remote.act(server, name, "cancel")
        return
    from focus_lab.lab.lab import store_url
    from focus_lab.lab.lease import is_dead, process_of
    from focus_lab.lab.queue.changes import NoEntryError
    from focus_lab.lab.queue.queue import Queue
    from focus_lab.lab.queue.states import Action
    from focus_lab.lab.store import Store

    opened = Store(store or store_url(out_dir), create=False)
    try:
        experiment = opened.experiment(name)
        try:
            entry = Queue(opened).act(experiment.id, Action.CANCEL, "command line")
            out.print(f"{name}: {entry.state.lower()}")
            return
        except NoEntryError:
            # Not one of a service: its driver is a process of somebody's.
            owner = opened.lease_owner(experiment.id)
    finally:
        opened.close()
    if owner is None or is_dead(owner):
        raise UserError(f"experiment {name}: nobody carries it out, got no living process")
    process = process_of(owner)
    if process is None:
        raise UserError(
            f"experiment {name}: is carried out on another machine, got {owner}; interrupt it there"
        )
    os.kill(process, signal.SIGINT)
    out.print(f"{name}: process {process} was told to end")


def _of_service(action: str, text: str) -> None:
    @app.command(action, help=text)
    def command(name: Name, server: Server = None) -> None:
        if not server:
            raise UserError(
                f"--server: {action} is for experiments of a service, got none; name its address, "
                "for example http://localhost:8000"
            )
        from focus_lab.cli import remote

        remote.act(server, name, action)


_of_service("pause", "Stop an experiment of a service until it is resumed.")
_of_service("resume", "Queue a paused experiment of a service again.")


@app.command()
def retry(
    name: Name,
    out_dir: Out = RUNS,
    store: StoreUrl = None,
    tracking_uri: Tracking = None,
    server: Server = None,
    as_json: Json = False,
) -> None:
    """Try what failed of an experiment again, by the spec that was recorded."""
    if server:
        from focus_lab.cli import remote

        remote.retry(server, name, as_json=as_json)
        return
    from focus_lab.lab.lab import store_url
    from focus_lab.lab.store import Store
    from focus_lab.lab.tune_executor import TuneExecutor
    from focus_lab.specs.experiment import ExperimentSpec
    from focus_lab.specs.explain import validate_as
    from focus_lab.specs.plan import plan

    opened = Store(store or store_url(out_dir), create=False)
    try:
        content = opened.experiment(name).spec
    finally:
        opened.close()
    spec = validate_as(ExperimentSpec, content, lambda path: None)
    executor = TuneExecutor(spec.compute)
    run_sweep(spec, plan(spec), (), out_dir, store, tracking_uri, executor, as_json)
