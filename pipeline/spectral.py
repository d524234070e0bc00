"""Spectral start: item vectors and prototypes that already know which items go together, before any training.

With random first weights it depends on the seed which concepts a model finds. The singular vectors of the interactions
do not, and groups of items lie apart in them: spectral co-clustering (Dhillon, "Co-clustering documents and words
using bipartite spectral graph partitioning", KDD 2001), here with as many dimensions as the model has.

Memory: 8 bytes per interaction, of at most 100,000 users, and two tables of the size of the item vectors.

Shape letters: U users, I items, D dimensions, C concepts.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix

from pipeline.config import ModelConfig
from pipeline.histories import Histories

SAMPLED_USERS = 100_000
"""More users than this are sampled."""
OVERSAMPLING, ITERATIONS = 10, 8
"""Of the decomposition: pairs beyond those wanted, and rounds."""
STARTS, ROUNDS = 10, 100
"""Of k-means, and rounds of each start at most."""


def spectral_start(
    users: Histories, n_items: int, config: ModelConfig, seed: int
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Item vectors and prototypes of length 1, [I, D] and [C, D].

    With X the interactions (0 or 1), item i's vector is row i of V S, made of length 1: X divided by the roots of its
    row and column sums is U S V^T, without the first singular pair, which only says how often a user and an item occur.
    Prototypes are the centres of the items' clusters.

    Args:
        users: training histories.
        n_items: size of the catalogue.
        config: its numbers of dimensions (what the interactions do not span stays 0) and of concepts.
        seed: the same gives the same bits.
    """
    rng = np.random.default_rng(seed)
    if len(users) > SAMPLED_USERS:
        users = users.take(np.sort(rng.permutation(len(users))[:SAMPLED_USERS]))
    items_ID = _unit(_scaled_right_vectors(users, n_items, config.embedding_size, rng))
    return items_ID, spherical_k_means(items_ID, config.n_concepts, rng)


def spherical_k_means(unit_ID: NDArray[np.float32], n_clusters: int, rng: np.random.Generator) -> NDArray[np.float32]:
    """Centres of length 1 such that rows have large cosines with the nearest, [C, D]; the best of ten starts.

    Dhillon and Modha, "Concept Decompositions for Large Sparse Text Data Using Clustering", 2001. A cluster that loses
    all its rows gets one that fits badly; with fewer different rows than clusters, some centres are equal.

    Args:
        unit_ID: rows of length 1.
        n_clusters: C.
        rng: draws the starts.
    """
    found = [_clustered(unit_ID, _spread_rows(unit_ID, n_clusters, rng)) for _ in range(STARTS)]
    return max(found, key=lambda centres_and_fit: centres_and_fit[1])[0]


def _clustered(unit_ID: NDArray[np.float32], centre_CD: NDArray[np.float32]) -> tuple[NDArray[np.float32], float]:
    """Centres that no round improves, and the mean cosine of a row with its nearest."""
    fit = -np.inf
    for _ in range(ROUNDS):
        cosine_IC = unit_ID @ centre_CD.T
        cluster_I, cosine_I, before = cosine_IC.argmax(axis=1), cosine_IC.max(axis=1), fit
        fit = float(cosine_I.mean(dtype=np.float64))
        if fit <= before:
            break
        member_CI = csr_matrix((np.ones_like(cosine_I), (cluster_I, np.arange(len(unit_ID)))), cosine_IC.T.shape)
        sum_CD = member_CI @ unit_ID
        lost = np.setdiff1d(np.arange(len(centre_CD)), cluster_I)
        worst = np.argsort(cosine_I, kind="stable")[: len(lost)]
        sum_CD[lost[: len(worst)]] = unit_ID[worst]
        centre_CD = _unit(sum_CD)
    return centre_CD, fit


def _spread_rows(unit_ID: NDArray[np.float32], n: int, rng: np.random.Generator) -> NDArray[np.float32]:
    """Rows drawn by their squared distance to those drawn before (k-means++: Arthur and Vassilvitskii 2007)."""
    rows = [int(rng.integers(len(unit_ID)))]
    distance_I = np.full(len(unit_ID), np.inf)
    for _ in range(n - 1):
        distance_I = np.minimum(distance_I, (1 - unit_ID @ unit_ID[rows[-1]]).clip(0).astype(np.float64))
        total = distance_I.sum()
        rows.append(int(rng.choice(len(unit_ID), p=distance_I / total if total else None)))
    return unit_ID[rows]


def _scaled_right_vectors(
    users: Histories, n_items: int, n_dimensions: int, rng: np.random.Generator
) -> NDArray[np.float32]:
    """V S of the normalised interactions without the first pair, [I, D]; missing dimensions are 0."""
    length_N = np.repeat(users.lengths, users.lengths)
    n_users_I = np.bincount(users.items_N, minlength=n_items)
    values_N = (1 / np.sqrt(length_N * n_users_I[users.items_N])).astype(np.float32)
    normalised_UI = csr_matrix((values_N, users.items_N, users.offsets), shape=(len(users), n_items))
    vs_IP = _leading_right_vectors(normalised_UI, n_dimensions + 1, rng)[:, 1:]
    return np.pad(vs_IP, ((0, 0), (0, n_dimensions - vs_IP.shape[1])))


def _leading_right_vectors(matrix_UI: csr_matrix, n_pairs: int, rng: np.random.Generator) -> NDArray[np.float32]:
    """V S of the largest singular pairs, [I, P], by subspace iteration (Halko, Martinsson, Tropp 2011, algorithm 4.4).

    ARPACK, which scipy's svds would use, draws from a generator of its own when singular values are equal.
    """
    n_columns = min(n_pairs + OVERSAMPLING, *matrix_UI.shape)
    start_IP = rng.standard_normal((matrix_UI.shape[1], n_columns), dtype=np.float32)
    basis_UP = np.linalg.qr(matrix_UI @ start_IP).Q
    for _ in range(ITERATIONS):
        basis_UP = np.linalg.qr(matrix_UI @ np.linalg.qr(matrix_UI.T @ basis_UP).Q).Q
    _, s_P, v_PI = np.linalg.svd((matrix_UI.T @ basis_UP).T, full_matrices=False)
    return np.asarray((v_PI[:n_pairs] * s_P[:n_pairs, None]).T, dtype=np.float32)


def _unit(rows_ID: NDArray[np.float32]) -> NDArray[np.float32]:
    """Rows of length 1; of a row of zeros, the first entry becomes 1."""
    length_I1 = np.linalg.norm(rows_ID, axis=1, keepdims=True)
    unit_ID: NDArray[np.float32] = (rows_ID / np.where(length_I1 > 0, length_I1, 1)).astype(np.float32)
    unit_ID[length_I1[:, 0] == 0, 0] = 1
    return unit_ID
