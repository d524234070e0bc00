"""Model card: `MODEL_CARD.md`, what a bundle says about itself to people.

Every number in it was measured, in training or by the gate. It holds no date, no timing and no path, so that the same
checkpoint gives the same card. Its front matter is what model hubs read
(https://huggingface.co/docs/hub/model-cards).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from export.bundle import Format
from pipeline.checkpoint import CheckpointManifest
from pipeline.concept_profile import Concept, Profile
from pipeline.metrics import Comparison, Measure
from pipeline.vocabulary import Vocabulary

NAME = "MODEL_CARD.md"
PATHS = ("data.input", "data.items")
"""Config fields that say where somebody's files lie."""

_TEMPLATE = """\
---
license: unknown
library_name: macrid
tags:
- recommendation
- collaborative-filtering
- implicit-feedback
- variational-autoencoder
- disentangled-representations
{tags}
---

# MacridVAE: {n_items:,} items, {n_concepts} concepts

MacridVAE reads the set of items that a user chose and ranks the catalogue for that user. It keeps several intentions of
a user apart, its *concepts*, and says of each recommendation which of them caused it. Paper: Ma, Zhou, Cui, Yang, Zhu,
[Learning Disentangled Representations for Recommendation](https://arxiv.org/abs/1910.14238), NeurIPS 2019. Made with
macrid {macrid}, which is Apache-2.0. The licence of these weights is for the owner of the training data to state.

## Intended use

Ranking this catalogue for users whose chosen items are known, whether they were seen in training or not. A user is a
set of items; ratings, order and time play no part.

- **Scores** are natural logarithms of p(item | user), a softmax over the whole catalogue before anything is excluded.
  They compare items for one user. They are no probabilities that a user accepts a recommendation, and those of another
  model mean something else.
- **Concepts** are found without labels, and their numbers have no meaning of their own. On data of a single domain they
  may not separate. Here the median largest assignment of an item is {largest:.3f}; {even:.3f} would be no
  separation at all.
- **Users without a known item** are not the model's business: `pipeline score` gives them the most popular items, marks
  them `cold` or `unknown`, and the score is then the logarithm of the item's share of training interactions.
- **Popularity bias**: the model learns from what was chosen, and what was shown more was chosen more. The most popular
  tenth of the items has {popular:.1%} of the training interactions.{coverage}
- Items that were not in the training data are never recommended.

## Data

{data}

## Evaluation

{evaluation}

## Concepts

Items and interactions are a concept's shares of them; top items are those with the largest share in the concept times
training interactions.

{concepts}

## Exported graphs

Each graph was held against the model before this bundle appeared: its numbers, its ranks, and its metrics on held-out
users, within what its precision allows ({precision}). None has an operator that draws random numbers, and each gave the
same bits twice.

{parity}

## Configuration

{config}

## Versions

{versions}
"""


def model_card(
    checkpoint: CheckpointManifest,
    vocabulary: Vocabulary,
    profile: Profile,
    formats: Mapping[str, Format],
    precision: str,
    versions: Mapping[str, str],
) -> str:
    """The text of the card, Markdown.

    Args:
        checkpoint: what was trained, on what, and how good it is.
        vocabulary: the catalogue.
        profile: its concepts.
        formats: the graphs of the bundle, by name.
        precision: of their tables.
        versions: of what exported them.
    """
    formats = dict(sorted(formats.items()))
    coverage = checkpoint.metrics.get("coverage@100")
    fields = {name: value for name, value in checkpoint.config.fields().items() if name not in PATHS}
    return _TEMPLATE.format(
        tags="\n".join(f"- {name}" for name in formats),
        n_items=len(vocabulary),
        n_concepts=len(profile.concepts),
        macrid=versions["macrid"],
        largest=profile.median_largest_assignment,
        even=1 / len(profile.concepts),
        popular=_popular_share(vocabulary),
        coverage="" if coverage is None else f" The top 100 of the test users hold {coverage.mean:.1%} of the items.",
        data=_data(checkpoint),
        evaluation=_evaluation(checkpoint.metrics, checkpoint.baselines),
        concepts=_table(["concept", "items", "interactions", "top items"], map(_concept, profile.concepts)),
        precision=precision,
        parity=_parity(formats),
        config=_table(["field", "value"], ((f"`{name}`", f"`{value}`") for name, value in fields.items())),
        versions=_table(["package", "version"], sorted(versions.items())),
    )


