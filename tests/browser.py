"""A headless Chromium, driven by its DevTools protocol over a pipe: no package is needed."""

from __future__ import annotations

import base64
import io
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
from PIL import Image

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
FLAGS = (
    "--headless", "--no-sandbox", "--no-first-run", "--hide-scrollbars", "--disable-extensions",
    "--disable-background-networking", "--use-gl=angle", "--use-angle=swiftshader",
    "--enable-unsafe-swiftshader", "--disable-dev-shm-usage", "--remote-debugging-pipe",
)  # fmt: skip
PATIENCE = 90.0  # seconds


class Browser:
    """One page. `requests` and `errors` collect what it asked for and what went wrong in it."""

    def __init__(self, read: int, write: int) -> None:
        self.read, self.write = read, write
        self.buffer, self.last = b"", 0
        self.session: str | None = None
        self.requests: list[str] = []
        self.errors: list[str] = []

    def open(self, path: Path, fragment: str = "", width: int = 1400, height: int = 1000) -> None:
        """Load a file in a window of a size, and wait until it has drawn once."""
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self.call("Emulation.setDeviceMetricsOverride", **size)
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.call(f"{domain}.enable")
        self.call("Page.navigate", url=path.resolve().as_uri() + fragment)
        self.wait("document.readyState === 'complete' && location.protocol === 'file:'")
        self.settle()

    def call(self, method: str, **parameters: Any) -> Any:
        """One command and its result; RuntimeError with the browser's words."""
        self.last += 1
        message = {"id": self.last, "method": method, "params": parameters}
        if self.session and not method.startswith("Target."):
            message["sessionId"] = self.session
        os.write(self.write, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._receive()
            if answer.get("id") == self.last:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']}")
                return answer["result"]
            self._note(answer)

    def evaluate(self, script: str) -> Any:
        """The value of a JavaScript expression; promises are awaited."""
        found = self.call("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        if "exceptionDetails" in found:
            raise RuntimeError(f"{script}: {found['exceptionDetails']}")
        return found["result"].get("value")

    def wait(self, condition: str) -> None:
        """Until an expression is true."""
        end = time.monotonic() + PATIENCE
        while not self.evaluate(condition):
            assert time.monotonic() < end, f"still not true: {condition}"
            time.sleep(0.05)

    def settle(self) -> None:
        """Two frames, after which what was asked to be drawn is drawn."""
        self.evaluate("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")

    def click(self, selector: str) -> None:
        self.evaluate(f"document.querySelector({json.dumps(selector)}).click()")
        self.settle()

    def box(self, selector: str) -> dict[str, float]:
        """Place of an element on the page, pixels."""
        script = (
            f"(() => {{ const r = document.querySelector({json.dumps(selector)}).getBoundingClientRect();"
            "return {x: r.x + scrollX, y: r.y + scrollY, width: r.width, height: r.height} })()"
        )
        return self.evaluate(script)

    def mouse(self, kind: str, x: float, y: float, **more: Any) -> None:
        """A mouse event in the window: mouseMoved, mousePressed, mouseReleased or mouseWheel."""
        self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, **more)

    def picture(self, selector: str | None = None) -> Image.Image:
        """What is seen of the page, or of one element."""
        clip = {"clip": self.box(selector) | {"scale": 1}} if selector else {}
        options = {"format": "png", "captureBeyondViewport": True, **clip}
        shot = self.call("Page.captureScreenshot", **options)
        return Image.open(io.BytesIO(base64.b64decode(shot["data"]))).convert("RGB")

    def _receive(self) -> dict[str, Any]:
        while b"\0" not in self.buffer:
            more = os.read(self.read, 1 << 20)
            if not more:
                raise RuntimeError("the browser ended")
            self.buffer += more
        message, _, self.buffer = self.buffer.partition(b"\0")
        return json.loads(message)

    def _note(self, event: dict[str, Any]) -> None:
        parameters = event.get("params", {})
        if event.get("method") == "Network.requestWillBeSent":
            self.requests.append(parameters["request"]["url"])
        elif event.get("method") == "Runtime.exceptionThrown":
            self.errors.append(str(parameters["exceptionDetails"]))
        elif event.get("method") == "Log.entryAdded" and parameters["entry"]["level"] == "error":
            self.errors.append(parameters["entry"]["text"])


@contextmanager
def chromium(profile: Path) -> Iterator[Browser]:
    """A browser with a profile of its own; skips the test where there is none."""
    program = next(filter(None, map(shutil.which, NAMES)), None)
    if program is None:
        pytest.skip("needs Chromium, which is not installed (apt-get install chromium)")
    commands, to_browser = os.pipe()
    from_browser, answers = os.pipe()
    # The browser reads commands from file 3 and answers on file 4.
    script = f'exec "$@" 3<&{commands} 4>&{answers}'
    arguments = ["bash", "-c", script, "bash", program, *FLAGS, f"--user-data-dir={profile}"]
    with open(os.devnull, "w") as nowhere:
        process = subprocess.Popen(arguments, pass_fds=(commands, answers), stdout=nowhere, stderr=nowhere)
    os.close(commands)
    os.close(answers)
    try:
        yield Browser(from_browser, to_browser)
    finally:
        os.close(to_browser)
        process.terminate()
        process.wait(20)
        os.close(from_browser)
