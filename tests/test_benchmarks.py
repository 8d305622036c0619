"""The parts of the benchmarks that need no card: what plans name, which card measures what, and what the page makes of results."""

import json
import re
import threading
import time
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

import train_report
from steps import agreement
from steps.child import Child
from steps.cpu import spread
from steps.plans import METHODS, PLANS, planned
from steps.plots import plotted
from steps.points import LIMIT, Point
from steps.pool import Pool, Queue, left, lines_of
from steps.results import measured
from steps.rows import SHAPES, prepared, recorded
from steps.tables import TABLES, reached
from steps.turns import Turns, gibibytes

NOBODY = SimpleNamespace(end=lambda: None)
"""In the place of a process."""


def test_what_a_row_does_not_depend_on_is_no_part_of_its_name():
    assert Point(row="ia3", rank=4, dropout=0.1) == Point(row="ia3", rank=64)
    assert Point(row="peft-dora-best", rank=4) != Point(row="peft-dora-best", rank=64)
    assert Point(row="peft-dora-best").method == "dora"


def test_rows_are_recorded_as_their_ending_says():
    endings = {"": "auto", "-recorded": "on", "-launched": "off", "-apart": "off", "-eager": "off", "-plain": "off"}
    assert {ending: recorded(Point(row=f"last-k{ending}")) for ending in endings} == endings
    for row, how in ((LIMIT, "off"), (f"{LIMIT}-recorded", "on"), ("lora", "auto"), ("lora-recorded", "on"), ("peft-lora", "off")):
        if not row.startswith("peft"):
            assert prepared(Point(row=row, shape="tiny"), torch.device("cpu")).recorded == how
        assert Point(row=row).method in (LIMIT, "lora")
    assert Point(row="last-k-recorded") in planned(["table"])


def test_a_point_reads_back_from_its_name():
    point = Point(row="lora", tokens=512, dropout=0.05, loss="chunked", supervised=0.25, repeat=2)
    assert Point(**json.loads(point.key)) == point


@pytest.mark.parametrize("name", PLANS)
def test_every_point_of_a_plan_is_divided_by_a_limit_of_that_plan(name):
    points = planned([name])
    assert {point.anchor for point in points} <= set(points)
    assert all(point.anchor.anchor == point.anchor for point in points)
    assert all(point.shape in SHAPES for point in points)


def test_plans_share_points_and_repetitions_do_not():
    both = planned(["table", "tokens"])
    assert len(both) == len(set(both)) < len(planned(["table"])) + len(planned(["tokens"]))
    assert len(planned(["table"], repeats=3)) == 3 * len(planned(["table"]))
    assert {point.row for point in planned(["table"])} > set(METHODS)


def test_a_card_measures_the_limit_before_what_is_divided_by_it():
    queue = Queue(planned(["tokens"]))
    taken = {"0": [], "1": []}
    while queue.waiting:
        for card, own in taken.items():
            if (point := queue.take(card)) is not None:
                own.append(point)
    for own in taken.values():
        for place, point in enumerate(own):
            assert point.anchor in own[: place + 1]
    assert {point for own in taken.values() for point in own} == set(planned(["tokens"]))


def test_cards_keep_to_the_settings_that_they_have_begun():
    queue = Queue(planned(["rank", "dropout"]) + planned(["checkpointing"]))
    first = [queue.take("0"), queue.take("1")]
    assert first[0] != first[1]
    assert queue.take("0").anchor == first[0]


def test_the_pool_hears_of_every_point_and_stops_at_the_budget(monkeypatch):
    points, heard, lock = planned(["dropout"]), [], threading.Lock()

    def ask(self, child, points, card, timeout, turns):
        return [{"point": json.loads(point.key), "card": card, "process_s": 1.0} for point in points]

    def hear(line):
        assert lock.acquire(blocking=False), "lines are given one at a time"
        heard.append(line)
        lock.release()

    monkeypatch.setattr(Pool, "ask", ask)
    monkeypatch.setattr(Pool, "start", lambda self, card: NOBODY)
    assert not Pool(["0", "1"], {}, hear).run(points)
    assert {Point(**line["point"]) for line in heard} == set(points)
    heard.clear()
    assert Pool(["0"], {}, hear, budget=20).run(points) == points
    assert not heard


