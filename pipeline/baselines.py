"""Baselines: what a model must beat to earn its keep on somebody's data, fitted on the histories the model trained on.

Popularity recommends everyone the items with the most interactions. EASE (Steck, "Embarrassingly Shallow Autoencoders
for Sparse Data", WWW 2019) is linear regression of every item on the others, in closed form. It is computed in float32:
on MovieLens-1M, even with every user there a thousand times, float64 gives the same metrics to five digits.

Shape letters: B users, I items, k places.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from numpy.typing import NDArray
from torch import Tensor

from pipeline.config import DataConfig
from pipeline.dataset import Dataset, load_dataset
from pipeline.eager import to_batch, to_top_k
from pipeline.errors import InputError
from pipeline.evaluation import evaluate_each, mean_ndcg
from pipeline.histories import Histories
from pipeline.metrics import Comparison, bootstrap
from pipeline.ranking import in_order
from pipeline.scorer import TopK
from pipeline.split import HeldOut
from pipeline.vocabulary import Vocabulary

EASE_L2 = (50.0, 100.0, 200.0, 500.0, 1000.0, 2000.0)
"""What EASE's l2 is chosen from."""
EASE_ITEMS = 50_000
"""The largest catalogue EASE is fitted to: two tables of items x items take 20 GB there."""
CHEAP_EASE_ITEMS = 5_000
"""The largest catalogue whose EASE every training run fits: the tables take 200 MB there."""


