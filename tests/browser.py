"""A headless Chromium for tests of pages, spoken to in plain WebDriver."""

import base64
import json
import os
import re
import shutil
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest


def needed_program(name: str) -> str:
    path = shutil.which(name)
    if path is None:
        reason = f"the program '{name}' is not on PATH: the page cannot be tested in a browser"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)
    return path


class Browser:
    """One window."""

    def __init__(self, port: int, chromium: str) -> None:
        self._root = f"http://127.0.0.1:{port}/session"
        arguments = ["--headless", "--no-sandbox", "--disable-gpu", "--window-size=1400,1000"]
        arguments += ["--enable-unsafe-swiftshader"]  # WebGL without a graphics card
        options = {"binary": chromium, "args": arguments}
        wanted = {"alwaysMatch": {"goog:chromeOptions": options, "goog:loggingPrefs": {"browser": "ALL"}}}
        self._root += "/" + self._send("", {"capabilities": wanted})["sessionId"]

    def _send(self, path: str, body: dict[str, Any] | None, method: str = "POST") -> Any:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(
            self._root + path, data, {"Content-Type": "application/json"}, method=method
        )
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return json.load(answer)["value"]
        except urllib.error.HTTPError as error:
            raise RuntimeError(json.load(error)["value"]["message"].splitlines()[0]) from error

    def open(self, page: Path | str) -> None:
        self._send("/url", {"url": page.as_uri() if isinstance(page, Path) else page})

    def run(self, script: str, *arguments: object) -> Any:
        return self._send("/execute/sync", {"script": script, "args": list(arguments)})

    def wait(self, condition: str, seconds: float = 20.0) -> Any:
        """The value of a script as soon as it is true."""
        end = time.monotonic() + seconds
        while not (found := self.run(f"return {condition}")):
            assert time.monotonic() < end, f"never came true: {condition}"
            time.sleep(0.1)
        return found

    def click(self, selector: str) -> None:
        self._send(f"/element/{self._element(selector)}/click", {})

    def type(self, selector: str, keys: str) -> None:
        self._send(f"/element/{self._element(selector)}/value", {"text": keys})

    def _element(self, selector: str) -> str:
        (element,) = self._send("/element", {"using": "css selector", "value": selector}).values()
        return element

    def resize(self, width: int, height: int) -> None:
        self._send("/window/rect", {"width": width, "height": height})

    def screenshot(self, path: Path) -> None:
        path.write_bytes(base64.b64decode(self._send("/screenshot", None, "GET")))

    def complaints(self) -> list[str]:
        entries = self._send("/se/log", {"type": "browser"})
        return [entry["message"] for entry in entries if entry["level"] == "SEVERE"]

    def close(self) -> None:
        self._send("", None, "DELETE")


@contextmanager
def headless() -> Iterator[Browser]:
    """A browser that ends with the block."""
    chromium, driver = needed_program("chromium"), needed_program("chromedriver")
    process = subprocess.Popen([driver, "--port=0"], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        port = next(
            int(found.group(1))
            for line in process.stdout
            if (found := re.search(r"successfully on port (\d+)", line))
        )
        browser = Browser(port, chromium)
        yield browser
        browser.close()
    finally:
        process.terminate()
        process.wait(timeout=30)
