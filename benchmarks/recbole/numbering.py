"""RecBole's numbering of items, for the test that repeats it; run by RecBole's own interpreter.

    recbole/bin/python benchmarks/recbole/numbering.py FOLDER

FOLDER/cases.json is a list of settings of RecBole's, FOLDER/0/data, FOLDER/1/data ... the data sets they are for.
Writes FOLDER/numbers.json: per case the item tokens in the order of their numbers, or null where nothing is left.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path


def main() -> None:
    """Load each data set with its settings."""
    folder = Path(sys.argv[1]).resolve()
    os.chdir(folder)
    from recbole.config import Config
    from recbole.data import create_dataset

    sys.argv = sys.argv[:1]  # RecBole reads them too
    numbers: list[list[str] | None] = []
    for case, settings in enumerate(json.loads(Path("cases.json").read_text(encoding="utf-8"))):
        fixed = {"data_path": str(folder / str(case)), "train_neg_sample_args": None, "use_gpu": False}
        config = Config(model="MacridVAE", dataset="data", config_dict=settings | fixed)
        try:
            tokens = create_dataset(config).field2id_token["item_id"]
        except ValueError as error:
            if "Some feat is empty" not in str(error):
                raise
            numbers.append(None)
        else:
            numbers.append([str(token) for token in tokens])
    Path("numbers.json").write_text(json.dumps(numbers), encoding="utf-8")


if __name__ == "__main__":
    main()
