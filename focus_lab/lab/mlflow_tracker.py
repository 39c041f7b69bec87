"""The tracker on MLflow: flat runs, one a trial; batched metrics; the comparison page."""

from __future__ import annotations

import contextlib
import getpass
import hashlib
import json
import logging
import math
import os
import sqlite3
import ssl
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import mlflow
import requests
import sqlalchemy as sa
from alembic.util import CommandError
from filelock import FileLock
from mlflow import MlflowClient
from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param, Run, RunTag
from mlflow.exceptions import MlflowException

from focus_lab.errors import TrackerError, TrackerUnreachableError
from focus_lab.lab.comparison import CELL_TAG, VIEW_KEY, shared_view
from focus_lab.lab.model_flavour import MODEL, save_model
from focus_lab.lab.states import TrialState
from focus_lab.lab.store import Experiment, Trial
from focus_lab.lab.tracking import Curves, Metrics, MissingRunError

TRIAL_TAG = "focus_lab.trial_id"
SUMMARY_TAG = "focus_lab.summary"
EXPLORATORY_TAG = "focus_lab.exploratory"
_RATIO = "tokens/keep_ratio"
_STATUS = {
    TrialState.PENDING: "SCHEDULED",
    TrialState.RUNNING: "RUNNING",
    TrialState.SUCCEEDED: "FINISHED",
    TrialState.FAILED: "FAILED",
    TrialState.CANCELLED: "KILLED",
}
# MLflow's limits: metrics and params a batch, characters of a param, of a digest.
_METRICS_A_BATCH = 1000
_PARAMS_A_BATCH = 100
_PARAM_LENGTH = 6000
_DIGEST_LENGTH = 32

_VIEWS_CHECKED_ON = "3.17."
_REACH_SECONDS = 10
"""How long a server may take to answer at all, when a tracker is made."""


