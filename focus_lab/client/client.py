"""The client of a service: every call of the REST interface, typed."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar
from urllib.parse import quote

import httpx2
from pydantic import BaseModel, ValidationError

from focus_lab.client import models
from focus_lab.errors import FocusLabError, SpecError, UserError

_PAUSES_S = (0.5, 1.0, 2.0, 4.0, 8.0, 15.0)
_ASK_S, _STREAM_S = 30.0, 60.0
_AWAY = (502, 503, 504)
"""What services and proxies before them answer while something behind them is away."""
_FINAL = ("cost-timeout",)
"""Problems of these statuses that stay: the same request again would only take as long again."""

_LATER = ("rate", "too-many-streams-of-yours")
"""Problems of other statuses that pass."""

Model = TypeVar("Model", bound=BaseModel)


class ServiceError(FocusLabError):
    """The service could not do it; see its log."""


class ServiceUnreachableError(ServiceError):
    """The service does not answer; check the address given by --server."""


class NotNowError(ServiceUnreachableError):
    """The service answers, but something that it needs does not; see its log."""


class RefusedError(UserError):
    """The service refused the request.

    Attributes:
        problem: what it said.
    """

    def __init__(self, problem: models.Problem) -> None:
        self.problem = problem
        super().__init__(problem.detail)


class Client:
    """Talks to one service. Calls that read are tried again when the connection breaks.

    Args:
        url: address of the service.
        token: of `focus-lab token create`; None where the service asks for none.
        patience_s: for how long a broken connection is tried again.
        note: told when the service does not answer, and is tried again.
        transport: instead of the network, for tests.
        pause: waits for some seconds.
    """

    def __init__(
        self,
        url: str,
        token: str | None = None,
        *,
        patience_s: float = 300.0,
        note: Callable[[str], None] = lambda text: None,
        transport: httpx2.BaseTransport | None = None,
        pause: Callable[[float], None] = time.sleep,
    ) -> None:
        if not url.startswith(("http://", "https://")):
            raise UserError(
                f"--server: must be an address, got {url!r}; for example http://localhost:8000"
            )
        self.url, self._patience_s, self._pause = url.rstrip("/"), patience_s, pause
        self._note = note
        if token and not (token.isascii() and token.isprintable()):
            raise UserError(
                "token: must be what `focus-lab token create` has printed, got other characters; "
                "look at FOCUS_LAB_TOKEN, or at the file that FOCUS_LAB_TOKEN_FILE names"
            )
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        self._http = httpx2.Client(
            base_url=self.url, headers=headers, timeout=_ASK_S, transport=transport
        )

    def __enter__(self) -> Self:
        """Nothing to open."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close the connections."""
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    # Submitting

    def submit(
        self, spec: dict[str, Any], *, priority: int = 0, key: str | None = None
    ) -> models.Submission:
        """Queue an experiment; a broken connection cannot queue it twice.

        Args:
            spec: composed, as JSON data.
            priority: the higher, the earlier.
            key: Idempotency-Key; a new one by default.

        Raises:
            SpecError: the spec is not valid.
            RefusedError: the service does not take it.
        """
        answer = self._ask(
            "POST", "/experiments", params={"priority": priority}, json=spec,
            headers={"Idempotency-Key": key or uuid.uuid4().hex},
        )  # fmt: skip
        return _read(models.Submission, answer)

    def plan(self, spec: dict[str, Any], *, cost: bool = False) -> models.Plan:
        """What a spec would run.

        Args:
            spec: composed, as JSON data.
            cost: whether parameters and GFLOPs are counted; takes seconds.

        Raises:
            SpecError: the spec is not valid.
        """
        params = {"plan": "true", "cost": str(cost).lower()}
        answer = self._ask("POST", "/experiments", params=params, json=spec, timeout=180.0)
        return _read(models.Plan, answer)

    # Looking

    def experiments(self, **filters: Any) -> Iterator[models.ListedExperiment]:
        """All experiments that fit, newest first.

        Args:
            filters: `state` (one or several), `user`, `project`, `name`.
        """
        cursor: str | None = None
        while True:
            params = {k: v for k, v in {**filters, "cursor": cursor}.items() if v is not None}
            page = _read(models.ExperimentPage, self._ask("GET", "/experiments", params=params))
            yield from page.items
            cursor = page.next_cursor
            if cursor is None:
                return

    def experiment(self, name: str) -> models.ExperimentDetail:
        """One experiment, by id or name."""
        return _read(models.ExperimentDetail, self._ask("GET", f"/experiments/{_part(name)}"))

    def trials(self, name: str) -> list[models.Trial]:
        """Its trials."""
        return _read(models.TrialList, self._ask("GET", f"/experiments/{_part(name)}/trials")).items

    def curves(
        self, name: str, metrics: tuple[str, ...] = ()
    ) -> dict[str, dict[str, list[tuple[int, float]]]]:
        """Trial id -> metric -> (epoch, value)."""
        answer = self._ask(
            "GET", f"/experiments/{_part(name)}/curves", params={"metric": list(metrics)}
        )
        return _read(models.CurveList, answer).items

    def report(self, name: str, form: str = "html") -> bytes:
        """Its report: html, md, json, txt, csv or tex."""
        path = f"/experiments/{_part(name)}/report"
        return self._ask("GET", path, params={"format": form}).content

    def artifacts(self, name: str) -> list[models.Artifact]:
        """Its files."""
        answer = self._ask("GET", f"/experiments/{_part(name)}/artifacts")
        return _read(models.ArtifactList, answer).items

    def download(self, name: str, path: str, to: Path) -> None:
        """Fetch one of its files."""
        to.parent.mkdir(parents=True, exist_ok=True)
        # As it is listed: a name may have what means something else in an address.
        place = f"/experiments/{_part(name)}/artifacts/{quote(path)}"
        to.write_bytes(self._ask("GET", place).content)

    def log(self, name: str, trial: str | None = None, rank: int = 0) -> str:
        """The end of its driver's log, or of a worker's of a trial."""
        params = {"rank": rank} | ({"trial": trial} if trial else {})
        return self._ask("GET", f"/experiments/{_part(name)}/log", params=params).text

    def system(self) -> models.System:
        """Cluster, dispatcher and queue."""
        return _read(models.System, self._ask("GET", "/system"))

    def whoami(self) -> models.Identity:
        """Who this client is to the service."""
        return _read(models.Identity, self._ask("GET", "/whoami"))

    # Changing

    def cancel(self, name: str) -> models.Experiment:
        """End it."""
        return self._act(name, "cancel")

    def pause(self, name: str) -> models.Experiment:
        """Stop it until it is resumed."""
        return self._act(name, "pause")

    def resume(self, name: str) -> models.Experiment:
        """Queue a paused one again."""
        return self._act(name, "resume")

    def retry(self, name: str) -> models.Experiment:
        """Queue a failed or cancelled one again; a broken connection cannot queue it twice."""
        while True:
            before = self.experiment(name)
            try:
                # If the answer is lost, it may have run and failed again before this is repeated.
                return self._act(name, "retry", {"If-Match": f'"{before.version}"'})
            except RefusedError as error:
                if error.problem.code != "changed-meanwhile":
                    raise
            now = self.experiment(name)
            if now.queued_at > before.queued_at:
                return now

    def set_priority(self, name: str, priority: int) -> models.Experiment:
        """Move it forward or back in the queue."""
        path = f"/experiments/{_part(name)}"
        return _read(models.Experiment, self._ask("PATCH", path, json={"priority": priority}))

    def cancel_several(self, names: list[str]) -> list[models.BulkOutcome]:
        """End several; each outcome stands for itself."""
        answer = self._ask("POST", "/experiments/cancel", json={"ids": names})
        return _read(models.BulkAnswer, answer).items

    # Following

    def events(
        self, name: str | None = None, after: str | None = None
    ) -> Iterator[tuple[str, models.Event]]:
        """(id, event) as they come, for ever; a broken connection goes on where it broke.

        Args:
            name: of an experiment; None for all.
            after: id of the last event that is known.
        """
        path = f"/experiments/{_part(name)}/events" if name else "/events"
        silent_since: float | None = None
        tries = 0
        while True:
            headers = {"Last-Event-ID": after} if after else {}
            try:
                with self._http.stream("GET", path, headers=headers, timeout=_STREAM_S) as answer:
                    if answer.status_code != 200:
                        answer.read()
                        _check(answer)
                    # Nothing may happen for hours: it is the service that must answer in time.
                    silent_since = None
                    for event_id, data in _parse_stream(answer.iter_lines()):
                        tries = 0
                        after = event_id or after
                        yield event_id, models.Event.model_validate_json(data)
            except (httpx2.TransportError, ServiceUnreachableError) as error:
                if silent_since is None:
                    silent_since = time.monotonic()
                    self._tell(error)
                if time.monotonic() - silent_since > self._patience_s:
                    raise self._unreachable(error) from error
            self._pause(_PAUSES_S[min(tries, len(_PAUSES_S) - 1)])
            tries += 1

    def _act(
        self, name: str, action: str, headers: dict[str, str] | None = None
    ) -> models.Experiment:
        # Done twice it is done once, so that it may be tried again.
        path = f"/experiments/{_part(name)}/{action}"
        return _read(models.Experiment, self._ask("POST", path, headers=headers))

    def _ask(self, method: str, path: str, **content: Any) -> httpx2.Response:
        """Every call may be repeated: submissions have a key, actions say a wanted state."""
        begun = time.monotonic()
        tries = 0
        while True:
            try:
                answer = self._http.request(method, path, **content)
                _check(answer)
                return answer
            except (httpx2.TransportError, ServiceUnreachableError) as error:
                pause = _PAUSES_S[min(tries, len(_PAUSES_S) - 1)]
                if time.monotonic() + pause - begun > self._patience_s:
                    raise self._unreachable(error) from error
                if tries == 0:
                    self._tell(error)
                self._pause(pause)
                tries += 1

    def _tell(self, error: Exception) -> None:
        what = "cannot do it now" if isinstance(error, NotNowError) else "does not answer"
        reason = str(error) or type(error).__name__
        self._note(f"service {self.url}: {what} ({reason}); trying again …")

    def _unreachable(self, error: Exception) -> ServiceUnreachableError:
        if isinstance(error, NotNowError):
            return NotNowError(f"service {self.url}: cannot do it now, got: {error}")
        reason = str(error) or type(error).__name__
        return ServiceUnreachableError(
            f"service {self.url}: does not answer, got {reason}; start it with `focus-lab serve`, "
            "or check --server"
        )


