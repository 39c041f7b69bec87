"""The pages as they are sent: what they show, to whom, and that strangers' texts stay texts."""

from __future__ import annotations

import html
import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from html.parser import HTMLParser
from typing import Any

import pytest
import yaml
from scenery import RATIO, Scenery
from starlette.testclient import TestClient

from focus_lab.lab.queue.events import Cursor, Event, EventLog
from focus_lab.lab.queue.states import Action
from focus_lab.lab.states import TrialState
from focus_lab.lab.tokens import Scope
from focus_lab.specs.experiment import ExperimentSpec
from service.credentials import COOKIE
from service.pages.compare import Difference, differences
from service.pages.history import Histories
from service.pages.moments import ago, lasting, moment
from service.pages.submission import as_yaml
from service.state import State

Headers = Callable[..., dict[str, str]]
Spec = Callable[..., dict[str, Any]]

HOSTILE = "\"><script>alert(1)</script><img src=x onerror=alert(1)> & ' ${7*7} {{7*7}}"
NOW = datetime(2026, 11, 23, 12, tzinfo=UTC)
VOID = {"meta", "link", "img", "input", "br", "hr"}
TWO = {"axes": {RATIO: [0.1, 0.3]}, "seeds": [0, 1]}
PATHS = ("/ui/", "/ui/experiments/one", "/ui/compare?a=one&b=two", "/ui/submit", "/ui/system")


