"""The pages in a real browser: what it says of them, what follows by itself, who can use them.

FOCUS_LAB_PICTURES names a folder where pictures of every page are left to be looked at.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import browser as browsers
import pytest
from scenery import Scenery, build

from focus_lab.lab.queue.states import Action
from focus_lab.lab.states import TrialState
from focus_lab.lab.tokens import Scope
from service.state import State

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(browsers.chromium() is None, reason="there is no Chromium"),
]

SIZES = ((1440, 900), (1120, 800), (820, 1180), (390, 844))
AUDIT = (Path(__file__).parent / "audit.js").read_text(encoding="utf-8")

PAGES = {
    "queue": "/ui/",
    "waiting": "/ui/?group=waiting&user=bob",
    "running": "/ui/experiments/scoring",
    "succeeded": "/ui/experiments/keep-ratio",
    "failed": "/ui/experiments/reef-512",
    "waits": "/ui/experiments/cascade-3",
    "compare": "/ui/compare?a=keep-ratio&b=keep-ratio-long",
    "choose": "/ui/compare",
    "submit": "/ui/submit?from=keep-ratio",
    "system": "/ui/system",
    "missing": "/ui/experiments/nobody",
}

Use = Callable[[browsers.Tab], Coroutine[Any, Any, None]]


@pytest.fixture
def scene(scenery: Scenery) -> Scenery:
    return build(scenery)


@pytest.fixture
def given_settings() -> dict[str, Any]:
    return {"mlflow_url": "http://127.0.0.1:5000"}


async def keep(tab: browsers.Tab, name: str) -> None:
    """Leave a picture, where they are wanted."""
    if folder := os.environ.get("FOCUS_LAB_PICTURES"):
        await tab.picture(Path(folder) / f"{name}.png")


def use(play: Use) -> None:
    """Play with a new tab."""

    async def whole() -> None:
        async with browsers.started() as browser:
            await play(await browser.tab())

    asyncio.run(whole())


async def settled(tab: browsers.Tab) -> None:
    """Until a page that follows is live, and its plots are drawn."""
    await tab.until("!document.getElementById('live') || live.dataset.state === 'on'")
    await tab.until(
        "!document.querySelector('section:not([data-blank]) .plot')"
        " || document.querySelectorAll('.plot > *').length === 3"
    )
    await tab.until("!document.getElementById('verdict') || verdict.textContent.includes('cell')")


def test_every_page_is_sound_and_usable_at_every_size_in_light_and_dark(
    scene: Scenery, address: str
) -> None:
    async def play(tab: browsers.Tab) -> None:
        for name, path in PAGES.items():
            for width, height in SIZES:
                # Colours do not depend on the size.
                for dark in (False, True) if width in (1440, 390) else (False,):
                    where = f"{name} at {width} px, {'dark' if dark else 'light'}"
                    await tab.look(width, height, dark=dark)
                    await asyncio.to_thread(scene.dispatcher.round)
                    await tab.open(address + path)
                    await settled(tab)
                    if name == "succeeded":
                        await tab.run("document.getElementById('pictures-show').click()")
                        await tab.until("document.querySelectorAll('canvas').length === 5")
                        await tab.run("document.getElementById('log-which').focus()")
                        await tab.until("document.getElementById('log-which').options.length > 10")
                        await tab.run(
                            "const which = document.getElementById('log-which');"
                            "which.selectedIndex = 1;"
                            "document.getElementById('log-show').click()"
                        )
                        await tab.until("document.getElementById('log-text').textContent.length")
                    await keep(tab, f"{name}-{width}-{'dark' if dark else 'light'}")
                    found = await tab.run(AUDIT)
                    assert found == [], where
                    assert await tab.run("document.documentElement.scrollWidth") <= width, where
        errors = [error for error in tab.errors if "/ui/experiments/nobody" not in error]
        assert errors == []
        assert tab.hosts == {address.removeprefix("http://")}

    use(play)


def test_the_audit_finds_what_is_wrong(scene: Scenery, address: str) -> None:
    wrong = {
        "no name": "<button></button>",
        "no label": "<input>",
        "no name: <canvas": "<canvas role='img'></canvas>",
        "no name: <progress": "<progress>x</progress>",
        "no alt": "<img src='/ui/static/x/mark.svg'>",
        "contrast": "<p class='wrong'>faint</p>",
        "level 4": "<h4>deep</h4>",
        "stands twice": "<i id='main'></i>",
        "without a caption": "<table><tbody><tr><th scope='row'>x</th></tr></tbody></table>",
        "without column headers": "<table><caption>x</caption><tbody></tbody></table>",
        "row without a header": "<table><caption>x</caption><tbody><tr><td>x</td></tr></table>",
        "tab order": "<a href='#main' tabindex='3'>x</a>",
        "no key reaches it": "<div class='scroll'><p class='wide'>x</p></div>",
        "too small": "<button class='tiny'>x</button>",
        "runs out of its cell": (
            "<table><caption>x</caption><thead><tr><th scope='col'>x</th></tr></thead><tbody><tr>"
            "<th scope='row' class='narrow'><i class='whole'>verylongname</i></th></tr></table>"
        ),
        "too narrow": (
            "<table><caption>x</caption><thead><tr><th scope='col'>x</th></tr></thead><tbody><tr>"
            "<th scope='row' class='narrow'>verylongname</th></tr></table>"
        ),
        "names nothing": "<p aria-describedby='nobody'>x</p>",
    }

    async def play(tab: browsers.Tab) -> None:
        await tab.open(f"{address}/ui/compare")
        assert await tab.run(AUDIT) == []
        for expected, markup in wrong.items():
            await tab.run(
                "window.wrong?.remove(); window.wrong = document.createElement('div');"
                f"wrong.innerHTML = {markup!r}; document.querySelector('main').append(wrong);"
                "var part = (name, change) => "
                "wrong.querySelectorAll(name).forEach((node) => change(node.style));"
                "part('.wrong', (style) => { style.color = '#aaa'; });"
                "part('.wide', (style) => { style.width = '9000px'; style.maxWidth = 'none'; });"
                "part('.narrow', (style) => { style.display = 'block'; style.width = '20px'; });"
                "part('.whole', (style) => { style.overflowWrap = 'normal'; });"
                "part('.tiny', (style) => { style.minHeight = style.height = '10px'; });"
            )
            found = await tab.run(AUDIT)
            assert any(expected in sentence for sentence in found), (expected, found)

    use(play)


def test_what_happens_is_seen_without_a_reload(scene: Scenery, address: str) -> None:
    async def play(tab: browsers.Tab) -> None:
        await tab.open(f"{address}/ui/")
        await settled(tab)
        await tab.run("window.same = true; document.querySelector('[data-pick]').click()")
        picked = await tab.run("document.querySelector('[data-pick]:checked').value")
        scene.submit("brand-new", "bob", "reef")
        await tab.until("document.querySelector('a[href=\"/ui/experiments/brand-new\"]')")
        scene.state.queue.act("brand-new", Action.PAUSE, "bob")
        row = "document.querySelector('a[href=\"/ui/experiments/brand-new\"]').closest('tr')"
        await tab.until(f"{row}.textContent.includes('paused')")
        assert await tab.run("window.same") is True
        assert await tab.run("document.querySelector('[data-pick]:checked').value") == picked
        await tab.open(f"{address}/ui/experiments/scoring")
        await settled(tab)
        await tab.run("window.same = true")
        trial = scene.trials("scoring")[3]
        scene.train("scoring", trial, 12, TrialState.SUCCEEDED)
        await tab.until("document.querySelector('#head .facts').textContent.includes('3/10')")
        await tab.until("document.querySelectorAll('[data-chart=loss] polyline').length === 4")
        assert await tab.run("window.same") is True
        assert tab.errors == []

    use(play)


def test_a_broken_stream_is_told_and_mended(scene: Scenery, address: str) -> None:
    async def play(tab: browsers.Tab) -> None:
        await tab.open(f"{address}/ui/")
        await settled(tab)
        await tab.call("Network.emulateNetworkConditions", offline=True, latency=0,
                       downloadThroughput=-1, uploadThroughput=-1)  # fmt: skip
        # A stream that is open is not cut by going offline: the page is told that it was hidden.
        await tab.run(
            "Object.defineProperty(document, 'hidden', {value: true, configurable: true});"
            "document.dispatchEvent(new Event('visibilitychange'));"
            "Object.defineProperty(document, 'hidden', {value: false, configurable: true});"
            "document.dispatchEvent(new Event('visibilitychange'))"
        )
        await tab.until("live.dataset.state === 'broken' && live.textContent === 'not live'")
        scene.submit("meanwhile", "bob", "reef")
        await tab.call("Network.emulateNetworkConditions", offline=False, latency=0,
                       downloadThroughput=-1, uploadThroughput=-1)  # fmt: skip
        await tab.until("live.dataset.state === 'on'")
        await tab.until("document.querySelector('a[href=\"/ui/experiments/meanwhile\"]')")

    use(play)


def test_a_person_acts_by_keyboard_alone(scene: Scenery, address: str, state: State) -> None:
    async def focused(tab: browsers.Tab, what: str) -> None:
        for _ in range(60):
            await tab.press("Tab", 9)
            if await tab.run(f"document.activeElement.matches({what!r})"):
                return
        raise AssertionError(f"never reached {what}")

    async def play(tab: browsers.Tab) -> None:
        await tab.open(f"{address}/ui/experiments/scoring")
        await settled(tab)
        await tab.press("Tab", 9)
        assert await tab.run("document.activeElement.textContent") == "Skip to the content"
        await focused(tab, "[data-post$='/cancel']")
        await tab.run("document.activeElement.click()")
        await tab.until("ask.open")
        assert await tab.run("ask.contains(document.activeElement)") is True
        await tab.press("Escape", 27)
        await tab.until("!ask.open")
        assert state.queue.entry("scoring").state == "RUNNING"
        await tab.run("document.activeElement.click()")
        await tab.until("ask.open")
        await focused(tab, "#ask-yes")
        await tab.run("document.activeElement.click()")
        await tab.until("document.querySelector('.title .state').textContent === 'cancelling'")
        assert state.queue.entry("scoring").state == "CANCELLING"
        assert "cancelling" in await tab.run("said.textContent")
        assert tab.errors == []

    use(play)


def test_several_are_cancelled_and_a_priority_is_changed(
    scene: Scenery, address: str, state: State
) -> None:
    async def play(tab: browsers.Tab) -> None:
        await tab.open(f"{address}/ui/?group=waiting")
        await settled(tab)
        await tab.run("document.querySelector('[data-name=cascade-7][data-patch]').click()")
        await tab.until("ask.open")
        await keep(tab, "dialog-priority")
        await tab.run("document.getElementById('ask-priority').value = 42")
        await tab.run("document.getElementById('ask-yes').click()")
        await tab.until("!ask.open")
        assert state.queue.entry("cascade-7").priority == 42
        for name in ("cascade-5", "cascade-6"):
            await tab.run(f"document.querySelector('[data-pick][data-name={name}]').click()")
        await tab.run("document.getElementById('bulk-cancel').click()")
        await tab.until("ask.open")
        assert "Cancel 2 experiments?" in await tab.run("ask.textContent")
        await keep(tab, "dialog")
        assert await tab.run(AUDIT) == []
        await tab.run("document.getElementById('ask-yes').click()")
        await tab.until("!document.querySelector('[data-pick][data-name=cascade-5]')")
        assert {state.queue.entry(f"cascade-{n}").state.value for n in (5, 6)} == {"CANCELLED"}
        assert tab.errors == []

    use(play)


def test_a_spec_is_judged_while_it_is_written_and_submitted_once(
    scene: Scenery, address: str, state: State
) -> None:
    write = "spec.value = {!r}; spec.dispatchEvent(new Event('input'))"

    async def play(tab: browsers.Tab) -> None:
        await tab.open(f"{address}/ui/submit?from=keep-ratio")
        await settled(tab)
        assert await tab.run("verdict.textContent") == "keep-ratio: 10 trials of 5 cells"
        text = await tab.run("spec.value")
        await tab.run(write.format(text.replace("name:", "names:", 1) + "\nseed: -1\n"))
        await tab.until("document.querySelectorAll('#mistakes li').length >= 2")
        assert await tab.run("document.getElementById('send').disabled") is True
        await keep(tab, "mistakes")
        assert await tab.run(AUDIT) == []
        await tab.run("document.querySelector('#mistakes button').click()")
        assert await tab.run("document.activeElement.id") == "spec"
        await tab.run(write.format(text.replace("keep-ratio", "keep-ratio-again", 1)))
        await tab.until("!document.getElementById('send').disabled")
        await tab.run("document.getElementById('cost').click()")
        # A process of its own loads torch for it.
        await tab.until("plan.textContent.includes('GFLOPs')", 150)
        costs = (
            "[...plan.querySelectorAll('tbody tr')].map((row) => Number(row.cells[4].textContent))"
        )
        found = await tab.run(costs)
        assert found == sorted(found)
        assert 0 < found[0] < found[-1]
        await tab.run("document.getElementById('send').click()")
        await tab.until("location.pathname === '/ui/experiments/keep-ratio-again'")
        entry = state.queue.entry("keep-ratio-again")
        assert (entry.state.value, entry.trials) == ("QUEUED", 10)

    use(play)


class TestWithTokens:
    @pytest.fixture
    def given_settings(self) -> dict[str, Any]:
        return {"auth": True}

    def test_a_token_is_pasted_once_and_forgotten_at_the_end(
        self, address: str, state: State, scene: Scenery
    ) -> None:
        token = state.tokens.create("ann", Scope.SUBMIT)

        async def play(tab: browsers.Tab) -> None:
            await tab.look(390, 844)
            await tab.open(f"{address}/ui/system")
            assert await tab.run("location.pathname + location.search") == (
                "/ui/login?next=%2Fui%2Fsystem"
            )
            await keep(tab, "login-390")
            assert await tab.run(AUDIT) == []
            tab.loaded.clear()
            await tab.run(f"token.value = {token!r}; document.forms[0].requestSubmit()")
            await asyncio.wait_for(tab.loaded.wait(), 20)
            await settled(tab)
            assert await tab.run("location.pathname") == "/ui/system"
            assert await tab.run("document.cookie") == ""
            assert await tab.run("document.querySelectorAll('[data-post]').length") == 0
            tab.loaded.clear()
            await tab.run("document.querySelector('.who form').requestSubmit()")
            await asyncio.wait_for(tab.loaded.wait(), 20)
            await tab.open(f"{address}/ui/")
            assert await tab.run("location.pathname") == "/ui/login"
            assert tab.errors == []

        use(play)
