"""Workers: the processes that torchrun starts to train one model together; alone, a process is the first of one.

Every worker reads the data and holds the whole model; each batch is divided among them, and gradients are averaged.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

T = TypeVar("T")


@contextmanager
def joined(device: str) -> Iterator[None]:
    """Join the other workers, if torchrun started any; NCCL between GPUs (one each), gloo between CPUs."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield
        return
    if device == "cuda":
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("nccl" if device == "cuda" else "gloo")
    try:
        yield
    finally:
        dist.destroy_process_group()


def rank() -> int:
    """This worker's number, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def size() -> int:
    """How many workers there are."""
    return dist.get_world_size() if dist.is_initialized() else 1


def first_says(value: T) -> T:
    """The first worker's value, in every worker."""
    if size() == 1:
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def all_say(value: T) -> list[T]:
    """Every worker's value, by rank."""
    if size() == 1:
        return [value]
    box: list[T] = [value] * size()
    dist.all_gather_object(box, value)
    return box


def total(values: Tensor) -> Tensor:
    """Sums over the workers, in place."""
    if size() > 1:
        dist.all_reduce(values)
    return values