class MlflowTracker:
    """Numbers and files of trials in MLflow.

    Args:
        uri: tracking URI; SQLite stores are made when missing. A server's user and password, or
            token, come from MLflow's own variables (MLFLOW_TRACKING_USERNAME …).
        artifacts: where artifacts of new experiments go (path or URI); None: the server decides.

    Raises:
        TrackerError: the store cannot be opened, is locked, or belongs to another MLflow; the
            server does not answer.
    """

    def __init__(self, uri: str, artifacts: str | None = None) -> None:
        for name in ("mlflow", "alembic"):
            logging.getLogger(name).setLevel(logging.ERROR)
        # A line a run with its address on the server; the sweep says where to look in the end.
        os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
        # Its client would block for four minutes, and with it the sweep; who calls has patience.
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "3")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "30")
        self.uri = uri
        self._artifacts = artifacts
        self._epochs: dict[str, set[int]] = {}
        with self._explained():
            if uri.startswith(("http:", "https:")):
                _reach(uri)
            with _one_at_a_time(uri):
                self._client = MlflowClient(uri)
                self._client.search_experiments(max_results=1)

    def ensure_experiment(self, experiment: Experiment) -> str:
        """Id of the MLflow experiment of the same name, its comparison page provisioned."""
        with self._explained():
            found = self._client.get_experiment_by_name(experiment.name)
            if found is None:
                location = f"{self._artifacts}/{experiment.name}" if self._artifacts else None
                tracking_id = self._client.create_experiment(experiment.name, location)
            else:
                tracking_id = found.experiment_id
                if found.lifecycle_stage == "deleted":
                    self._client.restore_experiment(tracking_id)
            tags = {
                "mlflow.note.content": str(experiment.spec.get("description", "")),
                "focus_lab.experiment_id": experiment.id,
            }
            for key, value in tags.items():
                self._client.set_experiment_tag(tracking_id, key, value)
            view = json.dumps(shared_view(experiment.spec))
            # A server may refuse tags under MLflow's own names; the page then opens without it.
            with contextlib.suppress(MlflowException):
                self._client.set_experiment_tag(
                    tracking_id, f"mlflow.sharedViewState.{VIEW_KEY}", view
                )
            return str(tracking_id)

    def ensure_run(self, tracking_id: str, trial: Trial) -> str:
        """Id of the trial's run, found by its tag."""
        with self._explained():
            run = self._find(tracking_id, TRIAL_TAG, trial.id)
            if run is None:
                tags = {
                    TRIAL_TAG: trial.id,
                    "focus_lab.experiment_id": trial.experiment_id,
                    CELL_TAG: trial.cell,
                    "focus_lab.seed": str(trial.seed),
                    "focus_lab.fingerprint": trial.fingerprint,
                    "mlflow.user": _user(),
                    "mlflow.source.name": Path(sys.argv[0]).name,
                    "mlflow.source.type": "LOCAL",
                }
                run = self._client.create_run(tracking_id, tags=tags, run_name=trial.name)
            run_id = str(run.info.run_id)
            if run.data.tags.get(CELL_TAG) != trial.cell:
                # A cell may get another name: the trial, known by its fingerprint, is the same.
                self._client.set_tag(run_id, CELL_TAG, trial.cell)
                self._client.update_run(run_id, name=trial.name)
            if _RATIO not in run.data.metrics:
                self._describe(run_id, trial)
            return run_id

    def _describe(self, run_id: str, trial: Trial) -> None:
        """Log the whole spec; may be repeated after a crash half-way."""
        params = [Param(name, value[:_PARAM_LENGTH]) for name, value in _params(trial).items()]
        for start in range(0, len(params), _PARAMS_A_BATCH):
            self._client.log_batch(run_id, params=params[start : start + _PARAMS_A_BATCH])
        # As a metric as well: params compare as text, metrics as numbers and as chart axes. Last:
        # it says that the params are all there.
        ratio = trial.spec["model"]["token_selection"]["keep_ratio"]
        self._client.log_metric(run_id, _RATIO, ratio)

    def start_run(self, run_id: str) -> None:
        """Status RUNNING."""
        self.end_run(run_id, TrialState.RUNNING)

    def log_epoch(self, run_id: str, epoch: int, metrics: Metrics) -> None:
        """One batch an epoch; epochs that the run has are passed over."""
        with self._explained():
            if run_id not in self._epochs:
                history = self._client.get_metric_history(run_id, "epoch")
                self._epochs[run_id] = {point.step for point in history}
            if epoch in self._epochs[run_id]:
                return
            self._log(run_id, {**metrics, "epoch": float(epoch)}, epoch)
            self._epochs[run_id].add(epoch)

    def log_final(self, run_id: str, metrics: Metrics) -> None:
        """Metrics without an epoch, at step 0."""
        with self._explained():
            self._log(run_id, metrics, 0)

    def log_manifest(self, run_id: str, manifest: Mapping[str, Any]) -> None:
        """The manifest as artifact, code state and seeds as tags, data sets as inputs."""
        with self._explained():
            self._client.log_dict(run_id, dict(manifest), "manifest.json")
            git = manifest["environment"].get("git") or {}
            tags = {
                "focus_lab.ops_implementation": manifest["ops_implementation"],
                "mlflow.source.git.commit": git.get("commit"),
                "mlflow.source.git.branch": git.get("branch"),
                "mlflow.source.git.dirty": git.get("dirty"),
            }
            inputs = []
            for split, data in manifest["data"].items():
                tags[f"focus_lab.data.{split}.sha256"] = data["digest"]
                source = json.dumps(manifest["spec"]["data"])
                entity = Dataset(
                    name=f"{manifest['spec']['data']['kind']}-{split}",
                    digest=data["digest"][:_DIGEST_LENGTH],
                    source_type="focus_lab",
                    source=source,
                    profile=json.dumps({"images": data["images"], "classes": len(data["classes"])}),
                )
                inputs.append(DatasetInput(entity, [InputTag("mlflow.data.context", split)]))
            rows = [RunTag(key, str(value)) for key, value in tags.items() if value is not None]
            self._client.log_batch(run_id, tags=rows)
            self._client.log_inputs(run_id, inputs)

    def log_files(self, run_id: str, folder: Path, name: str) -> None:
        """Upload a folder as artifacts."""
        if folder.is_dir():
            with self._explained():
                self._client.log_artifacts(run_id, str(folder), name)

    def end_run(self, run_id: str, state: TrialState) -> None:
        """The status that stands for `state`."""
        with self._explained():
            if state.is_terminal:
                self._client.set_terminated(run_id, _STATUS[state])
            else:
                self._client.update_run(run_id, _STATUS[state])

    def curves(self, run_id: str, names: Collection[str] | None = None) -> Curves:
        """Histories of metrics, one request each."""
        with self._explained():
            there = self._client.get_run(run_id).data.metrics
            curves: Curves = {}
            for name in there if names is None else there.keys() & set(names):
                points = self._client.get_metric_history(run_id, name)
                curves[name] = sorted({point.step: point.value for point in points}.items())
            return curves

    def log_report(
        self, tracking_id: str, folder: Path, metrics: Metrics, exploratory: Sequence[str] = ()
    ) -> str:
        """The summary run: means and intervals as metrics, the report as artifacts.

        Its tag says whether the experiment is exploratory, and why.
        """
        with self._explained():
            run = self._find(tracking_id, SUMMARY_TAG, "true")
            if run is None:
                tags = {SUMMARY_TAG: "true", "mlflow.user": _user()}
                run = self._client.create_run(tracking_id, tags=tags, run_name="summary")
            run_id = str(run.info.run_id)
            # Before the numbers: nobody sees them without it.
            self._client.set_tag(run_id, EXPLORATORY_TAG, ", and ".join(exploratory) or "no")
            self._log(run_id, metrics, 0)
            self._client.log_artifacts(run_id, str(folder), "report")
            self._client.set_terminated(run_id, "FINISHED")
            return run_id

    def register_model(
        self, run_id: str, checkpoint: Path, name: str, alias: str, tags: Mapping[str, str]
    ) -> str:
        """The weights as a `python_function` on the run, and a version of the model from there."""
        with self._explained(), tempfile.TemporaryDirectory(prefix="focus-lab-model-") as scratch:
            run = self._client.get_run(run_id)
            save_model(Path(scratch) / MODEL, checkpoint)
            # Under the cell's name: an elastic run may be promoted at several keep ratios.
            place = f"{MODEL}/{hashlib.sha256(checkpoint.read_bytes()).hexdigest()[:12]}"
            self._client.log_artifacts(run_id, str(Path(scratch) / MODEL), place)
            with contextlib.suppress(MlflowException):
                self._client.create_registered_model(name)
            version = self._client.create_model_version(
                name, f"{run.info.artifact_uri}/{place}", run_id, tags=dict(tags)
            )
            self._client.set_registered_model_alias(name, alias, version.version)
            return str(version.version)

    def has_view(self, tracking_id: str) -> bool:
        """Whether the comparison page of an experiment can be opened as it was provisioned."""
        with self._explained():
            tags = self._client.get_experiment(tracking_id).tags
            return f"mlflow.sharedViewState.{VIEW_KEY}" in tags and _understands_views(self.uri)

    def _find(self, tracking_id: str, tag: str, value: str) -> Run | None:
        runs = self._client.search_runs(
            [tracking_id], filter_string=f"tags.`{tag}` = '{value}'", max_results=1
        )
        return runs[0] if runs else None

    def _log(self, run_id: str, metrics: Metrics, step: int) -> None:
        now = int(time.time() * 1000)
        points = [
            Metric(name, value, now, step)
            for name, value in metrics.items()
            if math.isfinite(value)
        ]
        for start in range(0, len(points), _METRICS_A_BATCH):
            self._client.log_batch(run_id, metrics=points[start : start + _METRICS_A_BATCH])

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except (
            MlflowException,
            CommandError,
            sa.exc.SQLAlchemyError,
            sqlite3.Error,
            OSError,
        ) as error:
            text = str(error)
            if getattr(error, "error_code", None) == "RESOURCE_DOES_NOT_EXIST":
                raise MissingRunError(
                    f"MLflow {self.uri}: does not have it, got {text.splitlines()[0]}; "
                    "name the MLflow store that has it with --tracking-uri"
                ) from error
            if "locked" in text:
                reason, remedy = "is locked", "close the process that writes to it"
            elif "schema" in text or "revision" in text:
                reason = f"was made by another MLflow than {mlflow.__version__}"
                remedy = "run `mlflow db upgrade URI`, or upgrade mlflow"
            else:
                reason = "cannot be used"
                remedy = "check that it can be reached and written"
            first = text.strip().splitlines()[0] if text.strip() else type(error).__name__
            kind = TrackerUnreachableError if _may_come_back(error) else TrackerError
            raise kind(
                f"MLflow {self.uri}: {reason}, got {first[:300]}; {remedy}, "
                "or choose another --tracking-uri"
            ) from error


