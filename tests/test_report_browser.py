"""The report in a real browser: headless Chromium opens it, sorts its table by clicking, and must have nothing to complain about.

A copy of the page, in a frame of the wanted width, gets a script that plays the reader and tells the frame's page what it saw, which
`--dump-dom` prints. The copy's content security policy allows that script beside the page's own.
"""

import html
import json
import re
import shutil
import subprocess

import pytest

import synthetic_records as synthetic
from graft.compare.report import write_report

CHROMIUM = next((path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None)
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage", "--hide-scrollbars", "--window-size=1400,1000",
    "--virtual-time-budget=3000", "--dump-dom",
)  # fmt: skip
WATCH = """
window.saw = {errors: []};
window.addEventListener("error", event => saw.errors.push(String(event.message)));
document.addEventListener("securitypolicyviolation", event => saw.errors.push("refused " + event.blockedURI));
for (const kind of ["error", "warn"]) console[kind] = (...words) => saw.errors.push(words.join(" "));
"""
READER = """
const table = document.querySelector("table.numbers");
const column = name => [...table.tHead.rows[0].cells].findIndex(cell => cell.innerText.replace(/\\s+/g, " ").trim().startsWith(name));
const cells = at => [...table.tBodies[0].rows].map(row => row.cells[at].dataset.v ?? null);
const click = name => {
  const at = column(name);
  table.tHead.rows[0].cells[at].querySelector("button").click();
  return {values: cells(at), state: table.tHead.rows[0].cells[at].ariaSort, others: table.querySelectorAll("th[aria-sort]").length};
};
saw.first = cells(column("Score"));
saw.clicks = ["Trainable parameters", "Trainable parameters", "Score", "Score", "Method", "Latency merged"].map(click);
saw.sorted = document.getElementById("sorted").textContent;
const button = table.tHead.querySelector("button");
button.focus();
saw.focused = document.activeElement === button;
saw.width = window.innerWidth;
saw.overflow = document.documentElement.scrollWidth - window.innerWidth;
const inner = table.parentElement;
saw.scrolls = inner.scrollWidth > inner.clientWidth;
inner.scrollLeft = 200;
saw.sticky = table.tBodies[0].rows[0].cells[0].getBoundingClientRect().left - inner.getBoundingClientRect().left;
const shown = [...document.querySelectorAll(".plots svg")].filter(each => each.getBoundingClientRect().width > 0);
saw.plots = shown.map(each => Math.round(each.getBoundingClientRect().width));
saw.inks = shown.slice(0, 1).map(each => getComputedStyle(each.querySelector("text")).fill);
saw.paper = getComputedStyle(document.body).backgroundColor;
saw.headline = document.querySelector("h1").innerText;
parent.postMessage(JSON.stringify(saw), "*");
"""

# A window cannot be as narrow as a phone, a frame can.
FRAME = """<!doctype html><meta name="color-scheme" content="light dark"><pre id="saw"></pre>
<script>window.addEventListener("message", event => { document.getElementById("saw").textContent = event.data; });</script>
<iframe src="watched.html" style="width: %dpx; height: 900px; border: 0"></iframe>"""

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine: the report was not opened in a browser")


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    folder = synthetic.write(tmp_path_factory.mktemp("run"), synthetic.records())
    text = write_report(folder).read_text()
    text = re.sub(r"script-src '[^']+'", "script-src 'unsafe-inline'", text)
    text = text.replace("<style>", f"<script>{WATCH}</script><style>", 1).replace("</body>", f"<script>{READER}</script></body>")
    copy = folder / "watched.html"
    copy.write_text(text)
    return copy


def read(page, tmp_path, width, scheme):
    frame = page.with_name(f"frame-{width}.html")
    frame.write_text(FRAME % width)
    command = [
        CHROMIUM,
        *FLAGS,
        f"--user-data-dir={tmp_path / 'profile'}",
        f"--blink-settings=preferredColorScheme={scheme}",
        frame.as_uri(),
    ]
    dom = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout
    found = re.search(r'<pre id="saw">(.+?)</pre>', dom, re.S)
    assert found, "the page's script did not run to its end"
    return json.loads(html.unescape(found[1]))


@pytest.mark.parametrize(("width", "scheme", "paper"), [(1280, 1, "rgb(247, 248, 246)"), (390, 0, "rgb(18, 21, 19)")])
def test_the_report_works_in_a_browser(page, tmp_path, width, scheme, paper):
    saw = read(page, tmp_path, width, scheme)
    assert saw["errors"] == []
    assert saw["headline"].startswith("Use IA3")
    assert saw["paper"] == paper
    assert saw["width"] == width
    assert saw["overflow"] <= 0
    assert saw["scrolls"] or width > 1200
    assert abs(saw["sticky"]) < 3
    assert saw["focused"]
    assert len(saw["plots"]) == 5
    assert all(200 < each <= saw["width"] for each in saw["plots"])
    assert saw["inks"] != ["rgb(0, 0, 0)"]
    check_sorting(saw)


def check_sorting(saw):
    def numbers(values):
        return [float(value) for value in values if value is not None]

    up, down, worst, best, names, merged = saw["clicks"]
    assert numbers(saw["first"]) == sorted(numbers(saw["first"]), reverse=True)
    assert numbers(up["values"]) == sorted(numbers(up["values"]))
    assert up["state"] == "ascending"
    assert numbers(down["values"]) == sorted(numbers(down["values"]), reverse=True)
    assert down["state"] == "descending"
    assert numbers(worst["values"]) == sorted(numbers(worst["values"]), reverse=True)
    assert numbers(best["values"]) == sorted(numbers(best["values"]))
    assert {"LoRA", "IA3"} <= set(names["values"])
    assert all(click["others"] == 1 for click in saw["clicks"])
    absent = [value is None for value in merged["values"]]
    assert any(absent)
    assert absent == sorted(absent)
    assert saw["sorted"] == "Sorted by Latency merged, ascending."
