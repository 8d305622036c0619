"""The report: it recommends what the records say, what is missing never breaks it, and nothing hostile gets through."""

import re
from html.parser import HTMLParser

import numpy as np
import pytest

import synthetic_records as synthetic
from graft.compare import records
from graft.compare.records import read
from graft.compare.report import recommendation, summary_table, write_report
from graft.compare.report.summary import summarise
from graft.compare.report.verdict import headline
from synthetic_records import PLAN, RUN


class Page(HTMLParser):
    """Collects a page's tags, ids, text, and whether its tags close in order."""

    VOID = frozenset(("meta", "link", "br", "img", "input"))

    def __init__(self, text):
        super().__init__()
        self.tags, self.ids, self.words, self.open, self.references = [], [], [], [], []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        found = dict(attrs)
        self.tags.append((tag, found))
        self.ids += [found["id"]] if "id" in found else []
        self.references += [value for key, value in attrs if key in ("src", "href", "xlink:href") and not value.startswith(("#", "data:"))]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in self.VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if not self.open or self.open[-1] not in ("script", "style"):
            self.words.append(data)

    @property
    def text(self):
        return " ".join(" ".join(self.words).replace("\u00a0", " ").split())


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = synthetic.write(tmp_path_factory.mktemp("run"), synthetic.records())
    write_report(folder)
    return folder


@pytest.fixture(scope="module")
def html(run):
    return (run / "report.html").read_text()


# what the numbers say


def test_the_cheapest_method_that_ties_is_recommended(run):
    summary = summarise(read(run))
    assert [row.score for row in summary.rows] == sorted((row.score for row in summary.rows), reverse=True)
    assert summary.best is summary.rows[0]
    assert summary.best.method in ("dora", "full", "lora-r32", "lora")
    assert summary.pick.method == "ia3"
    assert {"lora", "dora", "ia3"} <= {row.method for row in summary.tied}
    assert "prompt" not in {row.method for row in summary.tied}
    what, why = headline(summary)
    assert what == "Use IA3"
    assert re.fullmatch(r"its [\d.]+% exact match ties with the best, \S+ [\d.]+%, and it trains \d+ times fewer parameters\.", why)


def test_rows_average_seeds_and_keep_the_largest_memory(run):
    row = next(row for row in summarise(read(run)).rows if row.method == "lora")
    assert len(row.runs) == 2
    assert row.score == pytest.approx(np.mean([np.mean(each.per_item) for each in row.runs]))
    assert row.memory == 1_981_000_000
    assert row.trainable == 2_442_240
    assert row.low < row.score < row.high


def test_what_did_not_run_is_told(run):
    told = [(each.what, each.status) for each in summarise(read(run)).missing]
    assert ("Full, trial at learning rate 1.5e-4", "failed") in told
    assert ("loftq", "failed") in told
    assert ("Head", "skipped") in told


def test_a_baseline_that_wins_is_recommended(tmp_path):
    items = ([1.0] * 9 + [0.0]) * 5
    found = [PLAN, {**RUN, "per_item": [0.0] * 50, "score": 0.0, "metric": "accuracy", "trainable_parameters": 10},
             {**RUN, "run": "zero-shot", "method": "zero-shot", "role": "baseline", "per_item": items, "score": 0.9}]  # fmt: skip
    synthetic.write(tmp_path, found)
    text = recommendation(read(tmp_path))
    assert text == "Keep the base model, zero-shot: at 90.0% accuracy no tuned method did better beyond doubt."


def test_scores_of_zero_recommend_nothing(tmp_path):
    found = [PLAN] + [
        {**RUN, "run": name, "method": name, "metric": "accuracy", "score": 0.0, "per_item": [0.0] * 9} for name in ("lora", "ia3")
    ]
    synthetic.write(tmp_path, found)
    assert recommendation(read(tmp_path)).startswith("Nothing to recommend: every method that finished scores 0.0% accuracy")


def test_a_method_skipped_on_every_seed_is_told_once(tmp_path):
    skip = {"kind": "run", "method": "lora", "role": "final", "status": "skipped", "reason": "no trial finished"}
    synthetic.write(tmp_path, [PLAN] + [{**skip, "run": f"lora/seed-{seed}"} for seed in range(3)])
    assert len(summarise(read(tmp_path)).missing) == 1


def test_losses_rank_the_other_way(tmp_path):
    found = [PLAN] + [
        {**RUN, "run": f"{name}/seed-0", "method": name, "metric": "loss", "score": level, "per_item": [level, level + 0.01] * 20}
        for name, level in (("lora", 2.0), ("ia3", 1.0))
    ]
    synthetic.write(tmp_path, found)
    summary = summarise(read(tmp_path))
    assert summary.best.method == "ia3"
    assert summary.rows[1].gap[0] == pytest.approx(1.0)
    write_report(tmp_path)
    assert "1.000 loss" in (tmp_path / "report.md").read_text()


# the page


