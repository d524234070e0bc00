"""Output: the two Parquet files of a part.

`data/`, long layout, one row per recommendation; a user with fewer than k candidates has fewer rows:

    user_id        the input's type (every encoding of strings becomes string)
    rank           int32, from 1
    item_id        the type it had in training
    score          float32, natural log of p(item | user) over the whole catalogue
    concept        int16, the concept with the largest share (ties: the smaller); null for fallbacks
    concept_share  float32, that concept's share of p(item | user); null for fallbacks

Nested layout, one row per user, also those without recommendations: `user_id` and the lists `item_ids`, `scores`,
`concepts`, `concept_shares`, best first.

`users/`, one row per user of the input:

    user_id         the input's type, as above
    status          scored; cold (no history); unknown (a history without any item that the model knows)
    history_length  int32, distinct items
    known_items     int32, those of them that the model knows
    recommended     int32, how many items the user got
    reason          why fewer than k; null where k were recommended
                      no_fallback   nothing is known of the user, and there is no fallback
                      few_allowed   fewer than k items may be recommended to anyone (of fallbacks: and were ever chosen)
                      excluded      the user's own history and exclusions leave fewer than k of them
                      capped        caps leave fewer than k of those
                      improbable    the model gives the others a probability of zero

Shape letters: U users, k places, M recommendations of all users together.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from scoring.recommendations import NO_CONCEPT, Recommendations

Layout = Literal["long", "nested"]

STATUSES = ("scored", "cold", "unknown")
REASONS = ("no_fallback", "few_allowed", "excluded", "capped", "improbable")


def arrow_ids(ids: pl.Series) -> pa.Array:
    """User or item ids as they are written: integers as they are, strings as plain strings."""
    array = ids.rechunk().to_arrow(compat_level=pl.CompatLevel.oldest())
    return array.cast(pa.string()) if ids.dtype == pl.String else array


def data_schema(user_type: pa.DataType, item_type: pa.DataType, layout: Layout) -> pa.Schema:
    """Columns of `data/`."""
    columns = {"item_id": item_type, "score": pa.float32(), "concept": pa.int16(), "concept_share": pa.float32()}
    if layout == "long":
        return pa.schema({"user_id": user_type, "rank": pa.int32(), **columns})
    return pa.schema({"user_id": user_type, **{f"{name}s": pa.list_(dtype) for name, dtype in columns.items()}})


def data_table(user_ids_U: pa.Array, found: Recommendations, item_ids: pa.Array, layout: Layout) -> pa.Table:
    """Rows of `data/` for some users; `item_ids` is the catalogue, by item number."""
    present_Uk = found.items_Uk >= 0
    counts_U = present_Uk.sum(axis=1)
    concept_M = found.concepts_Uk[present_Uk]
    absent_M = concept_M == NO_CONCEPT
    columns_M = [
        item_ids.take(pa.array(found.items_Uk[present_Uk])),
        pa.array(found.scores_Uk[present_Uk]),
        pa.array(concept_M, mask=absent_M),
        pa.array(found.shares_Uk[present_Uk], mask=absent_M),
    ]
    schema = data_schema(user_ids_U.type, item_ids.type, layout)
    if layout == "long":
        user_M = np.repeat(np.arange(len(counts_U)), counts_U)
        rank_M = np.nonzero(present_Uk)[1].astype(np.int32) + np.int32(1)
        return pa.table([user_ids_U.take(pa.array(user_M)), pa.array(rank_M), *columns_M], schema=schema)
    offsets = pa.array(np.concatenate(([0], np.cumsum(counts_U))).astype(np.int32))
    lists = [pa.ListArray.from_arrays(offsets, column) for column in columns_M]
    return pa.table([user_ids_U, *lists], schema=schema)


def users_table(
    user_ids_U: pa.Array,
    history_length_U: NDArray[np.int32],
    known_items_U: NDArray[np.int32],
    recommended_U: NDArray[np.int32],
    reason_U: NDArray[np.int32],
) -> pa.Table:
    """Rows of `users/`; `reason_U` are positions in `REASONS`, -1 for none."""
    status_U = np.select([known_items_U > 0, history_length_U == 0], [0, 1], default=2).astype(np.int32)
    columns = {
        "user_id": user_ids_U,
        "status": pa.array(STATUSES).take(pa.array(status_U)),
        "history_length": pa.array(history_length_U),
        "known_items": pa.array(known_items_U),
        "recommended": pa.array(recommended_U),
        "reason": pa.array(REASONS).take(pa.array(reason_U, mask=reason_U < 0)),
    }
    return pa.table(columns)


@contextmanager
def parquet_writer(path: Path, schema: pa.Schema, unfinished: Path) -> Iterator[pq.ParquetWriter]:
    """Write a Parquet file that appears under its name only when it is whole; until then it is `unfinished`.

    Scores do not repeat, so a dictionary of them costs more than it saves; splitting their bytes into streams lets zstd
    find the equal exponents. Statistics are kept of users only: files are sorted by them and searched for them.
    """
    floats = [leaf for leaf in _leaves(schema) if leaf.startswith(("score", "concept_share"))]
    settings: dict[str, Any] = {
        "compression": "zstd",
        "use_dictionary": [leaf for leaf in _leaves(schema) if leaf not in floats],
        "use_byte_stream_split": floats,
        "write_statistics": ["user_id"],
    }
    with pq.ParquetWriter(unfinished, schema, **settings) as writer:
        yield writer
    unfinished.replace(path)


def _leaves(schema: pa.Schema) -> list[str]:
    """Columns by the path that Parquet stores them under."""
    return [f"{field.name}.list.element" if pa.types.is_list(field.type) else field.name for field in schema]
