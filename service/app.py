"""The app: routes, guard, errors and what runs beside them."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import sys
import threading
from collections.abc import AsyncIterator
from typing import Any

import structlog
from anyio import to_thread
from fastapi import FastAPI
from fastapi.responses import RedirectResponse

import focus_lab
from focus_lab.client.models import Problem
from focus_lab.errors import StoreError
from focus_lab.lab.queue.dispatcher import Dispatcher
from focus_lab.lab.queue.retention import remove_old_checkpoints
from focus_lab.specs.experiment import ExperimentSpec
from service import problems
from service.guard import Guard
from service.pages import installation
from service.routes import contents, events, experiments, logs, system
from service.state import State

_THREADS, _TIDY_S = 12, 3600.0
_TURN_S = 0.0005

log = structlog.get_logger("focus_lab.service")

_TEXT = """Queue, watch and compare experiments with Focus-DETR.

Specs are those of `focus-lab sweep`, composed (no `extends`). Errors are problem+json with a `code`
that stays. Lists are paged by `cursor`. Long work answers 202 with a Location to look at."""


def create_app(state: State, dispatcher: Dispatcher | None = None) -> FastAPI:
    """The service.

    Args:
        state: what it works with.
        dispatcher: runs beside it; None where another process dispatches.
    """

    @contextlib.asynccontextmanager
    async def beside(app: FastAPI) -> AsyncIterator[None]:
        # Most of a request is Python's own work, which threads only take from each other.
        to_thread.current_default_thread_limiter().total_tokens = _THREADS
        # While the queue is looked through, each turn of a request would wait for Python's 5 ms.
        sys.setswitchinterval(_TURN_S)
        with contextlib.suppress(StoreError):
            # The lookout is started before anybody waits for it; nobody leads yet, so that what it
            # sees is not what the first to ask should be told.
            await asyncio.to_thread(state.board.places)
            state.board.look_again()
        # What is loaded now stays; to look through it for garbage again and again takes long.
        gc.collect()
        gc.freeze()
        stop = threading.Event()
        thread = threading.Thread(
            target=dispatcher.run if dispatcher else lambda stop: None,
            args=(stop,),
            name="dispatcher",
        )
        thread.start()
        feed = asyncio.create_task(state.feed.run())
        tidying = asyncio.create_task(_tidy(state))
        try:
            yield
        finally:
            tidying.cancel()
            await state.feed.close()
            await feed
            stop.set()
            await asyncio.to_thread(thread.join)

    app = FastAPI(
        title="focus_lab",
        version=focus_lab.__version__,
        description=_TEXT,
        lifespan=beside,
        # Swagger's page would be loaded from elsewhere; the schema is at /openapi.json.
        docs_url=None,
        redoc_url=None,
    )
    app.state.focus_lab = state
    problems.install(app)
    for module in (experiments, contents, logs, events, system):
        app.include_router(module.router)
    installation.install(app)
    system.register(state)
    app.add_middleware(
        Guard,
        max_body=state.settings.max_body,
        rate=state.settings.rate_per_s,
        burst=state.settings.burst,
        hosts=_hosts(state),
        registry=state.registry,
    )

    @app.get("/", include_in_schema=False)
    async def home() -> RedirectResponse:
        return RedirectResponse("/ui/")

    app.openapi = lambda: _openapi(app)  # type: ignore[method-assign]
    return app


async def _tidy(state: State) -> None:
    """Remove what is kept no longer, now and then."""
    while True:
        try:
            freed = await asyncio.to_thread(remove_old_checkpoints, state.queue)
            if freed:
                log.info("retention", freed_bytes=freed)
        except (StoreError, OSError) as error:
            log.warning("retention", error=str(error))
        except Exception as error:
            log.exception("retention", exc_info=error)
        await asyncio.sleep(_TIDY_S)


def _hosts(state: State) -> frozenset[str]:
    """The names that a browser may have in its address line."""
    settings = state.settings
    names = {"localhost", "127.0.0.1", "[::1]", settings.host.lower()}
    return frozenset(names | {name.lower() for name in settings.allowed_hosts})


def _openapi(app: FastAPI) -> dict[str, Any]:
    """The schema, with the bodies and errors that FastAPI cannot see."""
    if app.openapi_schema:
        return app.openapi_schema
    schema = FastAPI.openapi(app)
    schemas = schema["components"]["schemas"]
    schemas["Problem"] = Problem.model_json_schema()
    spec = ExperimentSpec.model_json_schema(ref_template="#/components/schemas/{model}")
    for name, part in spec.pop("$defs", {}).items():
        schemas.setdefault(name, part)
    schemas["ExperimentSpec"] = spec
    for unused in ("HTTPValidationError", "ValidationError"):
        schemas.pop(unused, None)
    for path in schema["paths"].values():
        for operation in path.values():
            answers = operation.get("responses", {})
            # Everywhere: the guard may refuse any request.
            for status in (400, 413, 429):
                answers.setdefault(str(status), problems.declared(status)[status])
            if "422" in answers:
                answers["422"] = problems.declared(422)[422]
    app.openapi_schema = schema
    return schema
