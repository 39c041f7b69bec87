"""A headless Chromium, spoken to over the DevTools protocol."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import itertools
import json
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import aiohttp

_FLAGS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--disable-extensions", "--disable-dev-shm-usage", "--hide-scrollbars",
    "--remote-debugging-port=0",
)  # fmt: skip
_WAIT_S = 60.0


def chromium() -> str | None:
    """The browser's command; None where there is none."""
    for name in ("chromium", "chromium-browser", "google-chrome"):
        if found := shutil.which(name):
            return found
    return None


class GoneError(Exception):
    """The browser has not done what it was asked: the page was left meanwhile."""


class Tab:
    """One page.

    Args:
        browser: that it belongs to.
        session: its id in the protocol.
    """

    def __init__(self, browser: Browser, session: str) -> None:
        self._browser, self._session = browser, session
        self.errors: list[str] = []
        """What the console has said that is an error or a warning."""
        self.hosts: set[str] = set()
        """Hosts that were asked for anything."""
        self.loaded = asyncio.Event()

    async def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Ask the browser."""
        return await self._browser.call(method, parameters, self._session)

    async def open(self, address: str) -> None:
        """Go there, and wait until it is loaded."""
        self.loaded.clear()
        await self.call("Page.navigate", url=address)
        await asyncio.wait_for(self.loaded.wait(), _WAIT_S)

    async def run(self, script: str) -> Any:
        """The value of a script; promises are waited for."""
        answer = await self.call(
            "Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True,
            userGesture=True,
        )  # fmt: skip
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    async def until(self, condition: str, seconds: float = _WAIT_S) -> None:
        """Wait until a script's expression is true, on whichever page the tab is by then."""

        async def look() -> None:
            while True:
                # A page that is left answers nothing more; the next one is asked.
                with contextlib.suppress(GoneError):
                    if await self.run(f"Boolean({condition})"):
                        return
                await asyncio.sleep(0.03)

        try:
            await asyncio.wait_for(look(), seconds)
        except TimeoutError:
            raise AssertionError(f"never true: {condition}") from None

    async def look(self, width: int, height: int, *, dark: bool = False) -> None:
        """The size of the screen, and what the person prefers."""
        await self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1,
            mobile=width < 600,
        )  # fmt: skip
        features = [
            {"name": "prefers-color-scheme", "value": "dark" if dark else "light"},
            {"name": "prefers-reduced-motion", "value": "reduce"},
        ]
        await self.call("Emulation.setEmulatedMedia", features=features)

    async def press(self, key: str, code: int) -> None:
        """Press a key, for example Tab with 9."""
        for kind in ("keyDown", "keyUp"):
            await self.call(
                "Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=code
            )

    async def picture(self, file: Path) -> None:
        """The whole page as a PNG."""
        answer = await self.call("Page.captureScreenshot", captureBeyondViewport=True)
        file.write_bytes(base64.b64decode(answer["data"]))

    def heard(self, method: str, told: dict[str, Any]) -> None:
        """Take an event."""
        if method == "Page.loadEventFired":
            self.loaded.set()
        elif method == "Runtime.exceptionThrown":
            self.errors.append(json.dumps(told["exceptionDetails"]))
        elif method == "Runtime.consoleAPICalled" and told["type"] in ("error", "warning"):
            self.errors.append(json.dumps(told["args"]))
        elif method == "Log.entryAdded" and told["entry"]["level"] in ("error", "warning"):
            self.errors.append(f"{told['entry']['text']} {told['entry'].get('url', '')}")
        elif method == "Network.requestWillBeSent":
            address = urlsplit(told["request"]["url"])
            if address.scheme not in ("data", "blob"):
                self.hosts.add(address.netloc)


class Browser:
    """The protocol's connection."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self._socket = socket
        self._numbers = itertools.count(1)
        self._open: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._tabs: dict[str, Tab] = {}

    async def call(
        self, method: str, parameters: dict[str, Any], session: str | None = None
    ) -> dict[str, Any]:
        """Ask, and wait for the answer."""
        number = next(self._numbers)
        self._open[number] = asyncio.get_running_loop().create_future()
        content = {"id": number, "method": method, "params": parameters}
        await self._socket.send_json(content | ({"sessionId": session} if session else {}))
        return await asyncio.wait_for(self._open[number], _WAIT_S)

    async def listen(self) -> None:
        """Take answers and events until the connection ends."""
        async for message in self._socket:
            content = json.loads(message.data)
            if (number := content.get("id")) is not None:
                future = self._open.pop(number)
                if "error" in content:
                    future.set_exception(GoneError(str(content["error"])))
                else:
                    future.set_result(content["result"])
            elif tab := self._tabs.get(content.get("sessionId", "")):
                tab.heard(content["method"], content["params"])

    async def tab(self) -> Tab:
        """A new page, as of a person of its own."""
        context = await self.call("Target.createBrowserContext", {})
        target = await self.call("Target.createTarget", {"url": "about:blank"} | context)
        attached = await self.call("Target.attachToTarget", target | {"flatten": True})
        tab = Tab(self, attached["sessionId"])
        self._tabs[attached["sessionId"]] = tab
        for part in ("Page", "Runtime", "Log", "Network"):
            await tab.call(f"{part}.enable")
        return tab


@contextlib.asynccontextmanager
async def started() -> AsyncIterator[Browser]:
    """A browser that ends with the context."""
    command = chromium()
    assert command is not None
    with tempfile.TemporaryDirectory(
        prefix="focus-lab-browser-", ignore_cleanup_errors=True
    ) as home:
        process = subprocess.Popen(
            [command, *_FLAGS, f"--user-data-dir={home}", "about:blank"],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
        try:
            address = await asyncio.wait_for(_address(Path(home)), _WAIT_S)
            async with (
                aiohttp.ClientSession() as session,
                session.ws_connect(address, max_msg_size=0, autoping=True) as socket,
            ):
                browser = Browser(socket)
                listening = asyncio.create_task(browser.listen())
                yield browser
                listening.cancel()
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


async def _address(home: Path) -> str:
    """Where the browser listens: it writes it into its folder."""
    file = home / "DevToolsActivePort"
    while not file.is_file() or len(file.read_text().split()) < 2:
        await asyncio.sleep(0.05)
    port, path = file.read_text().split()
    return f"ws://127.0.0.1:{port}{path}"
