"""A scorer whose every answer is known, a plain loop over users and items that gives the same, and users to score."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray
from safetensors.numpy import save_file

from export.bundle import Bundle, BundleManifest, read_bundle, weight_shapes
from pipeline.config import Config, ModelConfig
from pipeline.histories import Histories
from pipeline.manifest import FileDigest, digests, write_manifest
from pipeline.scorer import TopK
from pipeline.vocabulary import Vocabulary
from scoring.run import Options, RunSummary, Summary

N_CONCEPTS = 3
N_ITEMS = 40

Id = int | str
Users = Mapping[Any, Sequence[Any]]


def liking(history: Sequence[int], item: int) -> float:
    """The known score: a whole number, so exact in float32, and many are equal."""
    return -float((item * 7919 + sum(history) * 31 + len(history)) % 11)


def concept_weights(history: Sequence[int], item: int) -> list[int]:
    return [1 + (item + sum(history) + 2 * concept) % 4 for concept in range(N_CONCEPTS)]


class KnownScorer:
    """Ranks by `liking`, equal scores by item number, and remembers the sizes of its batches."""

    n_concepts = N_CONCEPTS

    def __init__(
        self, n_items: int = N_ITEMS, fail_at: int | None = None, failure: BaseException | None = None
    ) -> None:
        self.n_items = n_items
        self.batches: list[int] = []
        self.fail_at, self.failure = fail_at, failure

    def __call__(
        self,
        histories: Histories,
        k: int,
        *,
        excluded: Histories | None = None,
        allowed: NDArray[np.bool_] | None = None,
        concept_weights: NDArray[np.float32] | None = None,
    ) -> TopK:
        assert concept_weights is None
        assert 1 <= k <= self.n_items
        self.batches.append(len(histories))
        if self.fail_at == len(self.batches) and self.failure is not None:
            raise self.failure
        item_I = np.arange(self.n_items)
        total_B1 = np.array([histories[user].sum() for user in range(len(histories))], dtype=np.int64)[:, None]
        score_BI = -((item_I * 7919 + total_B1 * 31 + histories.lengths[:, None]) % 11).astype(np.float32)
        if allowed is not None:
            score_BI[:, ~allowed] = -np.inf
        if excluded is not None:
            for user in range(len(excluded)):
                assert (np.diff(excluded[user]) > 0).all()
                score_BI[user, excluded[user]] = -np.inf
        item_Bk = np.argsort(-score_BI, axis=1, kind="stable")[:, :k]
        score_Bk = np.take_along_axis(score_BI, item_Bk, axis=1)
        weight_BkC = 1 + (item_Bk[..., None] + total_B1[..., None] + 2 * np.arange(N_CONCEPTS)) % 4
        share_BkC = (weight_BkC / weight_BkC.sum(axis=2, keepdims=True)).astype(np.float32)
        missing_Bk = np.isneginf(score_Bk)
        share_BkC[missing_Bk] = 0
        return TopK(np.where(missing_Bk, -1, item_Bk), score_Bk, share_BkC)


def item_id(number: int, kind: type) -> Id:
    """Ids fall while numbers rise, so nothing can mistake one for the other."""
    return 1_000 - number if kind is int else f"item-{999 - number}"


def make_bundle(
    folder: Path, kind: type = int, n_items: int = N_ITEMS, columns: Mapping[str, Sequence[Any]] | None = None
) -> Bundle:
    """A bundle directory without a graph: items are popular by number, the last ones were never touched."""
    ids = pl.Series([item_id(number, kind) for number in range(n_items)], dtype=pl.Int64 if kind is int else pl.String)
    interactions = np.array([max(0, 7 * (n_items - 5 - number) // 2) for number in range(n_items)], dtype=np.int64)
    folder.mkdir(parents=True)
    items = Vocabulary.of(ids, interactions).items.with_columns(
        pl.Series(*column) for column in (columns or {}).items()
    )
    Vocabulary(items).write(folder / "items.parquet")
    model = ModelConfig(n_concepts=N_CONCEPTS, embedding_size=1, encoder_hidden_sizes=[1])
    zeros = {name: np.zeros(shape, dtype=np.float32) for name, shape in weight_shapes(model, n_items).items()}
    save_file(zeros, folder / "weights.safetensors")
    manifest = BundleManifest(
        files=digests(folder),
        versions={},
        checkpoint=FileDigest(size=1, sha256="0"),
        config=Config(model=model),
        counts={},
        metrics={},
        n_items=n_items,
        n_concepts=N_CONCEPTS,
        precision="fp32",
        formats={},
    )
    write_manifest(folder, manifest)
    return read_bundle(folder)


def expected(
    bundle: Bundle,
    users: Users,
    *,
    k: int,
    keep_seen: bool = False,
    fallback: str = "popular",
    allowed: Collection[int] = range(N_ITEMS),
    exclude: Users | None = None,
    caps: Mapping[str, int] | None = None,
) -> tuple[set[tuple[Any, ...]], set[tuple[Any, ...]]]:
    """Rows of `data/` and of `users/`, one user and one item after the other."""
    ids = bundle.vocabulary.items["item_id"].to_list()
    counts = bundle.vocabulary.items["n_interactions"].to_list()
    columns = {column: (bundle.vocabulary.items[column].to_list(), limit) for column, limit in (caps or {}).items()}

    def fitting(ranked: list[int]) -> list[int]:
        """The first k that fit the caps."""
        chosen: list[int] = []
        for item in ranked:
            full = [
                values[item] is not None and [values[other] for other in chosen].count(values[item]) >= limit
                for values, limit in columns.values()
            ]
            if not any(full) and len(chosen) < k:
                chosen.append(item)
        return chosen

    data, accounts = set(), set()
    for user, history in users.items():
        never = {ids.index(item) for item in (exclude or {}).get(user, ()) if item in ids}
        candidates = [item for item in allowed if item not in never]
        items = sorted({ids.index(item) for item in history if item in ids})
        rows: list[tuple[Any, ...]] = []
        if items:
            unseen = [item for item in candidates if keep_seen or item not in items]
            for item in fitting(sorted(unseen, key=lambda item: (-liking(items, item), item))):
                weights = concept_weights(items, item)
                share = float(np.float32(max(weights) / sum(weights)))
                rows.append((ids[item], liking(items, item), weights.index(max(weights)), share))
        elif fallback == "popular":
            popular = sorted((item for item in candidates if counts[item]), key=lambda item: (-counts[item], item))
            rows = [
                (ids[item], float(np.float32(np.log(counts[item] / sum(counts)))), None, None)
                for item in fitting(popular)
            ]
        data |= {(user, rank, *row) for rank, row in enumerate(rows, start=1)}
        status = "scored" if items else "unknown" if history else "cold"
        reason = None
        if len(rows) < k:
            allowed_here = [item for item in allowed if items or counts[item]]
            left = [item for item in allowed_here if item not in never and (keep_seen or item not in items)]
            reason = "excluded" if len(left) < k else "capped"
            reason = "few_allowed" if len(allowed_here) < k else reason
            reason = "no_fallback" if not items and fallback == "none" else reason
        accounts.add((user, status, len(set(history)), len(items), len(rows), reason))
    return data, accounts


def drawn_users(n_users: int, seed: int = 1, kind: type = int) -> dict[int, list[Id]]:
    """Histories with repeats; some have unknown items, or only such, or nothing; one is the whole catalogue."""
    draw = np.random.default_rng(seed)
    users: dict[int, list[Id]] = {}
    for user in range(n_users):
        numbers = draw.integers(0, N_ITEMS + 10, size=draw.integers(0, 12)).tolist()
        if user % 7 == 3:
            numbers = [number + N_ITEMS for number in numbers]
        users[user * 3 - 50] = [item_id(number, kind) for number in numbers]
    users[9_999] = [item_id(number, kind) for number in range(N_ITEMS)]
    return users


def write_histories(path: Path, users: Users, user_type: Any = pl.Int64, item_type: Any = pl.Int64) -> str:
    schema = {"user_id": user_type, "history": pl.List(item_type)}
    pl.DataFrame({"user_id": list(users), "history": list(users.values())}, schema=schema).write_parquet(path)
    return str(path)


def write_bare(path: Path, users: Sequence[Any], user_type: Any = pl.Int64) -> str:
    pl.DataFrame({"user_id": list(users)}, schema={"user_id": user_type}).write_parquet(path)
    return str(path)


def interactions(users: Users) -> pl.DataFrame:
    rows = [(user, item) for user, history in users.items() for item in history]
    return pl.DataFrame(rows, schema={"user_id": pl.Int64, "item_id": pl.Int64}, orient="row")


def read_data(run: Path) -> pl.DataFrame:
    return pl.read_parquet(run / "data")


def read_users(run: Path) -> pl.DataFrame:
    return pl.read_parquet(run / "users")


def check(
    run: Path, bundle: Bundle, users: Users, options: Options, summary: Summary | None = None, **restrictions: Any
) -> None:
    """The run holds exactly the rows that the plain loop gives, and its summary counts them."""
    chosen: dict[str, Any] = options.model_dump(include={"k", "keep_seen", "fallback", "caps"})
    data, accounts = expected(bundle, users, **chosen, **restrictions)
    found = read_data(run)
    assert len(found) == len(data)
    assert set(found.rows()) == data
    assert len(read_users(run)) == len(accounts)
    assert set(read_users(run).rows()) == accounts
    if summary is None:
        return
    assert [summary.scored, summary.cold, summary.unknown] == [
        sum(status == wanted for _, status, *_ in accounts) for wanted in ("scored", "cold", "unknown")
    ]
    assert summary.users == len(users)
    assert summary.recommendations == summary.rows == len(data)
    assert summary.history_items == sum(length for _, _, length, *_ in accounts)
    assert summary.known_items == sum(known for _, _, _, known, *_ in accounts)
    assert RunSummary.model_validate_json((run / "summary.json").read_bytes()) == summary


def contents(folder: Path, *names: str) -> dict[str, bytes]:
    """Every file below the folder, or below the named folders in it."""
    places = [folder / name for name in names] or [folder]
    paths = sorted(path for place in places for path in place.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}
