"""Job: a bundle and a Parquet of users -> a run, every user of the input accounted for.

The input is shuffled into parts by user hash, then one part after another is read, scored block by block and written.
Memory is bounded by a part and a block, never by the number of users; the price is a copy of the ids on disk, in the
run's `_temporary`, while the job lasts. Parts, blocks and batches are formed from the input, the bundle and the options
alone, and so are the bytes of a run.

Shape letters: U users of a part, or of a block of it.
"""

from __future__ import annotations

import errno
import shutil
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from export.bundle import Bundle
from pipeline.buckets import bucket_count
from pipeline.config import PublishConfig
from pipeline.errors import JobError
from pipeline.interactions import open_source
from pipeline.publish import check_directory, publish_directory
from pipeline.scorer import Scorer
from scoring.candidates import Candidates, open_candidates
from scoring.churn import compare_runs
from scoring.input import Part, Sources, check_exclusions, open_sources, read_part, shuffle_sources
from scoring.output import arrow_ids, data_schema, data_table, parquet_writer, users_table
from scoring.previous import PreviousRun
from scoring.quarantine import Quarantine
from scoring.recommendations import Popular, reasons, recommend
from scoring.run import (
    MARKER,
    Options,
    RunManifest,
    RunSummary,
    Summary,
    describe_input,
    finish_run,
    part_name,
    scoring_versions,
    start_run,
    write_receipt,
    write_summary,
)
from scoring.thresholds import check_run, unpublished

BLOCK_PLACES = 2**20
"""Users times k of a block, at most (but one user at least): what waits to be written, a row group of `data/`."""

OnProgress = Callable[[int, float], object]
"""Called with the users accounted for so far and the share of the scoring that is done, 0 to 1: first when the input is
shuffled, then after every block."""

_TEMPORARY = "_temporary"
_DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def score(
    bundle: Bundle,
    scorer: Scorer,
    users: str,
    output: Path,
    options: Options,
    *,
    history: str | None = None,
    allow: Path | None = None,
    deny: Path | None = None,
    exclude: str | None = None,
    max_errors: int = 0,
    publish: PublishConfig | None = None,
    since: Path | None = None,
    on_progress: OnProgress | None = None,
) -> RunSummary:
    """Write a run that holds every user of the input exactly once.

    Readers of `output` see the run that was there before until this one is complete; whatever stops the job leaves that
    one untouched.

    Args:
        bundle: opened and verified.
        scorer: its graph, opened in the format and on the device that `options` name.
        users: location of interactions, histories or bare users (see `open_source`).
        output: folder of the run; an older run there is replaced in one step.
        options: what to recommend and how to write it.
        history: location of the interactions or histories of bare users, and only of those: a second source beside an
            input that holds histories already is refused. Its users that the input does not name are not scored.
        allow: file of the only items that may be recommended (see `read_item_list`).
        deny: file of items that may not.
        exclude: location of interactions or histories: pairs of a user and an item that may not.
        max_errors: how many rows and files of the input that cannot be used are set aside in `quarantine/`.
        publish: thresholds; a run that crosses one is kept beside `output`, and `output` stays what it was.
        since: a run to compare with, and to take over the parts from in which nothing has changed; it may be `output`,
            which then need not be there yet.
        on_progress: see `OnProgress`.

    Raises:
        InputError: the input (or more of it than `max_errors`) cannot be read, does not fit the bundle, or lacks (or
            does not need) `history`; what may be recommended is not well said; or `output` holds something that is not
            a run.
        JobError: a threshold was crossed, the disk is full, or a file of the input is damaged behind an intact footer.
    """
    for place in (output, unpublished(output)):
        check_directory(place, MARKER)
    previous = None if since is None or (since == output and not since.exists()) else PreviousRun(since)
    try:
        with publish_directory(output, MARKER) as folder:
            quarantine = Quarantine(folder / _TEMPORARY / "screened", max_errors)
            inspect = quarantine.open if max_errors else open_source
            sources = open_sources(users, history, bundle.vocabulary, exclude, inspect=inspect)
            candidates = open_candidates(
                bundle.vocabulary, allow=allow, deny=deny, where=options.where, caps=options.caps
            )
            job = _Job(folder, bundle, scorer, sources, candidates, quarantine, previous, options)
            summary = job.run(on_progress or (lambda _users, _share: None))
            check_run(summary, publish or PublishConfig(), folder, output)
            finish_run(folder)
            return summary
    except OSError as error:
        if error.errno not in _DISK_FULL:
            raise
        raise JobError(f"{output} could not be written ({error}). Make room on that disk and run again.") from error


