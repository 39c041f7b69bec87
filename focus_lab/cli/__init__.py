"""The command line: thin commands; work happens elsewhere.

stdout is the result (a table, or JSON with --json); talk and progress go to stderr. Exit 0 done,
1 a trial failed, 2 the input is wrong, 130 interrupted.
"""

from __future__ import annotations

import os
import sys
import traceback
from typing import Annotated, cast

import typer

from focus_lab.cli import bench, control, data, experiments, models, service
from focus_lab.cli.terminal import RUNS, Json, Out, new_table, out, print_json, talk
from focus_lab.errors import FocusLabError, UserError

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Experiments and ablations for Focus-DETR: AP against compute, with uncertainty.",
)
app.add_typer(experiments.app)
app.add_typer(control.app)
app.add_typer(models.app)
app.add_typer(service.app)
app.add_typer(service.token_app, name="token")
app.add_typer(data.app, name="data")
app.add_typer(bench.app, name="bench")


@app.callback()
def everywhere(
    context: typer.Context,
    server: Annotated[
        str | None,
        typer.Option(
            "--server",
            metavar="URL",
            help="The service of the command that follows; see its own --server.",
        ),
    ] = None,
) -> None:
    """What may stand before any command."""
    if server is None or context.invoked_subcommand is None:
        return
    group = cast(typer.core.TyperGroup, context.command)
    able = [
        name
        for name, command in group.commands.items()
        if any(parameter.name == "server" for parameter in command.params)
    ]
    if context.invoked_subcommand not in able:
        raise UserError(
            f"--server: {context.invoked_subcommand} works on this machine alone, got {server!r}; "
            f"leave it out, or take one of {', '.join(sorted(able))}"
        )
    context.obj = server


@app.command()
def doctor(out_dir: Out = RUNS, as_json: Json = False) -> None:
    """What is installed, which op implementation is active, what is wrong and how to mend it."""
    from focus_lab.lab.doctor import examine

    findings = examine(out_dir)
    if as_json:
        print_json([vars(finding) for finding in findings])
    else:
        table = new_table("what", "state", "remedy")
        for finding in findings:
            mark = "ok" if finding.ok else "WRONG"
            table.add_row(finding.subject, f"{mark}: {finding.state}", finding.remedy)
        out.print(table)
    if not all(finding.ok for finding in findings):
        raise typer.Exit(1)


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
