"""Where this process trains: its device, and its place among those that torchrun started."""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import distributed

from device_profiles.errors import EdgeError


class TrainingError(EdgeError):
    """Training cannot start or go on."""


@dataclass(frozen=True)
class Place:
    """A process among others."""

    device: torch.device
    rank: int
    world: int


def device_name(wanted: str) -> str:
    """The device that is named, or that is there where none is.

    Raises:
        TrainingError: Neither cpu nor cuda, or no such GPU.
    """
    name = wanted or ("cuda" if torch.cuda.is_available() else "cpu")
    found = re.fullmatch(r"cpu|cuda(?::(\d{1,4}))?", name)
    if found is None:
        raise TrainingError(f"Wanted cpu, cuda or a GPU by its number (cuda:1) to train on, found --device {name}.")
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name.startswith("cuda") and int(found[1] or 0) >= gpus:
        raise TrainingError(f"Wanted the device {name!r}, found {gpus or 'no'} CUDA devices. Use --device cpu.")
    return name


@contextmanager
def processes(device: str) -> Iterator[Place]:
    """This process's device and place; joins the others where torchrun started it.

    Raises:
        TrainingError: As `device_name`.
    """
    name = device_name(device)
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world == 1:
        yield Place(torch.device(name), 0, 1)
        return
    if name == "cuda":
        name = f"cuda:{os.environ['LOCAL_RANK']}"
        torch.cuda.set_device(name)
    own = not distributed.is_initialized()
    if own:
        _join("nccl" if name.startswith("cuda") else "gloo")
    try:
        yield Place(torch.device(name), distributed.get_rank(), world)
    finally:
        if own:
            distributed.destroy_process_group()


def _join(backend: str) -> None:
    """A process group with keys of its own: torchrun's store outlives a group and would hand out its dead addresses."""
    store, rank, world = next(distributed.rendezvous("env://"))
    number = store.add(f"headtail/joined/{rank}", 1)
    own = distributed.PrefixStore(f"headtail/{number}", store)
    distributed.init_process_group(backend, store=own, rank=rank, world_size=world)
