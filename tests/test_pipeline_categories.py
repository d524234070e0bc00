from __future__ import annotations

from itertools import combinations, permutations, product

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.categories import Categories, agreement, macro_score, read_categories
from pipeline.errors import InputError
from pipeline.vocabulary import Vocabulary


def of(names: list[str]) -> Categories:
    return Categories.of(pl.Series(names))


def test_categories_of_strings() -> None:
    found = Categories.of(pl.Series(["Action|Comedy", "Comedy", None, "", "Comedy|Comedy", "Drama|Action|Comedy"]))
    assert found.names == ["Action", "Comedy", "Drama"]
    third = 1 / 3
    expected = [[0.5, 0.5, 0], [0, 1, 0], [0, 0, 0], [0, 0, 0], [0, 1, 0], [third, third, third]]
    assert found.share_IG.tolist() == expected


@pytest.mark.parametrize(
    ("column", "names", "share_IG"),
    [
        (pl.Series([["b", "a"], [], None, ["b"]]), ["a", "b"], [[0.5, 0.5], [0, 0], [0, 0], [0, 1]]),
        (pl.Series([[2, None], [1]]), ["1", "2"], [[0, 1], [1, 0]]),
        (pl.Series([7, None, 11]), ["11", "7"], [[0, 1], [0, 0], [1, 0]]),
        (pl.Series(["x", "y", "x"], dtype=pl.Categorical), ["x", "y"], [[1, 0], [0, 1], [1, 0]]),
        (pl.Series([None, None], dtype=pl.String), [], [[], []]),
    ],
)
def test_categories_of_other_columns(column: pl.Series, names: list[str], share_IG: list[list[float]]) -> None:
    found = Categories.of(column)
    assert found.names == names
    assert found.share_IG.tolist() == share_IG


def test_largest_categories_come_first() -> None:
    assert of(["a", "b", "b", "c", "c", "d|b"]).largest.tolist() == [1, 2, 0, 3]


def test_read_categories() -> None:
    bare = Vocabulary.of(pl.Series([1, 2]), np.array([5, 6]))
    titled = Vocabulary(
        bare.items.with_columns(title=pl.Series(["t", "u"]), year=pl.Series([None, None], dtype=pl.Int64))
    )
    assert read_categories(titled, "title").names == ["t", "u"]
    for vocabulary, column, message in (
        (titled, "genre", "--categories genre: the model's items have no such column, only title, year."),
        (
            bare,
            "item_id",
            "--categories item_id: the model's items have no such column, nothing but ids: train with data.items.",
        ),
        (titled, "year", "--categories year: no item of the model has one. Name another column."),
    ):
        with pytest.raises(InputError) as e:
            read_categories(vocabulary, column)
        assert str(e.value) == message


def test_a_column_of_names_is_refused() -> None:
    assert len(Categories.of(pl.Series("sku", range(1000))).names) == 1000
    with pytest.raises(InputError) as e:
        Categories.of(pl.Series("sku", range(1001)))
    assert str(e.value) == "Column sku has 1,001 categories, more than 1,000. Name a coarser column."


def test_agreement_by_hand() -> None:
    """Six items: concept 1 is fruit, concept 0 is tools but for one fruit, concept 2 has no item and is left over."""
    assignment_IC = np.array(
        [[0.1, 0.9, 0.0], [0.2, 0.8, 0.0], [0.6, 0.4, 0.0], [1.0, 0.0, 0.0], [0.9, 0.1, 0.0], [0.5, 0.2, 0.3]],
        dtype=np.float32,
    )
    found = agreement(assignment_IC, of(["fruit"] * 3 + ["tool"] * 3))
    assert found.table.rows() == [(0, "tool", 4, 0.75), (1, "fruit", 2, 1.0), (2, None, 0, 0.0)]
    assert found.table.schema == {"concept": pl.Int64, "category": pl.String, "n_items": pl.Int64, "share": pl.Float64}
    assert found.purity == found.matched_purity == 5 / 6
    # H(c) = log 3 - 2/3 log 2, H(g) = log 2, I = log 2 - 2/3 H(1/4) with H(1/4) = log 4 - 3/4 log 3
    log2, log3 = np.log(2), np.log(3)
    information = log2 - 2 / 3 * (2 * log2 - 3 / 4 * log3)
    assert found.nmi == pytest.approx(2 * information / ((log3 - 2 / 3 * log2) + log2), abs=1e-12)
    # Of 15 pairs, 4 are together in both, 7 in the concepts, 6 in the categories.
    assert found.ari == pytest.approx((4 - 7 * 6 / 15) / ((7 + 6) / 2 - 7 * 6 / 15), abs=1e-12)


