"""The bootstrap: intervals that cover, pairing that helps, seeds that count, groups of ties."""

import numpy as np
import pytest

from graft.compare import statistics
from graft.compare.statistics import draws, interval, paired_bootstrap, tie_groups
from graft.errors import DataError


def test_interval_agrees_with_the_normal_approximation():
    scores = np.random.default_rng(0).normal(3, 2, 400)
    low, high = interval(scores)
    half = 1.96 * scores.std() / 20
    assert low == pytest.approx(scores.mean() - half, abs=0.02)
    assert high == pytest.approx(scores.mean() + half, abs=0.02)


def test_interval_covers_the_truth_about_as_often_as_it_says():
    rng = np.random.default_rng(1)
    hits = 0
    for number in range(300):
        low, high = interval(rng.random(100) < 0.3, samples=1000, seed=number)
        hits += low <= 0.3 <= high
    assert 0.90 <= hits / 300 <= 0.99


def test_pairing_sees_a_difference_that_unpaired_intervals_hide():
    rng = np.random.default_rng(2)
    ease = rng.normal(0, 1, 300)
    a, b = ease + 0.1, ease + rng.normal(0, 0.1, 300)
    mean, low, high = paired_bootstrap(a, b)
    assert low < mean < high
    assert low > 0
    assert interval(a)[0] < interval(b)[1]


def test_same_scores_differ_by_nothing():
    scores = np.random.default_rng(3).random((2, 50))
    assert paired_bootstrap(scores[0], scores[0]) == (0.0, 0.0, 0.0)
    mean, low, high = paired_bootstrap(scores, scores)
    assert mean == 0
    assert low < 0 < high


def test_spread_between_seeds_widens_the_interval():
    calm = np.tile(np.r_[np.zeros(50), np.ones(50)], (2, 1))
    wild = np.stack([np.r_[np.zeros(80), np.ones(20)], np.r_[np.zeros(20), np.ones(80)]])
    assert np.diff(interval(wild)) > 1.5 * np.diff(interval(calm))


def test_draws_are_reproducible_and_do_not_depend_on_the_block_size(monkeypatch):
    scores = [np.random.default_rng(4).random((2, 37)), np.random.default_rng(5).random(37)]
    first = draws(scores, samples=500, seed=7)
    assert first.shape == (2, 500)
    assert np.array_equal(first, draws(scores, samples=500, seed=7))
    assert not np.array_equal(first, draws(scores, samples=500, seed=8))
    monkeypatch.setattr(statistics, "CHUNK", 100)
    assert np.allclose(first.mean(1), draws(scores, samples=500, seed=7).mean(1), atol=0.01)


@pytest.mark.parametrize(
    ("scores", "word"),
    [
        ([[1.0, 2.0], [1.0, 2.0, 3.0]], "same test items"),
        ([[1.0, float("nan")]], "finite"),
        ([[]], "finite"),
        ([np.zeros((2, 2, 2))], "finite"),
    ],
)
def test_unusable_scores_are_refused(scores, word):
    with pytest.raises(DataError, match=word):
        draws(scores)


def test_tie_groups_start_at_the_best_of_what_is_left():
    rng = np.random.default_rng(6)
    ease = rng.normal(0, 1, 400)
    levels = {"best": 1.0, "near": 0.995, "middle": 0.5, "beside": 0.499, "last": 0.0}
    scores = [ease + level + rng.normal(0, 0.2, 400) for level in levels.values()]
    groups = tie_groups(dict(zip(levels, draws(scores), strict=True)))
    assert groups == [("best", "near"), ("middle", "beside"), ("last",)]
    assert tie_groups({}) == []
