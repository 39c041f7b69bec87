"""Promotion: a trial's weights in MLflow's registry, loaded as a stranger would load them."""

from __future__ import annotations

import base64
import io
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console

from focus_lab.errors import UserError
from focus_lab.lab.comparison import VIEW_KEY
from focus_lab.lab.executor import InProcessExecutor
from focus_lab.lab.lab import Lab, open_lab
from focus_lab.lab.mlflow_tracker import MlflowTracker
from focus_lab.lab.progress import PlainProgress
from focus_lab.lab.promotion import Promotion, promote
from focus_lab.lab.store import Store
from focus_lab.lab.tracking import MemoryTracker
from focus_lab.lab.ui import page_url
from focus_lab.specs.experiment import ExperimentSpec
from focus_lab.specs.plan import plan
from focus_lab.training.checkpoint import latest_path, load, write
from focus_lab.training.folder import BEST, checkpoint_folder
from focus_lab.training.prediction import Predictor

pytestmark = pytest.mark.slow  # trains, and opens an MLflow store

EPOCH_TAGS = ("epoch", "ap", "reported_epoch", "reported_ap")
LOADED_ELSEWHERE = """
import json, sys
import mlflow
mlflow.set_tracking_uri(sys.argv[1])
model = mlflow.pyfunc.load_model(sys.argv[2])
import focus_lab
params = {"score_threshold": 0.0}
answer = model.predict([{"image": sys.argv[3]}], params=params)
# As `mlflow models serve` serves it.
from mlflow.pyfunc.scoring_server import init
from starlette.testclient import TestClient
served = TestClient(init(model)).post(
    "/invocations", json={"inputs": [{"image": sys.argv[3]}], "params": params}
)
found = {"answer": answer, "package": focus_lab.__file__, "served": served.json()}
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture
def lab(home: Path, tiny_experiment: Callable[..., ExperimentSpec]) -> Iterator[Lab]:
    """A lab with one elastic experiment; trained by the first test that asks for it."""
    with open_lab(home) as opened:
        spec = tiny_experiment(
            training={"epochs": 1, "elastic": {"enabled": True}, "ema": {"enabled": True}},
            data={"image_size": [64, 64]},
            sweep={"axes": {"model.token_selection.keep_ratio": [0.2, 0.5]}, "seeds": [3, 1]},
        )
        opened.sweep(spec, plan(spec), InProcessExecutor(), PlainProgress(Console(quiet=True)))
        yield opened


def png(seed: int = 0) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (48, 80, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG")
    return buffer.getvalue()


def test_a_promoted_trial_is_loaded_and_served_and_detects_what_its_weights_do(
    lab: Lab, home: Path
) -> None:
    assert promote(lab, "tiny", "elastic@0.5", None, "detector", "champion").version == "1"
    cheap = promote(lab, "tiny", "elastic@0.2", 1, "detector", "cheap")
    assert cheap.version == "2"
    tracker = lab.tracker
    assert isinstance(tracker, MlflowTracker)
    version = tracker._client.get_model_version_by_alias("detector", "cheap")
    assert version.tags["focus_lab.cell"] == "elastic@0.2"
    assert version.tags["focus_lab.seed"] == "1"
    # One epoch, so the best is the last; its AP is that at the ratio that was promoted.
    record = lab.record("tiny")
    shown = next(t for t in record.trials_of("elastic@0.2") if t.seed == 1).final("coco/AP")
    assert (cheap.epoch, cheap.ap, cheap.reported_ap) == (1, shown, shown)
    assert version.tags["focus_lab.ap"] == repr(shown)
    # Elsewhere, without this repository on the path: the model brings its code along.
    done = subprocess.run(
        [sys.executable, "-c", LOADED_ELSEWHERE, tracker.uri, "models:/detector@champion",
         base64.b64encode(png()).decode()],
        capture_output=True, text=True, cwd=home, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert not found["package"].startswith(str(Path(__file__).parents[3]))
    [answer] = found["answer"]
    [served] = found["served"]["predictions"]
    assert served["labels"] == answer["labels"]
    assert served["scores"] == pytest.approx(answer["scores"])
    [folder] = (home / "tiny" / "trials").glob("*seed3*")
    best = latest_path(checkpoint_folder(folder))
    assert best is not None
    predictor = Predictor(best)
    image = torch.from_numpy(np.array(Image.open(io.BytesIO(png())))).permute(2, 0, 1)
    expected = predictor(image)
    assert answer["scores"] == pytest.approx(expected.scores.tolist(), rel=1e-4)
    np.testing.assert_allclose(answer["boxes_xyxy"], expected.boxes_xyxy.numpy(), atol=1e-2)
    assert set(answer["labels"]) <= set(predictor.class_names)
    assert len(answer["labels"]) == len(expected.labels) > 0


def test_a_version_says_which_epoch_it_is_and_what_the_report_shows_instead(
    tmp_path: Path, tiny_experiment: Callable[..., ExperimentSpec]
) -> None:
    spec = tiny_experiment(
        training={"epochs": 2, "elastic": {"enabled": True}},
        data={"image_size": [64, 64]},
        sweep={"axes": {"model.token_selection.keep_ratio": [0.2, 0.5]}},
    )
    store, tracker = Store(f"sqlite:///{tmp_path / 'lab.db'}"), MemoryTracker()
    lab = Lab(store, tracker, tmp_path)
    lab.sweep(spec, plan(spec), InProcessExecutor(), PlainProgress(Console(quiet=True)))
    [folder] = (tmp_path / "tiny" / "trials").iterdir()
    last = latest_path(checkpoint_folder(folder))
    assert last is not None
    best = replace(load(last), epoch=1, history=[(1, {"coco/AP": 0.75})])
    write(best, checkpoint_folder(folder) / BEST)
    run = tracker.runs[str(store.trials(store.experiment("tiny").id)[0].tracking_run_id)]
    run.curves |= {"coco/AP": [(1, 0.75), (2, 0.5)], "at_0.2/coco/AP": [(2, 0.25)]}

    found = promote(lab, "tiny", "elastic@0.5", None, "detector", "champion")
    assert found == Promotion("1", 1, 0.75, 2, 0.5)
    assert "epoch 1, the best one, AP 0.750; the report shows epoch 2, AP 0.500" in found.sentence
    [(_, tags)] = tracker.models["detector"]
    assert {name: tags[f"focus_lab.{name}"] for name in EPOCH_TAGS} == {
        "epoch": "1", "ap": "0.75", "reported_epoch": "2", "reported_ap": "0.5",
    }  # fmt: skip

    cheap = promote(lab, "tiny", "elastic@0.2", None, "detector", "cheap")
    assert cheap == Promotion("2", 1, None, 2, 0.25)
    assert "at which this keep ratio was not evaluated" in cheap.sentence
    assert tracker.models["detector"][1][1]["focus_lab.ap"] == "not measured"

    (checkpoint_folder(folder) / BEST).unlink()
    same = promote(lab, "tiny", "elastic@0.5", None, "detector", "champion")
    assert same.sentence.startswith("weights of epoch 2, the last one, as in the report: AP ")

    # As early stopping leaves a trial: with fewer epochs than it was to have.
    run.curves = {
        metric: [(epoch, value) for epoch, value in points if epoch < 2]
        for metric, points in run.curves.items()
    }
    with pytest.raises(UserError, match=r"its end: it was stopped early, got any; done are none"):
        promote(lab, "tiny", "elastic@0.5", None, "detector", "champion")
    store.close()


def test_what_cannot_be_promoted_is_said(lab: Lab) -> None:
    with pytest.raises(UserError, match=r"no such cell, got 'dense'; cells are elastic@0\.2, elas"):
        promote(lab, "tiny", "dense", None, "detector", "champion")
    with pytest.raises(UserError, match=r"has succeeded, got 9; done are 3, 1"):
        promote(lab, "tiny", "elastic@0.2", 9, "detector", "champion")


def test_without_a_shared_view_the_page_opens_on_the_trials(lab: Lab, home: Path) -> None:
    assert f"viewStateShareKey={VIEW_KEY}" in page_url("tiny", home, None, None, "http://x")
    tracker, tracking_id = lab.tracker, lab.store.experiment("tiny").tracking_id
    assert isinstance(tracker, MlflowTracker)
    assert tracking_id is not None
    tracker._client.delete_experiment_tag(tracking_id, f"mlflow.sharedViewState.{VIEW_KEY}")
    url = page_url("tiny", home, None, None, "http://x")
    assert "viewStateShareKey" not in url
    assert f"#/experiments/{tracking_id}/runs?" in url
    assert "searchFilter=tags.%60focus_lab.trial_id%60%20LIKE%20%27%25%27" in url
