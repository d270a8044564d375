"""One model over several processes: each holds all of its weights (DDP), or a share of them (FSDP2).

Sharded parameters are DTensors of the whole shape. Checkpoints hold whole tensors, so that both kinds, and any number
of processes, read each other's. Buffers, hash functions among them, are whole on every process.
"""

import copy
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from timm.layers import convert_sync_batchnorm
from timm.utils import ModelEmaV3
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel

from ecoformer.config.schema import TrainConfig
from ecoformer.engine import distributed
from ecoformer.errors import InputError
from ecoformer.model.checkpoint import shared_like


@dataclass(frozen=True)
class Placed:
    """A model as a run trains it.

    Attributes:
        model: on the device; its parameters are the optimiser's.
        ema: its average, if the run keeps one.
        skeleton: the model to count on; of a sharded one, which only runs on all processes at once, without values.
        ddp: what wraps it for DDP.
        network: what batches go through: `ddp` or the model, compiled if asked for.
    """

    model: nn.Module
    ema: ModelEmaV3 | None
    skeleton: nn.Module
    ddp: DistributedDataParallel | None
    network: Any


def place(model: nn.Module, train: TrainConfig, device: torch.device) -> Placed:
    """Move a model to the device and spread it over the processes. Raises InputError for settings that cannot be."""
    model = model.to(device).to(memory_format=torch.channels_last if train.channels_last else torch.contiguous_format)
    sharded, ddp, ema = is_sharded(train, model), None, None
    if train.sync_bn:
        model = synchronised(model, device)
    skeleton = copy.deepcopy(model).to("meta") if sharded else model
    if distributed.world_size() > 1 and not sharded:
        devices = [device] if device.type == "cuda" else None
        # Buffers follow rank 0 before each forward pass, so hash functions cannot drift.
        ddp = DistributedDataParallel(model, device_ids=devices)
    if train.ema_decay > 0:
        ema = ModelEmaV3(model, train.ema_decay, use_warmup=train.ema_warmup, exclude_buffers=True)
    if sharded:
        for copied in [model] if ema is None else [model, ema.module]:
            shard(copied, device)
    network: Any = ddp or model
    if train.compile:
        network = torch.compile(network, mode=train.compile_mode)
    return Placed(model, ema, skeleton, ddp, network)


def is_sharded(train: TrainConfig, model: nn.Module) -> bool:
    """Whether `train.parallel` asks for FSDP2. Raises InputError where that cannot be, or is not supported here."""
    if train.parallel == "ddp":
        return False
    where = "train.parallel=fsdp"
    if distributed.world_size() == 1:
        raise InputError(f"{where} shares the weights among processes: start several with torchrun, or leave it out")
    if train.amp == "fp16":
        raise InputError(f"{where} does not scale losses: use train.amp=bf16 or off")
    for key in ("compile", "channels_last"):
        if getattr(train, key):
            raise InputError(f"{where} does not go with train.{key}=true: leave out one of them")
    if any(isinstance(module, _BatchNorm) for module in model.modules()):
        raise InputError(f"{where} would let the running means of batch norm differ between processes: use ddp")
    return True


def synchronised(model: nn.Module, device: torch.device) -> nn.Module:
    """The model with batch norm over the images of all processes, of the same state dict, changed in place.

    Raises InputError: one process alone, or no GPUs, which torch's synchronisation needs.
    """
    if distributed.world_size() == 1:
        raise InputError("train.sync_bn=true is for several processes: start them with torchrun, or leave it out")
    if device.type != "cuda":
        raise InputError(f"train.sync_bn=true needs GPUs, the device is {device}: leave it out")
    return convert_sync_batchnorm(model)


def shard(model: nn.Module, device: torch.device) -> None:
    """Share the parameters among the processes, block by block, in place; all start from rank 0's values."""
    distributed.broadcast_tensors(parameter.data for parameter in model.parameters())
    distributed.broadcast_tensors(model.buffers())
    mesh = init_device_mesh(device.type, (distributed.world_size(),))
    for module in model.modules():
        if type(module).__name__.endswith("Block"):  # timm's name for them in every transformer
            fully_shard(module, mesh=mesh)
    fully_shard(model, mesh=mesh)


def holds_shares(model: nn.Module) -> bool:
    """Whether `shard` has shared this model's parameters among the processes."""
    return isinstance(model, FSDPModule)


def make_equal(model: nn.Module, average: nn.Module | None, parameters: Sequence[str] = ()) -> None:
    """Make every rank's and the average's buffers, and the named parameters, equal to rank 0's, in place."""
    distributed.broadcast_tensors(model.buffers())
    own = dict(model.named_parameters())
    distributed.broadcast_tensors([own[name].data for name in parameters])
    if average is not None:
        averaged = dict(average.named_parameters())
        for name in parameters:
            averaged[name].data.copy_(own[name].data)
        for averaged_buffer, buffer in zip(average.buffers(), model.buffers(), strict=True):
            averaged_buffer.copy_(buffer)


@contextmanager
def whole_weights(model: nn.Module) -> Iterator[None]:
    """While this lasts, a sharded model's weights are whole on every process, and any of them may run it alone.

    Every process must enter and leave. For passes without gradients: a hash fit on rank 0, and evaluation, where
    the processes may have different numbers of batches.
    """
    sharded = [module for module in model.modules() if isinstance(module, FSDPModule)]
    for module in sharded:
        module.unshard()
        module.set_reshard_after_forward(False, recurse=False)
    try:
        yield
    finally:
        for module in sharded:
            module.set_reshard_after_forward(True, recurse=False)
            module.reshard()


def gradient_sync(model: nn.Module, ddp: DistributedDataParallel | None, last: bool) -> AbstractContextManager[None]:
    """Around a backward pass: processes exchange gradients once per optimiser step, with the group's last batch."""
    if isinstance(model, FSDPModule):
        model.set_requires_gradient_sync(last)
    return nullcontext() if ddp is None or last else ddp.no_sync()


def whole(value: Any) -> Any:
    """Plain containers with every sharded tensor made whole, on the CPU; every process must call it."""
    if isinstance(value, dict):
        return {key: whole(item) for key, item in value.items()}
    if isinstance(value, list):
        return [whole(item) for item in value]
    return value.full_tensor().detach().cpu() if isinstance(value, DTensor) else value


def load_optimizer(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Load an optimiser's state dict of whole tensors, into sharded parameters as well."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    numbers = [number for group in state["param_groups"] for number in group["params"]]
    owners = dict(zip(numbers, parameters, strict=True))
    moments = {
        number: {key: shared_like(owners[number], value) for key, value in entry.items()}
        for number, entry in state["state"].items()
    }
    optimizer.load_state_dict({**state, "state": moments})
