"""The command line: thin commands; work happens elsewhere.

stdout is the result (a table, or JSON with --json); talk and progress go to stderr. Exit 0 done,
1 a trial failed, 2 the input is wrong, 130 interrupted.
"""

from __future__ import annotations

import contextlib
import enum
import json
import os
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from focus_lab.errors import FocusLabError, SpecError, UserError

if TYPE_CHECKING:
    from focus_lab.lab.executor import Executor
    from focus_lab.lab.lab import Lab
    from focus_lab.specs.experiment import ExperimentSpec
    from focus_lab.specs.plan import Plan

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Experiments and ablations for Focus-DETR: AP against compute, with uncertainty.",
)
data_app = typer.Typer(no_args_is_help=True, help="Make a data set, or judge one.")
app.add_typer(data_app, name="data")
bench_app = typer.Typer(no_args_is_help=True, help="Ours against a reference, in one run.")
app.add_typer(bench_app, name="bench")

# Piped tables are for reading by programs and files: they do not wrap at some terminal's width.
out = Console(highlight=False, markup=False, width=None if sys.stdout.isatty() else 160)
talk = Console(stderr=True, highlight=False, markup=False)

File = Annotated[Path, typer.Argument(help="A spec, for example experiments/keep_ratio.yaml.")]
Set = Annotated[
    list[str] | None, typer.Option("--set", metavar="P=V", help="Override a value of the base.")
]
Only = Annotated[
    list[str] | None, typer.Option("--only", metavar="CELL", help="Run these cells only.")
]
Out = Annotated[
    Path, typer.Option("--out", envvar="FOCUS_LAB_HOME", help="Folder of stores and results.")
]
StoreUrl = Annotated[
    str | None, typer.Option("--store", envvar="FOCUS_LAB_STORE", help="Database URL of the store.")
]
Tracking = Annotated[
    str | None,
    typer.Option("--tracking-uri", envvar="MLFLOW_TRACKING_URI", help="MLflow tracking URI."),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Name = Annotated[str, typer.Argument(help="Name of an experiment; see `focus-lab list`.")]

RUNS = Path("runs")


class ExecutorName(enum.StrEnum):
    """How trials are carried out."""

    RAY = "ray"
    IN_PROCESS = "in-process"


@app.command()
def sweep(
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
    as_json: Json = False,
) -> None:
    """Run an experiment to its report; run it again to continue."""
    from focus_lab.lab.executor import InProcessExecutor
    from focus_lab.lab.tune_executor import TuneExecutor
    from focus_lab.specs.load import load_experiment

    spec, plan = load_experiment(file, settings)
    cells = tuple(only or ())
    plan.check_names(cells)
    chosen: Executor = InProcessExecutor()
    if executor is ExecutorName.RAY:
        chosen = TuneExecutor(spec.compute, address, ship=ship)
    elif spec.compute.workers > 1:
        raise SpecError(
            "compute.workers: --executor in-process has this process only, got "
            f"{spec.compute.workers}; set it to 1 or take --executor ray"
        )
    _run(spec, plan, cells, out_dir, store, tracking_uri, chosen, as_json)


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
    _run(single, plan(single), (), out_dir, store, tracking_uri, chosen, as_json)


@app.command("plan")
def show_plan(
    file: File,
    settings: Set = None,
    only: Only = None,
    time: Annotated[bool, typer.Option(help="Measure a training step for the estimate.")] = True,
    as_json: Json = False,
) -> None:
    """Show what would run and what it would cost; runs nothing."""
    from focus_lab.specs.load import load_experiment
    from focus_lab.training.estimate import estimate

    spec, plan = load_experiment(file, settings)
    talk.print("counting …")
    found = estimate(plan.keep(tuple(only or ())), measure=time)
    trials = sum(one.trials for one in found)
    if as_json:
        _print_json(
            {"name": spec.name, "trials": trials, "cells": [one.as_dict() for one in found]}
        )
        return
    table = _table(
        "cell", "keep ratio", "mean over layers", "trials", "steps", "params", "GFLOPs",
        "encoder GFLOPs", "time a trial",
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
            _duration(one.seconds) + ("" if one.measured or not time else " (scaled)"),
        )
    out.print(table)
    out.print(f"{trials} trials of {len(found)} cells. GFLOPs: 2 per multiply-add, one image.")
    if time:
        out.print(
            "Times: from a few training steps on this machine, one trial alone, no evaluation."
        )


@app.command()
def evaluate(
    checkpoint: Annotated[Path, typer.Argument(help="A checkpoint (.pt), or a trial's folder.")],
    keep_ratio: Annotated[
        str | None, typer.Option(help="Ratios to evaluate at, for example 0.1,0.3,1.")
    ] = None,
    settings: Set = None,
    as_json: Json = False,
) -> None:
    """AP of a checkpoint by pycocotools; with several keep ratios, a curve from one checkpoint."""
    from focus_lab.training.curve import evaluate_checkpoint

    ratios = _ratios(keep_ratio)
    rows = evaluate_checkpoint(
        checkpoint, ratios, settings or [], lambda ratio: talk.print(f"evaluating at {ratio:g} …")
    )
    if as_json:
        _print_json(rows)
        return
    headings = ("keep ratio", "AP", "AP50", "AP75", "APS", "APM", "APL", "AR")
    table = _table(*headings, "foreground recall", "GFLOPs")
    for row in rows:
        names = ("AP", "AP50", "AP75", "APS", "APM", "APL", "AR")
        values = [f"{row[f'coco/{name}']:.3f}" for name in names]
        recall = f"{row['tokens/foreground_recall']:.3f}"
        table.add_row(f"{row['tokens/keep_ratio']:g}", *values, recall, f"{row['cost/gflops']:.3g}")
    out.print(table)


@app.command()
def report(
    name: Name, out_dir: Out = RUNS, store: StoreUrl = None, tracking_uri: Tracking = None,
    as_json: Json = False,
) -> None:  # fmt: skip
    """Write the report of an experiment as it stands: page, Markdown, JSON."""
    from focus_lab.lab.lab import open_lab

    with open_lab(out_dir, store, tracking_uri, create=False) as lab:
        lab.report(name)
        _print_result(lab, name, as_json)


@app.command()
def profile(
    file: File,
    settings: Set = None,
    repeats: Annotated[int, typer.Option(help="Counted forward passes.")] = 20,
    as_json: Json = False,
) -> None:
    """Parameters, GFLOPs by part, latency and memory of the base model."""
    from focus_lab.specs.load import load_experiment
    from focus_lab.training.profile import profile_model

    spec, _ = load_experiment(file, settings)
    content = profile_model(spec.base, repeats)
    if as_json:
        _print_json(content)
        return
    table = _table("part", *(f"GMACs at {shape}" for shape in content["gmacs"]))
    for part in next(iter(content["gmacs"].values())):
        table.add_row(part, *(f"{parts[part]:.4g}" for parts in content["gmacs"].values()))
    out.print(table)
    for key, text in content["facts"].items():
        out.print(f"{key}: {text}")


@app.command("list")
def list_experiments(out_dir: Out = RUNS, store: StoreUrl = None, as_json: Json = False) -> None:
    """Experiments of the lab."""
    from focus_lab.lab.database import NoStoreError
    from focus_lab.lab.lab import store_url
    from focus_lab.lab.store import Store

    rows = []
    with (
        contextlib.suppress(NoStoreError),
        contextlib.closing(Store(store or store_url(out_dir), create=False)) as opened,
    ):
        for experiment in opened.experiments():
            states = [trial.state.value for trial in opened.trials(experiment.id)]
            counts = {state: states.count(state) for state in dict.fromkeys(states)}
            rows.append(
                {
                    "name": experiment.name,
                    "created": experiment.created_at.isoformat(timespec="seconds"),
                    "trials": len(states),
                    "states": counts,
                    "description": experiment.spec.get("description", ""),
                }
            )
    if as_json:
        _print_json(rows)
        return
    table = _table("experiment", "created", "trials", "states", "description")
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
    as_json: Json = False,
) -> None:  # fmt: skip
    """Trials of an experiment: state, epochs, AP, and why one failed."""
    from focus_lab.lab.lab import open_lab

    with open_lab(out_dir, store, tracking_uri, create=False) as lab:
        content = lab.result(lab.record(name))
        if as_json:
            _print_json(content)
            return
        table = _table("trial", "state", "attempts", "epoch", "AP", "message")
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