def test_what_failed_beside_another_is_measured_alone(monkeypatch):
    points, heard, asked = planned(["table"]), [], []
    crowded = next(point for point in points if point.row == "lora")

    def ask(self, child, points, card, timeout, turns):
        asked.append((points[0], "alone" in turns))
        bad = points == [crowded] and "alone" not in turns
        return [{"point": json.loads(points[0].key), "card": card, "process_s": 1.0} | ({"failed": "out of memory"} if bad else {})]

    monkeypatch.setattr(Pool, "ask", ask)
    monkeypatch.setattr(Pool, "start", lambda self, card: NOBODY)
    assert not Pool(["0", "1"], {}, heard.append, beside=2).run(points)
    assert {Point(**line["point"]) for line in heard} == set(points)
    assert not any("failed" in line for line in heard)
    assert {point for point, alone in asked if alone} == {crowded}
    assert [alone for point, alone in asked if point == crowded] == [False, True]


def test_processes_share_a_card_as_far_as_its_memory_goes(monkeypatch):
    points, lock, running, most = planned(["tokens", "checkpointing", "table"]), threading.Lock(), {"0": [], "1": []}, []

    def ask(self, child, points, card, timeout, turns):
        with lock:
            running[card].append(gibibytes(points[0]))
            most.append((sum(running[card]), len(running[card])))
        time.sleep(0.01)
        with lock:
            running[card].remove(gibibytes(points[0]))
        return [{"point": json.loads(point.key), "card": card, "process_s": 0.01} for point in points]

    monkeypatch.setattr(Pool, "ask", ask)
    monkeypatch.setattr(Pool, "start", lambda self, card: NOBODY)
    heard = []
    assert not Pool(["0", "1"], {}, heard.append, beside=4, memory=76.0).run(points)
    assert {Point(**line["point"]) for line in heard} >= set(points)
    assert all(held <= 76 or count == 1 for held, count in most)
    assert max(count for _, count in most) > 2
    assert any(held > 76 for held, _ in most), "no point needs a card for itself"


def test_what_a_point_may_take_is_no_less_than_what_it_took():
    files = [file for name in ("train_step-h100", "plan-h100") for file in (train_report.RESULTS / name).glob("*.jsonl")]
    lines = [line for line in lines_of(files) if "held_bytes" in line]
    assert len(lines) > 50
    for line in lines:
        assert line["held_bytes"] / 2**30 + 0.5 < gibibytes(Point(**line["point"])), line["point"]


def test_one_process_is_timed_while_no_other_prepares(tmp_path):
    first, second, third = (Turns(tmp_path / "card") for _ in range(3))
    first.prepare()
    second.prepare()
    taken = threading.Thread(target=first.take)
    taken.start()
    taken.join(0.1)
    assert taken.is_alive(), "another still prepares"
    other = threading.Thread(target=second.take)  # gives its part up, so that the two do not wait for each other
    other.start()
    taken.join(5)
    other.join(0.1)
    assert sum(thread.is_alive() for thread in (taken, other)) == 1
    holder, waiting = (first, other) if other.is_alive() else (second, taken)
    late = threading.Thread(target=third.prepare)
    late.start()
    late.join(0.1)
    assert late.is_alive(), "one is timed"
    holder.file.close()  # as when its process ends
    waiting.join(5)
    (second if holder is first else first).file.close()
    late.join(5)
    assert not late.is_alive()
    third.file.close()