def test_two_concepts_of_one_category() -> None:
    """All four items are in pure concepts, but only one concept can be the category's."""
    found = agreement(np.eye(2)[[0, 0, 0, 1]], of(["a"] * 4))
    assert (found.purity, found.matched_purity) == (1.0, 0.75)


def test_several_categories_count_in_shares_and_none_not_at_all() -> None:
    """Concept 0: `a` once and half of `a|b`; concept 1: the other `b`; the item without a category is left out."""
    found = agreement(np.eye(2)[[0, 0, 1, 1]], Categories.of(pl.Series(["a", "a|b", "b", None])))
    assert found.table.rows() == [(0, "a", 2, 0.75), (1, "b", 1, 1.0)]
    assert found.purity == found.matched_purity == 2.5 / 3
    joint = np.array([[1.5, 0.5], [0, 1]]) / 3

    def bits(p: np.ndarray) -> float:
        return -sum(q * np.log(q) for q in p.ravel() if q)

    concepts, categories = bits(joint.sum(1)), bits(joint.sum(0))
    assert found.nmi == pytest.approx(2 * (concepts + categories - bits(joint)) / (concepts + categories), abs=1e-12)
    assert found.ari == 1.0, "of the two items of one category"


def test_matching_uses_mass_where_greedy_would_fail() -> None:
    """Greedy takes 0.9 and is left with 0.0; the best pairs sum to 1.6."""
    found = agreement(np.array([[0.9, 0.8], [0.8, 0.0]]), of(["a", "b"]))
    assert found.table["category"].to_list() == ["b", "a"]


def test_perfect_independent_and_single() -> None:
    categories = ["a", "b", "c"] * 4
    perfect = agreement(np.eye(3)[[2, 0, 1] * 4], of(categories))
    assert (perfect.purity, perfect.matched_purity, perfect.ari) == (1, 1, 1)
    assert perfect.nmi == pytest.approx(1.0, abs=1e-12)
    assert perfect.table["category"].to_list() == ["b", "c", "a"]
    independent = agreement(np.eye(2)[[0, 1, 0, 1]], of(["a", "a", "b", "b"]))
    assert (independent.purity, independent.nmi) == (0.5, pytest.approx(0.0, abs=1e-12))
    single = agreement(np.ones((3, 1)), of(["a"] * 3))
    assert (single.purity, single.nmi, single.ari) == (1.0, 1.0, 1.0)
    assert agreement(np.ones((1, 1)), of(["a"])).ari is None


def test_many_categories() -> None:
    assert agreement(np.eye(40), of([f"{g:02d}" for g in range(40)])).matched_purity == 1.0
    found = agreement(np.ones((6, 1)), of(["a", "a", "b", "b", "b", "c"]))
    assert found.table.rows() == [(0, "b", 6, 0.5)]
    assert (found.purity, found.nmi) == (0.5, 0.0)


