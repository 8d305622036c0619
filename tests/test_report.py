"""Records and the report made of them: what is written can be read back, what is missing never breaks, nothing hostile gets through."""

import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest

import synthetic_records as synthetic
from graft.compare import labels, records, wording
from graft.compare.blocks import badges, block_svg, roles_text
from graft.compare.records import append, read
from graft.compare.report import recommendation, summary_table, write_report
from graft.compare.summary import Row, summarise
from graft.compare.verdict import headline
from graft.errors import DataError

PLAN = {"schema": 1, "kind": "plan", "model": {"name": "tiny"}, "data": {}}
RUN = {"kind": "run", "run": "lora/seed-0", "method": "lora", "role": "final", "status": "done", "score": 0.5}


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


# records


def test_what_is_appended_is_read_back(tmp_path):
    file = tmp_path / "deep" / "records.jsonl"
    for record in synthetic.records():
        append(file, record)
    found = read(file)
    assert found.plan.model["name"] == "SmolLM2-135M-Instruct"
    assert found.find("lora/seed-1").seed == 1
    assert found.find("lora/seed-9") is None
    assert found == read(file.parent)


@pytest.mark.parametrize("cut", [1, 7, 40])
def test_a_torn_last_line_is_dropped_and_then_mended(tmp_path, cut):
    file = tmp_path / "records.jsonl"
    for record in (PLAN, RUN, RUN | {"run": "lora/seed-1"}):
        append(file, record)
    whole = file.read_bytes()
    file.write_bytes(whole[:-cut])
    assert len(read(file).runs) == (2 if cut == 1 else 1)  # cutting the newline alone loses nothing
    append(file, RUN | {"run": "lora/seed-2"})
    assert [run.run for run in read(file).runs][-1] == "lora/seed-2"
    assert all(json.loads(line) for line in file.read_text().splitlines())


def test_the_later_record_of_a_run_counts(tmp_path):
    file = tmp_path / "records.jsonl"
    for record in (PLAN, RUN | {"status": "failed", "reason": "x"}, RUN | {"run": "a"}, RUN):
        append(file, record)
    assert [(run.run, run.status) for run in read(file).runs] == [("lora/seed-0", "done"), ("a", "done")]


def test_non_finite_numbers_become_null(tmp_path):
    file = tmp_path / "records.jsonl"
    append(file, PLAN)
    append(file, RUN | {"score": float("nan"), "curve": [{"step": 1, "train_loss": float("inf")}]})
    run = read(file).runs[0]
    assert run.score is None
    assert run.curve[0]["train_loss"] is None


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"score": "high"}, "score must be a number"),
        ({"per_item": [1, None]}, "per_item must be a list, each item a number"),
        ({"role": "rehearsal"}, "role must be one of trial, final, baseline"),
        ({"run": None}, "needs 'run'"),
        ({"kind": "walk"}, "kind must be one of plan, run"),
        ({"schema": 2}, "schema 2 is not known"),
        ({"seed": True}, "seed must be a whole number"),
        ({"scoer": 1.0}, "unknown key 'scoer'"),
    ],
)
def test_wrong_records_are_refused_before_they_are_written(tmp_path, change, words):
    file = tmp_path / "records.jsonl"
    append(file, PLAN)
    with pytest.raises(DataError, match=words):
        append(file, RUN | change)
    assert len(file.read_text().splitlines()) == 1


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, "does not exist"),
        ("", "no plan line"),
        ('{"kind":"plan"\n{"kind":"run"}\n', r"records.jsonl:1: not valid JSON"),
        (json.dumps(PLAN) + "\n[1]\n", r"records.jsonl:2: a record is a JSON object, not list"),
        (json.dumps(PLAN) + "\n" + json.dumps(RUN | {"status": "fine"}) + "\n", r"records.jsonl:2: status must be"),
    ],
)
def test_unreadable_files_are_named_with_their_line(tmp_path, text, words):
    file = tmp_path / "records.jsonl"
    if text is not None:
        file.write_text(text)
    with pytest.raises(DataError, match=words):
        read(file)


