"""A real Chromium for tests of pages, driven over its DevTools protocol. Needs ``chromium`` and aiohttp."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import itertools
import os
import shutil
import subprocess
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome")
_FLAGS = (
    "--headless=new", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--disable-extensions", "--disable-dev-shm-usage",
    "--hide-scrollbars", "--force-color-profile=srgb", "--mute-audio", "--remote-debugging-port=0",
)  # fmt: skip
_START = 60.0


def chromium() -> str:
    """Path of a Chromium; skips the test without one."""
    pytest.importorskip("aiohttp", reason="needs aiohttp")
    path = next((p for n in NAMES if (p := shutil.which(n))), None)
    if path is None:
        pytest.skip("needs Chromium: install the package chromium")
    return path


class Browser:
    """One process with a profile of its own. ``with`` it; ``page`` opens a tab."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._folder = tempfile.TemporaryDirectory(prefix="chromium-", ignore_cleanup_errors=True)
        self._loop = asyncio.new_event_loop()
        self._numbers = itertools.count(1)
        self._answers: dict[int, asyncio.Future[Any]] = {}
        self._pages: dict[str, Page] = {}

    def __enter__(self) -> Browser:
        flags = [*_FLAGS, f"--user-data-dir={self._folder.name}"]
        if os.geteuid() == 0:
            flags.append("--no-sandbox")
        self._process = subprocess.Popen(
            [self._path, *flags, "about:blank"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        threading.Thread(target=self._loop.run_forever, daemon=True).start()
        try:
            port, path = self._where()
            self._run(self._connect(f"ws://127.0.0.1:{port}{path}"))
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(Exception):
            self.call("Browser.close")
        self._end()

    def _end(self) -> None:
        with contextlib.suppress(Exception):
            self._run(self._disconnect())
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._folder.cleanup()

    def _where(self) -> tuple[str, str]:
        file = Path(self._folder.name) / "DevToolsActivePort"
        end = time.monotonic() + _START
        while time.monotonic() < end:
            if file.is_file() and len(lines := file.read_text().split("\n")) >= 2:
                return lines[0], lines[1]
            if self._process.poll() is not None:
                raise RuntimeError(f"{self._path} ended with {self._process.returncode}")
            time.sleep(0.05)
        raise RuntimeError(f"{self._path} did not start in {_START:g} s")

    async def _connect(self, url: str) -> None:
        import aiohttp

        self._session = aiohttp.ClientSession()
        self._socket = await self._session.ws_connect(url, max_msg_size=0)
        self._listener = asyncio.ensure_future(self._listen())

    async def _disconnect(self) -> None:
        self._listener.cancel()
        await self._session.close()

    async def _listen(self) -> None:
        async for message in self._socket:
            said = message.json()
            if "id" in said:
                answer = self._answers.pop(said["id"], None)
                if answer is not None and not answer.done():
                    answer.set_result(said)
            elif (page := self._pages.get(said.get("sessionId", ""))) is not None:
                page._event(said["method"], said["params"])

    def _run(self, coroutine: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(120)

    def call(self, method: str, session: str | None = None, **params: Any) -> dict[str, Any]:
        """A command of the protocol; raises RuntimeError with what the browser says against it."""

        async def send() -> Any:
            number = next(self._numbers)
            self._answers[number] = answer = self._loop.create_future()
            message = {"id": number, "method": method, "params": params}
            await self._socket.send_json(message if session is None else {**message, "sessionId": session})
            return await answer

        said = self._run(send())
        if "error" in said:
            raise RuntimeError(f"{method}: {said['error']['message']}")
        return dict(said["result"])

    def page(
        self, size: tuple[int, int] = (1280, 800), *, phone: bool = False, dark: bool = True, scale: float = 1.0
    ) -> Page:
        """A new tab of that size in CSS pixels; phone: with touch."""
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        page = self._pages[session] = Page(self, session)
        for domain in ("Page", "Runtime", "Log", "Network"):
            page.call(f"{domain}.enable")
        page.call(
            "Emulation.setDeviceMetricsOverride", width=size[0], height=size[1], deviceScaleFactor=scale, mobile=phone
        )
        page.call("Emulation.setTouchEmulationEnabled", enabled=phone)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        page.call("Emulation.setEmulatedMedia", features=[scheme])
        return page


class Page:
    """A tab. errors: what the console, scripts and the network complained about."""

    def __init__(self, browser: Browser, session: str) -> None:
        self._browser = browser
        self._session = session
        self.errors: list[str] = []
        self.urls: list[str] = []

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        return self._browser.call(method, self._session, **params)

    def _event(self, method: str, params: dict[str, Any]) -> None:
        if method == "Runtime.exceptionThrown":
            details = params["exceptionDetails"]
            self.errors.append(str(details.get("exception", {}).get("description", details["text"])))
        elif method == "Runtime.consoleAPICalled" and params["type"] in ("error", "warning", "assert"):
            self.errors.append(str([a.get("value", a.get("description")) for a in params["args"]]))
        elif method == "Log.entryAdded" and params["entry"]["level"] in ("error", "warning"):
            entry = params["entry"]
            self.errors.append(f"{entry['text']} {entry.get('url', '')}")
        elif method == "Network.requestWillBeSent":
            self.urls.append(params["request"]["url"])

    def goto(self, url: str) -> None:
        self.call("Page.navigate", url=url)
        self.wait("document.readyState === 'complete' && location.href !== 'about:blank'")

    def js(self, expression: str) -> Any:
        """The value of an expression; a promise is awaited."""
        said = self.call("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        if "exceptionDetails" in said:
            raise RuntimeError(str(said["exceptionDetails"].get("exception", said["exceptionDetails"])))
        return said["result"].get("value")

    def wait(self, expression: str, timeout: float = 60.0) -> Any:
        """Until the expression is true; returns its value."""
        end = time.monotonic() + timeout
        while time.monotonic() < end:
            with contextlib.suppress(RuntimeError):  # the document may be on its way out
                if value := self.js(expression):
                    return value
            time.sleep(0.05)
        raise AssertionError(f"did not become true in {timeout:g} s: {expression}; errors: {self.errors}")

    def mouse(self, *moves: tuple[str, float, float]) -> None:
        """moves: ("Pressed" | "Moved" | "Released", x, y), with the left button."""
        for kind, x, y in moves:
            self.call("Input.dispatchMouseEvent", type=f"mouse{kind}", x=x, y=y, button="left", buttons=1, clickCount=1)

    def touch(self, *points: tuple[float, float]) -> None:
        """A finger that goes down at the first point, along the others, and up."""
        for i, (x, y) in enumerate(points):
            kind = "touchMove" if i else "touchStart"
            self.call("Input.dispatchTouchEvent", type=kind, touchPoints=[{"x": x, "y": y}])
        self.call("Input.dispatchTouchEvent", type="touchEnd", touchPoints=[])

    def key(self, name: str, code: int) -> None:
        for kind in ("rawKeyDown", "keyUp"):
            self.call("Input.dispatchKeyEvent", type=kind, key=name, code=name, windowsVirtualKeyCode=code)

    def screenshot(self, path: Path, *, full: bool = False) -> None:
        said = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=full)
        path.write_bytes(base64.b64decode(said["data"]))
