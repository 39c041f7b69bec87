"""What all commands share: where words go, and the options that mean the same everywhere."""

from __future__ import annotations

import contextlib
import enum
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

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


def _nearest(context: typer.Context, given: str | None) -> str | None:
    """What stands after the command counts first, then what stands before it, then what is set."""
    source = context.get_parameter_source("server")
    if source is not None and source.name == "COMMANDLINE":
        return given
    before: str | None = context.obj
    return before or given


Server = Annotated[
    str | None,
    typer.Option(
        "--server",
        metavar="URL",
        envvar="FOCUS_LAB_SERVER",
        help="A service that does it instead; its token is read from FOCUS_LAB_TOKEN.",
        callback=_nearest,
    ),
]

RUNS = Path("runs")


class ExecutorName(enum.StrEnum):
    """How trials are carried out."""

    RAY = "ray"
    IN_PROCESS = "in-process"


@contextlib.contextmanager
def results_alone_on_stdout() -> Iterator[None]:
    """What libraries print, Ray of its nodes for example, is talk."""
    out.file = sys.stdout
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    finally:
        out.file = None  # type: ignore[assignment]


def new_table(*headings: str) -> Table:
    """A table without lines."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for number, heading in enumerate(headings):
        table.add_column(heading, no_wrap=number == 0, overflow="fold")
    return table


def print_json(content: Any) -> None:
    """The result as JSON."""
    out.print_json(json.dumps(content), indent=1)


def between(seconds: tuple[float, float] | None) -> str:
    """An estimated duration with its bounds; empty when there is none."""
    from focus_lab.lab.progress import duration

    if seconds is None:
        return ""
    low, high = map(duration, seconds)
    return f"about {low}" if low == high else f"{low} to {high}"
