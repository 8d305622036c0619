"""Parts of the report: drawings of blocks, labels that keep apart, numbers in words."""

import numpy as np
import pytest

from graft.compare import records, wording
from graft.compare.report import labels
from graft.compare.report.blocks import badges, block_svg, roles_text
from graft.compare.report.summary import Row


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
