"""A real browser for tests: Chromium, controlled through its debugging pipe (the Chrome DevTools Protocol)."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

PATIENCE_S = 120
"""Long enough for a busy machine; a browser that hangs is still found."""


def chromium() -> str:
    """The browser's program. The test is skipped with a message where there is none."""
    program = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if program is None:
        pytest.skip("no Chromium, so no page was looked at: apt-get install chromium")
    return program


class Browser:
    """One tab. requests: addresses that it asked for, those of the page's own file left out. errors: of scripts."""

    def __init__(self, to: int, answers: int) -> None:
        self._to, self._answers, self._text, self._count = to, os.fdopen(answers, "rb", 0), b"", 0
        self.requests: list[str] = []
        self.errors: list[str] = []
        self._session: str | None = None
        tab = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=tab, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **given: Any) -> Any:
        """Send a command and return its answer. Events that come before are noted."""
        self._count += 1
        message = {"id": self._count, "method": method, "params": given}
        if self._session is not None:
            message["sessionId"] = self._session
        os.write(self._to, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._next()
            if answer.get("id") == self._count:
                assert "error" not in answer, answer
                return answer["result"]
            self._note(answer)

    def _next(self) -> dict[str, Any]:
        while b"\0" not in self._text:
            part = self._answers.read(1 << 20)
            assert part, "the browser has ended"
            self._text += part
        text, _, self._text = self._text.partition(b"\0")
        found: dict[str, Any] = json.loads(text)
        return found

    def _note(self, event: dict[str, Any]) -> None:
        if event["method"] == "Network.requestWillBeSent":
            self.requests.append(event["params"]["request"]["url"])
        if event["method"] == "Runtime.exceptionThrown":
            self.errors.append(str(event["params"]["exceptionDetails"]))

    def look(self, script: str) -> Any:
        """The value of an expression in the page."""
        answer = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def until(self, script: str) -> None:
        """Wait until an expression of the page is true."""
        end = time.monotonic() + PATIENCE_S
        while not self.look(script):
            assert time.monotonic() < end, f"never came true: {script}"
            time.sleep(0.05)

    def open(self, page: Path, width: int, height: int, touch: bool = False) -> None:
        """Open a page in a window of this size and wait until it is drawn."""
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": touch}
        self.call("Emulation.setDeviceMetricsOverride", **size)
        self.call("Emulation.setTouchEmulationEnabled", enabled=touch)
        self.call("Page.navigate", url=page.as_uri())
        self.until("document.body && document.body.dataset.night === '0'")

    def mouse(self, kind: str, x: float, y: float, **more: Any) -> None:
        """kind: Moved, Pressed, Released or Wheel."""
        self.call("Input.dispatchMouseEvent", type=f"mouse{kind}", x=x, y=y, **more)

    def drag(self, start: tuple[float, float], end: tuple[float, float]) -> None:
        """With the left button."""
        self.mouse("Moved", *start)
        self.mouse("Pressed", *start, button="left", clickCount=1)
        self.mouse("Moved", *end, button="left", buttons=1)
        self.mouse("Released", *end, button="left", clickCount=1)

    def touch(self, *places: list[tuple[float, float]]) -> None:
        """Move several fingers from place to place at once, then lift them."""
        kinds = ["touchStart"] + ["touchMove"] * (len(places) - 1)
        for kind, fingers in zip(kinds, places, strict=True):
            points = [{"x": x, "y": y, "id": k} for k, (x, y) in enumerate(fingers)]
            self.call("Input.dispatchTouchEvent", type=kind, touchPoints=points)
        self.call("Input.dispatchTouchEvent", type="touchEnd", touchPoints=[])

    def key(self, *names: str) -> None:
        """Press keys, one after the other."""
        for name in names:
            text = {"text": name} if len(name) == 1 else {}
            self.call("Input.dispatchKeyEvent", type="keyDown", key=name, code=name, **text)
            self.call("Input.dispatchKeyEvent", type="keyUp", key=name, code=name)


@contextmanager
def browsing(folder: Path) -> Iterator[Browser]:
    """A browser that keeps its files in a folder. It ends with the block."""
    from_us, to_it = os.pipe()
    from_it, to_us = os.pipe()

    def third_and_fourth() -> None:  # where the protocol has its pipe
        low, high = os.dup(from_us), os.dup(to_us)
        os.dup2(low, 3)
        os.dup2(high, 4)

    options = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run")
    program = [chromium(), *options, "--remote-debugging-pipe", f"--user-data-dir={folder / 'profile'}"]
    process = subprocess.Popen(
        program,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        close_fds=False,
        preexec_fn=third_and_fourth,
    )
    os.close(from_us)
    os.close(to_us)
    try:
        yield Browser(to_it, from_it)
    finally:
        process.kill()
        process.wait()
        os.close(to_it)