def test_the_page_is_whole_small_and_alone(run, html):
    page = Page(html)
    assert page.open == []
    assert len(html.encode()) < 1_000_000
    assert len(page.ids) == len(set(page.ids))
    assert page.references == []
    assert not re.search(r"url\((?!#)|@import|https?://(?!www\.w3\.org/)", html)
    assert sum(tag == "h1" for tag, _ in page.tags) == 1
    assert all(found.get("aria-label") or found.get("aria-hidden") for tag, found in page.tags if tag == "svg")
    assert not re.search(r"#fe0[12]\w\w", html)
    assert "DejaVu" not in html


def test_the_page_says_what_matters(html):
    text = Page(html).text
    for words in (
        "Use IA3 : its", "SmolLM2-135M-Instruct", "dequantised from Q4_1", "500 test rows", "2,442,240", "1.8%", "0.043%", "In-context",
        "8 examples",
        "134,515,008", "Zero-shot", "9.8 MB", "2.31 GB", "1e-3", "dashed lines are the base model",
        "out of memory: tried to allocate 2.1 GB",
        "graft compare --model smollm2 --data train.jsonl", "every linear layer of attention and MLP", "Merges into the model’s weights",
        "3 learning-rate trials, then 2 seeds", "2 cores, Intel Xeon, 24 GB", "torch 2.13.0", "3 test rows ask what a training row asks",
    ):  # fmt: skip
        assert words in text, words
    assert "This is a demo" not in text


def test_hostile_strings_stay_text(run, html):
    page = Page(html)
    assert sum(tag == "script" for tag, _ in page.tags) == 1
    assert "<script>alert" not in html
    assert synthetic.HOSTILE.split("$")[0] in page.text
    assert "<script>" not in (run / "report.md").read_text()
    assert not [key for _, found in page.tags for key in found if key.startswith("on")]


def test_the_page_is_the_same_every_time(tmp_path):
    found = [each for each in synthetic.records(items=60) if each.get("method") in (None, "zero-shot", "lora", "ia3")]
    first, again = (synthetic.write(tmp_path / name, found) for name in ("first", "again"))
    assert write_report(first).read_bytes() == write_report(again).read_bytes()
    images = sorted((first / "plots").iterdir())
    assert len(images) == 5
    assert all(image.read_bytes() == (again / "plots" / image.name).read_bytes() for image in images)


def test_pngs_are_twice_their_size(run):
    names = sorted(image.name for image in (run / "plots").iterdir())
    assert names == ["learning-curves.png", "learning-rates.png", "score-vs-latency.png", "score-vs-memory.png", "score-vs-parameters.png"]
    head = (run / "plots" / "score-vs-parameters.png").read_bytes()[:24]
    assert int.from_bytes(head[16:20], "big") == 1280


def test_markdown_has_a_full_table(run):
    text = (run / "report.md").read_text()
    rows = [line for line in text.splitlines() if line.startswith("|")]
    cells = {len(re.split(r"(?<!\\)\|", row)) for row in rows}
    assert len(rows) == 2 + 14 + 1
    assert cells == {15}
    assert "plots/learning-rates.png" in text


def test_the_terminals_table_has_every_method(run):
    titles, *rows = summary_table(read(run))
    assert titles[:3] == ("Method", "Score", "Against the best")
    assert {len(row) for row in rows} == {len(titles)}
    assert rows[-1][:2] == ("loftq", "—")
    assert "\u00a0" not in "".join(rows[0])


def test_a_demo_says_so(tmp_path):
    names = ("zero-shot", "in-context", "lora", "ia3", "prefix")
    found = [record for record in synthetic.records(seeds=1, items=40, demo=True, full_command="graft compare <all> --seeds 3")
             if record["kind"] == "plan" or (record["method"] in names and record["role"] != "trial")]  # fmt: skip
    folder = synthetic.write(tmp_path, found)
    text = Page(write_report(folder).read_text()).text
    assert "This is a demo. It ran 1 seed" in text
    assert "graft compare <all> --seeds 3" in text
    assert "One seed says nothing about how much a method varies" in text
    assert "The search for a learning rate" not in text
    assert "dora" not in (folder / "report.md").read_text().split("not run")[0]


@pytest.mark.parametrize("keep", [0, 1, 2, 5])
def test_an_unfinished_comparison_still_has_a_report(tmp_path, keep):
    found = synthetic.records()
    folder = synthetic.write(tmp_path, [found[0], *found[1 : 1 + keep]])
    text = Page(write_report(folder).read_text()).text
    assert "the comparison ended before it began" in text
    assert ("Nothing to recommend yet" in text) == (keep == 0)


def test_null_everywhere_prints_dashes(tmp_path):
    bare = {"kind": "run", "role": "final", "status": "done"}
    found = (
        [PLAN]
        + [{**bare, "run": name, "method": name} for name in ("lora", "dora")]
        + [{**bare, "run": "z", "method": "zero-shot", "role": "baseline"}]
    )
    found += [dict.fromkeys(records.Run.__dataclass_fields__) | {**bare, "run": "n", "method": "ia3", "score": 0.5}]
    folder = synthetic.write(tmp_path, found)
    page = Page(write_report(folder).read_text())
    assert "—" in page.text
    assert "None" not in page.text
    assert "nan" not in page.text
