"""Commands about data sets."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from focus_lab.cli.terminal import (
    File,
    Json,
    Set,
    out,
    print_json,
    talk,
)
from focus_lab.errors import UserError

app = typer.Typer(no_args_is_help=True, help="Make a data set, or judge one.")


@app.command("shapes")
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


@app.command("check")
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
    from focus_lab.model.foreground_targets import one_level_only
    from focus_lab.specs.load import load_experiment

    spec, _ = load_experiment(file, settings)
    talk.print("reading …")
    found = check_dataset(spec.data, decode=decode)
    if as_json:
        print_json(found.as_dict())
    else:
        out.print(found.as_text())
        train = found.splits[0]
        if sentence := one_level_only(spec.model, train.longer_sides):
            out.print(sentence, soft_wrap=True)
    if not found.usable:
        raise typer.Exit(2)