def test_a_process_is_told_its_points_and_answers_each(tmp_path, monkeypatch):
    script = tmp_path / "measures.py"
    script.write_text(
        "import json, os, sys, time\n"
        "from steps.child import told\n"
        "points, turns = told(imports=False)\n"
        "time.sleep(60 if turns == ['late'] else 0)\n"
        "for point in points[:1]:\n"
        "    seen = {'turns': turns, 'card': os.environ['CUDA_VISIBLE_DEVICES'], 'options': sys.argv[1:]}\n"
        "    print(json.dumps({'point': json.loads(point.key)} | seen))\n"
    )
    monkeypatch.setattr("sys.argv", [str(script)])
    monkeypatch.setenv("PYTHONPATH", str(train_report.ROOT / "benchmarks"))
    points = planned(["dropout"])[:2]
    first, second = Child("3", ["--rounds", "2"], cold=False).measure(points, ["lock", "alone"], timeout=60)
    assert (first["turns"], first["card"], first["options"]) == (["lock", "alone"], "3", ["--rounds", "2", "--waits"])
    assert first["process_s"] > 0
    assert second["failed"] == "no result"
    (late,) = Child("3", [], cold=True).measure(points[:1], ["late"], timeout=1)
    assert late["failed"] == "not done after 1 s"
    unused = Child("3", [], cold=False)
    unused.end()
    assert unused.process.returncode is not None


