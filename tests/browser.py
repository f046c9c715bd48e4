"""A real browser for tests: Chromium without a window, driven by ChromeDriver in the protocol of W3C WebDriver."""

from __future__ import annotations

import base64
import contextlib
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx

__all__ = ["MISSING", "Browser", "browser"]

DRIVER = shutil.which("chromedriver")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "google-chrome", "chrome", "chromium-browser"))), None)
MISSING = "" if DRIVER and CHROMIUM else "no browser: needs Debian's packages chromium and chromium-driver"
"""Why there is no browser; empty: there is one."""

ARGUMENTS = [
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars",
    "--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream", "--force-device-scale-factor=1",
]  # fmt: skip
ELEMENT = "element-6066-11e4-a52e-4f735466cecf"  # the key under which the protocol names an element
PATIENCE = 60.0  # seconds


class Browser:
    """One window. ``address``: of the driver."""

    def __init__(self, address: str) -> None:
        self._client = httpx.Client(base_url=address, timeout=PATIENCE)
        options = {"binary": CHROMIUM, "args": ARGUMENTS}
        wanted = {"browserName": "chrome", "goog:chromeOptions": options, "goog:loggingPrefs": {"browser": "ALL"}}
        found = self._ask("POST", "/session", capabilities={"alwaysMatch": wanted})
        self._session = f"/session/{found['sessionId']}"

    def _ask(self, method: str, path: str, **body: Any) -> Any:
        answer = self._client.request(method, path, json=body if method == "POST" else None)
        value = answer.json()["value"]
        assert answer.status_code == 200, f"{value['error']}: {value['message']}"
        return value

    def close(self) -> None:
        """Close the window."""
        with contextlib.suppress(httpx.HTTPError):
            self._client.delete(self._session)
        self._client.close()

    def open(self, address: str) -> None:
        """Go to an address, and wait until the page is loaded."""
        self._ask("POST", f"{self._session}/url", url=address)

    def run(self, script: str, *arguments: Any) -> Any:
        """Run the body of an asynchronous function in the page, and return what it returns."""
        code = f"const done = arguments[arguments.length - 1]; (async function () {{ {script} }})"
        code += ".apply(null, arguments).then((value) => done([true, value]), (error) => done([false, `${error}`]))"
        well, value = self._ask("POST", f"{self._session}/execute/async", script=code, args=list(arguments))
        assert well, value
        return value

    def wait(self, expression: str, *arguments: Any) -> Any:
        """Return the value of an expression of the page as soon as it is true."""
        until = time.monotonic() + PATIENCE
        while not (value := self.run(f"return {expression}", *arguments)):
            assert time.monotonic() < until, f"never true: {expression}\n{self.text('body')}\n{self.log()}"
            time.sleep(0.05)
        return value

    def element(self, selector: str) -> str:
        """Return the path of the first element that a selector of CSS finds."""
        found = self._ask("POST", f"{self._session}/element", using="css selector", value=selector)
        return f"{self._session}/element/{found[ELEMENT]}"

    def text(self, selector: str) -> str:
        """Return the text of an element, as it is seen."""
        text: str = self._ask("GET", f"{self.element(selector)}/text")
        return text

    def click(self, selector: str, x: float = 0, y: float = 0) -> None:
        """Click on an element, as a mouse does; ``x`` and ``y``: pixels from its middle."""
        if not (x or y):
            self._ask("POST", f"{self.element(selector)}/click")
            return
        origin = {ELEMENT: self.element(selector).rpartition("/")[2]}
        actions: list[dict[str, Any]] = [{"type": "pointerMove", "origin": origin, "x": round(x), "y": round(y)}]
        actions += [{"type": kind, "button": 0} for kind in ("pointerDown", "pointerUp")]
        self._ask("POST", f"{self._session}/actions", actions=[{"type": "pointer", "id": "mouse", "actions": actions}])

    def type(self, selector: str, text: str) -> None:
        """Type into an element; the paths of files into one that takes files."""
        self._ask("POST", f"{self.element(selector)}/value", text=text)

    def press(self, *keys: str) -> None:
        """Press keys, one after the other, wherever the focus is."""
        actions = [{"type": kind, "value": key} for key in keys for kind in ("keyDown", "keyUp")]
        source = {"type": "key", "id": "keyboard", "actions": actions}
        self._ask("POST", f"{self._session}/actions", actions=[source])

    def role(self, selector: str) -> tuple[str, str]:
        """Return the role and the name that an element has for a screen reader."""
        element = self.element(selector)
        return self._ask("GET", f"{element}/computedrole"), self._ask("GET", f"{element}/computedlabel")

    def command(self, name: str, **parameters: Any) -> Any:
        """Send a command of the browser's own protocol."""
        return self._ask("POST", f"{self._session}/goog/cdp/execute", cmd=name, params=parameters)

    def look(self, *, width: int = 1280, height: int = 900, dark: bool = False, calm: bool = False) -> None:
        """Set the size of the window, and what the user prefers."""
        self.command(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False
        )
        features = [
            {"name": "prefers-color-scheme", "value": "dark" if dark else "light"},
            {"name": "prefers-reduced-motion", "value": "reduce" if calm else "no-preference"},
        ]
        self.command("Emulation.setEmulatedMedia", features=features)

    def screenshot(self, path: Path) -> None:
        """Write what the whole page looks like as PNG."""
        found = self.command("Page.captureScreenshot", format="png", captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(found["data"]))

    def log(self) -> list[str]:
        """Return what the page, or the browser about it, has written to the console since the last call."""
        found = self._ask("POST", f"{self._session}/se/log", type="browser")
        return [f"{each['level']}: {each['message']}" for each in found]


@contextlib.contextmanager
def browser() -> Iterator[Browser]:
    """Give a browser while the context lasts."""
    assert DRIVER is not None
    with subprocess.Popen([DRIVER, "--port=0"], stdout=subprocess.PIPE, text=True) as driver:
        try:
            assert driver.stdout is not None
            lines = iter(driver.stdout.readline, "")
            port = next(found[1] for line in lines if (found := re.search(r"started successfully on port (\d+)", line)))
            opened = Browser(f"http://127.0.0.1:{port}")
            try:
                yield opened
            finally:
                opened.close()
        finally:
            driver.terminate()
