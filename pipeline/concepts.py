"""Concepts: what a model's concepts are like by themselves, without knowing what the items are about.

Shape letters: I items, C concepts, N rows of any kind, D dimensions.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

DUPLICATE_COSINE = 0.9
"""Prototypes closer than this are two names for one concept."""


def independence(code_ND: NDArray[np.floating]) -> float:
    """1 - 2 / (d (d - 1)) sum over pairs of dimensions i < j of |corr_ij| (Ma et al. 2019, section 4.3).

    1 where no dimension tells anything linear about another, 0 where each is a multiple of every other.

    Args:
        code_ND: N vectors; of the d dimensions, those that never change are left out.

    Returns:
        The measure; 1 where fewer than two dimensions are left.
    """
    varying_ND = code_ND[:, np.ptp(code_ND, axis=0) > 0].astype(np.float64)
    d = varying_ND.shape[1]
    if d < 2:
        return 1.0
    correlation_DD = np.abs(np.corrcoef(varying_ND, rowvar=False))
    return float(1 - (correlation_DD.sum() - np.trace(correlation_DD)) / (d * (d - 1)))


def effective_concepts(assignment_IC: NDArray[np.floating]) -> float:
    """e^H of the mean assignment: how many equally large concepts would be as evenly used (Hill 1973, order 1)."""
    return float(np.exp(entropy(assignment_IC.mean(axis=0, dtype=np.float64))))


def duplicates(prototypes_CD: NDArray[np.floating]) -> list[tuple[int, int]]:
    """Pairs of concepts whose prototypes have a cosine above 0.9."""
    first, second = np.nonzero(np.triu(cosines(prototypes_CD), k=1) > DUPLICATE_COSINE)
    return list(zip(first.tolist(), second.tolist(), strict=True))


def cosines(vectors_CD: NDArray[np.floating]) -> NDArray[np.floating]:
    """Cosine of each pair of vectors, [C, C]."""
    unit_CD = vectors_CD / np.linalg.norm(vectors_CD, axis=1, keepdims=True)
    return np.asarray(unit_CD @ unit_CD.T)


def stability(assignment_IC: NDArray[np.floating], other_IC: NDArray[np.floating]) -> float:
    """Share of items whose largest concepts correspond in two models, under the best one-to-one correspondence.

    Concepts have no order, so two trainings are compared after matching theirs by the number of items shared (Kuhn's
    Hungarian method). Two models that divide the items alike score 1; unrelated ones with C equal concepts near 1 / C.

    Args:
        assignment_IC: how much each item belongs to each concept of one model.
        other_IC: the same items in another model, with as many concepts or with others.
    """
    count_CC = one_hot(assignment_IC).T @ one_hot(other_IC)
    return float(count_CC[linear_sum_assignment(count_CC, maximize=True)].sum() / len(assignment_IC))


def one_hot(assignment_IC: NDArray[np.floating]) -> NDArray[np.float64]:
    """1 at each item's largest concept (the first of equals), 0 elsewhere."""
    return np.asarray(np.eye(assignment_IC.shape[1])[assignment_IC.argmax(axis=1)])


def entropy(p: NDArray[np.float64]) -> float:
    """Of a distribution, in nats."""
    return float(-(p[p > 0] * np.log(p[p > 0])).sum())