@data_app.command("shapes")
def data_shapes(
    file: File,
    folder: Annotated[Path, typer.Option("--out", help="Folder to write the data set to.")],
    settings: Set = None,
) -> None:
    """Write the procedural scenes of a spec as a COCO-format data set."""
    from focus_lab.data.export import write_shapes
    from focus_lab.specs.data import ShapesData
    from focus_lab.specs.load import load_experiment

    spec, _ = load_experiment(file, settings)
    if not isinstance(spec.data, ShapesData):
        raise UserError(
            f"data.kind: `data shapes` writes procedural scenes, got {spec.data.kind!r}; "
            "give a spec with data: {kind: shapes}"
        )
    talk.print(f"writing {spec.data.num_train + spec.data.num_val} scenes …")
    write_shapes(spec.data, folder)
    out.print(str(folder))


@data_app.command("check")
def data_check(
    file: File,
    settings: Set = None,
    decode: Annotated[
        bool, typer.Option(help="Read every image, not only the annotations.")
    ] = True,
    as_json: Json = False,
) -> None:
    """Judge the data set of a spec: counts, sizes, foreground share, repairs, unreadable images."""
    from focus_lab.data.check import check_dataset
    from focus_lab.specs.load import load_experiment

    spec, _ = load_experiment(file, settings)
    talk.print("reading …")
    found = check_dataset(spec.data, decode=decode)
    if as_json:
        _print_json(found.as_dict())
    else:
        out.print(found.as_text())
    if not found.usable:
        raise typer.Exit(2)


