"""Experiments: submit, look at, change."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Header, Path, Query, Request, Response
from fastapi.concurrency import run_in_threadpool
from structlog.contextvars import bind_contextvars

from focus_lab.client import models
from focus_lab.errors import FocusLabError
from focus_lab.lab.queue.entry import Entry, Filters
from focus_lab.lab.queue.states import Action, QueueState
from focus_lab.lab.queue.submission import Submission
from focus_lab.specs.experiment import ExperimentSpec
from focus_lab.specs.plan import Plan
from service import tags, views
from service.auth import Principal, Reader, Writer
from service.problems import ProblemError, declared
from service.state import State, state_of
from service.submission import BODY, JSON_TYPE, plan_view, read_body, read_spec

router = APIRouter(tags=["experiments"], responses=declared(401, 403, 429, 503))

Lab = Annotated[State, Depends(state_of)]
Id = Annotated[
    str,
    Path(
        description="Id or name of an experiment.", pattern=f"^{models.NAME}$",
        examples=["keep-ratio"],
    ),
]  # fmt: skip


def _links(place: str) -> dict[str, Any]:
    """OpenAPI's links: what can be done with the experiment whose id is there in an answer."""
    parts = {"show": "get", "set_priority": "patch", "trials": "trials_get"}
    parts |= {action.value: f"{action}_post" for action in Action}
    return {
        name: {
            "operationId": f"{name}_experiments__experiment__{part}",
            "parameters": {"experiment": f"$response.body#/{place}"},
        }
        for name, part in parts.items()
    }


@router.post(
    "/experiments",
    status_code=202,
    response_model=models.Submission | models.Plan,
    responses=declared(400, 409, 413, 415, 422)
    | {
        200: {
            "description": "The plan, or the experiment that the same spec has made before",
            "model": models.Submission | models.Plan,
        },
        202: {
            "description": "Queued",
            "headers": {"Location": {"schema": {"type": "string"}}},
            "links": _links("experiment/id"),
            "model": models.Submission | models.Plan,
        },
    },
    openapi_extra=BODY,
)
async def submit(
    request: Request,
    response: Response,
    state: Lab,
    principal: Writer,
    priority: Annotated[int, Query(ge=-100, le=100, description="The higher, the earlier.")] = 0,
    plan: Annotated[bool, Query(description="Answer what would run; queue nothing.")] = False,
    cost: Annotated[
        bool, Query(description="With plan: count parameters and GFLOPs of each cell; seconds.")
    ] = False,
    idempotency_key: Annotated[
        str | None,
        Header(
            pattern=r"^[!-~]{1,128}$",
            description="The same key and request again is the same submission, for 24 hours.",
        ),
    ] = None,
) -> models.Plan | Response:
    """Queue an experiment. The same spec again continues it, or finds it where it is."""
    text, is_json = await read_body(request)
    queue = state.queue
    principal.check_priority(priority, queue.policy.most_priority)

    def read() -> tuple[ExperimentSpec, Plan]:
        return read_spec(text, queue.policy.registry, queue.policy.most_trials, is_json=is_json)

    def show_plan() -> models.Plan:
        spec, planned = read()
        return plan_view(spec, planned, state.costs.of(spec) if cost else None)

    def submission() -> Submission:
        spec, planned = read()
        folder = state.home / spec.name
        return Submission(spec, planned, folder, principal.submitter, priority, idempotency_key)

    def finish(entry: Entry, created: bool) -> Response:
        found = views.experiment(state, entry)
        # Written here: the declared union would be tried member by member.
        return Response(
            models.Submission(experiment=found, created=created).model_dump_json(),
            202 if created else 200,
            {"Location": str(request.url_for("show", experiment=found.id).path)},
            JSON_TYPE,
        )

    if plan:
        response.status_code = 200
        if cost:
            return await state.costs.one_at_a_time(show_plan)
        return await run_in_threadpool(show_plan)
    answer = await state.intake.put(submission, finish)
    bind_contextvars(experiment=answer.headers["location"].rpartition("/")[2])
    return answer


