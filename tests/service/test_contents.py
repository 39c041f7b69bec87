"""What an experiment has brought forth, over REST: nothing but that."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from focus_lab.lab.driver import trial_folder
from focus_lab.lab.states import TrialState
from service.routes import contents
from service.state import State

Spec = Callable[..., dict[str, Any]]


@pytest.fixture
def folder(client: TestClient, spec: Spec, state: State) -> Path:
    """The folder of an experiment with a report."""
    client.post("/experiments", json=spec("one"))
    made = state.queue.store.experiment("one").folder
    (made / "report" / "plots").mkdir(parents=True)
    (made / "report" / "tables").mkdir()
    for name, text in {
        "report.html": "<html>page</html>", "report.md": "# page", "report.json": "{}",
        "report.txt": "a table", "plots/ap.svg": "<svg/>", "tables/cells.csv": "a,b",
        "tables/paper.tex": r"\\begin{tabular}",
    }.items():  # fmt: skip
        (made / "report" / name).write_text(text)
    (made / "secret.txt").write_text("not shown")
    (made / "report" / "weights.pt").write_bytes(b"not shown")
    return made


def test_the_report_comes_in_every_form(client: TestClient, folder: Path) -> None:
    kinds = {
        "html": "text/html", "md": "text/markdown", "json": "application/json",
        "txt": "text/plain", "csv": "text/csv", "tex": "text/x-tex",
    }  # fmt: skip
    for form, kind in kinds.items():
        answer = client.get(f"/experiments/one/report?format={form}")
        assert answer.headers["content-type"].partition(";")[0] == kind
    page = client.get("/experiments/one/report", headers={"accept": "text/html"})
    assert page.text == "<html>page</html>"
    assert "sandbox" in page.headers["content-security-policy"]
    as_json = client.get("/experiments/one/report", headers={"accept": "application/json"})
    assert as_json.json() == {}
    assert client.get("/experiments/one/report?format=exe").status_code == 422


@pytest.mark.parametrize(
    ("accept", "kind"),
    [
        ("*/*", "text/html"),
        ("", "text/html"),
        ("text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8", "text/html"),
        ("application/json, text/plain, */*", "application/json"),
        ("text/html;q=0.5, application/json", "application/json"),
        ("text/markdown;q=0.9, text/csv;q=0.91", "text/csv"),
        ("text/*;q=0.3, text/html;q=0, application/json;q=0.1", "text/markdown"),
        ("text/html;level=1; Q=0.2, TEXT/CSV ; q=0.3", "text/csv"),
        ("*/*;q=0.1, text/x-tex", "text/x-tex"),
        ("text/html;q=best, text/plain;q=7, nonsense, text/csv", "text/csv"),
    ],
)
def test_the_report_comes_in_the_form_that_is_liked_best(
    client: TestClient, folder: Path, accept: str, kind: str
) -> None:
    answer = client.get("/experiments/one/report", headers={"accept": accept})
    assert answer.headers["content-type"].partition(";")[0] == kind
    assert answer.headers["vary"] == "Accept"


@pytest.mark.parametrize("accept", ["image/png", "*/*;q=0", "text/*;q=0, application/json;q=0.0"])
def test_a_form_that_there_is_not_is_refused(client: TestClient, folder: Path, accept: str) -> None:
    answer = client.get("/experiments/one/report", headers={"accept": accept})
    assert (answer.status_code, answer.json()["code"]) == (406, "not-acceptable")
    assert answer.headers["vary"] == "Accept"
    assert "text/markdown" in answer.json()["detail"]
    # Whoever names a form gets it.
    named = client.get("/experiments/one/report?format=md", headers={"accept": accept})
    assert named.status_code == 200
    assert "vary" not in named.headers


def test_there_may_be_no_report_yet(client: TestClient, spec: Spec) -> None:
    client.post("/experiments", json=spec("two"))
    answer = client.get("/experiments/two/report")
    assert (answer.status_code, answer.json()["code"]) == (404, "no-report")


def test_files_are_those_that_are_meant_to_be_seen(client: TestClient, folder: Path) -> None:
    (folder / "report" / "link.txt").symlink_to(folder / "secret.txt")
    items = client.get("/experiments/one/artifacts").json()["items"]
    paths = [item["path"] for item in items]
    assert "report/plots/ap.svg" in paths
    assert not any("secret" in path or ".pt" in path or "link" in path for path in paths)
    for item in items:
        answer = client.get(f"/experiments/one/artifacts/{item['path']}")
        assert len(answer.content) == item["size"]
        assert answer.headers["content-type"].partition(";")[0] == item["media_type"]
        assert "sandbox" in answer.headers["content-security-policy"]


def test_a_folder_that_vanishes_while_it_is_looked_through_has_the_files_that_are_left(
    client: TestClient, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    look = os.scandir

    def too_late(path: Any) -> Any:
        # It has been found in its own folder just before.
        if str(path).endswith("plots"):
            shutil.rmtree(path, ignore_errors=True)
        return look(path)

    monkeypatch.setattr(os, "scandir", too_late)
    answer = client.get("/experiments/one/artifacts")
    assert answer.status_code == 200
    paths = [item["path"] for item in answer.json()["items"]]
    assert "report/report.html" in paths
    assert not any("plots" in path for path in paths)


def test_a_file_that_vanishes_once_it_was_found_is_one_that_is_not_there(
    client: TestClient, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for file in (folder / "report").glob("report.*"):
        file.unlink()
    monkeypatch.setattr(Path, "is_file", lambda self: True)
    lost = client.get("/experiments/one/artifacts/report/report.md")
    assert (lost.status_code, lost.json()["code"]) == (404, "no-such-file")
    lost = client.get("/experiments/one/report?format=md")
    assert (lost.status_code, lost.json()["code"]) == (404, "no-report")


@pytest.mark.parametrize(
    "path",
    ["secret.txt", "report/link.txt", "report/weights.pt", "report/../secret.txt", "../../lab.db",
     "/etc/passwd", "%2e%2e/%2e%2e/lab.db", "report//report.html", "..%5C..%5Clab.db", "report",
     "report/%2e%2e/secret.txt", "report/%2e/report.txt", "report%2F%2Freport.txt",
     "report/report.txt%2F", "report/there/secret.txt", "report/a%00.txt",
     f"report/{'a' * 300}.txt"],
)  # fmt: skip
def test_no_path_of_a_client_is_opened(client: TestClient, folder: Path, path: str) -> None:
    (folder / "report" / "link.txt").symlink_to(folder / "secret.txt")
    (folder / "report" / "there").symlink_to(folder)
    answer = client.get(f"/experiments/one/artifacts/{path}")
    # Clients shorten some of these to other addresses by themselves.
    assert answer.status_code in (404, 422)
    assert "not shown" not in answer.text


def test_files_beyond_those_that_are_listed_may_be_fetched(
    client: TestClient, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = "/experiments/one/artifacts"
    whole = client.get(url).json()
    assert not whole["more"]
    monkeypatch.setattr(contents, "_MOST_FILES", 2)
    first = client.get(url).json()
    assert first == {"items": whole["items"][:2], "more": True}
    # One file is found without looking at all of them.
    monkeypatch.delattr(contents, "_files")
    for item in whole["items"]:
        assert client.get(f"{url}/{item['path']}").status_code == 200


def test_trials_say_where_they_are(client: TestClient, folder: Path, state: State) -> None:
    stored = state.queue.store.experiment("one")
    [trial] = state.queue.store.trials(stored.id)
    state.queue.store.move(trial, TrialState.RUNNING)
    place = trial_folder(stored, trial)
    place.mkdir(parents=True)
    (place / "progress.json").write_text(
        '{"epoch": 1, "step": 3, "steps": 4, "loss": 2.5, "at": 12.0}'
    )
    [found] = client.get("/experiments/one/trials").json()["items"]
    assert (found["state"], found["attempts"], found["epochs"]) == ("RUNNING", 1, 2)
    assert found["progress"] == {"epoch": 1, "step": 3, "steps": 4, "loss": 2.5, "at": 12.0}
    (place / "progress.json").write_text("half a li")
    [found] = client.get("/experiments/one/trials").json()["items"]
    assert found["progress"] is None


def test_curves_are_those_of_the_tracker(client: TestClient, folder: Path, state: State) -> None:
    stored = state.queue.store.experiment("one")
    [trial] = state.queue.store.trials(stored.id)
    assert client.get("/experiments/one/curves").json() == {"items": {}}
    run = state.tracker.ensure_run("x", trial)
    state.queue.store.set_tracking_run(trial, run)
    for epoch, ap in enumerate([0.1, 0.2], 1):
        state.tracker.log_epoch(run, epoch, {"coco/AP": ap, "loss/total": 1.0})
    found = client.get("/experiments/one/curves", params={"metric": "coco/AP"}).json()["items"]
    assert found == {trial.id: {"coco/AP": [[1, 0.1], [2, 0.2]]}}
