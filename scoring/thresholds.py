"""Thresholds: whether a run may take the place of the one before.

A shop's front page can show last night's recommendations for a day; it cannot show empty ones for a minute. A run that
crosses a threshold is not lost: it is moved beside the place it was meant for, without `_SUCCESS`, to be looked at.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from pipeline.config import PublishConfig
from pipeline.errors import JobError
from scoring.run import RunSummary


def unpublished(output: Path) -> Path:
    """Where a run is kept that was meant for `output`."""
    place = output.resolve() if output.is_symlink() else output  # on the file system where the run is written
    return place.with_name(f"{place.name}.unpublished")


def check_run(summary: RunSummary, publish: PublishConfig, folder: Path, output: Path) -> None:
    """Refuse a finished run that crosses a threshold.

    Args:
        summary: of the run.
        publish: the thresholds.
        folder: where the run is; it is moved to `unpublished(output)` if it is refused, over an older refused one.
        output: where it was to go.

    Raises:
        JobError: it was refused; the message has every number that crossed its threshold.
    """
    if not (crossed := _crossed(summary, publish)):
        return
    kept = unpublished(output)
    if kept.exists():
        shutil.rmtree(kept)
    folder.rename(kept)
    lines = "".join(f"\n  {line}" for line in crossed)
    raise JobError(
        f"{output} was not published, and is what it was before. The new run is in {kept}:{lines}\n"
        "Find out why, then run again; if the run is right, change [publish] in the config."
    )


def _crossed(summary: RunSummary, publish: PublishConfig) -> list[str]:
    """A sentence for each threshold that the run crosses."""
    sentences = []
    for name, what, part, whole in (
        ("min_scored_share", "users were scored", summary.scored, summary.users),
        ("min_catalogue_coverage", "candidates were recommended", summary.recommended_items, summary.candidates),
        ("max_empty_share", "users got nothing", summary.empty, summary.users),
    ):
        limit, share = getattr(publish, name), part / whole
        if share < limit if name.startswith("min") else share > limit:
            relation = "below" if name.startswith("min") else "above"
            sentences.append(f"{share:.4g} of {what} ({part:,} of {whole:,}), {relation} {name} = {limit:g}")
    if summary.churn is not None and (churn := 1 - summary.churn.overlap) > publish.max_churn:
        sentences.append(f"the lists changed by {churn:.4g}, above max_churn = {publish.max_churn:g}")
    return sentences
