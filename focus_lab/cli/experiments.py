"""Commands about experiments: run them, plan them, look at them."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from focus_lab.cli.terminal import (
    RUNS,
    ExecutorName,
    File,
    Json,
    Name,
    Only,
    Out,
    Server,
    Set,
    StoreUrl,
    Tracking,
    between,
    new_table,
    out,
    print_json,
    results_alone_on_stdout,
    talk,
)
from focus_lab.errors import SpecError, UserError

if TYPE_CHECKING:
    from focus_lab.lab.executor import Executor
    from focus_lab.lab.lab import Lab
    from focus_lab.specs.experiment import ExperimentSpec
    from focus_lab.specs.plan import Plan

app = typer.Typer()


@app.command()
def sweep(
    context: typer.Context,
    file: File,
    settings: Set = None,
    only: Only = None,
    out_dir: Out = RUNS,
    store: StoreUrl = None,
    tracking_uri: Tracking = None,
    executor: Annotated[
        ExecutorName,
        typer.Option(
            help="ray: side by side under Ray Tune; in-process: one after the other, here."
        ),
    ] = ExecutorName.RAY,
    address: Annotated[
        str | None,
        typer.Option(
            metavar="ADDRESS",
            envvar="FOCUS_LAB_ADDRESS",
            help="Ray cluster to run on: HOST:PORT, or auto for the one of this machine.",
        ),
    ] = None,
    ship: Annotated[
        bool, typer.Option("--ship", help="Send this package to the cluster's machines.")
    ] = False,
    over_budget: Annotated[
        bool,
        typer.Option("--over-budget", help="Run it even if compute.budget_hours is too little."),
    ] = False,
    server: Server = None,
    as_json: Json = False,
) -> None:
    """Run an experiment to its report; run it again to continue."""
    from focus_lab.lab.executor import InProcessExecutor
    from focus_lab.lab.tune_executor import TuneExecutor
    from focus_lab.specs.load import load_experiment

    spec, plan = load_experiment(file, settings)
    cells = tuple(only or ())
    plan.check_names(cells)
    if server:
        if cells:
            raise UserError("--only: a service runs whole experiments; leave it out with --server")
        if options := _given(context, "executor", "address", "ship", "over_budget"):
            raise UserError(
                f"{', '.join(options)}: a service decides how and where trials run; leave "
                f"{'it' if len(options) == 1 else 'them'} out with --server"
            )
        from focus_lab.cli import remote

        remote.sweep(server, spec, as_json=as_json)
        return
    chosen: Executor = InProcessExecutor()
    if executor is ExecutorName.RAY:
        chosen = TuneExecutor(spec.compute, address, ship=ship)
    elif spec.compute.workers > 1:
        raise SpecError(
            "compute.workers: --executor in-process has this process only, got "
            f"{spec.compute.workers}; set it to 1 or take --executor ray"
        )
    if spec.compute.budget_hours is not None and not over_budget:
        from focus_lab.training import estimate

        talk.print("measuring a few steps …")
        if refused := estimate.over_budget(spec, plan, "add --over-budget"):
            raise SpecError(refused)
    run_sweep(spec, plan, cells, out_dir, store, tracking_uri, chosen, as_json)


@app.command()
def train(
    file: File,
    settings: Set = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the trial.")] = 0,
    out_dir: Out = RUNS,
    store: StoreUrl = None,
    tracking_uri: Tracking = None,
    as_json: Json = False,
) -> None:
    """Train one trial of the base spec, one worker in this process; kept as NAME-train."""
    from focus_lab.lab.executor import InProcessExecutor
    from focus_lab.lab.tune_executor import TuneExecutor
    from focus_lab.specs.experiment import ExperimentSpec
    from focus_lab.specs.load import load_experiment
    from focus_lab.specs.plan import plan

    spec, _ = load_experiment(file, settings)
    content = spec.model_dump(mode="json") | {
        "sweep": {"seeds": [seed]},
        "name": f"{spec.name}-train",
    }
    single = ExperimentSpec.model_validate(content)
    chosen: Executor = InProcessExecutor()
    if spec.compute.workers > 1:
        chosen = TuneExecutor(spec.compute)
    run_sweep(single, plan(single), (), out_dir, store, tracking_uri, chosen, as_json)


@app.command("plan")
def show_plan(
    file: File,
    settings: Set = None,
    only: Only = None,
    time: Annotated[bool, typer.Option(help="Measure a training step for the estimate.")] = True,
    composed: Annotated[
        bool, typer.Option("--spec", help="Print the composed spec instead: what a service takes.")
    ] = False,
    server: Server = None,
    as_json: Json = False,
) -> None:
    """Show what would run and what it would cost; runs nothing."""
    from focus_lab.specs.load import load_experiment
    from focus_lab.specs.plan import trials_in_all

    spec, plan = load_experiment(file, settings)
    cells = tuple(only or ())
    plan.check_names(cells)
    if composed:
        print_json(spec.model_dump(mode="json"))
        return
    if server:
        from focus_lab.cli import remote

        remote.plan(server, spec, cells, as_json=as_json)
        return
    from focus_lab.training.estimate import estimate

    talk.print("counting …")
    found = estimate(plan.keep(cells), measure=time)
    trials = sum(one.trials for one in found)
    if as_json:
        print_json({"name": spec.name, "trials": trials, "cells": [one.as_dict() for one in found]})
        return
    table = new_table(
        "cell", "keep ratio", "mean over layers", "trials", "steps", "params", "GFLOPs",
        "encoder GFLOPs", "time a trial", "memory",
    )  # fmt: skip
    for one in found:
        selection, costs = one.cell.spec.model.token_selection, one.cost.metrics()
        table.add_row(
            f"{one.cell.name} (baseline)" if one.cell.is_baseline else one.cell.name,
            f"{selection.keep_ratio:g}",
            f"{selection.mean_keep_ratio:.3g}",
            str(one.trials),
            str(one.steps),
            f"{one.cost.parameters / 1e6:.2f} M",
            f"{costs['cost/gflops']:.3g}",
            f"{costs['cost/encoder_gflops']:.3g}",
            between(one.seconds) + (" (scaled)" if one.seconds and not one.measured else ""),
            _memory(one.memory_mib),
        )
    out.print(table)
    out.print(f"{trials} trials of {len(found)} cells. GFLOPs: 2 per multiply-add, one image.")
    if (in_all := trials_in_all(spec, plan)) > len(plan.trials):
        out.print(f"The search begins with these; it ends with {in_all} trials.")
    if time:
        out.print(
            "Times: from the fastest and the slowest of a few training steps on this machine, one "
            "trial alone, no evaluation. Memory: peaks of these steps; later ones may need more."
        )
        if all(one.seconds for one in found):
            low, high = (
                sum(one.trials * one.seconds[end] for one in found if one.seconds) for end in (0, 1)
            )
            out.print(f"All trials, one after the other: {between((low, high))}.")


def _given(context: typer.Context, *names: str) -> list[str]:
    """Those options that stand on the command line; the environment may be meant for others."""
    return [
        f"--{name.replace('_', '-')}"
        for name in names
        if (source := context.get_parameter_source(name)) and source.name == "COMMANDLINE"
    ]


def _memory(mib: tuple[float, float] | None) -> str:
    if mib is None:
        return ""
    low, high = (f"{end:.0f}" for end in mib)
    return f"{low} MiB" if low == high else f"{low} to {high} MiB"


@app.command()
def report(
    name: Name, out_dir: Out = RUNS, store: StoreUrl = None, tracking_uri: Tracking = None,
    server: Server = None, as_json: Json = False,
) -> None:  # fmt: skip
    """Write the report of an experiment as it stands: page, Markdown, JSON."""
    if server:
        from focus_lab.cli import remote

        remote.report(server, name, as_json=as_json)
        return
    from focus_lab.lab.lab import open_lab

    with open_lab(out_dir, store, tracking_uri, create=False) as lab:
        lab.report(name)
        _print_result(lab, name, as_json)


@app.command("list")
def list_experiments(
    out_dir: Out = RUNS, store: StoreUrl = None, server: Server = None, as_json: Json = False
) -> None:
    """Experiments of the lab."""
    if server:
        from focus_lab.cli import remote

        remote.list_experiments(server, as_json=as_json)
        return
    from focus_lab.lab.database import NoStoreError
    from focus_lab.lab.lab import store_url
    from focus_lab.lab.store import Store

    rows = []
    with (
        contextlib.suppress(NoStoreError),
        contextlib.closing(Store(store or store_url(out_dir), create=False)) as opened,
    ):
        found = opened.experiments()
        counts = opened.trial_counts([experiment.id for experiment in found])
        for experiment in found:
            states = counts.get(experiment.id, {})
            rows.append(
                {
                    "name": experiment.name,
                    "created": experiment.created_at.isoformat(timespec="seconds"),
                    "trials": sum(states.values()),
                    "states": states,
                    "description": experiment.spec.get("description", ""),
                }
            )
    if as_json:
        print_json(rows)
        return
    table = new_table("experiment", "created", "trials", "states", "description")
    for row in rows:
        states_text = ", ".join(
            f"{count} {state.lower()}" for state, count in row["states"].items()
        )
        table.add_row(
            row["name"], row["created"], str(row["trials"]), states_text, row["description"]
        )
    out.print(table if rows else "no experiments yet; run `focus-lab sweep FILE`")


@app.command()
def status(
    name: Name, out_dir: Out = RUNS, store: StoreUrl = None, tracking_uri: Tracking = None,
    server: Server = None, as_json: Json = False,
) -> None:  # fmt: skip
    """Trials of an experiment: state, epochs, AP, and why one failed."""
    if server:
        from focus_lab.cli import remote

        remote.status(server, name, as_json=as_json)
        return
    from focus_lab.lab.lab import open_lab

    with open_lab(out_dir, store, tracking_uri, create=False) as lab:
        content = lab.result(lab.record(name))
        if as_json:
            print_json(content)
            return
        table = new_table("trial", "state", "attempts", "epoch", "AP", "message")
        for trial in content["trials"]:
            metrics = trial["metrics"]
            ap = metrics.get("coco/AP")
            table.add_row(
                f"{trial['cell']}-seed{trial['seed']}",
                trial["status"].lower(),
                str(trial["attempts"]),
                f"{metrics.get('epoch', 0):g}",
                "" if ap is None else f"{ap:.3f}",
                trial["message"] or "",
            )
        out.print(table)


@app.command()
def ui(
    name: Annotated[
        str | None, typer.Argument(help="Experiment to open; none: the newest.")
    ] = None,
    out_dir: Out = RUNS,
    store: StoreUrl = None,
    tracking_uri: Tracking = None,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on.")] = 5000,
) -> None:
    """Run MLflow's UI on the lab's store; prints the address of the comparison page."""
    from focus_lab.lab.ui import serve_ui

    serve_ui(
        name, out_dir, store, tracking_uri, host, port, lambda url: out.print(url, soft_wrap=True)
    )


def run_sweep(
    spec: ExperimentSpec,
    plan: Plan,
    cells: tuple[str, ...],
    out_dir: Path,
    store: str | None,
    tracking_uri: str | None,
    executor: Executor,
    as_json: bool,
) -> None:
    """Carry out an experiment here, print its result, and end with the code that it means."""
    from focus_lab.lab.launch import launch
    from focus_lab.lab.progress import make_progress

    talk.print(f"{spec.name}: {len(plan.trials)} trials of {len(plan.cells)} cells")
    opened = launch(spec, plan, out_dir, store, tracking_uri, executor=executor)
    with results_alone_on_stdout(), opened as lab:
        progress = make_progress(talk, executor.concurrent_trials)
        lab.sweep(spec, plan, executor, progress, cells=cells)
        result = _print_result(lab, spec.name, as_json)
    failed = [trial for trial in result["trials"] if trial["status"] == "FAILED"]
    if failed:
        raise typer.Exit(2 if all(trial["failure_is_users"] for trial in failed) else 1)


def _print_result(lab: Lab, name: str, as_json: bool) -> dict[str, Any]:
    from focus_lab.analysis.tables import as_text
    from focus_lab.lab.patience import Patience

    # A store that is away when the last trial has ended is no reason to lose sight of the results.
    patience = Patience(note=lambda text: talk.print(text, markup=False))
    record = patience(lambda: lab.record(name))
    result = patience(lambda: lab.result(record))
    if as_json:
        print_json(result)
        return result
    out.print(as_text(record))
    for trial in result["trials"]:
        if trial["message"]:
            what = "failed" if trial["status"] == "FAILED" else "without numbers"
            talk.print(
                f"{what}: {trial['cell']}-seed{trial['seed']}: {trial['message']}", markup=False
            )
    out.print(f"report: {lab.page(name)}")
    out.print(f"compare the trials: focus-lab ui {name}")
    return result
