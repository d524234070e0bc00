"""RecBole's side of benchmarks/recbole/parity.py, run by RecBole's own interpreter (see epoch.py for its packages).

    recbole/bin/python benchmarks/recbole/scores.py FOLDER [SETTINGS]

FOLDER/data/data.inter is the data set; SETTINGS is JSON with settings of RecBole's. Trains MacridVAE as RecBole does,
writes FOLDER/model.pth (RecBole's own file of the best epoch) and FOLDER/scores.npz: the scores of all items for all
users by that model's `full_sort_predict`, the histories they are for, and the tokens behind RecBole's numbers.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import numpy as np
import torch


def main() -> None:
    """Train, save, and score everybody."""
    folder = Path(sys.argv[1]).resolve()
    settings = json.loads(sys.argv[2]) if len(sys.argv) > 2 else {}
    os.chdir(folder)  # where RecBole leaves its logs
    from recbole.config import Config
    from recbole.data import create_dataset, data_preparation
    from recbole.data.interaction import Interaction
    from recbole.model.general_recommender.macridvae import MacridVAE
    from recbole.trainer import Trainer
    from recbole.utils import init_logger, init_seed

    sys.argv = sys.argv[:1]  # RecBole reads them too
    fixed = {"data_path": str(folder), "train_neg_sample_args": None, "use_gpu": False, "show_progress": False}
    config = Config(model="MacridVAE", dataset="data", config_dict=settings | fixed)
    init_seed(config["seed"], config["reproducibility"])
    init_logger(config)
    dataset = create_dataset(config)
    train_data, valid_data, _ = data_preparation(config, dataset)
    model = MacridVAE(config, train_data.dataset).to("cpu")
    trainer = Trainer(config, model)
    trainer.saved_model_file = str(folder / "model.pth")
    trainer.fit(train_data, valid_data, saved=True, show_progress=False)
    saved = torch.load(folder / "model.pth", weights_only=False)  # this process wrote it
    model.load_state_dict(saved["state_dict"])
    model.eval()
    users = torch.arange(1, dataset.user_num)
    batches = [Interaction({"user_id": batch}) for batch in users.split(512)]
    with torch.no_grad():
        noisy = torch.cat([model.full_sort_predict(batch).view(-1, dataset.item_num) for batch in batches])
        model.nogb = True  # takes the same softmax without drawing noise that evaluation multiplies by 0
        scores = torch.cat([model.full_sort_predict(batch).view(-1, dataset.item_num) for batch in batches])
        histories = torch.cat([model.get_rating_matrix(batch["user_id"]) for batch in batches])
    np.savez(
        folder / "scores.npz",
        scores=scores.numpy(),
        histories=histories.numpy() > 0,
        tokens=np.array([str(token) for token in dataset.field2id_token["item_id"]]),
        noise=float((noisy - scores).abs().max()),
    )


if __name__ == "__main__":
    main()
