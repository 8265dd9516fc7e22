"""A headless Chromium for tests, spoken to through chromedriver's own HTTP protocol: no further package."""

from __future__ import annotations

import argparse
import base64
import functools
import json
import re
import shutil
import subprocess
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
)


CHROMIUMS = ("chromium", "chromium-browser", "google-chrome")


@functools.cache
def installed() -> str | None:
    """A browser on PATH of the kind that chromedriver drives."""
    return next((name for name in CHROMIUMS if shutil.which(name)), None)


def missing() -> str:
    """What is not there of a Chromium and chromedriver, or ""."""
    names = [] if installed() else ["chromium"]
    names += [] if shutil.which("chromedriver") else ["chromedriver"]
    return f"no {' and no '.join(names)} on PATH: no page was opened in a browser" if names else ""


class Browser:
    def __init__(self, url: str, session: str) -> None:
        self._url, self._session = url, session

    def call(self, path: str, body: Any = None) -> Any:
        return _call(f"{self._url}/session/{self._session}/{path}", body)

    def devtools(self, command: str, **parameters: Any) -> Any:
        return self.call("goog/cdp/execute", {"cmd": command, "params": parameters})

    def run(self, script: str) -> Any:
        return self.call("execute/sync", {"script": script, "args": []})

    def open(self, page: Path, *, width: int, dark: bool = False) -> None:
        """Open a file as a device of this width shows it, and wait until its figures are drawn."""
        self.devtools(
            "Emulation.setDeviceMetricsOverride",
            width=width, height=900, deviceScaleFactor=1, mobile=width < 600,
        )  # fmt: skip
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.devtools("Emulation.setEmulatedMedia", features=[scheme])
        self.call("url", {"url": page.resolve().as_uri()})
        deadline = time.monotonic() + 60
        while not self.run("return document.documentElement.dataset.drawn"):
            assert time.monotonic() < deadline, f"figures were not drawn in 60 s: {self.errors()}"
            time.sleep(0.1)

    def check(self, page: Path, *, width: int, dark: bool = False, webgl: str = "") -> list[str]:
        """Open a report and see that all of it is there: figures drawn inside the page, pictures, a quiet console.

        Args:
          webgl: a figure drawn by WebGL, which leaves no marks and which a headless browser computes, and says so.

        Returns:
          The names of its figures.
        """
        self.open(page, width=width, dark=dark)
        slow = ("swiftshader", "GL Driver") if webgl else ()
        assert [text for text in self.errors() if not any(word in text for word in slow)] == []
        names = self.run("return Object.keys(JSON.parse(document.getElementById('figures').textContent))")
        for name in names:
            own = self.run(
                f"const own = document.getElementById('figure-{name}');"
                "const box = own.querySelector('.main-svg').getBoundingClientRect();"
                "const marks = '.trace path, .trace rect, .point path, .points path';"
                "return [box.width, box.right, own.querySelectorAll(marks).length]"
            )
            assert own[0] > 200, name
            assert own[1] <= width, name
            assert own[2] > 0 or name == webgl, name
        assert self.run("return document.scrollingElement.scrollWidth") <= width
        assert self.run("return [...document.images].filter((image) => !image.naturalWidth).length") == 0
        return names

    def errors(self) -> list[str]:
        """Console messages of level warning and up since the last call, uncaught exceptions among them."""
        entries = self.call("se/log", {"type": "browser"})
        return [entry["message"] for entry in entries if entry["level"] in ("WARNING", "SEVERE")]

    def screenshot(self, path: Path, *, top: float = 0, height: float | None = None) -> None:
        """PNG of the page from `top`, all of it by default."""
        size = self.devtools("Page.getLayoutMetrics")["cssContentSize"]
        clip = {
            "x": 0, "y": top, "width": size["width"], "height": height or size["height"] - top, "scale": 1,
        }  # fmt: skip
        shot = self.devtools("Page.captureScreenshot", captureBeyondViewport=True, clip=clip)
        path.write_bytes(base64.b64decode(shot["data"]))


def _call(url: str, body: Any = None, method: str | None = None) -> Any:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"}, method=method)
    with urllib.request.urlopen(request, timeout=120) as answer:
        return json.load(answer)["value"]


@contextmanager
def browser() -> Iterator[Browser]:
    """A browser with a profile of its own, gone afterwards."""
    with (
        tempfile.TemporaryDirectory(prefix="chromium-", ignore_cleanup_errors=True) as profile,
        _driver() as url,
    ):
        options = {
            "args": [*FLAGS, f"--user-data-dir={profile}"],
            "binary": shutil.which(installed() or ""),
        }
        wanted = {"goog:chromeOptions": options, "goog:loggingPrefs": {"browser": "ALL"}}
        session = _call(f"{url}/session", {"capabilities": {"alwaysMatch": wanted}})["sessionId"]
        try:
            yield Browser(url, session)
        finally:
            _call(f"{url}/session/{session}", method="DELETE")


@contextmanager
def _driver() -> Iterator[str]:
    """URL of a chromedriver, which ends at once where another process was quicker to take its port."""
    said = ""
    for _ in range(3):
        with subprocess.Popen(
            ["chromedriver", "--port=0"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        ) as driver:
            try:
                assert driver.stdout is not None
                for line in driver.stdout:
                    said += line
                    if found := re.search(r"started successfully on port (\d+)", line):
                        yield f"http://127.0.0.1:{found[1]}"
                        return
            finally:
                driver.terminate()
    raise RuntimeError(f"chromedriver did not start: {said}")


if __name__ == "__main__":  # python tests/browser.py RUN/report.html picture.png --height 1500
    parser = argparse.ArgumentParser(description="Screenshot of a report.")
    parser.add_argument("page", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--width", type=int, default=1400)
    parser.add_argument("--top", type=float, default=0)
    parser.add_argument("--height", type=float)
    parser.add_argument("--dark", action="store_true")
    options = parser.parse_args()
    with browser() as chromium:
        chromium.open(options.page, width=options.width, dark=options.dark)
        chromium.screenshot(options.out, top=options.top, height=options.height)
