"""Import: a MacridVAE that RecBole 1.2.1 trained -> a checkpoint of ours.

RecBole's score of an item is log sum_c a_ic exp(cos(z_c, h_i) / t), unnormalised; ours subtracts the logsumexp over all
items, so for each user they differ by one number. RecBole's item 0, the padding, is no item: no history holds it, and
it is left out here. In RecBole's training loss it has a share of the softmax: log p(item) there is log p(item) here
less log(1 + exp(score of padding) / sum over items of exp(score)), one number for each user again.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import torch

from pipeline.checkpoint import CheckpointManifest, write_checkpoint
from pipeline.config import recbole_config
from pipeline.errors import InputError
from pipeline.histories import Histories
from pipeline.publish import check_directory
from pipeline.recbole_checkpoint import read_recbole_checkpoint
from pipeline.recbole_config import NAMES, read_yaml
from pipeline.recbole_numbering import BY_FILE, PADDING, Numbered, all_interactions, number_items
from pipeline.split import HeldOut
from pipeline.vocabulary import Vocabulary


def import_recbole(
    model: Path,
    interactions: Path,
    output: Path,
    *,
    config: Path | None = None,
    tokens: Path | None = None,
    items: Path | None = None,
) -> CheckpointManifest:
    """Turn a `.pth` file into a checkpoint, without running anything that is in it.

    The checkpoint has no metrics: RecBole does not say which interactions were held out.

    Args:
        model: the file.
        interactions: the data set it was trained on: its folder, or its `.inter` file.
        output: the checkpoint's folder; an older checkpoint there is replaced.
        config: a YAML of RecBole's, for what the file's own settings lack; where both speak, this one counts.
        tokens: RecBole's numbering, a token per line from number 1 (a first line [PAD] is skipped). None: it is worked
            out from the interactions and the settings.
        items: Parquet file about items: `item_id`, and columns for people to read.

    Raises:
        InputError: a file cannot be used, or they do not belong together.
    """
    check_directory(output)
    held = read_recbole_checkpoint(model)
    settings = held.settings | (read_yaml(config) if config else {})
    if not settings:
        raise InputError(f"{model} holds weights without settings. Name the YAML it was trained with: --config.")
    if (name := settings.get("model", "MacridVAE")) != "MacridVAE":
        raise InputError(f"{model} holds a {name}, not a MacridVAE. Train a MacridVAE.")
    known = {name: value for name, value in settings.items() if name in NAMES or name == "seed"}
    ours = recbole_config(known, config or model)
    weights = _our_weights(held.weights, len(ours.model.encoder_hidden_sizes), model)
    if tokens is None:
        numbered = number_items(interactions, settings)
    else:
        numbered = Numbered(all_interactions(interactions, settings), _read_tokens(tokens))
    if len(numbered.tokens) != len(weights["item_embedding"]):
        raise InputError(
            f"{model} has {len(weights['item_embedding']):,} items, but {tokens or interactions} has "
            f"{len(numbered.tokens):,}. Name the data it was trained on; if RecBole filtered them: {BY_FILE}"
        )
    vocabulary, histories = _catalogue(numbered)
    nobody = HeldOut(Histories.of([]), Histories.of([]))
    return write_checkpoint(
        output,
        config=ours,
        vocabulary=vocabulary if items is None else vocabulary.with_items(items),
        weights=weights,
        training=histories,
        validation=nobody,
        test=nobody,
        counts={"users": len(histories), "interactions": len(histories.items_N), "items": len(vocabulary)},
        best_epoch=None,
        metrics={},
        metrics_lines="",
    )


def _our_weights(theirs: dict[str, torch.Tensor], n_hidden: int, file: Path) -> dict[str, torch.Tensor]:
    """RecBole's state dict under our names.

    Row and column 0, the padding, go. RecBole's second half of the encoder's output is ln(sigma^2 / prior_std^2), ours
    its negative.
    """
    names = [f"encoder.{2 * layer}.{kind}" for layer in range(n_hidden + 1) for kind in ("weight", "bias")]
    wanted = {"item_embedding.weight", "k_embedding.weight", *names}
    if theirs.keys() != wanted:
        raise InputError(
            f"{file} holds {', '.join(sorted(theirs))}; a MacridVAE with its settings has {', '.join(sorted(wanted))}. "
            "Name the YAML it was trained with: --config."
        )
    if flat := [name for name in sorted(wanted) if theirs[name].dim() != (1 if name.endswith("bias") else 2)]:
        raise InputError(f"{file}: {', '.join(flat)} has a wrong number of dimensions. Name a file of RecBole's.")
    size = theirs["item_embedding.weight"].shape[1]
    ours = {"item_embedding": theirs["item_embedding.weight"][1:], "prototypes": theirs["k_embedding.weight"]}
    ours |= {
        "encoder.input.weight": theirs["encoder.0.weight"][:, 1:].T,
        "encoder.input.bias": theirs["encoder.0.bias"],
    }
    for layer in range(1, n_hidden):
        for kind in ("weight", "bias"):
            ours[f"encoder.hidden.{layer - 1}.{kind}"] = theirs[f"encoder.{2 * layer}.{kind}"]
    for kind in ("weight", "bias"):
        output = theirs[f"encoder.{2 * n_hidden}.{kind}"]
        ours[f"encoder.output.{kind}"] = torch.cat([output[:size], -output[size:]])
    return ours


def _read_tokens(file: Path) -> pl.Series:
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        raise InputError(f"{file} does not exist. Name a text file with an item token per line.") from None
    tokens = pl.Series("item_id", lines[1:] if lines[:1] == [PADDING] else lines, dtype=pl.String)
    if tokens.n_unique() < len(tokens):
        raise InputError(f"{file} repeats {tokens.filter(tokens.is_duplicated())[0]!r}. Write each token once.")
    return tokens


def _catalogue(numbered: Numbered) -> tuple[Vocabulary, Histories]:
    """Items in RecBole's order, less its padding, with the users each has; and everybody's history."""
    empty = Vocabulary.of(numbered.tokens, np.zeros(len(numbered.tokens), dtype=np.int64))
    rows = numbered.interactions.select("user_id", item=empty.numbers(numbered.interactions["item_id"]))
    rows = rows.drop_nulls().unique().sort("user_id", "item")
    items = rows["item"].to_numpy()
    lengths = rows.group_by("user_id", maintain_order=True).len()["len"].to_numpy()
    counts = np.bincount(items, minlength=len(empty)).astype(np.int64)
    offsets = np.concatenate(([0], np.cumsum(lengths, dtype=np.int64)))
    return Vocabulary.of(numbered.tokens, counts), Histories(items, offsets)