def test_what_a_file_has_is_not_measured_again(tmp_path):
    points = planned(["dropout"])
    lines = [{"point": json.loads(points[0].key), "ms": 1.0}, {"point": json.loads(points[1].key), "failed": "out of memory"}]
    (tmp_path / "done.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    found = lines_of([tmp_path / "done.jsonl", tmp_path / "none.jsonl"])
    assert left(points, found) == points[2:]
    assert left(points, found, retry=True) == points[1:]


def test_the_limit_trains_nothing_and_has_a_gradient_at_its_embeddings():
    row = prepared(Point(row=f"{LIMIT}-eager", shape="tiny"), torch.device("cpu"))
    assert not row.trained
    out = row.model.get_input_embeddings()(torch.tensor([[1, 2]]))
    assert out.requires_grad
    assert out.is_leaf


def line(point, ms, peak=None, card="0", session="s", **more):
    """A line of results as the pool writes it."""
    facts = {
        "device": "a card",
        "card": card,
        "session": session,
        "date": "2026-11-27T10:00:00+00:00",
        "versions": {"torch": "2", "peft": ""},
    }
    own = {"ms": ms, "peak_bytes": peak or 0, "peak_after_4": peak or 0, "peak_last": peak or 0, "cold_s": 1.0, "bits": 4.127}
    return {"point": json.loads(point.key)} | facts | own | more


def synthetic():
    """Lines of every plan of cards: two cards of which the second is a tenth slower, LoRA 1.05 of its limit, all else 1.2."""
    lines = []
    for card, slow in (("0", 1.0), ("1", 1.1)):
        for name in PLANS:
            for point in planned([name]) if name not in ("cpu", "smoke") else ():
                if point.anchor == point or (point.batch + point.rank) % 2 == int(card):
                    cost = 1.0 if point.anchor == point else 1.05 if point.row == "lora" else 1.2
                    lines.append(line(point, 200 * cost * slow * point.batch, int(1e10 * cost * point.batch), card))
    return lines


def test_a_ratio_is_to_the_limit_of_the_same_card_session_and_repetition():
    limit, lora = Point(), Point(row="lora")
    lines = [line(limit, 200, 10), line(limit, 220, 10, card="1"), line(lora, 231, 11, card="1"), line(lora, 999, session="later")]
    assert measured(lines)[lora].ratio == pytest.approx(1.05)
    assert measured(lines)[lora].memory == pytest.approx(1.1)
    again = replace(lora, repeat=1)
    lines += [line(again.anchor, 300), line(again, 330)]
    assert measured(lines)[lora].ratio == pytest.approx((1.05 + 1.1) / 2)
    assert (measured(lines)[lora].low, measured(lines)[lora].high) == pytest.approx((1.05, 1.1))


def test_results_of_unlike_cards_share_no_table():
    with pytest.raises(ValueError, match=r"a card, another"):
        measured([line(Point(), 1), line(Point(row="lora"), 1, device="another")])


def test_what_failed_is_said_and_what_was_measured_once_more_counts():
    lora = Point(row="lora")
    failed = {"point": json.loads(lora.key), "failed": "OutOfMemoryError: CUDA out of memory."}
    assert measured([failed])[lora].failed.startswith("OutOfMemory")
    assert "| `lora` | out of memory |" in "\n".join(TABLES["table"](measured([failed])))
    assert measured([failed, line(Point(), 1), line(lora, 2)])[lora].ratio == 2


def test_a_figure_is_reached_only_where_all_of_it_was_measured_and_is_low_enough():
    assert reached((1.0, 1.08), (1.0, 1.03)) == "yes"
    assert reached((1.0, 1.08), (1.04, 1.03)) == "**no**"
    assert reached((1.0, 1.08), (None, 1.03)) == "**no**"
    assert reached((None, 1.08), (None, 1.03)) == "–"


def test_the_tables_say_what_the_results_say():
    made = train_report.sections(synthetic(), [], [])
    assert "| LoRA, 4096 tokens | ≤ 1.08 | 1.050 | ≤ 1.03 | 1.050 | **no** | 1.200, 1.200 |" in made["goals"]
    assert "| weights in NF4 | ≤ 4.127 bits a parameter | 4.127 | yes |" in made["figures"]
    assert "| LoRA on NF4, 8192 tokens | ≤ 1.12 of LoRA on bfloat16 | 1.000 | yes |" in made["figures"]
    assert made["tokens-plot"][0].endswith("(performance/tokens.png)")
    assert made["rank"][2].startswith("| `lora` | 1.050, 1.050 |")


def test_a_plot_is_the_same_for_the_same_results():
    results = measured(synthetic())
    assert plotted(results, "tokens") == plotted(results, "tokens") != plotted(results, "rank")
    assert plotted({}, "rank") is None


def test_the_page_is_what_the_results_say():
    text = train_report.PAGE.read_text()
    made = train_report.sections(*train_report.read())
    assert set(re.findall(r"<!-- ([\w-]+): made", text)) == set(made)
    assert train_report.rendered(text, made) == text, "python benchmarks/train_report.py writes it anew"


def curve(way, losses, validation):
    return {"method": "lora", "way": way, "losses": losses, "validation_loss": validation}


def test_the_fast_way_is_one_of_the_ways_or_that_is_said():
    def curves(fast):
        factors = {"reference": 1.0, "fast": fast, "accumulated": 1.01, "float32": 0.99}
        return [curve(way, [factor * (2.0 - 0.01 * step) for step in range(100)], factor) for way, factor in factors.items()]

    assert agreement.apart([1.0] * 9, [3.0] * 9) == pytest.approx(1.0)
    near, far = agreement.table(curves(1.002)), agreement.table(curves(1.1))
    ratio = (0.002 + 0.008 + 0.012) / (0.01 + 0.01 + 0.02)
    assert near[2] == f"| lora | 1.0000 | 1.0020 | 1.0100 | 0.9900 | 0.7% | 1.3% | {ratio:.2f} |"
    assert near[3].endswith(f" {ratio:.2f} |")
    assert far[2].endswith("**7.15** |")
    assert far[3].endswith("** |")
    assert agreement.table(curves(1.0)[:3])[2:] == ["| lora | 1.0000 | 1.0000 | 1.0100 | – | – | – | – |"]


def test_quartiles_are_of_the_ratios_of_each_round():
    assert spread([2.0, 3.0, 8.0], [1.0, 1.0, 2.0]) == [2.5, 3.0, 3.5]
