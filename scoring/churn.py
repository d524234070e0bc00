"""Churn: how tonight's run differs from the one before, part by part and some users at a time."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple, cast

import polars as pl

from pipeline.buckets import bucket_of_user
from pipeline.errors import InputError
from scoring.run import Churn, part_name

_LISTS = {"item_ids": "item_id", "scores": "score", "concepts": "concept"}
"""Columns of the nested layout, and of the long one."""


USERS_AT_ONCE = 20_000
"""Users whose recommendations are compared at once."""


class _Run(NamedTuple):
    """Part files of a run, or of its copy in other parts."""

    users: list[list[Path]]
    data: list[list[Path]]


def compare_runs(before: Path, after: Path, temporary: Path, carried_over: int) -> Churn:
    """How the run `after` differs from the run `before`.

    Args:
        before: folder of the older run.
        after: folder of the newer one, whose parts are all there.
        temporary: a folder to make, for a copy of the older run where its number of parts is another.
        carried_over: as in `Churn`.

    Raises:
        InputError: one run has integers as user ids, the other strings.
    """
    old, new = _part_files(before), _part_files(after)
    user_type = pl.read_parquet_schema(new.users[0][0])["user_id"]
    if (found := pl.read_parquet_schema(old.users[0][0])["user_id"]).is_integer() != user_type.is_integer():
        raise InputError(f"User ids are {user_type} in this run, but {found} in --since {before}. Leave --since out.")
    user_types = pl.Schema({"user_id": user_type, "recommended": pl.Int32()})
    item_type = _item_type(new.data[0][0])
    data_types = pl.Schema({"user_id": user_type, "item_id": item_type, "score": pl.Float32(), "concept": pl.Int16()})
    if len(old.users) != len(new.users):
        old = _divided(old, temporary, len(new.users))
    tallies, n_both, overlap = (_Tally(), _Tally()), 0, 0.0
    for part in range(len(new.users)):
        users = [_rows(run.users[part], user_types) for run in (old, new)]
        both = users[0].join(users[1], on="user_id", how="inner", suffix="_new", maintain_order="left")
        n_both += len(both)
        for tally, frame in zip(tallies, users, strict=True):
            tally.n_users += len(frame)
        for among in _ranges(users):
            data = [_rows(run.data[part], data_types, among) for run in (old, new)]
            overlap += _overlap(both.filter(among), *data)
            for tally, frame in zip(tallies, data, strict=True):
                tally.add(frame)
    return Churn(
        users_compared=n_both,
        new_users=tallies[1].n_users - n_both,
        vanished_users=tallies[0].n_users - n_both,
        carried_over=carried_over,
        overlap=overlap / n_both if n_both else 1.0,
        new_items=len(tallies[1].items - tallies[0].items),
        vanished_items=len(tallies[0].items - tallies[1].items),
        score_drift=tallies[1].mean_score() - tallies[0].mean_score(),
        concept_drift=_distance(tallies[0].concepts, tallies[1].concepts),
    )


@dataclass
class _Tally:
    """What is counted of one run."""

    n_users: int = 0
    score: float = 0.0
    """The sum."""
    concepts: Counter[int | None] = field(default_factory=Counter)
    """Recommendations of each."""
    items: set[int | str] = field(default_factory=set)

    def add(self, data: pl.DataFrame) -> None:
        """Some rows of `data/`."""
        self.score += float(data["score"].cast(pl.Float64).sum())
        self.concepts.update(dict(data["concept"].value_counts().iter_rows()))
        self.items.update(data["item_id"].unique())

    def mean_score(self) -> float:
        """Over all recommendations; 0 where there are none."""
        return self.score / max(self.concepts.total(), 1)


def _part_files(run: Path) -> _Run:
    n_parts = len(list((run / "users").glob("part-*.parquet")))
    return _Run(
        *([[run / kind / f"{part_name(part)}.parquet"] for part in range(n_parts)] for kind in ("users", "data"))
    )


def _item_type(file: Path) -> pl.DataType:
    """Of `data/`."""
    schema = pl.read_parquet_schema(file)
    return schema["item_id"] if "item_id" in schema else cast(pl.DataType, cast(pl.List, schema["item_ids"]).inner)


def _divided(run: _Run, folder: Path, n_parts: int) -> _Run:
    """A copy of a run in another number of parts; a user's part is decided as in `pipeline.buckets.shuffle`."""
    parts = []
    for kind, files in zip(_Run._fields, run, strict=True):
        scan = pl.scan_parquet([file for part in files for file in part], glob=False)
        empty = folder / kind / "empty.parquet"  # what a part without users reads as
        scan.head(0).sink_parquet(empty, mkdir=True)
        scan.with_columns(bucket=bucket_of_user(n_parts)).sink_parquet(
            pl.PartitionBy(folder / kind, key="bucket", include_key=False), maintain_order=True, mkdir=True
        )
        found = [sorted((folder / kind / f"bucket={part}").glob("*.parquet")) for part in range(n_parts)]
        parts.append([[empty, *files] for files in found])
    return _Run(*parts)


def _ranges(users: list[pl.DataFrame]) -> list[pl.Expr]:
    """Conditions on user_id; each is true for at most `USERS_AT_ONCE` users of a run, and one of them for everyone."""
    starts = pl.concat([each["user_id"] for each in users]).drop_nulls().unique().sort().gather_every(USERS_AT_ONCE)[1:]
    user, edges = pl.col("user_id"), [None, *starts, None]
    everyone = pl.lit(value=True)
    return [
        (everyone if low is None else user >= low) & (everyone if high is None else user < high)
        for low, high in pairwise(edges)
    ]


def _rows(files: list[Path], types: pl.Schema, among: pl.Expr | None = None) -> pl.DataFrame:
    """`users/` or `data/` of a part, whatever its layout, in these types; an id that does not fit is null."""
    rows = pl.scan_parquet(files, glob=False, hive_partitioning=False)
    if among is not None:
        rows = rows.filter(among)
    if _LISTS.keys() <= set(rows.collect_schema()):
        lists = pl.col(*_LISTS)
        rows = rows.filter(pl.col("item_ids").list.len() > 0).select("user_id", lists).explode(*_LISTS).rename(_LISTS)
    return rows.select(pl.col(name).cast(dtype, strict=False) for name, dtype in types.items()).collect()


def _overlap(both: pl.DataFrame, old: pl.DataFrame, new: pl.DataFrame) -> float:
    """The sum over users of both runs of the share of their longer list that is in both lists."""
    pairs = old.select("user_id", "item_id").join(new.select("user_id", "item_id"), on=["user_id", "item_id"])
    common = both.join(pairs.group_by("user_id").len("common"), on="user_id", how="left", maintain_order="left")
    longer = pl.max_horizontal("recommended", "recommended_new")
    share = pl.when(longer == 0).then(1.0).otherwise(pl.col("common").fill_null(0) / longer)
    return float(common.select(share).to_series().to_numpy().sum())


def _distance(old: Counter[int | None], new: Counter[int | None]) -> float:
    """Total variation distance of two distributions."""
    shares = ((old[c] / max(old.total(), 1), new[c] / max(new.total(), 1)) for c in sorted({*old, *new}, key=str))
    return sum(abs(one - other) for one, other in shares) / 2