def _check(answer: httpx2.Response) -> None:
    """Raise what an error says."""
    if answer.is_success:
        return
    try:
        problem = models.Problem.model_validate_json(answer.content)
    except ValidationError:
        if answer.status_code in _AWAY:
            # A proxy's own page: the service is started again, for example.
            said = f"{answer.status_code} {answer.reason_phrase}".rstrip()
            raise ServiceUnreachableError(said) from None
        raise ServiceError(
            f"service {answer.request.url}: is none of focus_lab, got {answer.status_code} "
            f"{answer.text[:100]!r}; check --server"
        ) from None
    if problem.code in ("spec-invalid", "data-unusable"):
        raise SpecError(*(problem.errors or [problem.detail]))
    is_away = answer.status_code in _AWAY and problem.code not in _FINAL
    if is_away or problem.code in _LATER:
        raise NotNowError(problem.detail)
    if problem.status >= 500:
        raise ServiceError(problem.detail)
    raise RefusedError(problem)


def _read(model: type[Model], answer: httpx2.Response) -> Model:
    try:
        return model.model_validate_json(answer.content)
    except ValidationError as error:
        raise ServiceError(
            f"service {answer.request.url}: speaks another version, got {error.error_count()} "
            "fields that do not fit; use the same focus_lab on both sides"
        ) from error


def _part(name: str) -> str:
    if not all(character.isalnum() or character == "-" for character in name) or not name:
        raise UserError(
            f"experiment: must be a name or an id, got {name!r}; see `focus-lab list --server URL`"
        )
    return name


def _parse_stream(lines: Iterator[str]) -> Iterator[tuple[str, str]]:
    """(id, data) of server-sent events."""
    event_id = ""
    data: list[str] = []
    for line in lines:
        if not line:
            if data:
                yield event_id, "\n".join(data)
            data = []
            continue
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if name == "id":
            event_id = value
        elif name == "data":
            data.append(value)
