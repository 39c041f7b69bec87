"""Benchmarks: ours against a reference, in one run."""

from __future__ import annotations

from typing import Annotated

import typer

from focus_lab.cli.terminal import (
    File,
    Json,
    Set,
    StoreUrl,
    new_table,
    out,
    print_json,
    talk,
)

app = typer.Typer(no_args_is_help=True, help="Ours against a reference, in one run.")


@app.command("lab")
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
        print_json(result)
        return
    table = new_table("case", "under the lab", "directly", "overhead", "directly / lab")
    for row in result["rows"]:
        seconds = [f"{row[key] / 1000:.1f} s" for key in ("ours_ms", "against_ms", "overhead_ms")]
        table.add_row(row["case"], *seconds, f"{row['ratio']:.2f}")
    out.print(table)


@app.command("ops")
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
        print_json(result)
    else:
        out.print(as_text(result), soft_wrap=True)


@app.command("train")
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
        print_json(result)
        return
    whole = result["rows"][0]
    table = new_table("part of a step", "ours, ms", "share", f"{PLAIN}, ms", "share", "ratio")
    for row in result["rows"]:
        pairs = [
            (f"{row[key]:.2f}", f"{100 * row[key] / whole[key]:.0f} %")
            for key in ("ours_ms", "against_ms")
        ]
        ratio = "" if row["ratio"] is None else f"{row['ratio']:.2f}"
        table.add_row(row["direction"], *pairs[0], *pairs[1], ratio)
    out.print(table)
    for name, pace in result["images_per_second"].items():
        said = [f"{pace:.3g} images/s", f"idle {100 * result['idle_share'][name]:.1f} %"]
        if (peak := result["peak_memory_mib"][name]) is not None:
            said.append(f"at most {peak:.0f} MiB")
        out.print(f"{name}: {', '.join(said)}")
    evaluation = result["evaluation"]
    out.print(
        f"evaluation: {evaluation['ours_ms']:.1f} ms an image, {evaluation['against_ms']:.1f} in "
        f"{PLAIN} (ratio {evaluation['ratio']:.2f}), {evaluation['images']} images"
    )
    out.print(
        f"{whole['case']}, {whole['dtype']}, {result['device']}, {result['threads']} threads, "
        f"{result['loader_workers']['ours']} loader workers"
    )


@app.command("evaluate")
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
        print_json(result)
        return
    table = new_table(
        "case", "faster-coco-eval", "pycocotools", "ratio", "largest difference", "AP"
    )
    for row in result["rows"]:
        seconds = [f"{row[key] / 1000:.2f} s" for key in ("ours_ms", "against_ms")]
        difference, ap = f"{row['largest_difference']:.1g}", f"{row['AP']:.3f}"
        table.add_row(row["case"], *seconds, f"{row['ratio']:.1f}", difference, ap)
    out.print(table)


_TIMES = ("p50_ms", "p95_ms", "p99_ms", "goal_ms", "server_cpu_ms")


@app.command("service")
def bench_service(
    store: StoreUrl = None,
    queued: Annotated[int, typer.Option(help="Experiments that wait.")] = 10_000,
    per_s: Annotated[float, typer.Option(help="Submissions a second.")] = 100.0,
    listeners: Annotated[int, typer.Option(help="Open event streams.")] = 300,
    seconds: Annotated[float, typer.Option(help="How long each load lasts.")] = 20.0,
    mixed: Annotated[float, typer.Option(help="How long all of them together; seconds.")] = 60.0,
    as_json: Json = False,
) -> None:
    """The service on loopback, with an empty store: submits, lists, details, cancels, streams."""
    from service.bench import Load
    from service.bench import bench_service as bench

    load = Load(queued, per_s, listeners, seconds, mixed)
    result = bench(store, load, lambda text: talk.print(text))
    if as_json:
        print_json(result)
        return
    table = new_table("case", "a second", "p50", "p95", "p99", "goal of p99", "server's CPU")
    for row in result["rows"]:
        times = [f"{row[key]:.1f} ms" for key in _TIMES]
        table.add_row(row["case"], f"{row['per_s']:g}", *times)
    out.print(table)
    events = result["events"]
    out.print(
        f"{events['complete_and_in_order']} of {events['listeners']} listeners saw all "
        f"{events['events']} events in order, p99 {events['p99_ms']:.0f} ms after the commit"
    )
    together = result["mixed"]
    slow = ", ".join(f"{name} {took:.0f} ms" for name, took in together["p99_ms"].items())
    out.print(f"all together: p99 of {slow}")
    out.print(
        f"memory of the server in {together['seconds']:g} s of it: "
        f"{together['first_mb']:.0f} MB at first, {together['last_mb']:.0f} MB in the end, "
        f"{together['mb_per_min']:+.1f} MB a minute in the second half"
    )
