"""The pictures of docs/serving.md: the playground (light while it streams, dark on a narrow screen) and a terminal with `graft chat`.

    graft serve smollm2 --adapters runs/till &
    python scripts/pictures.py --url http://127.0.0.1:8000 --first till-lora --second till-prefix

Needs Chromium, a server, and two adapters trained on the demo's orders; tests/chromium.py drives the browser.
"""

import argparse
import io
import sys
import tempfile
import time
from pathlib import Path

from PIL import Image
from rich.console import Console
from rich.terminal_theme import TerminalTheme
from rich.text import Text

from graft.chat.remote import Remote
from graft.chat.session import Session

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from chromium import Browser  # noqa: E402

ORDERS = ("Could you do two large oat lattes for Mia?", "Omar wants 3 small teas.")
PAPER, INK = (26, 30, 27), (233, 236, 233)  # graft.theme's dark card
COLOURS = [(18, 21, 19), (217, 110, 96), (111, 211, 160), (243, 200, 120), (89, 180, 236), (228, 140, 192), (120, 200, 200), INK]
THEME = TerminalTheme(PAPER, INK, COLOURS, COLOURS)


def terminal(url, first, second):
    """A session as SVG."""
    console = Console(record=True, width=92, file=io.StringIO(), color_system="truecolor")
    lines = [ORDERS[0], f"/adapter {first}", "/retry", "/reset", ORDERS[1], f"/both {first} {second}", "/adapters"]

    def read(prompt):
        if not lines:
            raise EOFError
        line = lines.pop(0)
        console.print(Text(prompt, style="bold green"), Text(line), sep="")
        return line

    session = Session(Remote(url), console, read)
    session.take("/set max_tokens 16")
    console.export_text()  # forget what was said so far
    session.run()
    return console.export_svg(title="graft chat", theme=THEME)


def shots(browser, url, first, second, folder):
    """The playground, wide and narrow."""
    ready = "!document.getElementById('composer').hidden"
    for name, width, height, dark in (("playground", 1180, 860, False), ("playground-narrow", 400, 760, True)):
        browser.open(url, width, height, dark, ready)
        browser.choose("#model-a", first)
        browser.choose("#model-b", second)
        for order in ORDERS:
            browser.type(order)
            browser.press("Enter")
            browser.until("document.getElementById('send').hidden")
            if order == ORDERS[1] and not dark:
                browser.until("[...document.querySelectorAll('.turn:last-child .text')].every(each => each.textContent.length > 6)")
                break
            browser.until("!document.getElementById('send').hidden", 60)
        browser.picture(folder / f"{name}.png")


def shrink(path):
    """Write a picture again with as many colours as it needs, in a quarter of the bytes."""
    Image.open(path).convert("RGB").quantize(96).save(path, optimize=True)


def main():
    """Write all pictures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    parser.add_argument("--first", default="till-lora")
    parser.add_argument("--second", default="till-prefix")
    parser.add_argument("--output", type=Path, default=ROOT / "docs" / "serving")
    arguments = parser.parse_args()
    arguments.output.mkdir(parents=True, exist_ok=True)
    svg = terminal(arguments.url, arguments.first, arguments.second)
    with tempfile.TemporaryDirectory() as profile, Browser(Path(profile)) as browser:
        page = Path(profile) / "chat.svg"
        page.write_text(svg)
        browser.open(page.as_uri(), 1180, 760)
        size = browser.js("(() => { const b = document.documentElement.viewBox.baseVal; return [b.width, b.height]; })()")
        browser.open(page.as_uri(), 1180, round(1180 * size[1] / size[0]))
        time.sleep(0.5)
        browser.picture(arguments.output / "chat.png")
        base = Remote(arguments.url).models()[0].name
        shots(browser, arguments.url, arguments.first, base, arguments.output)
    for name in ("chat", "playground", "playground-narrow"):
        shrink(arguments.output / f"{name}.png")


if __name__ == "__main__":
    main()
