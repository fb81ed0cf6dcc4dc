"""A headless Chromium that a test can talk to: the DevTools protocol over a pipe, with the standard library alone.

The window can be as narrow as a phone's (a headless window itself cannot), the console and every request are heard, and
what is shown can be looked at as a picture or as print.
"""

import base64
import json
import os
import select
import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage", "--host-resolver-rules=MAP * ~NOTFOUND",
    "--remote-debugging-pipe",
)  # fmt: skip
PATIENCE_S = 60


def find_chromium() -> str | None:
    """The browser's path, or None."""
    return shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


class Browser:
    """One page of one browser. `console` and `requests` hold what was heard since the last `open`."""

    def __init__(self, program: str):
        self._profile = tempfile.mkdtemp(prefix="chromium-")
        to_browser, self._to = os.pipe()
        self._from, from_browser = os.pipe()

        def wire() -> None:
            # The protocol's pipes are file descriptors 3 (commands) and 4 (answers).
            high = [os.dup(fd) for fd in (to_browser, from_browser) for _ in range(4)]
            os.dup2(high[3], 3)
            os.dup2(high[7], 4)

        self._process = subprocess.Popen(
            [program, *FLAGS, f"--user-data-dir={self._profile}", "about:blank"],
            preexec_fn=wire,
            pass_fds=(3, 4),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(to_browser)
        os.close(from_browser)
        self._buffer, self._count, self._session = b"", 0, None
        self.console: list[str] = []
        self.requests: list[str] = []
        targets = self._send("Target.getTargets")["targetInfos"]
        page = next(t["targetId"] for t in targets if t["type"] == "page")
        self._session = self._send("Target.attachToTarget", targetId=page, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self._send(f"{domain}.enable")

    def open(self, page: Path, *, width: int, height: int = 900, dark: bool = False, media: str = "") -> dict[str, str]:
        """Show a page and wait until it says that its charts are drawn; returns its root element's data."""
        self.console, self.requests = [], []
        self._send(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self._send("Emulation.setEmulatedMedia", media=media, features=[scheme])
        self.run("delete document.documentElement.dataset.drawn")
        self._send("Page.navigate", url=page.resolve().as_uri())
        deadline = time.monotonic() + PATIENCE_S
        while time.monotonic() < deadline:
            data = self.run("{...document.documentElement?.dataset}")
            if "drawn" in data:
                return data
            time.sleep(0.1)
        raise AssertionError(f"the charts were not drawn in {PATIENCE_S} s; the console says {self.console}")

    def run(self, script: str) -> Any:
        """The value of a JavaScript expression on the page."""
        answer = self._send("Runtime.evaluate", expression=f"({script})", returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def picture(self, path: Path, *, whole: bool = True) -> None:
        """Write what is shown as a PNG."""
        data = self._send("Page.captureScreenshot", captureBeyondViewport=whole, format="png")["data"]
        path.write_bytes(base64.b64decode(data))

    def print(self, path: Path) -> None:
        """Write the page as a PDF on A4."""
        data = self._send("Page.printToPDF", paperWidth=8.27, paperHeight=11.69, printBackground=True)["data"]
        path.write_bytes(base64.b64decode(data))

    def close(self) -> None:
        """End the browser and remove its profile."""
        self._process.terminate()
        self._process.wait(timeout=PATIENCE_S)
        os.close(self._to)
        os.close(self._from)
        shutil.rmtree(self._profile, ignore_errors=True)

    def _send(self, method: str, **parameters: Any) -> dict[str, Any]:
        self._count += 1
        message = {"id": self._count, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._to, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._next()
            if answer.get("id") == self._count:
                assert "error" not in answer, answer
                return answer["result"]
            self._hear(answer)

    def _hear(self, event: dict[str, Any]) -> None:
        method, said = event.get("method"), event.get("params", {})
        if method == "Runtime.consoleAPICalled" and said["type"] in ("warning", "error", "assert"):
            self.console.append(" ".join(str(a.get("value", a.get("description"))) for a in said["args"]))
        elif method == "Runtime.exceptionThrown":
            thrown = said["exceptionDetails"]
            self.console.append(f"{thrown['text']} {thrown.get('exception', {}).get('description', '')}")
        elif method == "Log.entryAdded" and said["entry"]["level"] in ("warning", "error"):
            self.console.append(said["entry"]["text"])
        elif method == "Network.requestWillBeSent" and not said["request"]["url"].startswith("about:"):
            self.requests.append(said["request"]["url"])

    def _next(self) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            ready, _, _ = select.select([self._from], [], [], PATIENCE_S)
            assert ready, f"the browser did not answer in {PATIENCE_S} s"
            part = os.read(self._from, 1 << 20)
            assert part, "the browser has gone"
            self._buffer += part
        head, self._buffer = self._buffer.split(b"\0", 1)
        return json.loads(head)
