"""What has not changed is not sent again; what has is changed by nobody who has not seen it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.orm import Session
from starlette.testclient import TestClient

from focus_lab.client.models import ExperimentDetail
from focus_lab.lab.queue import queue
from focus_lab.lab.queue.changes import StaleEntryError
from focus_lab.lab.queue.dispatcher import Dispatcher
from focus_lab.lab.queue.entry import Entry
from focus_lab.lab.tables import QueueRow
from service import tags
from service.state import State

Spec = Callable[..., dict[str, Any]]
URL = "/experiments/one"


def test_what_a_client_has_is_not_sent_again(client: TestClient, spec: Spec) -> None:
    client.post("/experiments", json=spec("one"))
    first = client.get(URL)
    ExperimentDetail.model_validate_json(first.content)
    tag = first.headers["etag"]
    assert tag.startswith('"0-')
    for known in (tag, f"W/{tag}", f'"other", {tag}', "*"):
        again = client.get(URL, headers={"If-None-Match": known})
        assert (again.status_code, again.content) == (304, b"")
        assert again.headers["etag"] == tag
    for other in ('"0"', '"x"', "", tag.strip('"')):
        assert client.get(URL, headers={"If-None-Match": other}).json() == first.json()
    client.patch(URL, json={"priority": 3})
    changed = client.get(URL, headers={"If-None-Match": tag})
    assert (changed.status_code, changed.json()["priority"]) == (200, 3)


def test_the_tag_changes_with_whatever_the_answer_says(
    client: TestClient, spec: Spec, state: State, dispatcher: Dispatcher
) -> None:
    client.post("/experiments", json=spec("one"))
    seen = {client.get(URL).headers["etag"]}
    # Nobody changes the experiment: its reason, its place, its report.
    dispatcher.round()
    dispatcher.round()
    state.board.look_again()
    seen.add(client.get(URL).headers["etag"])
    report = state.queue.store.experiment("one").folder / "report"
    report.mkdir(parents=True)
    (report / "report.html").write_text("new")
    seen.add(client.get(URL).headers["etag"])
    assert len(seen) == 3


def test_a_change_is_made_only_to_what_its_author_has_seen(client: TestClient, spec: Spec) -> None:
    client.post("/experiments", json=spec("one"))
    tag = client.get(URL).headers["etag"]
    assert client.post(f"{URL}/pause", headers={"If-Match": tag}).status_code == 202
    for late in (
        client.post(f"{URL}/cancel", headers={"If-Match": tag}),
        client.patch(URL, json={"priority": 3}, headers={"If-Match": tag}),
        client.patch(URL, json={"priority": 3}, headers={"If-Match": '"7", "8-x"'}),
        client.patch(URL, json={"priority": 3}, headers={"If-Match": "1"}),
    ):
        assert (late.status_code, late.json()["code"]) == (412, "changed-meanwhile")
        assert "got version 1 instead of" in late.json()["detail"]
        assert "read it again" in late.json()["detail"]
    state = client.get(URL).json()
    assert (state["state"], state["priority"], state["version"]) == ("PAUSED", 0, 1)
    for number, fine in enumerate(['"1"', 'W/"2-x"', '"0", "3"', "*"]):
        answer = client.patch(URL, json={"priority": number + 1}, headers={"If-Match": fine})
        assert answer.status_code == 200, answer.text


def test_who_is_overtaken_while_changing_is_told_so(
    client: TestClient, spec: Spec, monkeypatch: pytest.MonkeyPatch
) -> None:
    client.post("/experiments", json=spec("one"))

    def late(session: Session, entry: Entry, **values: Any) -> Entry:
        # As if somebody else had been faster by a moment: this one looks again.
        session.execute(sa.update(QueueRow).values(version=entry.version + 1))
        session.commit()
        raise StaleEntryError

    monkeypatch.setattr(queue, "change_entry", late)
    answer = client.patch(URL, json={"priority": 3}, headers={"If-Match": '"0"'})
    assert (answer.status_code, answer.json()["code"]) == (412, "changed-meanwhile")
    assert client.get(URL).json()["priority"] == 0


def test_versions_are_read_tolerantly_and_never_guessed() -> None:
    assert tags.versions(None) is None
    assert tags.versions(" * ") is None
    assert tags.versions('"3-ab", W/"4" , "x", "-1", "9999999999"') == {3, 4}
    assert tags.versions("3") == frozenset()
