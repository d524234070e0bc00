"""Churn: how tonight's run differs from the one before, part by part; memory is bounded by a part."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import NamedTuple, cast

import polars as pl

from pipeline.errors import InputError
from scoring.run import Churn, part_name

_LISTS = {"item_ids": "item_id", "scores": "score", "concepts": "concept"}
"""Columns of the nested layout, and of the long one."""


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
    total: Counter[str] = Counter()
    sums = {"overlap": 0.0, "old score": 0.0, "new score": 0.0}
    concepts = (Counter[int | None](), Counter[int | None]())
    items: tuple[list[pl.Series], list[pl.Series]] = ([], [])
    for part in range(len(new.users)):
        users = [_rows(run.users[part], user_types) for run in (old, new)]
        data = [_rows(run.data[part], data_types) for run in (old, new)]
        both = users[0].join(users[1], on="user_id", how="inner", suffix="_new", maintain_order="left")
        total.update(old=len(users[0]), new=len(users[1]), both=len(both))
        sums["overlap"] += _overlap(both, *data)
        for at, name in enumerate(("old", "new")):
            sums[f"{name} score"] += float(data[at]["score"].cast(pl.Float64).sum())
            total[f"{name} rows"] += len(data[at])
            concepts[at].update(dict(data[at]["concept"].value_counts().iter_rows()))
            items[at].append(data[at]["item_id"].unique())
    before_I, after_I = (pl.concat(parts).unique() for parts in items)
    means = [sums[f"{name} score"] / max(total[f"{name} rows"], 1) for name in ("old", "new")]
    return Churn(
        users_compared=total["both"],
        new_users=total["new"] - total["both"],
        vanished_users=total["old"] - total["both"],
        carried_over=carried_over,
        overlap=sums["overlap"] / total["both"] if total["both"] else 1.0,
        new_items=len(after_I.filter(~after_I.is_in(before_I.implode()))),
        vanished_items=len(before_I.filter(~before_I.is_in(after_I.implode()))),
        score_drift=means[1] - means[0],
        concept_drift=_distance(*concepts),
    )


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
        bucket = (pl.col("user_id").hash(seed=0) % n_parts).cast(pl.UInt32)
        scan.with_columns(bucket=bucket).sink_parquet(
            pl.PartitionBy(folder / kind, key="bucket", include_key=False), maintain_order=True, mkdir=True
        )
        found = [sorted((folder / kind / f"bucket={part}").glob("*.parquet")) for part in range(n_parts)]
        parts.append([[empty, *files] for files in found])
    return _Run(*parts)


def _rows(files: list[Path], types: pl.Schema) -> pl.DataFrame:
    """`users/` or `data/` of a part, whatever its layout, in these types; an id that does not fit is null."""
    rows = pl.scan_parquet(files, glob=False, hive_partitioning=False)
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
