"""What a checkpoint holds."""

from __future__ import annotations

from pathlib import Path

import polars as pl

from pipeline.checkpoint import read_checkpoint
from pipeline.concept_profile import Profile, profile_concepts
from pipeline.inspection import Inspection, Tables, config_rows, file_rows, metric_rows


def inspect_checkpoint(path: Path) -> Inspection:
    """Open a checkpoint, every file verified, and describe it.

    The JSON adds to the manifest's fields: `n_items`, `epochs` (done), `median_largest_assignment` and `concepts`, one
    object each (see `pipeline.concept_profile.Concept`).

    Raises:
        InputError: as `read_checkpoint`.
    """
    opened = read_checkpoint(path)
    manifest, n_items = opened.manifest, len(opened.vocabulary)
    profile = profile_concepts(opened.model().assignment().detach().numpy(), opened.vocabulary)
    epochs = len((path / "metrics.jsonl").read_text(encoding="utf-8").splitlines())
    facts = {"path": str(path), **manifest.model_dump(mode="json"), "n_items": n_items, "epochs": epochs}
    facts["median_largest_assignment"] = profile.median_largest_assignment
    facts["concepts"] = [concept.model_dump() for concept in profile.concepts]
    tables: Tables = {
        f"{path}: a checkpoint of {n_items:,} items and {len(profile.concepts)} concepts, every file as written": {
            "weights of epoch": "not known" if manifest.best_epoch is None else manifest.best_epoch,
            "epochs done": epochs,
            "SHA-256 of the data": manifest.data_sha256 or "not known",
            **manifest.versions,
        },
        "Config": config_rows(manifest.config),
        "Data": manifest.counts,
        "Metrics of the test users, with 95% interval": metric_rows(manifest.metrics, manifest.baselines),
        f"Concepts (median largest assignment of an item: {profile.median_largest_assignment:.3f})": _rows(profile),
        "Files": file_rows(manifest.files),
    }
    return Inspection(facts, tables)


def _rows(profile: Profile) -> pl.DataFrame:
    return pl.DataFrame(
        {
            "concept": [concept.concept for concept in profile.concepts],
            "share of items": [concept.items for concept in profile.concepts],
            "of interactions": [concept.interactions for concept in profile.concepts],
            "top items": [", ".join(item.name for item in concept.top_items) for concept in profile.concepts],
        }
    )
