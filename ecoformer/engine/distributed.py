"""The process group that torchrun describes, and the few collective operations that the engine needs."""

import itertools
import os
import time
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from ecoformer.errors import InputError, counted

T = TypeVar("T")
POLL_S = 0.1
_store: dist.Store | None = None  # of the process group
_waits = itertools.count()


def init_distributed(device: str = "auto") -> torch.device:
    """Join the process group if torchrun started this process; return the device to compute on.

    Args:
        device: auto, cpu, cuda or cuda:N. Under torchrun each process takes the GPU of its local rank.
    Raises:
        InputError: a GPU is asked for that is not there, or a device name that does not exist.
    """
    global _store
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    chosen = _device_of_rank(device, local_rank)
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and not dist.is_initialized():
        store, number, size = next(dist.rendezvous("env://"))
        # torchrun keeps one store over its restarts, with the addresses of processes that are gone. The count differs
        # between the torchruns of several nodes, which need TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 (docs/imagenet.md).
        attempt = (
            os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") if os.environ.get("GROUP_WORLD_SIZE") == "1" else "0"
        )
        _store = store = dist.PrefixStore(f"attempt_{attempt}", store)
        backend = "nccl" if chosen.type == "cuda" else "gloo"
        dist.init_process_group(backend, store=store, rank=number, world_size=size)
    return chosen


def device_of(name: str, key: str = "device=") -> torch.device:
    """The CPU, or a GPU that is there. Raises InputError for any other device; `key` is how the user named it."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise InputError(f"{key}{name} does not exist: use auto, cpu, cuda or cuda:N") from error
    if device.type not in ("cpu", "cuda"):
        raise InputError(f"{key}{name} is not supported: use auto, cpu, cuda or cuda:N")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise InputError(f"{key}{name}, but torch sees no GPU: use {key}cpu or {key}auto")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise InputError(f"{key}{name}, but torch sees {counted(torch.cuda.device_count(), 'GPU')}: use a lower N")
    return device


def _device_of_rank(name: str, local_rank: int) -> torch.device:
    if name.startswith("cuda:") and int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise InputError(f"device={name} is one GPU for all processes: use device=cuda, one GPU for each")
    if (device := device_of(name)).type == "cpu":
        return device
    chosen = torch.device("cuda", local_rank if device.index is None else device.index)
    if chosen.index >= (count := torch.cuda.device_count()):
        raise InputError(f"device={chosen}, but torch sees {counted(count, 'GPU')}: start fewer processes")
    torch.cuda.set_device(chosen)
    return chosen


def clock(device: torch.device) -> float:
    """The seconds of a clock, read once the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def close_distributed() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()


def rank() -> int:
    """This process's rank; 0 without a process group."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """Number of processes; 1 without a process group."""
    return dist.get_world_size() if dist.is_initialized() else 1


def is_main() -> bool:
    """Whether this process writes files and talks to the user."""
    return rank() == 0


def all_reduce_sum(values: Tensor) -> Tensor:
    """The sum of `values` over all ranks, in place."""
    if world_size() > 1:
        dist.all_reduce(values, op=dist.ReduceOp.SUM)
    return values


def all_reduce_max(values: Tensor) -> Tensor:
    """The elementwise maximum of `values` over all ranks, in place."""
    if world_size() > 1:
        dist.all_reduce(values, op=dist.ReduceOp.MAX)
    return values


def gather_objects(value: Any) -> list[Any]:
    """One value per rank, in rank order, on every rank. For small values of our own processes only."""
    if world_size() == 1:
        return [value]
    values: list[Any] = [None] * world_size()
    dist.all_gather_object(values, value)
    return values


def wait_for_main() -> None:
    """Until rank 0 is here as well, however long that takes. Every rank calls it.

    A collective operation would end the ranks that wait: after ten minutes with NCCL, thirty with gloo.
    """
    if world_size() == 1 or _store is None:
        return
    key = f"main_{next(_waits)}"
    if is_main():
        _store.set(key, "here")
    while not _store.check([key]):
        time.sleep(POLL_S)


def decided_by_main(decide: Callable[[], T]) -> T:
    """What `decide` returns on rank 0, on every rank; an InputError that it raises there is raised on every rank.

    For decisions that hang on files, of which another rank may see an older state, and for work that one rank does.
    """
    outcome: list[Any] = [None, None]
    if is_main():
        try:
            outcome[0] = decide()
        except InputError as error:
            outcome[1] = error
    wait_for_main()
    if world_size() > 1:
        dist.broadcast_object_list(outcome, src=0)
    value, refusal = outcome
    if refusal is not None:
        raise refusal
    return value


def broadcast_tensors(tensors: Iterable[Tensor]) -> None:
    """Give every rank rank 0's tensors, in place: DDP, EMA and compiled graphs hold on to them.

    Every rank passes as many, of the same shapes.
    """
    if world_size() > 1:
        for tensor in tensors:
            dist.broadcast(tensor, src=0)