def _popular_share(vocabulary: Vocabulary) -> float:
    n_I = np.sort(vocabulary.items["n_interactions"].to_numpy())[::-1]
    return float(n_I[: -(-len(n_I) // 10)].sum() / max(1, n_I.sum()))


def _data(checkpoint: CheckpointManifest) -> str:
    digest = checkpoint.data_sha256
    known = "not known: these weights were trained elsewhere" if digest is None else f"`{digest}`"
    counts = ((name.replace("_", " "), f"{count:,}") for name, count in checkpoint.counts.items())
    table = [_table(["count", "value"], counts)] if checkpoint.counts else []
    return "\n\n".join([*table, f"SHA-256 of the catalogue and the histories of training and validation: {known}."])


def _evaluation(metrics: Mapping[str, Measure], baselines: Mapping[str, Comparison]) -> str:
    if not metrics:
        return "Not measured: there were no test users."
    n_users = max(measure.n_users for measure in metrics.values())
    headings = [_baseline(name, baseline) for name, baseline in baselines.items()]
    rows = (
        (name, *map(_interval, [measure, *(baseline.metrics[name] for baseline in baselines.values())]))
        for name, measure in metrics.items()
    )
    leads = [
        f"NDCG@100 of the model minus {heading}, user by user: {baseline.advantage.mean:+.4f} "
        f"({baseline.advantage.low:+.4f} .. {baseline.advantage.high:+.4f})."
        for heading, baseline in zip(headings, baselines.values(), strict=True)
    ]
    intro = (
        f"Means over {n_users:,} test users, with 95% intervals. Items that a user has already seen are not ranked.\n"
        "`recall` divides by the smaller of the cutoff and the number of targets, `plain_recall` by the latter."
    )
    return "\n\n".join([intro, _table(["metric", "model", *headings], rows), *leads])


def _baseline(name: str, baseline: Comparison) -> str:
    return name if baseline.l2 is None else f"{name.upper()} (l2 = {baseline.l2:g})"


def _interval(measure: Measure) -> str:
    return f"{measure.mean:.4f} ({measure.low:.4f} .. {measure.high:.4f})"


def _concept(concept: Concept) -> tuple[str, str, str, str]:
    names = ", ".join(escaped(item.name) for item in concept.top_items)
    return str(concept.concept), f"{concept.items:.1%}", f"{concept.interactions:.1%}", names


def _parity(formats: Mapping[str, Format]) -> str:
    rows: list[Sequence[str]] = []
    for form in formats.values():
        parity = form.parity
        rows.append(
            (
                f"`{form.file}`",
                f"{parity.histories:,} (longest {parity.longest_history:,})",
                f"{parity.largest_score_difference:.1e}",
                f"{parity.largest_share_difference:.1e}",
                f"{parity.same_sets:,} (overlap {parity.mean_overlap:.4f})",
                f"{parity.largest_loss:.1e} on {parity.held_out_users:,} users",
                f"{parity.largest_batch_difference:.1e}",
            )
        )
    headings = ["file", "histories", "largest score difference", "largest share difference"]
    headings += ["same top lists", "largest loss of a metric", "score alone and in a batch"]
    return _table(headings, rows)


def _table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(row)} |" for row in [headings, ["---"] * len(headings), *rows])


def escaped(text: str) -> str:
    """Text of somebody's data inside a table cell: shown as it is, whatever Markdown or HTML would make of it."""
    line = " ".join(text.split())
    return re.sub(r"([\\`*_\[\]<>|~&$])", r"\\\1", line)
