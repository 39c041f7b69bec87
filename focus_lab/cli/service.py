"""Commands of the service: serve, dispatch, migrate, tokens."""

from __future__ import annotations

import contextlib
import signal
import threading
from pathlib import Path
from typing import Annotated, Any

import typer

from focus_lab.cli.terminal import (
    RUNS,
    Json,
    Out,
    StoreUrl,
    Tracking,
    new_table,
    out,
    print_json,
    talk,
)
from focus_lab.errors import UserError

app = typer.Typer()
token_app = typer.Typer(no_args_is_help=True, help="Who may use the service.")

PolicyFile = Annotated[
    Path | None,
    typer.Option("--policy", envvar="FOCUS_LAB_POLICY", help="YAML: quotas, order, data sets."),
]


@app.command()
def serve(
    out_dir: Out = RUNS,
    store: StoreUrl = None,
    tracking_uri: Tracking = None,
    host: Annotated[
        str, typer.Option(envvar="FOCUS_LAB_HOST", help="Address to listen on.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(envvar="FOCUS_LAB_PORT", help="Port to listen on.")] = 8000,
    ray: Annotated[
        str | None,
        typer.Option(
            metavar="URL",
            envvar="FOCUS_LAB_RAY_DASHBOARD",
            help="Dashboard of a Ray cluster, http://HOST:8265; none: one is started here.",
        ),
    ] = None,
    auth: Annotated[
        bool | None,
        typer.Option(
            envvar="FOCUS_LAB_AUTH",
            help="Whether requests need a token; by default beyond this machine, and where "
            "FOCUS_LAB_ALLOWED_HOSTS names others, as behind a proxy.",
        ),
    ] = None,
    policy: PolicyFile = None,
    mlflow_port: Annotated[
        int, typer.Option(help="Port of MLflow's pages, on this machine; 0: none.")
    ] = 5000,
    dispatcher: Annotated[
        bool,
        typer.Option(envvar="FOCUS_LAB_DISPATCH", help="Whether this process starts experiments."),
    ] = True,
) -> None:
    """Serve the queue, its REST interface and its pages."""
    module = _service()
    given: dict[str, Any] = {
        "home": out_dir, "store": store, "tracking_uri": tracking_uri, "host": host, "port": port,
        "ray_dashboard": ray, "policy": policy, "dispatch": dispatcher,
    }  # fmt: skip
    settings = _settings(**{name: value for name, value in given.items() if value is not None})
    reached = module.is_reached(settings)
    needs_token = reached if auth is None else auth
    settings = settings.model_copy(update={"auth": needs_token})
    if reached and not needs_token:
        talk.print("warning: everybody who reaches this address is an administrator")

    def ready(address: str) -> None:
        out.print(address, soft_wrap=True)
        if needs_token:
            talk.print("make a token: focus-lab token create NAME --scope submit")

    module.serve(settings, ready, mlflow_port=mlflow_port)


@app.command()
def dispatch(
    out_dir: Out = RUNS,
    store: StoreUrl = None,
    ray: Annotated[
        str | None,
        typer.Option(metavar="URL", envvar="FOCUS_LAB_RAY_DASHBOARD", help="As in `serve`."),
    ] = None,
    policy: PolicyFile = None,
) -> None:
    """Start queued experiments, without serving; of several dispatchers one leads."""
    module = _service()
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    given = {"home": out_dir, "store": store, "ray_dashboard": ray, "policy": policy}
    module.dispatch(_settings(**{k: v for k, v in given.items() if v is not None}), stop)


@app.command()
def migrate(out_dir: Out = RUNS, store: StoreUrl = None) -> None:
    """Bring the store's tables up to date; back it up first."""
    from focus_lab.lab.database import Database
    from focus_lab.lab.lab import store_url

    url = store or store_url(out_dir)
    with contextlib.closing(Database(url, migrate=True)) as database:
        out.print(f"{database.url}: up to date", soft_wrap=True)


@token_app.command("create")
def create_token(
    user: Annotated[str, typer.Argument(help="Who acts with it.")],
    scope: Annotated[
        str, typer.Option(help="read; submit: and run experiments; admin: and others' too.")
    ] = "submit",
    project: Annotated[str, typer.Option(help="That its experiments belong to.")] = "default",
    days: Annotated[float, typer.Option(min=0, help="Until it expires; 0: never.")] = 90,
    note: Annotated[str, typer.Option(help="What it is for.")] = "",
    out_dir: Out = RUNS,
    store: StoreUrl = None,
) -> None:
    """Make a token; it is shown this once."""
    from focus_lab.lab.tokens import Scope

    if scope not in list(Scope):
        raise UserError(f"--scope: must be {', '.join(Scope)}, got {scope!r}")
    with _tokens(out_dir, store) as tokens:
        out.print(
            tokens.create(user, Scope(scope), project=project, days=days or None, note=note),
            soft_wrap=True,
        )


@token_app.command("list")
def list_tokens(out_dir: Out = RUNS, store: StoreUrl = None, as_json: Json = False) -> None:
    """Tokens without their secrets."""
    with _tokens(out_dir, store) as tokens:
        found = tokens.list()
    if as_json:
        print_json(
            [
                {k: v.isoformat() if hasattr(v, "isoformat") else v for k, v in vars(one).items()}
                for one in found
            ]
        )
        return
    table = new_table("id", "user", "project", "scope", "expires", "last used", "state", "note")
    for one in found:
        moments = [m.date().isoformat() if m else "never" for m in (one.expires_at, one.used_at)]
        state = "revoked" if one.revoked_at else "valid"
        table.add_row(one.id, one.user, one.project, one.scope, *moments, state, one.note)
    out.print(table if found else "no tokens yet; run `focus-lab token create NAME`")


@token_app.command("revoke")
def revoke_token(
    token_id: Annotated[str, typer.Argument(help="Its id; see `focus-lab token list`.")],
    out_dir: Out = RUNS,
    store: StoreUrl = None,
) -> None:
    """End a token: services refuse it within a second."""
    with _tokens(out_dir, store) as tokens:
        tokens.revoke(token_id)


@contextlib.contextmanager
def _tokens(out_dir: Path, store: str | None) -> Any:
    from focus_lab.lab.database import Database
    from focus_lab.lab.lab import store_url
    from focus_lab.lab.tokens import Tokens
    from focus_lab.training.folder import make_folder

    if store is None:
        make_folder(out_dir)
    with contextlib.closing(Database(store or store_url(out_dir))) as database:
        yield Tokens(database)


def _service() -> Any:
    try:
        from service import serve as module
    except ImportError as error:
        raise UserError(
            f"serve: the service's packages are missing, got {error}; install focus-lab[service]"
        ) from None
    return module


def _settings(**given: Any) -> Any:
    from pydantic import ValidationError

    from service.settings import Settings

    try:
        return Settings(**given)
    except ValidationError as error:
        problems = [
            f"FOCUS_LAB_{'_'.join(str(part) for part in item['loc']).upper()}: "
            f"{item['msg'][0].lower()}{item['msg'][1:]}, got {item['input']!r}"
            for item in error.errors()
        ]
        raise UserError("\n".join(problems)) from None