def _may_come_back(error: Exception) -> bool:
    """Whether a tracker that fails like this may answer later: it is locked, away or starting."""
    outages = (ConnectionError, TimeoutError, requests.ConnectionError, requests.Timeout)
    if isinstance(error, (*outages, sqlite3.OperationalError, sa.exc.OperationalError)):
        return True
    # Its client tells an outage by text, and a server's own troubles by number.
    status = getattr(error, "get_http_status_code", lambda: 0)()
    text = str(error)
    return "failed with exception" in text or "locked" in text or 502 <= status <= 504


@contextlib.contextmanager
def _one_at_a_time(uri: str) -> Iterator[None]:
    """Lets one process at a time open a SQLite file: it may make the tables.

    Two that make them at once fail in MLflow, with a sentence about migrations.
    """
    path = sa.make_url(uri).database if uri.startswith("sqlite:") else None
    with contextlib.ExitStack() as stack:
        if path:
            # A folder that cannot be written holds no file that is yet to be made.
            with contextlib.suppress(OSError):
                stack.enter_context(FileLock(f"{path}.lock"))
        yield


def _reach(uri: str) -> None:
    """Fail where nobody answers: MLflow's client would try again for four minutes first.

    In the middle of a sweep it should: a server may be restarted. At the beginning a wrong address
    is more likely.
    """
    try:
        with urllib.request.urlopen(f"{uri.rstrip('/')}/health", timeout=_REACH_SECONDS):
            return
    except urllib.error.HTTPError as error:
        # It answers. Whether it lets us in is for the client to find out, who has the credentials.
        error.close()
    except urllib.error.URLError as error:
        # Which certificates are trusted is the client's to know, too.
        if not isinstance(error.reason, ssl.SSLError):
            raise


