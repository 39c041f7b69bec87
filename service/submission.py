"""From the body of a request to a spec and its plan; strangers' texts are handled with care."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from anyio import CapacityLimiter, to_thread
from fastapi import Request

from focus_lab.client import models
from focus_lab.errors import SpecError
from focus_lab.lab.queue.registry import Registry
from focus_lab.specs.base import fingerprint
from focus_lab.specs.compose import Document, parse_untrusted, parse_untrusted_json
from focus_lab.specs.experiment import ExperimentSpec
from focus_lab.specs.explain import short, validate_as
from focus_lab.specs.plan import Plan, num_trials, plan, trials_in_all
from service.problems import ProblemError

YAML_TYPES = ("application/yaml", "application/x-yaml", "text/yaml")
JSON_TYPE = "application/json"
_EXAMPLE = {
    "name": "keep-ratio",
    "data": {"kind": "shapes"},
    "sweep": {"axes": {"model.token_selection.keep_ratio": [0.1, 0.3]}, "seeds": [0, 1]},
}
_CONTENT = {"schema": {"$ref": "#/components/schemas/ExperimentSpec"}, "example": _EXAMPLE}
BODY: dict[str, Any] = {
    "requestBody": {"required": True, "content": {JSON_TYPE: _CONTENT, YAML_TYPES[0]: _CONTENT}}
}
"""For OpenAPI."""

_COST_SECONDS = 120
_MOST_WAITING = 8
T = TypeVar("T")


async def read_body(request: Request) -> tuple[str, bool]:
    """The text of a request that has a spec, and whether it is JSON.

    Raises:
        ProblemError: its content type is not one of ours, or it is no UTF-8.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != JSON_TYPE and kind not in YAML_TYPES:
        raise ProblemError(
            415, "content-type",
            f"Content-Type: must be {JSON_TYPE} or {YAML_TYPES[0]}, got {kind[:60]!r}",
        )  # fmt: skip
    try:
        return (await request.body()).decode("utf-8"), kind == JSON_TYPE
    except UnicodeDecodeError as error:
        raise ProblemError(400, "spec-invalid", f"request: must be UTF-8, got {error}") from None


def read_spec(
    text: str, registry: Registry, most_trials: int, *, is_json: bool
) -> tuple[ExperimentSpec, Plan]:
    """A spec and its plan.

    Args:
        text: of the request.
        registry: data sets, weights and storages by name.
        most_trials: of an experiment.
        is_json: whether it is JSON; mistakes in YAML have their lines.

    Raises:
        SpecError: anything is wrong with it; all mistakes at once.
    """
    parse = parse_untrusted_json if is_json else parse_untrusted
    document = parse(text, "request")
    resolved = Document(registry.resolve(document.content), document.origins)
    spec = validate_as(ExperimentSpec, resolved.content, resolved.locate)
    if (wanted := num_trials(spec)) > most_trials:
        raise SpecError(
            f"sweep: has too many trials, got {short(wanted)}; this service allows {most_trials}: "
            "take fewer values, or search: {kind: random, samples: …}"
        )
    planned = plan(spec, resolved.locate)
    registry.check(resolved.content, resolved.locate)
    return spec, planned


def plan_view(spec: ExperimentSpec, planned: Plan, costs: dict[str, Any] | None) -> models.Plan:
    """What would run."""
    cells = []
    for cell in planned.cells:
        selection = cell.spec.model.token_selection
        cells.append(
            models.PlannedCell(
                name=cell.name,
                baseline=cell.is_baseline,
                overrides=cell.overrides,
                keep_ratio=selection.keep_ratio,
                mean_keep_ratio=selection.mean_keep_ratio,
                trials=sum(trial.cell == cell.name for trial in planned.trials),
                cost=costs.get(cell.name) if costs else None,
            )
        )
    return models.Plan(
        name=spec.name,
        trials=len(planned.trials),
        trials_in_all=trials_in_all(spec, planned),
        cells=cells,
    )


class Costs:
    """Costs of plans, counted by a process of their own: counting needs torch."""

    def __init__(self) -> None:
        self._one = CapacityLimiter(1)
        # Counted here: the limiter knows of those who wait only a moment after they were let in.
        self._asked = 0
        self._known: dict[str, dict[str, Any]] = {}

    async def one_at_a_time(self, show: Callable[[], T]) -> T:
        """The result of what asks for costs: each takes a core for some seconds.

        Raises:
            ProblemError: too many wait already.
        """
        if self._asked > _MOST_WAITING:
            raise ProblemError(
                503, "cost-busy", "plan: others are being counted; ask again in a minute, or "
                "without cost",
            )  # fmt: skip
        self._asked += 1
        try:
            # Threads of its own: no other request waits for them.
            return await to_thread.run_sync(show, limiter=self._one)
        finally:
            self._asked -= 1

    def of(self, spec: ExperimentSpec) -> dict[str, Any]:
        """Cell -> parameters and GFLOPs.

        Raises:
            ProblemError: it cannot be counted, or takes too long.
        """
        content = spec.model_dump(mode="json")
        mark = fingerprint(content)
        if mark not in self._known:
            if len(self._known) > 200:
                self._known.clear()
            self._known[mark] = self._count(content)
        return self._known[mark]

    def _count(self, content: dict[str, Any]) -> dict[str, Any]:
        with tempfile.TemporaryDirectory(prefix="focus-lab-plan-") as folder:
            file = Path(folder) / "spec.yaml"
            file.write_text(json.dumps(content))
            command = [
                sys.executable, "-c", "from focus_lab.cli import main; main()",
                "plan", str(file), "--no-time", "--json",
            ]  # fmt: skip
            try:
                done = subprocess.run(
                    command, capture_output=True, text=True, check=False, timeout=_COST_SECONDS
                )
            except subprocess.TimeoutExpired:
                raise ProblemError(
                    503, "cost-timeout", f"plan: its cost was not counted in {_COST_SECONDS} s; "
                    "ask for the plan without cost",
                ) from None  # fmt: skip
        if done.returncode:
            lines = done.stderr.strip().splitlines() or ["no output"]
            raise ProblemError(400, "cost", lines[-1].removeprefix("error: ")[:500])
        return {cell["cell"]: _numbers(cell) for cell in json.loads(done.stdout)["cells"]}


def _numbers(cell: dict[str, Any]) -> dict[str, float]:
    return {key: float(value) for key, value in cell.items() if key.startswith("cost/")}
