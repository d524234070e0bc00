"""Buckets: a source of any size, grouped into histories one bucket of users at a time.

`shuffle` streams the source into buckets by user hash; `read_bucket` groups one of them. Memory is bounded by a bucket,
not by the input; the price is one copy of the ids on disk.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import polars as pl
import pyarrow.parquet as pq

from pipeline.errors import JobError
from pipeline.interactions import Source

ROWS_PER_BUCKET = 1_500_000
MAX_BUCKETS = 1_024
ROW_GROUP = 16_384  # the sink holds back up to a row group for every bucket at once
CHUNK_ROWS = (
    25_000  # of interactions, when they come in lists: polars counts lists, and would hold many long ones at once
)

_EMPTY = "empty.parquet"  # no rows, only the columns' types: what a bucket without users reads as


class Bucket(NamedTuple):
    """The users whose hash falls into one bucket."""

    histories: pl.DataFrame
    """`user_id`, ascending, each once; `history`, a list of item ids, ascending, each once; empty if there are none."""
    n_interactions: int
    """Interactions read for these users, repeated ones included."""


def bucket_count(n_rows: int) -> int:
    """How many buckets `Source.n_rows` deserves: one per 1.5 million rows, at least 1 and at most 1,024."""
    return min(max(1, -(-n_rows // ROWS_PER_BUCKET)), MAX_BUCKETS)


def bucket_of_user(n_buckets: int) -> pl.Expr:
    """The bucket of `user_id`, UInt32: its hash modulo `n_buckets`."""
    return (pl.col("user_id").hash(seed=0) % n_buckets).cast(pl.UInt32)


def shuffle(source: Source, folder: Path, n_buckets: int, *, min_rating: float | None = None) -> None:
    """Stream a source into `folder` (made here, or empty): one subfolder per bucket, rows `user_id, item_id`.

    A null item says that the user exists, so bare users and empty histories survive. A user's bucket is the hash of the
    id modulo `n_buckets`: equal ids share a bucket, whatever integer type they have. With `min_rating` (for a source
    opened `with_rating`), interactions rated lower are left out, and so are users who keep none.

    Raises:
        JobError: a file is damaged behind an intact footer, or the disk is full.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if any(folder.iterdir()):
        raise FileExistsError(f"{folder} is not empty")
    pl.DataFrame(schema={"user_id": source.user_type, "item_id": _item_type(source)}).write_parquet(folder / _EMPTY)
    rows = _long_rows(source, min_rating)
    try:
        with pl.Config(streaming_chunk_size=_chunk_size(source)):
            rows.with_columns(bucket=bucket_of_user(n_buckets)).sink_parquet(
                pl.PartitionBy(folder, key="bucket", include_key=False),
                compression="lz4",
                statistics=False,
                row_group_size=ROW_GROUP,
                maintain_order=False,
                mkdir=True,
            )
    except pl.exceptions.ComputeError as error:
        raise JobError(
            f"{source.location} could not be shuffled into {folder} ({error}). Check its files and the disk space."
        ) from error


def read_bucket(folder: Path, bucket: int) -> Bucket:
    """Group one bucket that `shuffle` wrote into `folder`; a bucket without users is empty."""
    rows = _scan_rows(folder, f"bucket={bucket}").collect()
    items = pl.col("item_id").list.drop_nulls().list.unique().list.sort()
    histories = (
        rows.lazy().group_by("user_id").agg("item_id").select("user_id", history=items).sort("user_id").collect()
    )
    return Bucket(histories, rows["item_id"].count())


def distinct_items(folder: Path) -> pl.Series:
    """Every item id of every bucket that `shuffle` wrote into `folder`, ascending, each once."""
    item = pl.col("item_id").drop_nulls().unique()
    return _scan_rows(folder, "bucket=*").select(item).collect(engine="streaming")["item_id"].sort()


def _scan_rows(folder: Path, subfolder: str) -> pl.LazyFrame:
    files = [folder / _EMPTY, *sorted(folder.glob(f"{subfolder}/*.parquet"))]
    return pl.scan_parquet(files, glob=False, hive_partitioning=False)


def _chunk_size(source: Source) -> int | None:
    if source.form != "histories":
        return None
    n_lists: int = sum(pq.read_metadata(file).num_rows for file in source.files)
    return max(1, CHUNK_ROWS * n_lists // source.n_rows)


def _item_type(source: Source) -> pl.DataType:
    return pl.Null() if source.item_type is None else source.item_type


def _long_rows(source: Source, min_rating: float | None) -> pl.LazyFrame:
    columns = {"interactions": ["user_id", "item_id"], "histories": ["user_id", "history"], "users": ["user_id"]}
    rating = [] if min_rating is None else ["rating"]
    return pl.concat([_long(scan, source, min_rating) for scan in _scans(source.files, columns[source.form] + rating)])


def _scans(files: tuple[Path, ...], columns: list[str]) -> list[pl.LazyFrame]:
    """One scan per encoding of the columns, not per file: polars reads ahead in all scans at once."""
    encodings: dict[tuple[pl.DataType, ...], list[Path]] = {}
    for file in files:
        schema = pl.read_parquet_schema(file)
        encodings.setdefault(tuple(schema[column] for column in columns), []).append(file)
    return [
        pl.scan_parquet(
            alike,
            schema=dict(zip(columns, types, strict=True)),
            extra_columns="ignore",
            glob=False,
            hive_partitioning=False,
        )
        for types, alike in encodings.items()
    ]


def _long(scan: pl.LazyFrame, source: Source, min_rating: float | None) -> pl.LazyFrame:
    user, item_type = pl.col("user_id").cast(source.user_type), _item_type(source)
    match source.form:
        case "users":
            return scan.select(user, item_id=None)
        case "histories":
            lists = scan.select(user, item_id=pl.col("history").cast(pl.List(item_type)))
            return lists.explode("item_id", empty_as_null=True, keep_nulls=True)
        case "interactions":
            kept = scan if min_rating is None else scan.filter(pl.col("rating") >= min_rating)
            return kept.select(user, pl.col("item_id").cast(item_type))
