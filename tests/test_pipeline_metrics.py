from __future__ import annotations

import json
import math
import random
from dataclasses import asdict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.histories import Histories
from pipeline.metrics import PER_USER, Measure, bootstrap, contains, coverage, per_user


def slow_metric(name: str, top: list[int], targets: list[int], k: int) -> float:
    """The definitions, one user and one place at a time."""
    ranks = [rank for rank, item in enumerate(top[:k], start=1) if item in set(targets)]
    best = min(k, len(targets))
    if name == "ndcg":
        gained = sum(1 / math.log2(rank + 1) for rank in ranks)
        return gained / sum(1 / math.log2(rank + 1) for rank in range(1, best + 1))
    return {
        "recall": len(ranks) / best,
        "plain_recall": len(ranks) / len(targets),
        "hit": 1.0 if ranks else 0.0,
        "mrr": 1 / ranks[0] if ranks else 0.0,
        "precision": len(ranks) / k,
    }[name]


@st.composite
def rankings(draw: st.DrawFn) -> tuple[int, list[list[int]], list[list[int]]]:
    """Catalogue size, top lists of k places (k may exceed the catalogue; -1 at the end), and targets, ascending."""
    n_items = draw(st.integers(1, 12))
    k = draw(st.integers(1, 15))
    tops, targets = [], []
    for _ in range(draw(st.integers(1, 6))):
        ranked = draw(st.permutations(range(n_items)))[: draw(st.integers(0, k))]
        tops.append(ranked + [-1] * (k - len(ranked)))
        targets.append(sorted(draw(st.sets(st.integers(0, n_items - 1), min_size=1))))
    return n_items, tops, targets


@given(rankings())
@settings(max_examples=200, derandomize=True, deadline=None)
def test_every_metric_at_every_cutoff_equals_a_loop_over_places(
    case: tuple[int, list[list[int]], list[list[int]]],
) -> None:
    _, tops, targets = case
    cutoffs = {name: range(1, len(tops[0]) + 1) for name in PER_USER}
    values = per_user(np.array(tops), Histories.of(targets), cutoffs)
    assert list(values) == [f"{name}@{k}" for name, ks in cutoffs.items() for k in ks]
    for name, ks in cutoffs.items():
        for k in ks:
            expected = [slow_metric(name, top, wanted, k) for top, wanted in zip(tops, targets, strict=True)]
            assert values[f"{name}@{k}"].dtype == np.float64
            np.testing.assert_allclose(values[f"{name}@{k}"], expected, rtol=0, atol=1e-12)


CUT_AT_3 = dict.fromkeys(PER_USER, (3,))


@pytest.mark.parametrize(
    ("top", "targets", "expected"),
    [
        # Hits in places 1 and 3 of 3, two targets.
        ([5, 0, 7], [5, 7], [1.5 / (1 + 1 / math.log2(3)), 1.0, 1.0, 1.0, 1.0, 2 / 3]),
        # One target, in place 2.
        ([0, 4, 1], [4], [1 / math.log2(3), 1.0, 1.0, 1.0, 0.5, 1 / 3]),
        # More targets than places, all places hit: the truncated ideal gives 1, plain recall cannot.
        ([2, 1, 0], [0, 1, 2, 3, 4, 5], [1.0, 1.0, 0.5, 1.0, 1.0, 1.0]),
        # Missing places are misses.
        ([3, -1, -1], [3, 9], [1 / (1 + 1 / math.log2(3)), 0.5, 0.5, 1.0, 1.0, 1 / 3]),
        # Nothing recommended, and nothing found.
        ([-1, -1, -1], [0], [0.0] * 6),
        ([1, 2, 3], [0], [0.0] * 6),
    ],
)
def test_known_answers(top: list[int], targets: list[int], expected: list[float]) -> None:
    values = per_user(np.array([top]), Histories.of([targets]), CUT_AT_3)
    assert [value[0] for value in values.values()] == pytest.approx(expected, abs=1e-15)


