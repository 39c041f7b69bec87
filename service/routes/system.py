"""The service itself: health, metrics, the schema of specs, cluster and dispatcher."""

from __future__ import annotations

import time
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Response
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

import focus_lab
from focus_lab.client import models
from focus_lab.lab.queue.capacity import Resources
from focus_lab.lab.queue.leadership import drain, is_draining, leader
from focus_lab.specs.experiment import ExperimentSpec
from service.auth import Admin, Reader
from service.problems import declared
from service.state import State, state_of

router = APIRouter(tags=["system"])

Lab = Annotated[State, Depends(state_of)]
_ASKED = declared(401, 403, 429, 503)


@router.get("/health/live", responses=declared(400))
async def live() -> dict[str, str]:
    """Whether the process answers."""
    return {"status": "ok"}


async def health(state: Lab) -> models.Health:
    """How the service was within the last second."""
    return await state.readiness.health()


@router.get(
    "/health/ready", responses=declared(400) | {503: {"model": models.Health, "description": "Not"}}
)
async def ready(
    known: Annotated[models.Health, Depends(health)], response: Response
) -> models.Health:
    """Whether it can do its work. Without a dispatcher or a cluster experiments only wait."""
    if known.status == "unready":
        response.status_code = 503
    return known


@router.get("/schema", responses=_ASKED)
async def schema(_: Reader) -> dict[str, Any]:
    """The JSON schema of a spec."""
    return ExperimentSpec.model_json_schema()


@router.get("/whoami", responses=_ASKED)
def whoami(principal: Reader) -> models.Identity:
    """Who you are to this service."""
    return models.Identity(
        user=principal.user, project=principal.project, scope=principal.scope.value
    )


@router.get("/system", responses=_ASKED)
def system(state: Lab, _: Reader) -> models.System:
    """Cluster, dispatcher and queue."""
    lead = leader(state.queue.store.database)
    told = lead.told if lead else {}
    held = sum((one.granted for one in state.attempts.open()), Resources())
    cluster = None
    if told.get("cluster"):
        total = sum((Resources(*node) for node in told["machines"]), Resources())
        total = Resources(*told["limit"]) if told.get("limit") else total
        cluster = models.Machine(
            nodes=len(told["machines"]),
            cpus=total.cpus,
            gpus=total.gpus,
            held_cpus=held.cpus,
            held_gpus=held.gpus,
        )
    return models.System(
        version=focus_lab.__version__,
        dispatcher=lead.owner if lead else None,
        draining=is_draining(state.queue.store.database),
        cluster=cluster,
        cluster_message=told.get("message"),
        counts=state.queue.counts(),
        gpu_hours=dict(state.attempts.usage().gpu_hours),
        window_days=state.queue.policy.window_days,
    )


@router.post("/system/drain", status_code=202, responses=_ASKED | declared(413))
def begin_drain(state: Lab, principal: Admin) -> models.System:
    """Start nothing more; what runs is left alone."""
    drain(state.queue.store.database, principal.user, on=True)
    return system(state, principal)


@router.post("/system/resume", status_code=202, responses=_ASKED | declared(413))
def end_drain(state: Lab, principal: Admin) -> models.System:
    """Start experiments again."""
    drain(state.queue.store.database, principal.user, on=False)
    return system(state, principal)


@router.get(
    "/metrics",
    response_class=Response,
    responses=_ASKED | {200: {"description": "Prometheus", "content": {"text/plain": {}}}},
)
def metrics(state: Lab, _: Reader) -> Response:
    """For Prometheus; with authentication on, give it a token with scope read."""
    return Response(generate_latest(state.registry), media_type=CONTENT_TYPE_LATEST)


class QueueCollector(Collector):
    """Numbers of the queue, read when Prometheus asks."""

    def __init__(self, state: State) -> None:
        self._state = state

    def collect(self) -> list[Metric]:
        """As metrics."""
        counts = GaugeMetricFamily(
            "focus_lab_experiments", "Experiments by state.", labels=["state"]
        )
        for name, count in self._state.queue.counts().items():
            counts.add_metric([name], count)
        held = sum((one.granted for one in self._state.attempts.open()), Resources())
        lead = leader(self._state.queue.store.database)
        age = time.time() - lead.told.get("at", 0.0) if lead else -1.0
        return [
            counts,
            GaugeMetricFamily("focus_lab_held_cpus", "Cores granted.", value=held.cpus),
            GaugeMetricFamily("focus_lab_held_gpus", "GPUs granted.", value=held.gpus),
            GaugeMetricFamily(
                "focus_lab_dispatcher_age_seconds",
                "Seconds since the dispatcher's last round; -1 without one.",
                value=age,
            ),
            GaugeMetricFamily(
                "focus_lab_event_streams", "Open streams.", value=self._state.feed.listeners
            ),
        ]


def register(state: State) -> CollectorRegistry:
    """Add the queue's numbers to the metrics."""
    state.registry.register(QueueCollector(state))
    return state.registry