def _understands_views(uri: str) -> bool:
    """Whether the MLflow that shows the pages is of the line whose shared views were checked."""
    version = mlflow.__version__
    if uri.startswith(("http:", "https:")):
        try:
            with urllib.request.urlopen(
                f"{uri.rstrip('/')}/version", timeout=_REACH_SECONDS
            ) as got:
                version = got.read().decode()
        except (urllib.error.URLError, OSError, UnicodeDecodeError):
            return False
    return version.startswith(_VIEWS_CHECKED_ON)


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        # Containers may run under a number that has no name.
        return "unknown"


def _params(trial: Trial) -> dict[str, str]:
    """Seed and the whole effective spec, flat. The cell's name may change, and params may not."""
    ratio = trial.spec["model"]["token_selection"]["keep_ratio"]
    params = {"seed": trial.seed, "keep_ratio": ratio}
    for part in ("model", "data", "training"):
        params |= _flat(trial.spec[part], part)
    return {name: str(value) for name, value in params.items()}


def _flat(content: object, path: str) -> dict[str, object]:
    if isinstance(content, dict):
        return {
            name: value
            for key, inner in content.items()
            for name, value in _flat(inner, f"{path}.{key}").items()
        }
    return {path: json.dumps(content) if isinstance(content, list) else content}