def test_keys_of_a_newer_graft_are_ignored_when_reading(tmp_path):
    (tmp_path / "records.jsonl").write_text(json.dumps(PLAN | {"mood": "good"}) + "\n")
    assert read(tmp_path).plan.model == {"name": "tiny"}


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


def test_the_page_is_the_same_every_time(run, html, tmp_path):
    again = synthetic.write(tmp_path, synthetic.records())
    write_report(again)
    assert (again / "report.html").read_text() == html
    for image in (run / "plots").iterdir():
        assert (again / "plots" / image.name).read_bytes() == image.read_bytes()


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
    assert cells == {16}
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
    assert "dora" not in (folder / "report.md").read_text().split("Not run")[0]


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


# its parts


@pytest.mark.parametrize(
    ("note", "found"),
    [
        ("A 8x576, B 576x8", ["path"]), ("A 8x576, B 576x8, magnitude 576", ["path", "scale"]), ("c 192", ["scale"]), ("i 1536", ["scale"]),
        ("b 576", ["bias"]), ("A 64x576, a 64, B 576x64, b 576", ["path"]), ("weight 576", []), ("", []),
    ],
)  # fmt: skip
def test_badges_follow_the_tensors_of_a_note(note, found):
    assert badges(note) == found


def test_drawings_show_where_a_method_acts():
    def row(*sites, gated=True):
        return Row("lora", (records.Run("r", "lora", "final", "done", sites=sites, gated=gated),), None)

    assert block_svg(row({"role": "query", "form": "affine", "note": "A 8x8, B 8x8"})).count('class="box on"') == 1
    assert block_svg(row({"role": "block", "form": "replacement"})).count('class="box on solid"') >= 7
    assert block_svg(row({"role": "cache", "form": "virtualtokens"})).count('class="token"') == 3
    assert ">gate<" in block_svg(row())
    assert ">gate<" not in block_svg(row(gated=False))
    assert "query · key · value" in block_svg(row({"role": "qkv", "form": "affine", "note": "A 8x8"}))
    assert roles_text(row({"role": "query"}, {"role": "value"})) == "query and value"


def test_labels_do_not_overlap():
    rng = np.random.default_rng(0)
    points = [(float(x), float(y)) for x, y in rng.normal((200, 150), (60, 25), (14, 2))]
    sizes = [(60.0, 12.0)] * 14
    places = labels.place_labels(points, sizes, labels.Box(0, 0, 400, 300), [], [])
    for number, one in enumerate(places):
        assert one.box.left >= 0
        assert one.box.top <= 300
        assert all(one.box.overlap(other.box) == 0 for other in places[:number])


def test_spread_keeps_order_distance_and_bounds():
    heights = [10.0, 11.0, 12.0, 50.0, 99.0, 98.0]
    moved = labels.spread(heights, 8, 0, 100)
    assert np.argsort(moved).tolist() == np.argsort(heights).tolist()
    assert np.diff(sorted(moved)).min() >= 8 - 1e-9
    assert min(moved) >= 0
    assert max(moved) <= 100
    assert moved[3] == 50


@pytest.mark.parametrize(
    ("text", "printed"),
    [
        (wording.score("exact_match", 0.7236), "72.4%"), (wording.score("bleu", 31.24), "31.2"), (wording.score("loss", 1.23456), "1.235"),
        (wording.score("rougeL", None), "—"), (wording.signed("accuracy", -0.0123), "−1.2"), (wording.signed("accuracy", 0.0001), "0.0"),
        (wording.rate(3e-4), "3e-4"), (wording.rate(1.5e-3), "1.5e-3"), (wording.percent(57_600, 134_515_008), "0.043%"),
        (wording.percent(1, 1), "100%"), (wording.size(3_540_000), "3.5\u00a0MB"), (wording.size(0), "0\u00a0B"),
        (wording.count(1234567), "1,234,567"),
        (wording.figures(0.4132, "s"), "0.413\u00a0s"), (wording.listed(["a", "b", "c"]), "a, b and c"),
        (wording.short_count(2_442_240), "2.44M"),
    ],
)  # fmt: skip
def test_numbers_in_words(text, printed):
    assert text == printed
