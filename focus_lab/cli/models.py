"""Commands about models: evaluate, profile, convert, promote."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from focus_lab.cli.terminal import (
    RUNS,
    File,
    Json,
    Name,
    Out,
    Set,
    StoreUrl,
    Tracking,
    new_table,
    out,
    print_json,
    talk,
)
from focus_lab.errors import SpecError

app = typer.Typer()


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
        print_json(rows)
        return
    headings = ("keep ratio", "AP", "AP50", "AP75", "APS", "APM", "APL", "AR")
    table = new_table(*headings, "foreground recall", "GFLOPs")
    for row in rows:
        names = ("AP", "AP50", "AP75", "APS", "APM", "APL", "AR")
        values = [f"{row[f'coco/{name}']:.3f}" for name in names]
        recall = f"{row['tokens/foreground_recall']:.3f}"
        table.add_row(f"{row['tokens/keep_ratio']:g}", *values, recall, f"{row['cost/gflops']:.3g}")
    out.print(table)


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
        print_json(content)
        return
    table = new_table("part", *(f"GMACs at {shape}" for shape in content["gmacs"]))
    for part in next(iter(content["gmacs"].values())):
        table.add_row(part, *(f"{parts[part]:.4g}" for parts in content["gmacs"].values()))
    out.print(table)
    for key, text in content["facts"].items():
        out.print(f"{key}: {text}")


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
def promote(
    name: Name,
    cell: Annotated[str, typer.Option(help="Cell of the trial, as the report names it.")],
    model: Annotated[str, typer.Option("--as", help="Name of the registered model.")],
    seed: Annotated[
        int | None, typer.Option(help="Seed of the trial; none: the first that succeeded.")
    ] = None,
    alias: Annotated[str, typer.Option(help="What the new version is called.")] = "champion",
    out_dir: Out = RUNS,
    store: StoreUrl = None,
    tracking_uri: Tracking = None,
    as_json: Json = False,
) -> None:
    """Register the best weights of a trial in MLflow, ready to be loaded and served."""
    from focus_lab.lab.lab import open_lab
    from focus_lab.lab.promotion import promote as promote_trial

    with open_lab(out_dir, store, tracking_uri, create=False) as lab:
        promoted = promote_trial(lab, name, cell, seed, model, alias)
    if as_json:
        print_json({"model": model, "alias": alias, **vars(promoted)})
        return
    out.print(f"models:/{model}@{alias} is version {promoted.version}: {cell} of {name}")
    out.print(promoted.sentence)


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
