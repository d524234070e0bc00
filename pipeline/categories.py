"""Categories: how well the concepts that a model found agree with categories that people gave the items.

An item may have several categories (`Action|Comedy`). With n of them it counts 1 / n in each, as if one were drawn at
random, so every labelled item counts once whatever it is called; what agreement the draw itself spoils is counted
against the concepts, and the best possible score is below 1. Items without a category are left out.

Shape letters: I items, C concepts, G categories, D dimensions.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

from pipeline.concepts import entropy, one_hot
from pipeline.errors import InputError
from pipeline.vocabulary import Vocabulary

SEPARATOR = "|"
MAX_CATEGORIES = 1_000
"""A column of more is a name or a text."""


@dataclass(frozen=True, eq=False)
class Categories:
    """Which categories the items of a catalogue belong to."""

    names: list[str]
    """Of the categories, ascending."""
    share_IG: NDArray[np.float64]
    """1 / n in each of an item's n categories; a row of zeros has no category."""

    @classmethod
    def of(cls, column: pl.Series) -> Categories:
        """From strings (several categories are joined by `|`), lists, or single values of any other type.

        Raises:
            InputError: there are more than 1,000.
        """
        if column.dtype == pl.String:
            column = column.str.split(SEPARATOR)
        pairs = pl.DataFrame({"item": pl.int_range(len(column), eager=True), "name": column})
        if isinstance(column.dtype, pl.List):
            pairs = pairs.explode("name", empty_as_null=False)
        pairs = pairs.cast({"name": pl.String}).filter(pl.col("name") != "").unique()
        names = pairs["name"].unique().sort()
        if len(names) > MAX_CATEGORIES:
            raise InputError(
                f"Column {column.name} has {len(names):,} categories, more than {MAX_CATEGORIES:,}. "
                "Name a coarser column."
            )
        share_IG = np.zeros((len(column), len(names)))
        share_IG[pairs["item"].to_numpy(), names.search_sorted(pairs["name"]).to_numpy()] = 1
        return cls(names.to_list(), share_IG / share_IG.sum(axis=1, keepdims=True).clip(1))

    @property
    def largest(self) -> NDArray[np.int64]:
        """Numbers of the categories, the one with the most items first; of equals, the first name."""
        return np.argsort(-self.share_IG.sum(axis=0), kind="stable")


def read_categories(vocabulary: Vocabulary, column: str) -> Categories:
    """The categories in a column of the vocabulary.

    Raises:
        InputError: there is no such column, nothing in it, or more than 1,000 categories.
    """
    known = [name for name in vocabulary.items.columns if name not in ("item_number", "item_id", "n_interactions")]
    if column not in known:
        held = f"only {', '.join(known)}" if known else "nothing but ids: train with data.items"
        raise InputError(f"--categories {column}: the model's items have no such column, {held}.")
    found = Categories.of(vocabulary.items[column])
    if not found.names:
        raise InputError(f"--categories {column}: no item of the model has one. Name another column.")
    return found


@dataclass(frozen=True, eq=False)
class Agreement:
    """How well the largest concept of each item tells its category."""

    table: pl.DataFrame
    """One row per concept: `concept`, the `category` matched to it (null: left over), `n_items` (labelled) whose
    largest concept it is, and the `share` of these that are of the category."""
    purity: float
    """Share of items of the most frequent category of their concept (Manning, Raghavan, Schuetze 2008, 16.3)."""
    matched_purity: float
    """The same where no category may serve two concepts: of the category matched to their concept."""
    nmi: float
    """Normalised mutual information of concept and category, 0..1: 2 I(c; g) / (H(c) + H(g))."""
    ari: float | None
    """Adjusted Rand index (Hubert and Arabie 1985) over the items of exactly one category: pairs of items have no
    weights. 0 is chance, 1 the same partition. None where fewer than two items are of one category."""