class Page(HTMLParser):
    """A page taken apart; every element must be closed where it should be."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.text = text
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.scripts = ""
        self._open: list[str] = []
        self.feed(text)
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        names = [name for name, _ in attrs]
        assert len(names) == len(set(names)), (tag, names)
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self._open and self._open[-1] in ("script", "style"):
            self.scripts += data

    def values(self, tag: str, name: str) -> list[str]:
        """An attribute of all elements of a kind."""
        return [attrs[name] or "" for kind, attrs in self.elements if kind == tag and name in attrs]


def page_of(client: TestClient, path: str, **given: Any) -> Page:
    answer = client.get(path, **given)
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    return Page(answer.text)


@pytest.fixture
def two(scenery: Scenery) -> Scenery:
    """Two experiments: one runs, one waits."""
    scenery.submit("one", sweep=TWO, description="the first")
    scenery.start("one")
    scenery.submit("two", "bob", "reef", priority=7)
    return scenery


def test_every_page_keeps_to_the_strict_policy(client: TestClient, two: Scenery) -> None:
    for path in PATHS:
        answer = client.get(path)
        policy = answer.headers["content-security-policy"]
        assert "default-src 'none'; script-src 'self'; style-src 'self'" in policy
        assert "unsafe" not in policy
        assert answer.headers["cache-control"] == "no-store"
        page = Page(answer.text)
        assert page.scripts.strip() == ""
        assert [kind for kind, _ in page.elements if kind in ("style", "iframe", "object")] == []
        for kind, attrs in page.elements:
            assert not any(name == "style" or name.startswith("on") for name in attrs), kind
        loaded = page.values("script", "src") + page.values("img", "src")
        loaded += [attrs["href"] or "" for kind, attrs in page.elements if kind == "link"]
        assert len(loaded) >= 4
        for address in loaded:
            assert address.startswith("/ui/static/"), address
            assert client.get(address).status_code == 200


def test_every_link_of_every_page_leads_somewhere(client: TestClient, two: Scenery) -> None:
    two.write_files("one")
    seen: set[str] = set()
    todo = list(PATHS)
    while todo:
        path = todo.pop()
        if path in seen:
            continue
        seen.add(path)
        assert path.startswith("/"), path
        answer = client.get(path, follow_redirects=True)
        assert answer.status_code == 200, path
        if answer.headers["content-type"].startswith("text/html") and path.startswith("/ui/"):
            found = Page(answer.text).values("a", "href")
            todo += [html.unescape(link) for link in found if not link.startswith("#")]
    assert "/ui/submit?from=two" in seen
    assert any("report?format=csv" in path for path in seen)


def test_assets_are_kept_by_browsers_for_as_long_as_they_stay_the_same(client: TestClient) -> None:
    page = page_of(client, "/ui/system")
    script = page.values("script", "src")[0]
    answer = client.get(script)
    assert "immutable" in answer.headers["cache-control"]
    assert answer.headers["content-type"].startswith("text/javascript")
    mark = script.split("/")[3]
    stale = client.get(script.replace(mark, "0" * 12))
    assert (stale.status_code, stale.headers["cache-control"]) == (200, "no-store")
    assert client.get(f"/ui/static/{mark}/nothing.js").status_code == 404
    assert client.get(f"/ui/static/{mark}/..%2f..%2fapp.py").status_code == 404


def test_the_queue_shows_where_everybody_stands(client: TestClient, two: Scenery) -> None:
    two.state.queue.act("two", Action.PAUSE, "bob")
    two.submit("three", "cleo", compute={"device": "cuda", "workers": 4, "cpus_per_worker": 9000})
    two.dispatcher.round()
    text = page_of(client, "/ui/").text
    headings = re.findall(r"<h2[^>]*>(\w+)</h2>", text)
    assert headings == ["Running", "Waiting", "Paused"]
    assert "the whole cluster has" in text
    assert 'class="position">1<' in text
    assert 'data-priority="7"' in text
    assert ">0/4<" in text


def test_the_front_of_a_long_queue_is_read_at_once_and_stands_in_its_order(
    client: TestClient, scenery: Scenery, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(60):
        scenery.submit(f"many-{number:02d}", priority=number)
    monkeypatch.setattr(scenery.state.queue, "entry", lambda name: pytest.fail(f"read {name}"))
    text = page_of(client, "/ui/").text
    names = re.findall(r'href="/ui/experiments/([\w-]+)"', text)
    assert names == [f"many-{number:02d}" for number in range(59, 9, -1)]
    assert re.findall(r'class="position">(\d+)<', text) == [str(n) for n in range(1, 51)]


def test_filters_leave_what_was_asked_for_page_by_page(
    client: TestClient, scenery: Scenery
) -> None:
    for number in range(53):
        scenery.submit(f"many-{number:02d}", "ann" if number % 53 else "bob")
    first = page_of(client, "/ui/?name=many")
    names = re.findall(r'href="/ui/experiments/([\w-]+)"', first.text)
    assert (len(names), names[0]) == (50, "many-52")
    older = next(link for link in first.values("a", "href") if "cursor=" in link)
    rest = page_of(client, older)
    assert re.findall(r'href="/ui/experiments/([\w-]+)"', rest.text) == [
        "many-02", "many-01", "many-00",
    ]  # fmt: skip
    of_bob = page_of(client, "/ui/?user=bob&group=waiting")
    assert re.findall(r'href="/ui/experiments/([\w-]+)"', of_bob.text) == ["many-00"]
    assert "No experiment is like this" in page_of(client, "/ui/?group=failed").text
    assert client.get("/ui/?cursor=nonsense").status_code == 400


def test_an_experiment_shows_its_trials_and_its_history(client: TestClient, two: Scenery) -> None:
    first, second, *_ = two.trials("one")
    two.train("one", first, 2, TrialState.SUCCEEDED)
    two.train("one", second, 1, TrialState.FAILED, "it ran out of memory")
    two.write_files("one")
    text = page_of(client, "/ui/experiments/one").text
    assert re.search(r'<progress value="2.00" max="2" aria-label="Epochs of keep_ratio=0.1', text)
    assert "out-of-memory: it ran out of memory" in text
    assert "trial keep_ratio=0.1-seed0 is done" in text
    assert "trial keep_ratio=0.3-seed0 is failed: it ran out of memory" in text
    assert "submitted with priority 0" in text
    assert "attempt 1 admitted with" in text
    assert "&#34;path&#34;: &#34;trials/keep_ratio=0.1-seed0-" in text
    assert "report?format=html" in text
    # The event with the largest number of this experiment: what the page follows from.
    events = two.state.events.after(Cursor(), experiment_id=two.entries["one"].id)
    assert f'data-after="{events[-1].cursor}"' in text


def test_only_the_reports_that_there_are_are_offered(client: TestClient, two: Scenery) -> None:
    assert "report?format" not in page_of(client, "/ui/experiments/one").text
    folder = two.state.home / "one" / "report"
    folder.mkdir(parents=True)
    (folder / "report.html").write_text("<!doctype html><title>Report</title>")
    found = page_of(client, "/ui/experiments/one").text
    assert re.findall(r"report\?format=(\w+)", found) == ["html"]


def test_what_strangers_write_is_text(client: TestClient, scenery: Scenery) -> None:
    cells = {"cells": {"named": {RATIO: 0.3}}}
    scenery.submit("one", "ann", "fish", description=HOSTILE, sweep=cells)
    scenery.start("one")
    baseline, named = scenery.trials("one")
    scenery.train("one", named, 1, TrialState.FAILED, HOSTILE)
    scenery.train("one", baseline, 1)
    scenery.state.attempts.tell(scenery.entries["one"].id, "note", {"text": HOSTILE})
    scenery.state.attempts.tell(scenery.entries["one"].id, HOSTILE[:30], {})
    scenery.end("one", "failed", HOSTILE)
    scenery.submit("two", description=HOSTILE)
    for path in (*PATHS, "/ui/submit?from=one"):
        page = page_of(client, path)
        assert "<script>alert" not in page.text
        assert "<img src=x" not in page.text
        assert page.scripts.strip() == ""
        assert all("onerror" not in attrs for _, attrs in page.elements)
    shown = html.unescape(page_of(client, "/ui/experiments/one").text)
    assert shown.count("alert(1)</script>") >= 4
    assert "{{7*7}}" in shown
    for path in (f"/ui/{HOSTILE}", f"/ui/experiments/{HOSTILE}", f"/ui/?name={HOSTILE}"):
        answer = client.get(path)
        assert "<script>alert" not in answer.text
        assert Page(answer.text).scripts.strip() == ""


def test_errors_are_pages_too(client: TestClient, two: Scenery) -> None:
    for path, status in {
        "/ui/experiments/nobody": 404,
        "/ui/experiments/NOT-a-name": 422,
        "/ui/compare?a=one&b=nobody": 404,
        "/ui/submit?from=nobody": 404,
        "/ui/nothing": 404,
    }.items():
        answer = client.get(path)
        assert answer.status_code == status
        assert answer.headers["content-type"] == "text/html; charset=utf-8"
        assert 'href="/ui/"' in answer.text


class TestWithTokens:
    @pytest.fixture
    def given_settings(self) -> dict[str, Any]:
        return {"auth": True}

    def test_who_is_not_known_is_sent_to_the_login_and_back(
        self, client: TestClient, token: Headers
    ) -> None:
        for path in ("/ui/", "/ui/system", "/ui/submit?from=one"):
            answer = client.get(path, follow_redirects=False)
            assert answer.status_code == 303
        assert answer.headers["location"] == "/ui/login?next=%2Fui%2Fsubmit%3Ffrom%3Done"
        form = page_of(client, answer.headers["location"])
        assert form.values("input", "value") == ["/ui/submit?from=one"]
        secret = token("ann")["Authorization"].removeprefix("Bearer ")
        sent = {"token": f" {secret}\n", "next": "/ui/system"}
        done = client.post("/ui/login", data=sent, follow_redirects=False)
        assert (done.status_code, done.headers["location"]) == (303, "/ui/system")
        cookie = done.headers["set-cookie"]
        for part in (f"{COOKIE}={secret}", "HttpOnly", "SameSite=strict", "Path=/"):
            assert part in cookie
        assert "Secure" not in cookie
        age = int(re.search(r"Max-Age=(\d+)", cookie)[1])  # type: ignore[index]
        assert 89 * 86400 < age <= 90 * 86400
        assert "ann" in page_of(client, "/ui/").text
        assert client.get("/ui/login?next=/ui/system", follow_redirects=False).status_code == 303
        client.post("/ui/logout")
        assert client.get("/ui/", follow_redirects=False).status_code == 303

    def test_over_https_the_cookie_is_secure(self, client: TestClient, token: Headers) -> None:
        client.base_url = "https://testserver"  # type: ignore[assignment]
        secret = token("ann")["Authorization"].removeprefix("Bearer ")
        done = client.post("/ui/login", data={"token": secret}, follow_redirects=False)
        assert "Secure" in done.headers["set-cookie"]

    def test_a_login_leads_nowhere_else(self, client: TestClient, token: Headers) -> None:
        secret = token("ann")["Authorization"].removeprefix("Bearer ")
        for wanted in (
            "https://evil.example/", "//evil.example", "/ui/\\evil", "/ui/\nx", "data:,1", "/x",
        ):  # fmt: skip
            sent = {"token": secret, "next": wanted}
            done = client.post("/ui/login", data=sent, follow_redirects=False)
            assert done.headers["location"] == "/ui/"

    def test_a_wrong_token_is_said_and_not_shown(self, client: TestClient) -> None:
        answer = client.post("/ui/login", data={"token": HOSTILE})
        assert answer.status_code == 401
        assert "unknown, expired or revoked" in answer.text
        assert "alert(1)" not in answer.text
        assert "set-cookie" not in answer.headers
        form = {"content-type": "application/x-www-form-urlencoded"}
        for body in (b"", b"\xff\xfe", b"token", b"&".join([b"token=x"] * 11)):
            assert client.post("/ui/login", content=body).status_code == 401
            assert client.post("/ui/login", content=body, headers=form).status_code == 401

    def test_other_sites_cannot_log_in_or_out(self, client: TestClient) -> None:
        for path in ("/ui/login", "/ui/logout"):
            answer = client.post(path, data={}, headers={"origin": "https://evil.example"})
            assert answer.status_code == 403

    def test_only_what_one_may_do_is_offered(
        self, client: TestClient, token: Headers, two: Scenery
    ) -> None:
        def offered(path: str, *who: Any) -> list[str]:
            page = page_of(client, path, headers=token(*who))
            posts = [path.rpartition("/")[2] for path in page.values("button", "data-post")]
            return posts + ["priority"] * len(page.values("button", "data-patch"))

        one = "/ui/experiments/one"
        assert offered(one, "ann") == ["cancel", "pause", "priority"]
        assert offered(one, "bob") == []
        assert offered(one, "ann", Scope.READ) == []
        assert offered(one, "root", Scope.ADMIN) == ["cancel", "pause", "priority"]
        assert offered("/ui/", "ann") == ["priority"]
        assert offered("/ui/system", "ann") == []
        assert offered("/ui/system", "root", Scope.ADMIN) == ["drain"]
        two.state.queue.act("two", Action.CANCEL, "bob")
        assert offered("/ui/experiments/two", "bob") == ["retry"]
        queue = page_of(client, "/ui/", headers=token("ann"))
        assert queue.values("input", "data-name") == ["one"]
        reader = page_of(client, "/ui/", headers=token("eve", Scope.READ))
        assert "/ui/submit" not in reader.values("a", "href")
        assert reader.values("input", "data-pick") == []
        refused = client.get("/ui/submit", headers=token("eve", Scope.READ))
        assert refused.status_code == 403
        assert "scope submit" in refused.text


def test_without_tokens_there_is_no_login(client: TestClient) -> None:
    answer = client.get("/ui/login", follow_redirects=False)
    assert (answer.status_code, answer.headers["location"]) == (303, "/ui/")
    assert "Log out" not in client.get("/ui/").text


def test_a_service_that_drains_says_so(client: TestClient) -> None:
    client.post("/system/drain")
    page = page_of(client, "/ui/system")
    assert "Draining." in page.text
    assert page.values("button", "data-post") == ["/system/resume"]


def test_specs_differ_where_their_values_do() -> None:
    a = {"name": "a", "x": {"y": 1, "z": [1, 2]}, "only": None}
    b = {"name": "b", "x": {"y": 1, "z": [1, 3]}, "more": {}}
    assert differences(a, b) == [
        Difference("x.z", "[1, 2]", "[1, 3]"),
        Difference("only", "null", None),
        Difference("more", None, "{}"),
    ]
    assert differences(a, a) == []


def test_a_comparison_names_both_sides(client: TestClient, two: Scenery) -> None:
    two.submit("other", training=two.content()["training"] | {"epochs": 5})
    text = page_of(client, "/ui/compare?a=two&b=other").text
    assert "<code>training.epochs</code>" in text
    assert re.search(r"<code>2</code></td>\s*<td><code>5</code>", text)


def test_a_copy_is_the_same_spec_without_defaults(spec: Spec) -> None:
    whole = ExperimentSpec.model_validate(spec("one", sweep=TWO))
    text = as_yaml(whole.model_dump(mode="json"))
    assert ExperimentSpec.model_validate(yaml.safe_load(text)) == whole
    assert len(text.splitlines()) < 60
    assert "kind: shapes" in text
    old = {"name": "one", "gone": 1}
    assert yaml.safe_load(as_yaml(old)) == old


def test_the_submit_page_begins_with_a_spec_that_is_valid(client: TestClient) -> None:
    text = page_of(client, "/ui/submit").text
    content = re.search(r"<textarea[^>]*>(.*?)</textarea>", text, re.DOTALL)
    assert content is not None
    answer = client.post(
        "/experiments?plan=true", content=html.unescape(content[1]),
        headers={"content-type": "application/yaml"},
    )  # fmt: skip
    assert answer.json()["trials"] == 8
    assert "model.token_selection.keep_ratio" in text
    assert 'data-field="model.token_selection.keep_ratio"' in text


def test_a_history_is_read_once(two: Scenery, state: State) -> None:
    class Counted(EventLog):
        read = 0

        def after(self, cursor: Cursor, **rest: Any) -> list[Event]:
            events = super().after(cursor, **rest)
            Counted.read += len(events)
            return events

    log, histories = Counted(state.queue.store.database), Histories()
    entry = two.entries["one"]
    trial = two.trials("one")[0]
    two.train("one", trial, 30)
    first = histories.of(log, entry.id)
    assert [line.text for line in first.lines][-2:] == [
        "attempt 1 runs", "trial keep_ratio=0.1-seed0 runs",
    ]  # fmt: skip
    assert first.trials[trial.name].epoch == 30
    read = Counted.read
    state.queue.act("one", Action.PAUSE, "ann")
    second = histories.of(log, entry.id)
    assert (Counted.read - read, second.lines[-1].text) == (1, "paused")
    assert second.count == first.count + 1


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        (0, "now"), (44, "now"), (46, "1 min ago"), (5 * 60, "5 min ago"), (89 * 60, "89 min ago"),
        (2 * 3600, "2 h ago"), (35 * 3600, "35 h ago"), (72 * 3600, "3 d ago"),
        (90 * 86400, "2026-08-25"), (-30, "now"),
    ],
)  # fmt: skip
def test_moments_are_said_as_people_say_them(seconds: int, expected: str) -> None:
    assert ago(NOW - timedelta(seconds=seconds), NOW) == expected


def test_a_moment_has_its_exact_time() -> None:
    shown = moment(NOW - timedelta(hours=3), NOW)
    assert shown == (
        '<time datetime="2026-11-23T09:00:00Z" title="2026-11-23 09:00:00 UTC">3 h ago</time>'
    )
    assert lasting(NOW, None, NOW + timedelta(minutes=3)) == "3 min"
    assert lasting(NOW, NOW - timedelta(minutes=3)) == "0 s"