@bench_app.command("lab")
def bench_lab(
    file: File,
    settings: Set = None,
    rounds: Annotated[int, typer.Option(help="How often each side is run.")] = 1,
    as_json: Json = False,
) -> None:
    """What the lab itself costs: its trials against the same trainings called directly."""
    from focus_lab.lab.bench import bench_lab as bench
    from focus_lab.specs.load import load_experiment

    _, plan = load_experiment(file, settings)
    result = bench(file, settings or [], plan, rounds, lambda text: talk.print(text))
    if as_json:
        _print_json(result)
        return
    table = _table("case", "under the lab", "directly", "overhead", "directly / lab")
    for row in result["rows"]:
        seconds = [f"{row[key] / 1000:.1f} s" for key in ("ours_ms", "against_ms", "overhead_ms")]
        table.add_row(row["case"], *seconds, f"{row['ratio']:.2f}")
    out.print(table)


@bench_app.command("ops")
def bench_ops(
    cases: Annotated[
        str, typer.Option(metavar="A,B", help="Names of cases, or their beginnings; none: all.")
    ] = "",
    dtypes: Annotated[
        str, typer.Option(metavar="A,B", help="float32, bfloat16, float16.")
    ] = "float32,bfloat16",
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    rounds: Annotated[int | None, typer.Option(help="How often each is timed.")] = None,
    threads: Annotated[int | None, typer.Option(help="Threads of the CPU.")] = None,
    compile_reference: Annotated[
        bool, typer.Option("--compile-reference", help="Also the reference by torch.compile.")
    ] = False,
    as_json: Json = False,
) -> None:
    """The compiled deformable attention against the reference and every installed peer."""
    from focus_lab.ops.bench import as_text, split
    from focus_lab.ops.bench import bench_ops as bench

    result = bench(
        device, split(cases), split(dtypes), rounds, threads, compile_reference,
        lambda text: talk.print(text),
    )  # fmt: skip
    if as_json:
        _print_json(result)
    else:
        out.print(as_text(result), soft_wrap=True)