@given(st.integers(0, 2**32 - 1))
@settings(derandomize=True, max_examples=30, deadline=None)
def test_order_of_items_concepts_and_names_does_not_matter(seed: int) -> None:
    rng = np.random.default_rng(seed)
    assignment_IC = rng.dirichlet(np.full(4, 0.3), 40)
    category_I = rng.choice(["a", "b", "c"], 40)
    found = agreement(assignment_IC, of(category_I.tolist()))
    items, concepts = rng.permutation(40), rng.permutation(4)
    renamed = dict(zip("abc", rng.permutation(["x", "y", "z"]).tolist(), strict=True))
    again = agreement(assignment_IC[items][:, concepts], of([renamed[category] for category in category_I[items]]))
    for name in ("purity", "matched_purity", "nmi", "ari"):
        assert getattr(again, name) == pytest.approx(getattr(found, name), abs=1e-12)
    before = {row[0]: row[1:] for row in found.table.iter_rows()}
    for at, category, n_items, share in again.table.iter_rows():
        old_category, old_n_items, old_share = before[int(concepts[at])]
        assert category == (None if old_category is None else renamed[old_category])
        assert (n_items, share) == (old_n_items, pytest.approx(old_share))


@given(st.integers(0, 2**32 - 1))
@settings(derandomize=True, max_examples=30, deadline=None)
def test_against_definitions(seed: int) -> None:
    """NMI from the joint distribution; ARI from all pairs of items; the matching from all one-to-one matchings."""
    rng = np.random.default_rng(seed)
    n = 30
    concept_I, category_I = rng.integers(0, 3, n), rng.integers(0, 3, n)
    found = agreement(np.eye(3)[concept_I], of([str(category) for category in category_I]))
    joint = {pair: np.mean((concept_I == pair[0]) & (category_I == pair[1])) for pair in product(range(3), range(3))}
    p_C, p_G = (np.bincount(labels, minlength=3) / n for labels in (concept_I, category_I))
    information = sum(p * np.log(p / (p_C[c] * p_G[g])) for (c, g), p in joint.items() if p)
    entropies = -sum(p * np.log(p) for p in [*p_C, *p_G] if p)
    assert found.nmi == pytest.approx(2 * information / entropies, abs=1e-12)
    pairs = list(combinations(range(n), 2))
    same_concept = np.array([concept_I[i] == concept_I[j] for i, j in pairs])
    same_category = np.array([category_I[i] == category_I[j] for i, j in pairs])
    chance = same_concept.sum() * same_category.sum() / len(pairs)
    most = (same_concept.sum() + same_category.sum()) / 2
    assert found.ari == pytest.approx(((same_concept & same_category).sum() - chance) / (most - chance), abs=1e-12)
    assert found.purity == pytest.approx(sum(max(joint[c, g] for g in range(3)) for c in range(3)))
    best = max(np.mean(np.array(order)[concept_I] == category_I) for order in permutations(range(3)))
    assert found.matched_purity == pytest.approx(best)


def unit(angles: list[float]) -> np.ndarray:
    return np.stack([np.cos(np.radians(angles)), np.sin(np.radians(angles))], axis=1)


@pytest.mark.parametrize(
    ("prototypes", "score"),
    [
        ([1, 119, 241], 3),
        ([119, 241, 1], 3),  # whatever the order
        ([1, 2, 3], 0),  # all are nearest to `a`, and the first is nearest to `a` and to `c`
        ([-59, 0, 120], 1),  # the categories are nearest to different prototypes, but two prototypes to `a`
    ],
)
def test_macro_score(prototypes: list[float], score: int) -> None:
    """Categories around 0, 120 and 240 degrees; a fourth is smaller than they and ignored."""
    items = unit([-10, 10, 110, 130, 230, 250, 60])
    categories = of(["a", "a", "b", "b", "c", "c", "d"])
    assert macro_score(items, 3 * unit(prototypes), categories) == score


@given(st.integers(0, 2**32 - 1))
@settings(derandomize=True, max_examples=200, deadline=None)
def test_macro_score_is_never_two(seed: int) -> None:
    """The largest cosine is the nearest for both its sides, so are the others in turn: one-to-one choices agree."""
    rng = np.random.default_rng(seed)
    score = macro_score(np.eye(3), rng.normal(size=(3, 3)), of(["a", "b", "c"]))
    assert score in (0, 1, 3)


def test_macro_score_needs_as_many_categories_as_concepts() -> None:
    assert macro_score(np.eye(3), np.eye(3), of(["a", "b", "b"])) is None