@dataclass(frozen=True)
class _Job:
    """A run in the making."""

    folder: Path
    bundle: Bundle
    scorer: Scorer
    sources: Sources
    candidates: Candidates
    quarantine: Quarantine
    previous: PreviousRun | None
    options: Options

    @cached_property
    def n_parts(self) -> int:
        """A power of two: rows come and go every night, and another number of parts moves nearly every user."""
        least = bucket_count(self.sources.n_rows)
        return 1 << (least - 1).bit_length()

    @cached_property
    def item_ids(self) -> pa.Array:
        return arrow_ids(self.bundle.vocabulary.items["item_id"])

    @cached_property
    def popular(self) -> Popular | None:
        if self.options.fallback == "none":
            return None
        return Popular.of(self.bundle.vocabulary, self.candidates.allowed_I)

    @cached_property
    def recommended_I(self) -> NDArray[np.bool_]:
        """Items recommended to anyone so far."""
        return np.zeros(len(self.bundle.vocabulary), dtype=np.bool_)

    @property
    def k(self) -> int:
        return min(self.options.k, len(self.bundle.vocabulary))

    def run(self, on_progress: OnProgress) -> RunSummary:
        """Fill the folder, all but the mark of success."""
        manifest = self.manifest()
        start_run(self.folder, manifest)
        self.quarantine.write(self.folder / "quarantine")
        shuffled = self.folder / _TEMPORARY / "shuffled"
        shuffle_sources(self.sources, shuffled, self.n_parts)
        check_exclusions(self.sources, shuffled, self.bundle.vocabulary)
        on_progress(0, 0.0)
        summaries: list[Summary] = []
        carried_over = 0
        for number in range(self.n_parts):
            part = read_part(shuffled, number, self.bundle.vocabulary)
            users_before, content = sum(summary.users for summary in summaries), part.digest()
            if self.previous is not None and self.previous.has(number, content, manifest):
                recommended_U = self.carry_over(self.previous, number)
                carried_over += len(recommended_U)
                on_progress(users_before + len(recommended_U), (number + 1) / self.n_parts)
            else:
                recommended_U = self.write_part(number, part, users_before, on_progress)
            summaries.append(self.summary(part, recommended_U))
            write_receipt(self.folder, number, content, summaries[-1])
        churn = None
        if self.previous is not None:
            again = self.folder / _TEMPORARY / "previous"
            churn = compare_runs(self.previous.folder, self.folder, again, carried_over)
        shutil.rmtree(self.folder / _TEMPORARY)
        unknown = {option: items.unknown for option, items in self.candidates.lists.items()}
        return write_summary(
            self.folder,
            summaries,
            candidates=len(self.candidates),
            recommended_items=int(np.count_nonzero(self.recommended_I)),
            unknown_allowed=unknown.get("allow", 0),
            unknown_denied=unknown.get("deny", 0),
            quarantined=len(self.quarantine.faults),
            churn=churn,
        )

    def manifest(self) -> RunManifest:
        """What decides the bytes of this run."""
        users, history, exclude = self.sources
        return RunManifest(
            bundle=self.bundle.digest,
            input=describe_input(users),
            history=None if history is None else describe_input(history),
            exclude=None if exclude is None else describe_input(exclude),
            lists=dict(self.candidates.lists),
            options=self.options,
            n_parts=self.n_parts,
            versions=scoring_versions(self.options.format),
        )

    def carry_over(self, previous: PreviousRun, number: int) -> NDArray[np.int32]:
        """Take over the two files of a part; returns how many items each user got."""
        previous.copy_part(number, self.folder)
        data, users = (self.folder / kind / f"{part_name(number)}.parquet" for kind in ("data", "users"))
        column = "item_id" if self.options.layout == "long" else "item_ids"
        items = pl.read_parquet(data, columns=[column]).to_series()
        items = (items if self.options.layout == "long" else items.explode(empty_as_null=False)).unique()
        self.recommended_I[self.bundle.vocabulary.numbers(items).to_numpy()] = True
        return pl.read_parquet(users, columns=["recommended"]).to_series().to_numpy()

    def write_part(self, number: int, part: Part, users_before: int, on_progress: OnProgress) -> NDArray[np.int32]:
        """Score a part block by block and write its two files; returns how many items each user got."""
        user_ids_U = arrow_ids(part.user_ids_U)
        n_users, done, layout = len(user_ids_U), 0, self.options.layout
        block = max(1, BLOCK_PLACES // self.k)
        excluded = part.excluded if self.options.keep_seen else part.known.union(part.excluded, self.scorer.n_items)
        recommended_U = np.zeros(n_users, dtype=np.int32)
        with self.writer("data", number, data_schema(user_ids_U.type, self.item_ids.type, layout)) as writer:
            for rows_U in np.split(np.arange(n_users), range(block, n_users, block)):
                users = part.known.take(rows_U), excluded.take(rows_U)
                found = recommend(self.scorer, *users, self.candidates, self.popular, self.k)
                writer.write_table(data_table(user_ids_U.take(pa.array(rows_U)), found, self.item_ids, layout))
                recommended_U[rows_U] = found.counts_U
                self.recommended_I[found.items_Uk[found.items_Uk >= 0]] = True
                done += len(rows_U)
                on_progress(users_before + done, (number + (done / n_users if n_users else 1)) / self.n_parts)
        known_items_U = part.known.lengths.astype(np.int32)
        reason_U = reasons(recommended_U, part.known, excluded, self.candidates, self.popular, self.options.k)
        table = users_table(user_ids_U, part.history_length_U, known_items_U, recommended_U, reason_U)
        with self.writer("users", number, table.schema) as writer:
            writer.write_table(table)
        return recommended_U

    def writer(self, kind: str, number: int, schema: pa.Schema) -> AbstractContextManager[pq.ParquetWriter]:
        """Writer of one file of a part."""
        name = f"{kind}/{part_name(number)}.parquet"
        return parquet_writer(self.folder / name, schema, self.folder / _TEMPORARY / kind)

    def summary(self, part: Part, recommended_U: NDArray[np.int32]) -> Summary:
        """What a part accounts for."""
        n_users, recommendations = len(part.known), int(recommended_U.sum())
        scored, cold = int(np.count_nonzero(part.known.lengths)), int(np.count_nonzero(part.history_length_U == 0))
        return Summary(
            scored=scored,
            cold=cold,
            unknown=n_users - scored - cold,
            not_asked_for=part.not_asked_for,
            interactions=part.interactions,
            history_items=int(part.history_length_U.sum(dtype=np.int64)),
            known_items=len(part.known.items_N),
            excluded=len(part.excluded.items_N),
            exclusions_without_effect=part.exclusions_without_effect,
            empty=int(np.count_nonzero(recommended_U == 0)),
            recommendations=recommendations,
            rows=recommendations if self.options.layout == "long" else n_users,
        )
