"""Baselines: what a model must beat to earn its keep on somebody's data, fitted on the histories the model trained on.

Popularity recommends everyone the items with the most interactions. EASE (Steck, "Embarrassingly Shallow Autoencoders
for Sparse Data", WWW 2019) is linear regression of every item on the others, in closed form.

Shape letters: B users, I items, k places.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from numpy.typing import NDArray
from torch import Tensor

from pipeline.config import DataConfig
from pipeline.dataset import Dataset, load_dataset
from pipeline.errors import InputError
from pipeline.evaluation import mean_ndcg
from pipeline.histories import Histories
from pipeline.scorer import Scorer, TopK
from pipeline.vocabulary import Vocabulary

EASE_L2 = (50.0, 100.0, 200.0, 500.0, 1000.0, 2000.0)
"""What EASE's l2 is chosen from."""
EASE_ITEMS = 50_000
"""The largest catalogue EASE is fitted to: two tables of items x items take 20 GB there."""


class BaselineScorer:
    """Ranks by a score per user and item; see `pipeline.scorer.Scorer`. All of an item is one concept's doing.

    Args:
        n_items: size of the catalogue.
        score: float32 [B, I] of B histories. Scores need not be logarithms of probabilities.
    """

    n_concepts = 1

    def __init__(self, n_items: int, score: Callable[[Histories], Tensor]) -> None:
        self.n_items = n_items
        self._score = score

    def __call__(
        self,
        histories: Histories,
        k: int,
        *,
        excluded: Histories | None = None,
        allowed: NDArray[np.bool_] | None = None,
        concept_weights: NDArray[np.float32] | None = None,  # noqa: ARG002 (of one concept they change no order)
    ) -> TopK:
        """Top-K of each history; arguments and result as in `pipeline.scorer.Scorer`."""
        score_BI = self._score(histories)
        if allowed is not None:
            score_BI[:, ~torch.from_numpy(allowed)] = -torch.inf
        if excluded is not None:
            score_BI[_entries(excluded)] = -torch.inf
        score_BI, item_BI = torch.sort(score_BI, dim=1, descending=True, stable=True)
        absent = max(0, k - self.n_items)
        score_Bk = F.pad(score_BI[:, :k], (0, absent), value=-torch.inf)
        item_Bk = F.pad(item_BI[:, :k], (0, absent), value=-1).masked_fill(score_Bk == -torch.inf, -1)
        return TopK(item_Bk.numpy(), score_Bk.numpy(), (item_Bk >= 0)[:, :, None].float().numpy())


def popularity(n_interactions_I: NDArray[np.int64]) -> BaselineScorer:
    """Everyone's scores are the items' numbers of interactions."""
    count_I = torch.tensor(n_interactions_I, dtype=torch.float32)
    return BaselineScorer(len(count_I), lambda histories: count_I.repeat(len(histories), 1))


def ease(train: Histories, n_items: int, l2: float) -> BaselineScorer:
    """EASE: scores x B with B = I - P diag(1 / diag(P)), P = (X'X + l2 I)^-1 (Steck 2019, equation 8).

    Args:
        train: the histories, rows of X.
        n_items: size of the catalogue.
        l2: weight of the sum of squares of B.

    Raises:
        InputError: the catalogue is larger than `EASE_ITEMS`.
    """
    if n_items > EASE_ITEMS:
        raise InputError(
            f"EASE of {n_items:,} items needs two tables of {n_items**2 * 4 / 1e9:,.0f} GB; "
            f"the limit is {EASE_ITEMS:,} items. Leave out --baseline ease."
        )
    gram_II = np.zeros((n_items, n_items), dtype=np.float32)
    for user in range(len(train)):
        gram_II[np.ix_(train[user], train[user])] += 1
    table_II = torch.from_numpy(gram_II)
    table_II.diagonal().add_(l2)
    torch.linalg.cholesky(table_II, out=table_II)
    inverse_II = torch.cholesky_inverse(table_II)
    inverse_II /= -inverse_II.diagonal().clone()
    weight_II = inverse_II.fill_diagonal_(0)
    return BaselineScorer(n_items, lambda histories: _multi_hot(histories, n_items) @ weight_II)


def choose_ease(data: Dataset, grid: Iterable[float] = EASE_L2) -> tuple[BaselineScorer, float]:
    """EASE with the l2 of the best validation NDCG@100, and that l2; the middle of the grid without validation users.

    Raises:
        InputError: as `ease`.
    """
    choices = list(grid)
    if not len(data.validation):
        choices = [choices[len(choices) // 2]]
    best, best_l2, best_ndcg = None, 0.0, -1.0
    for l2 in choices:
        scorer = ease(data.train, len(data.vocabulary), l2)
        found = mean_ndcg(scorer, data.validation.histories, data.validation.targets) if len(choices) > 1 else 0.0
        if best is None or found > best_ndcg:
            best, best_l2, best_ndcg = scorer, l2, found
    assert best is not None  # noqa: S101 (the grid is not empty)
    return best, best_l2


def fit_baselines(names: Sequence[str], config: DataConfig, vocabulary: Vocabulary) -> dict[str, Scorer]:
    """Baselines by name, with EASE's chosen l2 in its name, fitted on what the model was trained on.

    Args:
        names: of popularity and ease.
        config: the data section that the model was trained with; its `input` is read again.
        vocabulary: the model's.

    Raises:
        InputError: the input cannot be read or has changed since training, or the catalogue is too large for EASE.
    """
    with TemporaryDirectory(prefix="macrid-baselines-") as scratch:
        data = load_dataset(config, Path(scratch))
        ours, theirs = vocabulary.items, data.vocabulary.items
        own = ["item_id", "n_interactions"]
        if not ours.select(own).equals(theirs.select(own)):
            raise InputError(
                f"{config.input} is not what the model was trained on: {len(theirs):,} items with "
                f"{theirs['n_interactions'].sum():,} training interactions now, {len(ours):,} with "
                f"{ours['n_interactions'].sum():,} then. Name the training interactions with --input."
            )
        scorers: dict[str, Scorer] = {}
        for name in dict.fromkeys(names):
            if name == "ease":
                scorer, l2 = choose_ease(data)
                scorers[f"EASE (l2 = {l2:g})"] = scorer
            else:
                scorers[name] = popularity(ours["n_interactions"].to_numpy())
        return scorers


def _entries(histories: Histories) -> tuple[Tensor, Tensor]:
    """Row and item of every entry."""
    row_N = np.repeat(np.arange(len(histories)), histories.lengths)
    return torch.from_numpy(row_N), torch.from_numpy(histories.items_N.astype(np.int64))


def _multi_hot(histories: Histories, n_items: int) -> Tensor:
    history_BI = torch.zeros(len(histories), n_items)
    history_BI[_entries(histories)] = 1
    return history_BI
