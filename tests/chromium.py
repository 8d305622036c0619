"""A real browser for tests: headless Chromium, spoken to in the DevTools protocol through two pipes, a zero byte after each message."""

import base64
import json
import os
import select
import shutil
import subprocess
import time
from pathlib import Path

import pytest

PATH = next((path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None)
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage", "--hide-scrollbars", "--remote-debugging-pipe",
)  # fmt: skip
NEEDED = pytest.mark.skipif(PATH is None, reason="no Chromium on this machine: the page was not opened in a browser")
KEYS = {"Enter": 13, "Escape": 27, "Tab": 9}


class Browser:
    """One page. `complaints`: what its console, its scripts and its content security policy had to say."""

    def __init__(self, profile: Path):
        theirs_in, self.out = os.pipe()
        self.into, theirs_out = os.pipe()
        high = [os.dup(end) for end in (theirs_in, theirs_out)]

        def place():  # the browser reads from descriptor 3 and writes to 4
            for end, wanted in zip([os.dup(os.dup(os.dup(each))) for each in high], (3, 4), strict=True):
                os.dup2(end, wanted)

        command = [PATH, *FLAGS, f"--user-data-dir={profile}", "about:blank"]
        self.process = subprocess.Popen(command, close_fds=False, preexec_fn=place, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        for end in (theirs_in, theirs_out, *high):
            os.close(end)
        self.number, self.held, self.session = 0, b"", None
        self.complaints, self.events = [], []
        target = next(one for one in self.call("Target.getTargets")["targetInfos"] if one["type"] == "page")
        self.session = self.call("Target.attachToTarget", targetId=target["targetId"], flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Accessibility"):
            self.call(f"{domain}.enable")

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.process.kill()
        self.process.wait(10)
        os.close(self.out)
        os.close(self.into)

    def call(self, method, **params):
        """Do something and return its result."""
        self.number += 1
        message = {"id": self.number, "method": method, "params": params} | ({"sessionId": self.session} if self.session else {})
        os.write(self.out, json.dumps(message).encode() + b"\0")
        until = time.monotonic() + 20
        while True:
            found = self.read(until - time.monotonic())
            if found.get("id") == self.number:
                assert "error" not in found, f"{method}: {found['error']}"
                return found["result"]
            self.hear(found)

    def read(self, seconds):
        while b"\0" not in self.held:
            ready, _, _ = select.select([self.into], [], [], max(seconds, 0))
            assert ready, "the browser says nothing"
            self.held += os.read(self.into, 1 << 20)
        message, self.held = self.held.split(b"\0", 1)
        return json.loads(message)

    def hear(self, event):
        params = event.get("params", {})
        if event.get("method") == "Runtime.exceptionThrown":
            self.complaints.append(params["exceptionDetails"].get("exception", {}).get("description", "an exception"))
        if event.get("method") == "Runtime.consoleAPICalled" and params["type"] in ("error", "warning"):
            self.complaints.append(" ".join(str(one.get("value")) for one in params["args"]))
        if event.get("method") == "Log.entryAdded" and params["entry"]["level"] in ("error", "warning"):
            self.complaints.append(params["entry"]["text"])

    def js(self, expression):
        """The value of an expression, waited for where it is a promise."""
        found = self.call("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def until(self, expression, seconds=10):
        """Wait until an expression holds."""
        end = time.monotonic() + seconds
        while not (found := self.js(expression)):
            assert time.monotonic() < end, f"never true: {expression}"
            time.sleep(0.02)
        return found

    def open(self, url, width=1280, height=900, dark=False, ready="true"):
        """Open a page in a window of this size and theme and wait until `ready` holds."""
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        self.theme(dark)
        self.call("Page.navigate", url=url)
        self.until(f"location.href.startsWith({json.dumps(url)}) && document.readyState === 'complete' && {ready}")

    def theme(self, dark):
        self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}])

    def type(self, text):
        """Write text where the focus is."""
        self.call("Input.insertText", text=text)

    def press(self, key):
        """Press a key."""
        text = {"text": "\r"} if key == "Enter" else {}
        for kind in ("keyDown", "keyUp"):
            self.call("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=KEYS[key], **text)

    def click(self, selector):
        """Click in the middle of an element."""
        x, y = self.js(
            f"(() => {{ const e = document.querySelector({json.dumps(selector)}); e.scrollIntoView({{block: 'nearest'}}); "
            "const r = e.getBoundingClientRect(); return [r.x + r.width / 2, r.y + r.height / 2]; })()"
        )
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def choose(self, selector, value):
        """Choose an option of a select."""
        self.js(
            f"(() => {{ const e = document.querySelector({json.dumps(selector)}); e.value = {json.dumps(value)}; "
            "e.dispatchEvent(new Event('change', {bubbles: true})); e.dispatchEvent(new Event('input', {bubbles: true})); })()"
        )

    def names(self):
        """(role, name) of all that a screen reader can come to."""
        nodes = self.call("Accessibility.getFullAXTree")["nodes"]
        return [(one["role"]["value"], one.get("name", {}).get("value", "")) for one in nodes if not one.get("ignored") and one.get("role")]

    def picture(self, path):
        """Write the window as PNG."""
        Path(path).write_bytes(base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"]))
