"""The parts of the benchmarks that need no card: what plans name, which card measures what, what is not measured again."""

import json
import threading

import pytest
import torch

from steps.plans import METHODS, PLANS, planned
from steps.points import LIMIT, Point
from steps.pool import Pool, Queue, left, lines_of
from steps.rows import SHAPES, prepared


def test_what_a_row_does_not_depend_on_is_no_part_of_its_name():
    assert Point(row="ia3", rank=4, dropout=0.1) == Point(row="ia3", rank=64)
    assert Point(row="peft-dora-best", rank=4) != Point(row="peft-dora-best", rank=64)
    assert Point(row="peft-dora-best").method == "dora"


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

    def ask(self, points, card, timeout):
        return [{"point": json.loads(point.key), "card": card, "process_s": 1.0} for point in points]

    def hear(line):
        assert lock.acquire(blocking=False), "lines are given one at a time"
        heard.append(line)
        lock.release()

    monkeypatch.setattr(Pool, "ask", ask)
    assert not Pool(["0", "1"], {}, hear).run(points)
    assert {Point(**line["point"]) for line in heard} == set(points)
    heard.clear()
    assert Pool(["0"], {}, hear, budget=20).run(points) == points
    assert not heard


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