class BaselineScorer:
    """Ranks by a score per user and item; see `pipeline.scorer.Scorer`. All of an item is one concept's doing.

    Args:
        n_items: size of the catalogue.
        score: a new float32 [B, I] for B histories, what `TopK.scores` reports; no logarithms of probabilities.
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
            seen = to_batch(excluded, score_BI.device)
            score_BI[seen.users_N, seen.items_N] = -torch.inf
        score_Bk, item_Bk = _top_k(score_BI, min(k, self.n_items))
        return to_top_k(score_Bk, item_Bk, torch.ones(*score_Bk.shape, 1), k)


class Baseline(NamedTuple):
    """A baseline, fitted."""

    scorer: BaselineScorer
    l2: float | None
    """What EASE was fitted with; popularity has none."""


def popularity(n_interactions_I: NDArray[np.int64]) -> BaselineScorer:
    """Everyone's scores are the items' numbers of interactions, int64 [I]."""
    count_I = torch.tensor(n_interactions_I, dtype=torch.float32)
    return BaselineScorer(len(count_I), lambda histories: count_I.repeat(len(histories), 1))


def ease(train: Histories, n_items: int, l2: float) -> BaselineScorer:
    """EASE: scores x B with B = I - P diag(1 / diag(P)), P = (X'X + l2 I)^-1 (Steck 2019, equation 8).

    Args:
        train: the histories, rows of X.
        n_items: size of the catalogue.
        l2: weight of the sum of squares of B; above 0.

    Returns:
        a scorer of one table of items x items; without a history every score is 0.

    Raises:
        InputError: the catalogue is larger than `EASE_ITEMS`.
    """
    return _linear(_solve(_gram(train, n_items), l2))


def choose_ease(data: Dataset, grid: Iterable[float] = EASE_L2) -> tuple[BaselineScorer, float]:
    """EASE with the l2 of the best validation NDCG@100, and that l2; the middle of the grid without validation users.

    Raises:
        InputError: as `ease`.
    """
    choices = list(grid)
    gram_II = _gram(data.train, len(data.vocabulary))
    best = choices[len(choices) // 2]
    if len(data.validation):
        weight_II = torch.empty_like(gram_II)
        scorer = _linear(weight_II)
        ndcg = {}
        for l2 in choices:
            _solve(weight_II.copy_(gram_II), l2)
            ndcg[l2] = mean_ndcg(scorer, data.validation.histories, data.validation.targets)
        best = max(choices, key=ndcg.__getitem__)
    return _linear(_solve(gram_II, best)), best  # solved once more: keeping the best would take a third table


def fit_baselines(names: Sequence[str], config: DataConfig, vocabulary: Vocabulary) -> dict[str, Baseline]:
    """Baselines by name, fitted on what the model was trained on.

    Args:
        names: of popularity and ease.
        config: the data section that the model was trained with; its `input` is read again.
        vocabulary: the model's.

    Raises:
        InputError: the input cannot be read or has changed since training, or the catalogue is too large for EASE.
    """
    if "ease" in names:
        _refuse_large(len(vocabulary))
    with TemporaryDirectory(prefix="macrid-baselines-") as scratch:
        data = load_dataset(config.model_copy(update={"items": None}), Path(scratch))  # titles may have moved
        ours, theirs = vocabulary.items, data.vocabulary.items
        own = ["item_id", "n_interactions"]
        if not ours.select(own).equals(theirs.select(own)):
            raise InputError(
                f"{config.input} is not what the model was trained on: {len(theirs):,} items with "
                f"{theirs['n_interactions'].sum():,} training interactions now, {len(ours):,} with "
                f"{ours['n_interactions'].sum():,} then. Name the training interactions with --input."
            )
        return fit(names, data)


def cheap_baselines(n_items: int) -> list[str]:
    """What every training run measures: popularity, and EASE where fitting it takes seconds."""
    return ["ease", "popularity"] if n_items <= CHEAP_EASE_ITEMS else ["popularity"]


def fit(names: Sequence[str], data: Dataset) -> dict[str, Baseline]:
    """Baselines by name, popularity and ease, fitted on these training histories.

    Raises:
        InputError: as `ease`.
    """
    popular = Baseline(popularity(data.vocabulary.items["n_interactions"].to_numpy()), None)
    return {name: Baseline(*choose_ease(data)) if name == "ease" else popular for name in dict.fromkeys(names)}


def compare(ndcg_U: NDArray[np.float64], baselines: Mapping[str, Baseline], users: HeldOut) -> dict[str, Comparison]:
    """Each baseline's metrics, and by how much a model leads it. Errors as in `pipeline.evaluation.evaluate`.

    Args:
        ndcg_U: the model's NDCG@100 of each of these users.
        baselines: fitted, by name.
        users: to measure them on.
    """
    compared = {}
    for name, (scorer, l2) in baselines.items():
        metrics, values = evaluate_each(scorer, users.histories, users.targets)
        lead = bootstrap({"difference": ndcg_U - values["ndcg@100"]})["difference"]
        compared[name] = Comparison(l2, metrics, lead)
    return compared


def _refuse_large(n_items: int) -> None:
    if n_items > EASE_ITEMS:
        raise InputError(
            f"EASE of {n_items:,} items needs two tables of {n_items**2 * 4 / 1e9:,.0f} GB; "
            f"the limit is {EASE_ITEMS:,} items. Leave out --baseline ease."
        )


def _gram(train: Histories, n_items: int) -> Tensor:
    """X'X, float32 [I, I]: how many users have both items."""
    _refuse_large(n_items)
    gram_II = np.zeros((n_items, n_items), dtype=np.float32)
    for user in range(len(train)):  # touches what two items of one history meet in; a dense product, everything
        gram_II[np.ix_(train[user], train[user])] += 1
    return torch.from_numpy(gram_II)


def _solve(table_II: Tensor, l2: float) -> Tensor:
    """Turn a Gram matrix into EASE's B, in its own memory."""
    table_II.diagonal().add_(l2)
    columns_II = table_II.mT  # the same, as it is symmetric; LAPACK wants columns, and torch would copy rows for it
    torch.linalg.cholesky(columns_II, out=columns_II)
    torch.cholesky_inverse(columns_II, out=columns_II)
    table_II /= -table_II.diagonal().clone()
    return table_II.fill_diagonal_(0)


def _linear(weight_II: Tensor) -> BaselineScorer:
    """Scores are x B: the sum of the rows of the history's items."""

    def score(histories: Histories) -> Tensor:
        batch = to_batch(histories, weight_II.device)
        return F.embedding_bag(batch.items_N, weight_II, batch.offsets[:-1], mode="sum")

    return BaselineScorer(len(weight_II), score)


def _top_k(score_BI: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k largest scores of each row and their columns, equal scores by rising column.

    Only rows where torch.topk had to choose among ties for the last place are sorted: it takes 1/30 of a sort's time.
    Scores may be negative, which `pipeline.ranking.top_k` does not take.
    """
    score_Bk, item_Bk = torch.topk(score_BI, k, dim=1)
    last_B1 = score_Bk[:, -1:]
    chosen_among_B = (score_BI == last_B1).sum(dim=1) > (score_Bk == last_B1).sum(dim=1)
    order = torch.argsort(score_BI[chosen_among_B], dim=1, descending=True, stable=True)
    item_Bk[chosen_among_B] = order[:, :k]
    return in_order(score_Bk, item_Bk)
