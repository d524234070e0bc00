"""MovieLens: ratings and movies in the three formats that GroupLens has published them in.

- 100k: `u.data` (tabs) and `u.item` (bars, a flag per genre);
- 1M and 10M: `ratings.dat` and `movies.dat` (double colons);
- 20M and later, and "latest": `ratings.csv` and `movies.csv`.
"""

from __future__ import annotations

import shutil
import zipfile
from pathlib import Path

import polars as pl

from pipeline.errors import InputError
from pipeline.text_rows import LINE, TextRows, read_csv, split_lines, typed

_RATINGS = ("u.data", "ratings.dat", "ratings.csv")
_MOVIES = ("u.item", "movies.dat", "movies.csv")
_RATING_TYPES: dict[str, pl.DataType] = {
    "user_id": pl.Int64(),
    "item_id": pl.Int64(),
    "rating": pl.Float64(),
    "timestamp": pl.Int64(),
}
_MOVIE_TYPES: dict[str, pl.DataType] = {"item_id": pl.Int64(), "title": pl.String(), "genres": pl.String()}
_CSV_NAMES = {"user_id": "userId", "item_id": "movieId"}
_GENRES_100K = (
    *("unknown", "Action", "Adventure", "Animation", "Children's", "Comedy", "Crime", "Documentary", "Drama"),
    *("Fantasy", "Film-Noir", "Horror", "Musical", "Mystery", "Romance", "Sci-Fi", "Thriller", "War", "Western"),
)
"""In the order of the flags of `u.item`."""


def unpack(archive: Path, folder: Path) -> Path:
    """Extract the files that matter, by their bare names.

    Raises:
        InputError: it is not a zip archive, or damaged.
    """
    try:
        with zipfile.ZipFile(archive) as members:
            for member in members.infolist():
                name = member.filename.rpartition("/")[2]
                if name in _RATINGS + _MOVIES:
                    with members.open(member) as packed, (folder / name).open("wb") as file:
                        shutil.copyfileobj(packed, file)
    except (zipfile.BadZipFile, EOFError, NotImplementedError) as error:
        raise InputError(f"{archive} cannot be read as a zip archive ({error}). Download it again.") from None
    return folder


def read_movielens(folder: Path) -> tuple[pl.LazyFrame, pl.LazyFrame | None]:
    """Interactions and items of a data set.

    Args:
        folder: holds the files, or one folder in it does.

    Returns:
        `user_id`, `item_id`, `rating`, `timestamp`; and `item_id`, `title`, `genres` (apart by bars), or None where
        the file of movies is missing.

    Raises:
        InputError: no ratings are there, or a line does not fit.
    """
    found = sorted(file for name in _RATINGS for file in (*folder.glob(name), *folder.glob(f"*/{name}")))
    if len(found) != 1:
        has = "holds " + ", ".join(map(str, found)) if found else "holds no ratings"
        raise InputError(
            f"{folder} {has}: expected one of {', '.join(_RATINGS)}. Name the folder or zip of a MovieLens."
        )
    ratings = found[0]
    movies = ratings.with_name(_MOVIES[_RATINGS.index(ratings.name)])
    return _ratings(ratings), _movies(movies) if movies.is_file() else None


def _ratings(file: Path) -> pl.LazyFrame:
    if file.suffix == ".csv":
        return typed(_named_csv(file, ("userId", "movieId", "rating", "timestamp")), _RATING_TYPES, _CSV_NAMES)
    separator = "\t" if file.suffix == ".data" else "::"
    return typed(split_lines(file, separator, list(_RATING_TYPES)), _RATING_TYPES)


def _movies(file: Path) -> pl.LazyFrame:
    if file.suffix == ".csv":
        return typed(_named_csv(file, ("movieId", "title", "genres")), _MOVIE_TYPES, _CSV_NAMES, may_lack=True)
    content = file.read_bytes()
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError:  # 100k and 1M
        text = content.decode("latin-1")
    if file.suffix == ".dat":
        return typed(split_lines(file, "::", list(_MOVIE_TYPES), text=text.encode()), _MOVIE_TYPES, may_lack=True)
    rows = split_lines(file, "|", ["item_id", "title", "released", "video", "url", *_GENRES_100K], text=text.encode())
    flagged = [pl.when(pl.col(genre) == "1").then(pl.lit(genre)) for genre in _GENRES_100K]
    genres = pl.concat_str(flagged, separator="|", ignore_nulls=True)
    return typed(
        TextRows(file, rows.frame.select(LINE, "item_id", "title", genres=genres)), _MOVIE_TYPES, may_lack=True
    )


def _named_csv(file: Path, names: tuple[str, ...]) -> TextRows:
    rows = read_csv(file)
    if absent := [name for name in names if name not in rows.frame.collect_schema()]:
        raise InputError(f"{file} has no column {', '.join(absent)}. Name the folder or zip of a MovieLens data set.")
    return rows
