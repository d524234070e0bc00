"""Files in the layout of RecBole's trainer, written under its names without it."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
import yaml

TOKENS = ["30", "7", "007", "a b"]
SETTINGS: dict[str, Any] = {
    "model": "MacridVAE",
    "embedding_size": 6,
    "encoder_hidden_size": [9, 5],
    "kfac": 3,
    "tau": 0.2,
    "std": 0.05,
    "train_neg_sample_args": {"distribution": "none", "sample_num": "none"},
    "alias_of_item_id": None,
    "kg_reverse_r": False,
}


@contextmanager
def recbole_s_names() -> Iterator[tuple[type, type]]:
    """Classes that pickle names as RecBole's."""
    config = type("Config", (), {"__module__": "recbole.config.configurator"})
    kind = type("ModelType", (int,), {"__module__": "recbole.utils.enum_type"})
    modules = {name: ModuleType(name) for name in ("recbole.config.configurator", "recbole.utils.enum_type")}
    modules["recbole.config.configurator"].Config = config  # type: ignore[attr-defined]
    modules["recbole.utils.enum_type"].ModelType = kind  # type: ignore[attr-defined]
    with pytest.MonkeyPatch.context() as patch:
        for name, module in {"recbole": ModuleType("recbole"), **modules}.items():
            patch.setitem(sys.modules, name, module)
        yield config, kind


def recbole_weights(settings: dict[str, Any], n_items: int = len(TOKENS), seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    size, widths = settings["embedding_size"], settings["encoder_hidden_size"]
    shapes: dict[str, tuple[int, ...]] = {}
    for layer, (wide, narrow) in enumerate(zip([n_items + 1, *widths], [*widths, 2 * size], strict=True)):
        shapes |= {f"encoder.{2 * layer}.weight": (narrow, wide), f"encoder.{2 * layer}.bias": (narrow,)}
    shapes |= {"item_embedding.weight": (n_items + 1, size), "k_embedding.weight": (settings["kfac"], size)}
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def write_pth(path: Path, settings: dict[str, Any] | None = SETTINGS, weights: dict[str, Any] | None = None) -> Path:
    """What RecBole 1.2.1's trainer saves."""
    with recbole_s_names() as (config_class, kind):
        config = config_class()
        config.final_config_dict = {**(settings or {}), "MODEL_TYPE": kind(1), "device": torch.device("cpu")}
        config.yaml_loader = yaml.FullLoader
        state = {
            "config": config,
            "epoch": 3,
            "cur_step": 0,
            "best_valid_score": np.float64(0.25),
            "state_dict": recbole_weights(SETTINGS) if weights is None else weights,
            "other_parameter": {},
            "optimizer": torch.optim.Adam([torch.zeros(3, requires_grad=True)]).state_dict(),
        }
        if settings is None:
            del state["config"]
        torch.save(state, path, pickle_protocol=4)
    return path