@bench_app.command("train")
def bench_train(
    file: File,
    settings: Set = None,
    steps: Annotated[int, typer.Option(help="Counted steps of a round, of each setting.")] = 10,
    rounds: Annotated[int, typer.Option(help="Turns of each setting.")] = 3,
    as_json: Json = False,
) -> None:
    """Where the time of a training step goes, against plain PyTorch."""
    from focus_lab.specs.load import load_experiment
    from focus_lab.training.bench import PLAIN
    from focus_lab.training.bench import bench_train as bench

    spec, _ = load_experiment(file, settings)
    result = bench(spec.base, steps, rounds, lambda text: talk.print(text))
    if as_json:
        _print_json(result)
        return
    whole = result["rows"][0]
    table = _table("part of a step", "ours, ms", "share", f"{PLAIN}, ms", "share", "ratio")
    for row in result["rows"]:
        pairs = [
            (f"{row[key]:.2f}", f"{100 * row[key] / whole[key]:.0f} %")
            for key in ("ours_ms", "against_ms")
        ]
        ratio = "" if row["ratio"] is None else f"{row['ratio']:.2f}"
        table.add_row(row["direction"], *pairs[0], *pairs[1], ratio)
    out.print(table)
    paces, idle = result["images_per_second"], result["idle_share"]
    for name in paces:
        out.print(f"{name}: {paces[name]:.3g} images/s, idle {100 * idle[name]:.1f} %")
    out.print(
        f"{whole['case']}, {whole['dtype']}, {result['device']}, {result['threads']} threads, "
        f"{result['loader_workers']['ours']} loader workers"
    )


@bench_app.command("evaluate")
def bench_evaluate(
    images: Annotated[int, typer.Option(help="Images of the made-up data set.")] = 5000,
    detections: Annotated[int, typer.Option(help="Detections an image.")] = 300,
    classes: Annotated[int, typer.Option(help="Classes of the data set.")] = 80,
    rounds: Annotated[int, typer.Option(help="How often each is run.")] = 1,
    as_json: Json = False,
) -> None:
    """faster-coco-eval against pycocotools on the same detections; the numbers must agree."""
    from focus_lab.training.scoring_bench import bench_evaluate as bench

    result = bench(images, detections, classes, rounds, lambda text: talk.print(text))
    if as_json:
        _print_json(result)
        return
    table = _table("case", "faster-coco-eval", "pycocotools", "ratio", "largest difference", "AP")
    for row in result["rows"]:
        seconds = [f"{row[key] / 1000:.2f} s" for key in ("ours_ms", "against_ms")]
        difference, ap = f"{row['largest_difference']:.1g}", f"{row['AP']:.3f}"
        table.add_row(row["case"], *seconds, f"{row['ratio']:.1f}", difference, ap)
    out.print(table)


@app.command()
def convert(
    checkpoint: Annotated[Path, typer.Argument(help="A released Focus-DETR checkpoint.")],
    file: Annotated[
        Path, typer.Argument(help="The spec of its model, for example r50_paper.yaml.")
    ],
    target: Annotated[Path, typer.Option("--to", help="Where to write the converted checkpoint.")],
    settings: Set = None,
) -> None:
    """Turn a released checkpoint into one of ours, to evaluate."""
    from focus_lab.specs.load import load_experiment
    from focus_lab.training.release import convert_checkpoint

    spec, _ = load_experiment(file, settings)
    convert_checkpoint(checkpoint, spec.base, target)
    out.print(str(target))