def agreement(assignment_IC: NDArray[np.floating], categories: Categories) -> Agreement:
    """Compare each item's largest concept with its categories.

    For the table and `matched_purity`, concepts and categories are matched one to one so that the matched pairs hold
    the most assignment mass.

    Args:
        assignment_IC: how much each item belongs to each concept, not negative.
        categories: of the same items; at least one has one.
    """
    share_IG, n_concepts = categories.share_IG, assignment_IC.shape[1]
    matched_C: list[int | None] = [None] * n_concepts
    mass_CG = assignment_IC.T.astype(np.float64) @ share_IG
    for concept, category in zip(*linear_sum_assignment(mass_CG, maximize=True), strict=True):
        matched_C[concept] = int(category)
    count_CG = one_hot(assignment_IC).T @ share_IG
    n_items_C, n_items = count_CG.sum(axis=1), count_CG.sum()
    hits_C = np.array([0 if g is None else count_CG[c, g] for c, g in enumerate(matched_C)])
    single_I = share_IG.max(axis=1) == 1
    table = pl.DataFrame(
        {
            "concept": range(n_concepts),
            "category": pl.Series([None if g is None else categories.names[g] for g in matched_C], dtype=pl.String),
            "n_items": np.rint(n_items_C).astype(np.int64),
            "share": hits_C / np.where(n_items_C > 0, n_items_C, 1),
        }
    )
    return Agreement(
        table,
        purity=float(count_CG.max(axis=1).sum() / n_items),
        matched_purity=float(hits_C.sum() / n_items),
        nmi=_normalised_mutual_information(count_CG / n_items),
        ari=_adjusted_rand_index(one_hot(assignment_IC)[single_I].T @ share_IG[single_I]),
    )


def macro_score(
    items_ID: NDArray[np.floating], prototypes_CD: NDArray[np.floating], categories: Categories
) -> int | None:
    """How cleanly prototypes and categories point at one another, 0 to 3 (code of Ma et al. 2019).

    A category's centre is the sum of its items' vectors; nearness is the cosine. One point if no two categories have
    the same nearest prototype, one if no two prototypes have the same nearest category, and then one if both choices
    agree (which, but for ties, follows: nobody gets 2). As in the authors' code there are as many categories as
    concepts: the largest.

    Args:
        items_ID: item vectors of length 1.
        prototypes_CD: one vector per concept, not zero.
        categories: of the same items.

    Returns:
        The score; None where there are fewer categories than concepts.
    """
    n_concepts = len(prototypes_CD)
    if len(categories.names) < n_concepts:
        return None
    centre_GD = categories.share_IG[:, categories.largest[:n_concepts]].T @ items_ID
    centre_GD /= np.linalg.norm(centre_GD, axis=1, keepdims=True).clip(1e-12)
    cosine_CG = prototypes_CD / np.linalg.norm(prototypes_CD, axis=1, keepdims=True) @ centre_GD.T
    nearest_category_C, nearest_prototype_G = cosine_CG.argmax(axis=1), cosine_CG.argmax(axis=0)
    distinct = [len(set(nearest.tolist())) == n_concepts for nearest in (nearest_prototype_G, nearest_category_C)]
    agree = all(distinct) and bool((nearest_prototype_G[nearest_category_C] == np.arange(n_concepts)).all())
    return sum(distinct) + agree


def _normalised_mutual_information(joint_CG: NDArray[np.float64]) -> float:
    concepts, categories, joint = (entropy(p) for p in (joint_CG.sum(axis=1), joint_CG.sum(axis=0), joint_CG))
    if concepts + categories == 0:
        return 1.0  # one concept, one category
    return 2 * (concepts + categories - joint) / (concepts + categories)


def _adjusted_rand_index(count_CG: NDArray[np.float64]) -> float | None:
    """(pairs together in both - expected) / (mean of the two numbers of pairs together - expected)."""
    together, in_concepts, in_categories, pairs = (
        (n * (n - 1) / 2).sum() for n in (count_CG, count_CG.sum(axis=1), count_CG.sum(axis=0), count_CG.sum())
    )
    if pairs < 1:
        return None
    expected = in_concepts * in_categories / pairs
    most = (in_concepts + in_categories) / 2
    return 1.0 if most == expected else float((together - expected) / (most - expected))
