from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import InputError
from pipeline.evaluation import CUTOFFS, evaluate, mean_ndcg
from pipeline.histories import Histories, batches
from pipeline.scorer import Scorer, TopK


def preference(history: Sequence[int], item: int) -> int:
    """How the fake scorer likes an item: arbitrary, known, different for every history, equal for no two items."""
    return (item * 7919 + sum(history) * 104_729 + len(history) * 31) % 1009 * 1000 + item


class KnownScorer:
    """Ranks by `preference`, one user at a time, and remembers how it was called."""

    n_concepts = 1

    def __init__(self, n_items: int) -> None:
        self.n_items = n_items
        self.calls: list[tuple[int, int]] = []

    def __call__(
        self,
        histories: Histories,
        k: int,
        *,
        excluded: Histories | None = None,
        allowed: np.ndarray | None = None,
        concept_weights: np.ndarray | None = None,
    ) -> TopK:
        assert excluded is not None
        assert allowed is None
        assert concept_weights is None
        self.calls.append((len(histories), int(histories.lengths.max())))
        items = np.full((len(histories), k), -1)
        for user in range(len(histories)):
            ranked = ranking(histories[user].tolist(), excluded[user].tolist(), self.n_items)[:k]
            items[user, : len(ranked)] = ranked
        scores = np.where(items < 0, -np.inf, 0).astype(np.float32)
        return TopK(items, scores, np.ones((*items.shape, 1), dtype=np.float32))


def ranking(history: list[int], excluded: list[int], n_items: int) -> list[int]:
    unseen = set(range(n_items)) - set(excluded)
    return sorted(unseen, key=lambda item: -preference(history, item))


def slow_evaluation(histories: list[list[int]], targets: list[list[int]], n_items: int) -> dict[str, float]:
    """The default metrics' means by definition, place by place."""
    totals = dict.fromkeys((f"{name}@{k}" for name, ks in CUTOFFS.items() for k in ks), 0.0)
    covered = set()
    for history, wanted in zip(histories, targets, strict=True):
        ranked = ranking(history, history, n_items)
        covered |= set(ranked[:100])
        for key in totals:
            name, k = key.split("@")[0], int(key.split("@")[1])
            ranks = [rank for rank, item in enumerate(ranked[:k], start=1) if item in wanted]
            best = min(k, len(wanted))
            ideal = sum(1 / math.log2(rank + 1) for rank in range(1, best + 1))
            totals[key] += {
                "ndcg": sum(1 / math.log2(rank + 1) for rank in ranks) / ideal,
                "recall": len(ranks) / best,
                "plain_recall": len(ranks) / len(wanted),
                "hit": float(bool(ranks)),
                "mrr": 1 / ranks[0] if ranks else 0.0,
                "precision": len(ranks) / k,
                "coverage": 0.0,
            }[name]
    means = {key: total / len(targets) for key, total in totals.items()}
    return means | {"coverage@100": len(covered) / n_items}