@app.command()
def doctor(out_dir: Out = RUNS, as_json: Json = False) -> None:
    """What is installed, which op implementation is active, what is wrong and how to mend it."""
    from focus_lab.lab.doctor import examine

    findings = examine(out_dir)
    if as_json:
        _print_json([vars(finding) for finding in findings])
    else:
        table = _table("what", "state", "remedy")
        for finding in findings:
            mark = "ok" if finding.ok else "WRONG"
            table.add_row(finding.subject, f"{mark}: {finding.state}", finding.remedy)
        out.print(table)
    if not all(finding.ok for finding in findings):
        raise typer.Exit(1)


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


def main() -> None:
    """Entry point: errors become sentences and exit codes."""
    debug = "--debug" in sys.argv
    if debug:
        sys.argv.remove("--debug")
    try:
        code = app(standalone_mode=False) or 0
    except typer.Exit as stop:
        code = stop.exit_code
    except FocusLabError as error:
        if debug:
            traceback.print_exc()
        for line in str(error).splitlines():
            talk.print(f"error: {line}", soft_wrap=True)
        code = error.exit_code
    except (KeyboardInterrupt, typer.Abort):
        code = 130
    except typer._click.exceptions.ClickException as error:
        error.show()
        code = 2
    except BrokenPipeError:
        # The reader of our output has gone; nothing is wrong with the work.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 0
    except Exception as error:
        if debug:
            traceback.print_exc()
        talk.print(
            f"error: unexpected {type(error).__name__}, got {error}; run again with --debug and "
            "report what it prints",
            soft_wrap=True,
        )
        code = 1
    if code == 130:
        # typer turns Ctrl-C into this code by itself, without a word.
        talk.print("interrupted; run the same command to continue")
    sys.exit(code)


def _run(
    spec: ExperimentSpec,
    plan: Plan,
    cells: tuple[str, ...],
    out_dir: Path,
    store: str | None,
    tracking_uri: str | None,
    executor: Executor,
    as_json: bool,
) -> None:
    from focus_lab.lab.launch import launch
    from focus_lab.lab.progress import make_progress

    talk.print(f"{spec.name}: {len(plan.trials)} trials of {len(plan.cells)} cells")
    opened = launch(spec, plan, out_dir, store, tracking_uri, executor=executor)
    with _results_alone_on_stdout(), opened as lab:
        progress = make_progress(talk, executor.concurrent_trials)
        lab.sweep(spec, plan, executor, progress, cells=cells)
        result = _print_result(lab, spec.name, as_json)
    failed = [trial for trial in result["trials"] if trial["status"] == "FAILED"]
    if failed:
        raise typer.Exit(2 if all(trial["failure_is_users"] for trial in failed) else 1)


@contextlib.contextmanager
def _results_alone_on_stdout() -> Iterator[None]:
    """What libraries print, Ray of its nodes for example, is talk."""
    out.file = sys.stdout
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    finally:
        out.file = None  # type: ignore[assignment]


def _print_result(lab: Lab, name: str, as_json: bool) -> dict[str, Any]:
    from focus_lab.analysis.tables import as_text
    from focus_lab.lab.patience import Patience

    # A store that is away when the last trial has ended is no reason to lose sight of the results.
    patience = Patience(note=lambda text: talk.print(text, markup=False))
    record = patience(lambda: lab.record(name))
    result = patience(lambda: lab.result(record))
    if as_json:
        _print_json(result)
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


def _ratios(text: str | None) -> list[float]:
    if text is None:
        return []
    try:
        ratios = [float(part) for part in text.split(",")]
    except ValueError:
        ratios = [0.0]
    if not all(0 < ratio <= 1 for ratio in ratios):
        raise SpecError(
            f"--keep-ratio: must be numbers in (0, 1], got {text!r}; for example 0.1,0.3,1"
        )
    return ratios


def _table(*headings: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for number, heading in enumerate(headings):
        table.add_column(heading, no_wrap=number == 0, overflow="fold")
    return table


def _duration(seconds: float | None) -> str:
    from focus_lab.lab.progress import duration

    return "" if seconds is None else f"about {duration(seconds)}"


def _print_json(content: Any) -> None:
    out.print_json(json.dumps(content), indent=1)
