"""What a bundle holds."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import polars as pl

from export.bundle import Bundle, Format, read_bundle
from export.parity import Parity
from export.signing import SIGNATURE
from pipeline.inspection import Inspection, Tables, config_rows, file_rows, metric_rows
from pipeline.manifest import FileDigest


def inspect_bundle(path: Path) -> Inspection:
    """Open a bundle, every file verified, and describe it.

    The JSON adds to the manifest's fields: `sha256` of the manifest, by which runs name the bundle, and whether it is
    `signed`; by whom, only verifying with a key tells.

    Raises:
        InputError: as `read_bundle`.
    """
    opened = read_bundle(path)
    manifest = opened.manifest
    facts = {"path": str(path), **manifest.model_dump(mode="json"), "sha256": opened.digest.sha256}
    facts["signed"] = (path / SIGNATURE).is_file()
    tables: Tables = {
        f"{path}: a bundle of {manifest.n_items:,} items and {manifest.n_concepts} concepts, every file as written": (
            _facts(opened)
        ),
        "Formats": _format_rows(manifest.formats, manifest.files),
    }
    for form in manifest.formats.values():
        tables[f"{form.file}, held against the model before the bundle appeared"] = _parity(form.parity)
        tables[f"{form.file}: operators, none of which draws random numbers"] = _operators(form)
    tables["Config"] = config_rows(manifest.config)
    tables["Data"] = manifest.counts
    tables["Metrics of the test users, with 95% interval"] = metric_rows(manifest.metrics, {})
    tables["Files"] = file_rows(manifest.files)
    return Inspection(facts, tables)


def _facts(opened: Bundle) -> dict[str, object]:
    return {
        "SHA-256 of the bundle": opened.digest.sha256,
        "of its checkpoint": opened.manifest.checkpoint.sha256,
        "precision": opened.manifest.precision,
        "signed": "yes; verify it with: pipeline score --verify" if (opened.directory / SIGNATURE).is_file() else "no",
        **opened.manifest.versions,
    }


def _format_rows(formats: Mapping[str, Format], files: Mapping[str, FileDigest]) -> pl.DataFrame:
    rows = [
        (name, form.file, f"{files[form.file].size:,}", "" if form.opset is None else str(form.opset))
        for name, form in formats.items()
    ]
    return pl.DataFrame(rows, schema=dict.fromkeys(("format", "file", "bytes", "opset"), pl.String), orient="row")


def _parity(parity: Parity) -> dict[str, object]:
    """The three levels and the determinism certificate, each in a few words."""
    metrics = (
        f"{name} {metric.artefact:.4f} (model: {metric.model:.4f})" for name, metric in sorted(parity.metrics.items())
    )
    return {
        "histories": f"{parity.histories:,}, the longest of {parity.longest_history:,} items",
        "numbers": f"scores within {parity.largest_score_difference:.1e}, concept shares within "
        f"{parity.largest_share_difference:.1e}",
        "ranks": f"the same top {parity.k} for {parity.same_sets:,} histories, overlap {parity.mean_overlap:.4f}, "
        f"out of order by {parity.largest_disorder:.1e} at most",
        "meaning": f"{parity.held_out_users:,} held-out users" + "".join(f"; {metric}" for metric in metrics),
        "same bits twice": "yes" if parity.same_bits_twice else "no",
        "alone or in a batch": f"scores within {parity.largest_batch_difference:.1e}",
    }


def _operators(form: Format) -> dict[str, object]:
    counts = sorted(form.operators.items(), key=lambda item: (-item[1], item[0]))
    return {
        "kinds": len(counts),
        "operators": sum(form.operators.values()),
        "each": ", ".join(f"{name} {count}" for name, count in counts),
    }
