"""The model card: its text for known numbers, and that nothing in the data can break it."""

from __future__ import annotations

import re
from pathlib import Path
from types import UnionType
from typing import Any, get_args

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from export.bundle import Format
from export.model_card import PATHS, escaped, model_card
from export.parity import Difference, Parity
from pipeline.checkpoint import CheckpointManifest
from pipeline.concept_profile import profile_concepts
from pipeline.config import Config, DataConfig
from pipeline.metrics import Comparison, Measure
from pipeline.vocabulary import Vocabulary

GOLDEN = Path(__file__).with_name("model_card.md")
METRICS = {
    "ndcg@100": Measure(0.41234, 0.01, 0.39, 0.43, 1500),
    "coverage@100": Measure(0.75, 0.01, 0.7, 0.8, 1500),
}
EASE = Comparison(
    500.0,
    {"ndcg@100": Measure(0.4, 0.01, 0.38, 0.42, 1500), "coverage@100": Measure(0.5, 0.01, 0.45, 0.55, 1500)},
    Measure(0.01234, 0.001, 0.0101, 0.0145, 1500),
)
POPULARITY = Comparison(
    None,
    {"ndcg@100": Measure(0.2, 0.01, 0.18, 0.22, 1500), "coverage@100": Measure(0.25, 0.0, 0.25, 0.25, 1500)},
    Measure(0.21234, 0.001, 0.21, 0.215, 1500),
)
PARITY = Parity(
    histories=515,
    longest_history=1200,
    k=100,
    largest_score_difference=1.5e-6,
    largest_share_difference=2.5e-7,
    same_sets=514,
    mean_overlap=0.99998,
    largest_disorder=0.0,
    held_out_users=1500,
    metrics={"ndcg@100": Difference(model=0.41234, artefact=0.41232)},
    same_bits_twice=True,
    largest_batch_difference=4.8e-7,
)


def card(titles: list[str | None], **changes: Any) -> str:
    fields = {
        "files": {},
        "versions": {"python": "3.11.1"},
        "config": Config(data=DataConfig(input="/mnt/lake/secret.parquet", items="/mnt/lake/items.parquet")),
        "counts": {"rows_read": 12345, "training_users": 678},
        "data_sha256": "d" * 64,
        "best_epoch": 12,
        "metrics": METRICS,
        "baselines": {"ease": EASE, "popularity": POPULARITY},
    }
    n_items = len(titles)
    items = Vocabulary.of(pl.Series([f"item-{i}" for i in range(n_items)]), np.arange(n_items, 0, -1) * 10).items
    vocabulary = Vocabulary(items.with_columns(title=pl.Series(titles, dtype=pl.String)))
    assignment = np.tile(np.array([[0.75, 0.25], [0.125, 0.875]]), (n_items, 1))[:n_items]
    onnx = {"onnx": Format(file="model.onnx", opset=20, operators={"TopK": 2}, parity=PARITY)}
    formats = changes.pop("formats", onnx)
    return model_card(
        CheckpointManifest.model_validate({**fields, **changes}),
        vocabulary,
        profile_concepts(assignment, vocabulary),
        formats,
        "fp32",
        {"torch": "2.13.0", "macrid": "0.1.0", "python": "3.11.1"},
    )


def test_the_text_for_known_numbers() -> None:
    assert card(["Kettle (steel)", "Tent | 2 persons", None, "Lamp"]) == GOLDEN.read_text(encoding="utf-8")


def test_no_path_is_told() -> None:
    assert "secret" not in card(["Kettle"])
    assert "/mnt/lake" not in card(["Kettle"])


def test_every_field_of_free_text_counts_as_a_path() -> None:
    """Whoever adds such a field to the config has to decide whether strangers may read it."""
    free = set()
    for section, of in Config.model_fields.items():
        for name, field in of.annotation.model_fields.items():
            kinds = get_args(field.annotation) if isinstance(field.annotation, UnionType) else (field.annotation,)
            if str in kinds or Path in kinds:
                free.add(f"{section}.{name}")
    assert free == set(PATHS)


def test_what_was_not_measured_is_said() -> None:
    bare = card(["Kettle"], metrics={}, baselines={}, data_sha256=None, counts={}, best_epoch=None)
    assert "\n## Evaluation\n\nNot measured: there were no test users.\n" in bare
    assert "histories of training and validation: not known: these weights were trained elsewhere.\n" in bare
    assert "The top 100 of the test users" not in bare


def cells(line: str) -> list[str]:
    return re.split(r"(?<!\\)(?:\\\\)*\|", line)


@given(st.lists(st.text(max_size=30), min_size=1, max_size=6))
def test_no_title_breaks_the_tables(titles: list[str]) -> None:
    plain, hostile = card(["Kettle"] * len(titles)).splitlines(), card(titles).splitlines()
    assert len(hostile) == len(plain)
    assert [len(cells(line)) for line in hostile] == [len(cells(line)) for line in plain]


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("Alien (1979)", "Alien (1979)"),
        ("a|b", r"a\|b"),
        ("line\nbreak\r\n\u2028 and more", "line break and more"),
        ("<script>alert(1)</script> &amp;", r"\<script\>alert(1)\</script\> \&amp;"),
        ("![x](http://x) *b* _i_ `c` ~s~", r"!\[x\](http://x) \*b\* \_i\_ \`c\` \~s\~"),
        ("back\\slash", r"back\\slash"),
    ],
)
def test_text_of_the_data_is_shown_as_it_is(text: str, shown: str) -> None:
    assert escaped(text) == shown


def test_the_order_in_which_formats_were_written_does_not_matter() -> None:
    formats = [(name, Format(file=f"model.{name}", opset=None, operators={}, parity=PARITY)) for name in ("b", "a")]
    assert card(["Kettle"], formats=dict(formats)) == card(["Kettle"], formats=dict(reversed(formats)))


def test_front_matter_is_what_hubs_read() -> None:
    front = card(["Kettle"]).split("---\n")[1]
    fields = dict(re.findall(r"^(\w+):(?: (.+))?$", front, re.MULTILINE))
    assert fields == {"license": "unknown", "library_name": "macrid", "tags": ""}
    assert re.findall(r"^- ([a-z-]+)$", front, re.MULTILINE)[-1] == "onnx"