def test_a_missing_place_is_not_the_last_item_of_the_user_before() -> None:
    top = np.array([[0, 1], [-1, -1]])
    values = per_user(top, Histories.of([[1, 2], [0]]), {"hit": (2,)})
    assert values["hit@2"].tolist() == [1.0, 0.0]


def test_neighbours_targets_do_not_count() -> None:
    values = per_user(np.array([[9], [0], [5]]), Histories.of([[0], [5], [9]]), {"hit": (1,)})
    assert values["hit@1"].tolist() == [0.0, 0.0, 0.0]


def test_item_numbers_beyond_32_bits_of_users_times_items() -> None:
    last = 2**31 - 1
    targets = Histories.of([[0, last]] * 5)
    values = per_user(np.array([[last, 0]] * 5), targets, {"recall": (2,)})
    assert values["recall@2"].tolist() == [1.0] * 5


def test_lists_too_short_for_a_cutoff_are_refused() -> None:
    for k in (0, 3):
        with pytest.raises(ValueError, match=rf"^ndcg@{k} of lists with 2 places$"):
            per_user(np.array([[0, 1]]), Histories.of([[1]]), {"ndcg": (k,)})


def test_users_without_targets_are_refused() -> None:
    with pytest.raises(ValueError, match=r"^users without targets: 2 of 3$"):
        per_user(np.zeros((3, 1), dtype=np.int64), Histories.of([[], [1], []]), {"ndcg": (1,)})


@pytest.mark.parametrize("targets", [[[2, 1]], [[1, 1]], [[0], [4, 3]]])
def test_targets_that_do_not_ascend_are_refused(targets: list[list[int]]) -> None:
    with pytest.raises(ValueError, match=r"^every history must ascend, each item once$"):
        per_user(np.zeros((len(targets), 1), dtype=np.int64), Histories.of(targets), {"ndcg": (1,)})


@given(
    st.lists(st.sets(st.integers(0, 6)).map(sorted), min_size=1, max_size=5),
    st.lists(st.integers(-1, 8), max_size=6),
)
@settings(max_examples=100, derandomize=True, deadline=None)
def test_contains_is_set_membership(histories: list[list[int]], items: list[int]) -> None:
    users = np.arange(len(histories))[:, None]
    found = contains(Histories.of(histories), users, np.array(items, dtype=np.int64))
    assert found.tolist() == [[item in history for item in items] for history in histories]


def test_bootstrap_of_two_users_has_the_known_distribution() -> None:
    # Resampled means of {0, 1} are 0, 1/2, 1 with probabilities 1/4, 1/2, 1/4.
    measure = bootstrap({"a": np.array([0.0, 1.0])})["a"]
    assert measure == Measure(0.5, 0.5 / math.sqrt(2), 0.0, 1.0, 2)


def test_bootstrap_of_many_users_approaches_the_normal_interval() -> None:
    values = np.repeat([0.0, 1.0], 200)
    measure = bootstrap({"a": values}, n_resamples=4000)["a"]
    assert measure.mean == 0.5
    assert measure.standard_error == pytest.approx(0.025, abs=1e-15)
    assert measure.low == pytest.approx(0.5 - 1.96 * 0.025, abs=0.003)
    assert measure.high == pytest.approx(0.5 + 1.96 * 0.025, abs=0.003)
    assert measure.n_users == 400


def test_bootstrap_of_skewed_values_equals_a_loop_of_draws() -> None:
    draw = random.Random(7)
    values = [draw.expovariate(1.0) ** 2 for _ in range(25)]
    means = sorted(sum(draw.choices(values, k=25)) / 25 for _ in range(20_000))
    measure = bootstrap({"a": np.array(values)}, n_resamples=20_000)["a"]
    assert measure.low == pytest.approx(means[500], rel=0.03)
    assert measure.high == pytest.approx(means[19_500], rel=0.03)
    assert measure.high - measure.mean > 1.1 * (measure.mean - measure.low)  # a normal interval would be symmetric


