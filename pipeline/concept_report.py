"""Concept report: everything that can be said about a trained model's concepts, as numbers and one row per concept.

Shape letters: U users, I items, C concepts, D dimensions, G categories, N items of all histories together.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray

from pipeline.categories import Categories, agreement, macro_score
from pipeline.concept_profile import Profile, profile_concepts
from pipeline.concepts import cosines, duplicates, effective_concepts, independence
from pipeline.dci import dci
from pipeline.eager import to_batch
from pipeline.histories import Histories
from pipeline.model import MacridVAE
from pipeline.vocabulary import Vocabulary

EXAMPLES = 3
MEASURED_USERS = 10_000
"""Of more users, so many are looked at."""


@dataclass(frozen=True, eq=False)
class ConceptReport:
    """What `pipeline evaluate --concepts` prints."""

    measures: dict[str, float | int | None]
    """By name; None: not defined here."""
    concepts: pl.DataFrame
    """One row per concept: shares of items and users whose largest concept it is, its share of all interactions, the
    largest cosine with another prototype (-1 where there is none), the matched category and its share (see
    `Agreement`), and its foremost items (see `profile_concepts`)."""


@torch.inference_mode()
def report(
    model: MacridVAE, vocabulary: Vocabulary, users: Histories | None, categories: Categories | None
) -> ConceptReport:
    """Measure a model's concepts.

    A user's mass in a concept is the mean of a_ic over the history. DCI is measured twice, against the share of each
    category in the history: of the masses [U, C], and of the whole code, the mean vectors of all concepts [U, C D].

    Args:
        model: on any device.
        vocabulary: its items.
        users: histories that the measures of users are of. None: those measures are left out.
        categories: of the model's items. None: agreement with them is left out.
    """
    assignment_IC = model.assignment().cpu().numpy()
    items_ID, prototypes_CD = model.items().cpu().numpy(), model.prototypes.cpu().numpy()
    size_C = np.bincount(assignment_IC.argmax(axis=1), minlength=assignment_IC.shape[1])
    profile = profile_concepts(assignment_IC, vocabulary, EXAMPLES)
    measures: dict[str, float | int | None] = {
        "median_largest_share": profile.median_largest_assignment,
        "effective_concepts": effective_concepts(assignment_IC),
        "dead_concepts": int((size_C == 0).sum()),
        "duplicate_concepts": len(duplicates(prototypes_CD)),
        "item_independence": independence(items_ID),
    }
    concepts = _concepts(profile, prototypes_CD)
    if categories is not None:
        found = agreement(assignment_IC, categories)
        measures |= {name: getattr(found, name) for name in ("purity", "matched_purity", "nmi", "ari")}
        measures["macro_score"] = macro_score(items_ID, prototypes_CD, categories)
        concepts = concepts.join(found.table.select("concept", "category", category_share="share"), on="concept")
    if users is not None and users.lengths.any():
        with_history = np.flatnonzero(users.lengths)
        users = users.take(with_history[:: -(-len(with_history) // MEASURED_USERS)])
        mass_UC = _means(users, assignment_IC)
        mean_CUD = model.encode(to_batch(users, model.item_embedding.device), model.assignment()).cpu().numpy()
        measures["user_independence"] = float(np.mean([independence(mean_UD) for mean_UD in mean_CUD]))
        if categories is not None:
            measures |= _disentanglement(users, mass_UC, mean_CUD, categories)
        shares_C = np.bincount(mass_UC.argmax(axis=1), minlength=len(size_C)) / len(users)
        concepts.insert_column(2, pl.Series("users", shares_C))
    return ConceptReport(measures, concepts.select(pl.exclude("examples"), "examples"))


def _concepts(profile: Profile, prototypes_CD: NDArray[np.floating]) -> pl.DataFrame:
    other_CC = np.where(np.eye(len(prototypes_CD)), -1, cosines(prototypes_CD))
    rows = profile.concepts
    return pl.DataFrame(
        {
            "concept": np.arange(len(rows)),
            "items": [concept.items for concept in rows],
            "interactions": [concept.interactions for concept in rows],
            "closest_cosine": other_CC.max(axis=1),
            "examples": [[item.name for item in concept.top_items] for concept in rows],
        }
    )


def _disentanglement(
    users: Histories, mass_UC: NDArray[np.floating], mean_CUD: NDArray[np.floating], categories: Categories
) -> dict[str, float]:
    factor_UG = _means(users, categories.share_IG)
    code_UE = mean_CUD.transpose(1, 0, 2).reshape(len(users), -1)
    found = {"mass": dci(mass_UC, factor_UG), "code": dci(code_UE, factor_UG)}
    return {f"{code}_{name}": value for code, of in found.items() for name, value in of._asdict().items()}


def _means(users: Histories, row_IX: NDArray[np.floating]) -> NDArray[np.float64]:
    """Mean over each history of its items' rows, [U, X]."""
    sums_UX = np.add.reduceat(row_IX[users.items_N].astype(np.float64), users.offsets[:-1])
    return np.asarray(sums_UX / users.lengths[:, None])