def drawn_users(n_users: int, n_items: int, seed: int) -> tuple[list[list[int]], list[list[int]]]:
    """Histories of 0 to a third of the catalogue, and 1 to a third of it as targets, disjoint."""
    rng = np.random.default_rng(seed)
    histories, targets = [], []
    for _ in range(n_users):
        items = rng.permutation(n_items)
        seen, wanted = rng.integers(0, n_items // 3), rng.integers(1, n_items // 3)
        histories.append(sorted(items[:seen].tolist()))
        targets.append(sorted(items[seen : seen + wanted].tolist()))
    return histories, targets


@pytest.mark.parametrize(("n_users", "n_items", "seed"), [(40, 300, 1), (25, 30, 2), (1, 6, 3)])
def test_evaluation_equals_a_loop_over_users(n_users: int, n_items: int, seed: int) -> None:
    histories, targets = drawn_users(n_users, n_items, seed)
    measures = evaluate(KnownScorer(n_items), Histories.of(histories), Histories.of(targets))
    expected = slow_evaluation(histories, targets, n_items)
    assert list(measures) == list(expected)
    for name, measure in measures.items():
        assert measure.mean == pytest.approx(expected[name], abs=1e-12)
        assert measure.n_users == n_users
        assert measure.low - 1e-12 <= measure.mean <= measure.high + 1e-12


def test_the_default_family_holds_the_papers_and_recboles_metrics() -> None:
    names = {f"{name}@{k}" for name, ks in CUTOFFS.items() for k in ks}
    assert names >= {"ndcg@100", "recall@20", "recall@50"}
    assert names >= {"plain_recall@10", "mrr@10", "ndcg@10", "hit@10", "precision@10"}
    assert "coverage@100" in names


def test_batches_do_not_change_the_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    histories, targets = (Histories.of(h) for h in drawn_users(30, 150, 4))
    scorer = KnownScorer(150)
    whole = evaluate(scorer, histories, targets)
    assert [users for users, _ in scorer.calls] == [30]
    for batch_users in (1, 7, 29):
        scorer = KnownScorer(150)
        with monkeypatch.context() as patch:
            patch.setattr("pipeline.histories.BATCH_USERS", batch_users)
            assert evaluate(scorer, histories, targets) == whole
        assert max(users for users, _ in scorer.calls) == batch_users
    monkeypatch.setattr("pipeline.histories.BATCH_SCORES", 4 * 150 + 1)
    scorer = KnownScorer(150)
    assert evaluate(scorer, histories, targets) == whole
    assert max(users for users, _ in scorer.calls) == 4
    monkeypatch.setattr("pipeline.histories.PADDED_ITEMS", 60)
    scorer = KnownScorer(150)
    assert evaluate(scorer, histories, targets) == whole
    assert len(scorer.calls) > 5
    assert all(users == 1 or users * longest <= 60 for users, longest in scorer.calls)


def test_users_order_changes_no_mean() -> None:
    histories, targets = drawn_users(20, 90, 5)
    there = evaluate(KnownScorer(90), Histories.of(histories), Histories.of(targets))
    back = evaluate(KnownScorer(90), Histories.of(histories[::-1]), Histories.of(targets[::-1]))
    for name, measure in there.items():
        assert back[name].mean == pytest.approx(measure.mean, abs=1e-12)
        assert back[name].standard_error == pytest.approx(measure.standard_error, abs=1e-12)


@pytest.mark.parametrize(
    "cutoffs",
    [{"coverage": (3, 1)}, {"mrr": (5,)}, {"coverage": (2,), "ndcg": (4, 1)}, {"hit": (1,), "coverage": (9,)}],
)
def test_chosen_cutoffs_in_their_order(cutoffs: dict[str, tuple[int, ...]]) -> None:
    histories, targets = (Histories.of(h) for h in drawn_users(12, 20, 6))
    all_ks = {name: tuple(range(1, 10)) for name in (*CUTOFFS,)}
    everything = evaluate(KnownScorer(20), histories, targets, cutoffs=all_ks)
    measures = evaluate(KnownScorer(20), histories, targets, cutoffs=cutoffs)
    assert list(measures) == [f"{name}@{k}" for name, ks in cutoffs.items() for k in ks]
    assert measures == {name: everything[name] for name in measures}


def test_mean_ndcg_is_the_evaluations() -> None:
    histories, targets = (Histories.of(h) for h in drawn_users(30, 150, 7))
    measures = evaluate(KnownScorer(150), histories, targets)
    scorer = KnownScorer(150)
    assert mean_ndcg(scorer, histories, targets) == pytest.approx(measures["ndcg@100"].mean, abs=1e-12)
    assert mean_ndcg(scorer, histories, targets, k=10) == pytest.approx(measures["ndcg@10"].mean, abs=1e-12)


def test_measures_are_json() -> None:
    histories, targets = (Histories.of(h) for h in drawn_users(5, 30, 8))
    measures = {name: asdict(m) for name, m in evaluate(KnownScorer(30), histories, targets).items()}
    assert json.loads(json.dumps(measures, allow_nan=False)) == measures


@given(st.lists(st.integers(0, 50), max_size=40), st.integers(1, 12))
@settings(max_examples=100, derandomize=True, deadline=None)
def test_batches_hold_every_user_once_within_bounds(lengths: list[int], batch_users: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pipeline.histories.PADDED_ITEMS", 100)
        patch.setattr("pipeline.histories.BATCH_USERS", batch_users)
        parts = [part.tolist() for part in batches(np.array(lengths, dtype=np.int64), 9)]
    users = [user for part in parts for user in part]
    assert users == sorted(range(len(lengths)), key=lengths.__getitem__)
    for part in parts:
        assert 1 <= len(part) <= batch_users
        assert len(part) == 1 or len(part) * max(lengths[user] for user in part) <= 100
    for part, following in pairwise(parts):  # one more user would not have fitted
        assert len(part) == batch_users or (len(part) + 1) * lengths[following[0]] > 100


def test_one_huge_history_is_a_batch_of_its_own() -> None:
    lengths = np.array([10, 1_000_000, 0, 10])
    assert [part.tolist() for part in batches(lengths, 9)] == [[2, 0, 3], [1]]


@pytest.mark.parametrize(
    ("histories", "targets", "message"),
    [
        ([], [], "There are no users to evaluate. Give at least one user with a history and targets."),
        ([[0], [1], [2]], [[1], [], []], "Users without targets: 2 of 3. No metric is defined; leave them out."),
        (
            [[0], [1]],
            [[1, 10], [-1, 2]],
            "Targets outside the catalogue (item numbers 0 to 9): 2 of 4. Leave them out.",
        ),
        ([[0, 12]], [[1]], "History items outside the catalogue (item numbers 0 to 9): 1 of 2. Leave them out."),
        (
            [[1, 2, 3], [4], []],
            [[2, 3, 5], [5], [4]],
            "Targets already in their user's history: 2 of 5. "
            "Seen items are never recommended, so these cannot be hit; remove them from the targets.",
        ),
    ],
)
@pytest.mark.parametrize("function", [evaluate, mean_ndcg])
def test_undefined_or_unreachable_targets_are_refused(
    function: object, histories: list[list[int]], targets: list[list[int]], message: str
) -> None:
    scorer: Scorer = KnownScorer(10)
    assert callable(function)
    with pytest.raises(InputError) as error:
        function(scorer, Histories.of(histories), Histories.of(targets))
    assert str(error.value) == message


def test_histories_and_targets_of_different_users_are_a_bug() -> None:
    with pytest.raises(ValueError, match=r"^2 histories but 1 sets of targets$"):
        evaluate(KnownScorer(10), Histories.of([[0], [1]]), Histories.of([[2]]))


def test_users_without_a_history_are_evaluated() -> None:
    measures = evaluate(KnownScorer(10), Histories.of([[], []]), Histories.of([[3], [4]]), cutoffs={"recall": (10,)})
    assert measures["recall@10"].mean == 1.0
