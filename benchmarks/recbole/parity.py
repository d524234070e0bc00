"""A model that RecBole trained, imported and exported here: the scores of both sides for every user and item.

    python benchmarks/recbole/parity.py FILE.inter PYTHON [SETTINGS]

FILE.inter is an atomic file of RecBole's, PYTHON an interpreter with RecBole (see epoch.py for its packages), SETTINGS
JSON with settings of RecBole's (default: its own, but 10 epochs of batches of 256). RecBole trains and scores in its
process; this one runs `pipeline import` and `pipeline export`, scores the same histories with the ONNX file, and prints
the largest difference between our scores and RecBole's less their logsumexp over all items but the padding.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from export.exporter import export_bundle
from pipeline.histories import Histories
from pipeline.recbole_import import import_recbole
from pipeline.vocabulary import Vocabulary
from scoring.runtimes import open_scorer

TOP = 100


def compare(folder: Path) -> dict[str, object]:
    """Import and export FOLDER/model.pth, and hold its scores against FOLDER/scores.npz."""
    import_recbole(folder / "model.pth", folder / "data", folder / "checkpoint")
    export_bundle(folder / "checkpoint", folder / "bundle", ["onnx"], open_scorer)
    with np.load(folder / "scores.npz") as saved:
        theirs_UI, seen_UI, tokens, noise = (saved[name] for name in ("scores", "histories", "tokens", "noise"))
    vocabulary = Vocabulary.read(folder / "bundle" / "items.parquet")
    if seen_UI[:, 0].any() or ["[PAD]", *vocabulary.items["item_id"]] != tokens.tolist():
        raise SystemExit("the items are numbered otherwise than by RecBole")
    padding_U, theirs_UI, seen_UI = theirs_UI[:, 0].astype(np.float64), theirs_UI[:, 1:], seen_UI[:, 1:]
    total_U = np.logaddexp.reduce(theirs_UI.astype(np.float64), axis=1)
    expected_UI = theirs_UI - total_U[:, None]
    found = open_scorer(folder / "bundle", "onnx", "cpu")(
        Histories.of([np.flatnonzero(seen_I).tolist() for seen_I in seen_UI]), len(vocabulary)
    )
    ours_UI = np.empty_like(expected_UI)
    np.put_along_axis(ours_UI, found.items, found.scores.astype(np.float64), axis=1)
    top_theirs, top_ours = (np.sort(np.argsort(-s, axis=1, kind="stable")[:, :TOP]) for s in (expected_UI, ours_UI))
    return {
        "users": len(ours_UI),
        "items": len(vocabulary),
        "scores_compared": ours_UI.size,
        "largest_difference": float(np.abs(ours_UI - expected_UI).max()),
        "deviation_of_scores": float(expected_UI.std()),
        f"same_top_{TOP}": int((top_theirs == top_ours).all(axis=1).sum()),
        "recbole_with_and_without_noise": float(noise),
        "largest_share_of_padding": float(np.exp(padding_U - np.logaddexp(padding_U, total_U)).max()),
    }


def main() -> None:
    """Train with RecBole, import, compare."""
    source, python, *rest = sys.argv[1:]
    settings = json.loads(rest[0]) if rest else {"epochs": 10, "train_batch_size": 256}
    script = Path(__file__).with_name("scores.py")
    with TemporaryDirectory(prefix="macrid-bench-") as scratch:
        folder = Path(scratch)
        (folder / "data").mkdir()
        shutil.copyfile(source, folder / "data" / "data.inter")
        subprocess.run([python, str(script), scratch, json.dumps(settings)], check=True, stdout=subprocess.DEVNULL)
        print(json.dumps(compare(folder), indent=2))


if __name__ == "__main__":
    main()
