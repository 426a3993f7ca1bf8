"""Headless Chromium, driven over its DevTools protocol."""

from __future__ import annotations

import base64
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

from live_tools import need, wait_for


class Browser:
    """One page."""

    def __init__(self, folder: Path) -> None:
        program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
        need(program is not None, "gst", "chromium is not there (make test prints what to install)")
        from websockets.sync.client import connect

        self._log = (folder / "chromium.log").open("w+")
        self._process = subprocess.Popen(
            [str(program), "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
             "--remote-debugging-port=0", "--no-first-run", "--window-size=1280,860", "--hide-scrollbars",
             f"--user-data-dir={folder / 'profile'}", "about:blank"],
            stdout=self._log, stderr=self._log,
        )  # fmt: skip
        self._number = 0
        found = wait_for(self._address, 60, "Chromium")
        self._context = connect(found, max_size=None, origin=None)
        self._socket = self._context.__enter__()
        target = self._call("Target.createTarget", {"url": "about:blank"})["targetId"]
        self._session = self._call("Target.attachToTarget", {"targetId": target, "flatten": True})["sessionId"]
        self._call("Page.enable")

    def _address(self) -> str | None:
        match = re.search(r"DevTools listening on (ws://\S+)", Path(self._log.name).read_text())
        return match[1] if match else None

    def _call(self, method: str, parameters: dict[str, Any] | None = None) -> Any:
        self._number += 1
        message: dict[str, Any] = {"id": self._number, "method": method, "params": parameters or {}}
        if hasattr(self, "_session"):
            message["sessionId"] = self._session
        self._socket.send(json.dumps(message))
        while True:
            answer = json.loads(self._socket.recv(60))
            if answer.get("id") == self._number:
                assert "error" not in answer, answer
                return answer["result"]

    def open(self, url: str) -> None:
        self._call("Page.navigate", {"url": url})

    def run(self, script: str) -> Any:
        """The value of a JavaScript expression."""
        done = self._call("Runtime.evaluate", {"expression": script, "returnByValue": True, "awaitPromise": True})
        assert "exceptionDetails" not in done, done["exceptionDetails"]
        return done["result"].get("value")

    def until(self, script: str, what: str) -> Any:
        return wait_for(lambda: self.run(script), 60, what)

    def click(self, selector: str) -> None:
        """A real click, in the middle of the element."""
        place = self.run(
            f"(() => {{ const r = document.querySelector({selector!r}).getBoundingClientRect();"
            "return [r.x + r.width / 2, r.y + r.height / 2]; })()"
        )
        for kind in ("mousePressed", "mouseReleased"):
            self._call(
                "Input.dispatchMouseEvent",
                {"type": kind, "x": place[0], "y": place[1], "button": "left", "clickCount": 1},
            )

    def screenshot(self, path: Path) -> None:
        path.write_bytes(base64.b64decode(self._call("Page.captureScreenshot")["data"]))

    def close(self) -> None:
        self._context.__exit__(None, None, None)
        self._process.terminate()
        self._process.wait(20)
        self._log.close()