def test_bootstrap_interval_holds_the_true_mean_as_often_as_it_says() -> None:
    rng = np.random.default_rng(3)
    measures = [bootstrap({"a": rng.random(60)}, n_resamples=200, seed=i)["a"] for i in range(600)]
    held = np.mean([m.low <= 0.5 <= m.high for m in measures])
    assert 0.92 <= held <= 0.97


def test_bootstrap_is_seeded_and_shared_by_all_metrics() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.random(50), rng.random(50)
    both = bootstrap({"b": b, "a": a, "twice": 2 * a})
    assert bootstrap({"b": b, "a": a, "twice": 2 * a}) == both
    assert bootstrap({"a": a})["a"] == both["a"]
    assert both["twice"].low == pytest.approx(2 * both["a"].low, abs=1e-12)
    assert bootstrap({"a": a}, seed=1)["a"].low != both["a"].low
    assert list(both) == ["b", "a", "twice"]


def test_bootstrap_of_one_user_has_no_width() -> None:
    assert bootstrap({"a": np.array([0.25])})["a"] == Measure(0.25, 0.0, 0.25, 0.25, 1)


def test_coverage_by_hand() -> None:
    # Items 0, 1, 2 of 5 are covered; leaving out user 0, 1 or 2 loses 1, 1 or 0 of them.
    measure = coverage(np.array([[0, 1], [1, 2], [1, -1]]), 5)
    assert measure.mean == 0.6
    assert measure.standard_error == pytest.approx(math.sqrt(2 / 3 * (2 * (1 / 15) ** 2 + (2 / 15) ** 2)))
    assert measure.low == pytest.approx(0.6 - 1.959964 * measure.standard_error, abs=1e-6)
    assert measure.high == pytest.approx(0.6 + 1.959964 * measure.standard_error, abs=1e-6)
    assert measure.n_users == 3


@given(rankings())
@settings(max_examples=100, derandomize=True, deadline=None)
def test_coverage_equals_leaving_each_user_out(case: tuple[int, list[list[int]], list[list[int]]]) -> None:
    n_items, tops, _ = case

    def slow_coverage(lists: list[list[int]]) -> float:
        return len({item for top in lists for item in top} - {-1}) / n_items

    without = [slow_coverage(tops[:user] + tops[user + 1 :]) for user in range(len(tops))]
    mean = sum(without) / len(without)
    variance = (len(tops) - 1) / len(tops) * sum((value - mean) ** 2 for value in without)
    measure = coverage(np.array(tops, dtype=np.int32), n_items)
    assert measure.mean == pytest.approx(slow_coverage(tops), abs=1e-12)
    assert measure.standard_error == pytest.approx(math.sqrt(variance), abs=1e-12)
    assert 0 <= measure.low <= measure.mean <= measure.high <= 1


def test_coverage_interval_holds_the_true_coverage_at_least_as_often_as_it_says() -> None:
    # Each of 80 users is recommended one item, drawn with probability p: expected coverage in closed form.
    rng = np.random.default_rng(5)
    p = 1 / np.arange(1, 121)
    p /= p.sum()
    truth = (1 - (1 - p) ** 80).mean()
    measures = [coverage(rng.choice(120, size=(80, 1), p=p), 120) for _ in range(400)]
    assert np.mean([m.low <= truth <= m.high for m in measures]) >= 0.95
    assert np.mean([m.high - m.low for m in measures]) < 3 * 3.92 * np.std([m.mean for m in measures])


def test_coverage_of_equal_lists_is_certain() -> None:
    assert coverage(np.tile(np.arange(4), (10, 1)), 8) == Measure(0.5, 0.0, 0.5, 0.5, 10)


def test_measures_are_json() -> None:
    measures = [bootstrap({"a": np.array([0.0, 1.0])})["a"], coverage(np.array([[0], [1]]), 3)]
    for measure in measures:
        assert json.loads(json.dumps(asdict(measure), allow_nan=False)) == asdict(measure)
