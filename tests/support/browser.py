"""Headless Chromium, driven through the pipe of its DevTools protocol with the standard library."""

import base64
import json
import os
import select
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
PROGRAM = next((path for name in NAMES if (path := shutil.which(name))), None)
FLAGS = (
    "--headless=new", "--no-sandbox", "--no-first-run", "--disable-extensions",
    "--use-gl=angle", "--use-angle=swiftshader", "--enable-unsafe-swiftshader",
    "--remote-debugging-pipe",
)  # fmt: skip


class Browser:
    """One page of a browser; `with Browser(folder) as browser`.

    Args:
        folder: for the browser's own files.
        patience_s: how long a wait may last before it is an error.
    """

    def __init__(self, folder: Path, patience_s: float = 120.0) -> None:
        self.patience_s = patience_s
        self.errors: list[str] = []
        self.requests: list[str] = []
        self._folder = folder
        self._count = 0
        self._rest = b""
        self._session: str | None = None

    def __enter__(self) -> "Browser":
        theirs_in, self._out = os.pipe()
        self._in, theirs_out = os.pipe()
        # The browser reads file 3 and writes file 4. A shell moves the pipes there.
        script = f'exec "$0" "$@" 3<&{theirs_in} 4>&{theirs_out}'
        self._process = subprocess.Popen(
            ["bash", "-c", script, str(PROGRAM), *FLAGS, f"--user-data-dir={self._folder}"],
            pass_fds=(theirs_in, theirs_out),
            stderr=subprocess.DEVNULL,
        )
        os.close(theirs_in)
        os.close(theirs_out)
        target = self._call("Target.createTarget", url="about:blank")["targetId"]
        attached = self._call("Target.attachToTarget", targetId=target, flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self._call(f"{domain}.enable")
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._process.wait(30)
        os.close(self._in)
        os.close(self._out)

    def _call(self, method: str, **parameters: Any) -> dict[str, Any]:
        self._count += 1
        message = {"id": self._count, "method": method, "params": parameters}
        if self._session is not None:
            message["sessionId"] = self._session
        os.write(self._out, json.dumps(message).encode() + b"\0")
        until = time.monotonic() + self.patience_s
        while True:
            while b"\0" in self._rest:
                line, _, self._rest = self._rest.partition(b"\0")
                found = json.loads(line)
                if found.get("id") == self._count:
                    assert "error" not in found, f"{method}: {found['error']}"
                    return found["result"]
                self._note(found)
            if not select.select([self._in], [], [], max(0, until - time.monotonic()))[0]:
                raise TimeoutError(f"{method}: no answer")
            part = os.read(self._in, 2**20)
            if not part:
                raise RuntimeError(f"{PROGRAM} ended with {self._process.poll()}")
            self._rest += part

    def _note(self, event: dict[str, Any]) -> None:
        method, found = event.get("method"), event.get("params", {})
        if method == "Runtime.exceptionThrown":
            self.errors.append(str(found["exceptionDetails"]))
        elif method == "Log.entryAdded" and found["entry"]["level"] == "error":
            self.errors.append(found["entry"]["text"])
        elif method == "Network.requestWillBeSent":
            self.requests.append(found["request"]["url"])

    def open(self, page: Path, width: int, height: int, fragment: str = "") -> None:
        """Open a file in a window of this size; a narrow one is a phone with touch."""
        self._call(
            "Emulation.setDeviceMetricsOverride",
            width=width, height=height, deviceScaleFactor=1, mobile=width < 600,
        )  # fmt: skip
        self._call("Page.navigate", url="about:blank")  # else another fragment loads nothing
        self._call("Page.navigate", url=page.as_uri() + fragment)
        self.wait("location.protocol === 'file:' && document.readyState === 'complete'")

    def value(self, expression: str) -> Any:
        """Return the value of a JavaScript expression."""
        found = self._call(
            "Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True
        )
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def wait(self, expression: str) -> Any:
        """Return the value of an expression as soon as it is true."""
        until = time.monotonic() + self.patience_s
        while not (found := self.value(expression)):
            if time.monotonic() > until:
                raise TimeoutError(f"{expression}: still {found!r}; errors: {self.errors}")
            time.sleep(0.1)
        return found

    def click(self, selector: str) -> None:
        """Scroll an element into view and click on its middle."""
        where = json.dumps(selector)
        x, y = self.value(
            f"(() => {{const e = document.querySelector({where}); e.scrollIntoView("
            "{block: 'center', inline: 'center'}); const b = e.getBoundingClientRect();"
            "return [b.x + b.width / 2, b.y + b.height / 2]})()"
        )
        self.press(x, y)

    def press(self, x: float, y: float) -> None:
        """Click on a place of the window."""
        for kind in ("mousePressed", "mouseReleased"):
            self._call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def picture(self, *, whole: bool = False) -> bytes:
        """Return the window, or the whole page, as a PNG."""
        found = self._call("Page.captureScreenshot", captureBeyondViewport=whole)
        return base64.b64decode(found["data"])
