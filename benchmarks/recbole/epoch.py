"""RecBole's side of benchmarks/training.py, run by RecBole's own interpreter.

    python -m venv recbole
    recbole/bin/pip install torch==2.13.0 recbole==1.2.1 numpy==1.26.4 pandas==2.2.3 scipy==1.13.1
    recbole/bin/python benchmarks/recbole/epoch.py ATOMIC_FOLDER EPOCHS THREADS

ATOMIC_FOLDER/data/data.inter holds `user_id:token item_id:token`. MacridVAE with RecBole's defaults. Prints JSON.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time

import torch


def main() -> None:
    """Train for some epochs without evaluation, and print their seconds and the memory."""
    folder, epochs, threads = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    os.chdir(folder)  # where RecBole leaves its logs
    torch.set_num_threads(threads)
    from recbole.config import Config
    from recbole.data import create_dataset, data_preparation
    from recbole.model.general_recommender.macridvae import MacridVAE
    from recbole.trainer import Trainer

    config = Config(
        model="MacridVAE",
        dataset="data",
        config_dict={
            "data_path": folder,
            "load_col": {"inter": ["user_id", "item_id"]},
            "eval_args": {"split": {"RS": [0.8, 0.1, 0.1]}, "group_by": "user", "order": "RO", "mode": "full"},
            "train_neg_sample_args": None,
            "train_batch_size": 2048,
            "use_gpu": False,
            "show_progress": False,
            "seed": 2020,
        },
    )
    dataset = create_dataset(config)
    train_data, _, _ = data_preparation(config, dataset)
    model = MacridVAE(config, train_data.dataset).to("cpu")
    trainer = Trainer(config, model)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    seconds = []
    for epoch in range(epochs):
        started = time.perf_counter()
        trainer._train_epoch(train_data, epoch, show_progress=False)
        seconds.append(time.perf_counter() - started)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    facts = {"users": dataset.user_num - 1, "items": dataset.item_num - 1, "interactions": len(train_data.dataset)}
    print(json.dumps({**facts, "seconds": seconds, "before_mib": before / 1024, "peak_mib": peak / 1024}))


if __name__ == "__main__":
    main()