@router.get("/experiments", responses=declared(400, 422))
def find(
    state: Lab,
    _: Reader,
    state_is: Annotated[
        list[QueueState] | None, Query(alias="state", description="Any of these.")
    ] = None,
    user: Annotated[str | None, Query(max_length=64)] = None,
    project: Annotated[str | None, Query(max_length=64)] = None,
    name: Annotated[str | None, Query(max_length=63, description="A part of the name.")] = None,
    limit: Annotated[int, Query(ge=1, le=200)] = 50,
    cursor: Annotated[str | None, Query(max_length=200)] = None,
) -> models.ExperimentPage:
    """Experiments, newest first."""
    filters = Filters(tuple(state_is or ()), user, project, name)
    page = state.queue.page(filters, limit, cursor)
    return models.ExperimentPage(
        items=views.listed(state, page.entries),
        next_cursor=page.next_cursor,
    )


@router.post("/experiments/cancel", responses=declared(413, 422))
def cancel_several(body: models.BulkCancel, state: Lab, principal: Writer) -> models.BulkAnswer:
    """Cancel several at once; each answer stands for itself."""
    items = []
    for experiment in dict.fromkeys(body.ids):
        try:
            entry = _act(state, experiment, Action.CANCEL, principal)
        except (FocusLabError, ProblemError) as error:
            items.append(models.BulkOutcome(id=experiment, state=None, problem=str(error)))
        else:
            items.append(models.BulkOutcome(id=experiment, state=entry.state.value, problem=None))
    return models.BulkAnswer(items=items)


_TAGGED = {"headers": {"ETag": {"schema": {"type": "string"}}}}


@router.get(
    "/experiments/{experiment}",
    response_model=models.ExperimentDetail,
    responses=declared(404, 422)
    | {
        200: {"description": "The experiment", "links": _links("id"), **_TAGGED},
        304: {"description": "You have it as it is", **_TAGGED},
    },
)
def show(experiment: Id, state: Lab, _: Reader, if_none_match: tags.IfNoneMatch = None) -> Response:
    """One experiment; while it is queued with its position, and why it waits."""
    entry = state.queue.entry(experiment)
    body = views.detail(state, entry).model_dump_json().encode()
    tag = tags.tag_of(entry.version, body)
    # It may be kept, by whoever asked, and is asked for again each time.
    headers = {"ETag": tag, "Cache-Control": "private, no-cache"}
    if tags.has(tag, if_none_match):
        return Response(None, 304, headers)
    return Response(body, 200, headers, JSON_TYPE)


@router.patch("/experiments/{experiment}", responses=declared(404, 409, 412, 413, 422))
def set_priority(
    experiment: Id,
    body: models.PriorityChange,
    state: Lab,
    principal: Writer,
    if_match: tags.IfMatch = None,
) -> models.Experiment:
    """Move it forward or back in the queue."""
    principal.check_owns(state.queue.entry(experiment))
    principal.check_priority(body.priority, state.queue.policy.most_priority)
    wanted = tags.versions(if_match)
    entry = state.queue.set_priority(experiment, body.priority, principal.user, wanted)
    return views.experiment(state, entry)


def _action(action: Action, text: str) -> None:
    @router.post(
        f"/experiments/{{experiment}}/{action}",
        name=action.value,
        description=text,
        status_code=202,
        responses=declared(404, 409, 412, 413, 422),
    )
    def act(
        experiment: Id, state: Lab, principal: Writer, if_match: tags.IfMatch = None
    ) -> models.Experiment:
        wanted = tags.versions(if_match)
        return views.experiment(state, _act(state, experiment, action, principal, wanted))


_action(Action.CANCEL, "End it. What runs is stopped; what is done is kept.")
_action(Action.PAUSE, "Stop it until it is resumed; trials keep what they have.")
_action(Action.RESUME, "Queue a paused experiment again.")
_action(Action.RETRY, "Queue a failed or cancelled experiment again; what succeeded is kept.")


def _act(
    state: State,
    experiment: str,
    action: Action,
    principal: Principal,
    versions: frozenset[int] | None = None,
) -> Entry:
    principal.check_owns(state.queue.entry(experiment))
    return state.queue.act(experiment, action, principal.user, versions)
