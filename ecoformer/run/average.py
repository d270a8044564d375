"""The mean of several checkpoints' weights as one checkpoint, as timm's avg_checkpoints.py makes it."""

import argparse
from collections.abc import Sequence
from itertools import combinations
from typing import Any

import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from ecoformer.errors import InputError
from ecoformer.model.checkpoint import evaluated_weights, load_weights, save_checkpoint
from ecoformer.nn.coded import CodedLinear
from ecoformer.run.saved import SHIPPED, SavedRun, read_run, statistics_of
from ecoformer.run.start import model_of_run

SAME = ("model", "attention", "compress")  # settings that say what the weights are


def run(args: argparse.Namespace) -> int:
    runs = [read_run(path) for path in args.checkpoints]
    if len({run.path.resolve() for run in runs}) < 2:
        raise InputError("one checkpoint has no average: give at least two")
    weights = average(runs)
    content = {key: runs[-1].content[key] for key in ("config", "epoch", "step")}
    save_checkpoint(args.out, {"kind": "weights", **content, "metrics": None, "model": weights})
    print(f"{args.out}: the average of {len(runs)} checkpoints, not evaluated: ecoformer eval checkpoint={args.out}")
    return 0


def average(runs: Sequence[SavedRun]) -> dict[str, Tensor]:
    """Parameters and batch norm's running figures averaged in float64, of averaged weights where a run kept them.

    What else a model holds, hash functions above all, is no quantity that could be averaged: it must be the same in
    all, and is taken from the last; codes of weights are those of the averaged weights.

    Raises InputError: the checkpoints are of different models or classes, saw images that were normalised differently,
    or hold different hash functions or the same weights.
    """
    last = runs[-1]
    for other in runs:
        differ = [key for key in SAME if getattr(other.config, key) != getattr(last.config, key)]
        differ += ["classes"] if other.class_names != last.class_names else []
        differ += ["data.mean and data.std, or data.name"] if _prepared(other) != _prepared(last) else []
        if differ:
            paths = f"{other.path} and {last.path}"
            raise InputError(f"{paths} are not of the same {differ[0]}: average checkpoints of one run")
    model = model_of_run(last)
    norms = {f"{name}." for name, module in model.named_modules() if isinstance(module, _BatchNorm)}
    meaned = dict(model.named_parameters()).keys() | {
        name for name, value in model.named_buffers() if value.is_floating_point() and _owner(name) in norms
    }
    coded = {f"{name}." for name, module in model.named_modules() if isinstance(module, CodedLinear)}
    free = {name for name, _ in model.named_buffers() if _owner(name) in norms | coded}  # batch norm's counts
    states = [evaluated_weights(each.content) for each in runs]
    for each, state in zip(runs, states, strict=True):
        load_weights(model, state, each.path)  # refuses other shapes
    for first, second in combinations(range(len(runs)), 2):  # best.pt and last.pt may be of one epoch
        if all(torch.equal(value, states[second][name]) for name, value in states[first].items()):
            where = f"{runs[first].path} and {runs[second].path}"
            raise InputError(f"{where} hold the same weights, which would count twice: give one of them")
    found: dict[str, Any] = {}
    for name, value in states[-1].items():
        values = [state[name] for state in states]
        if name in meaned:
            value = torch.stack([each.double() for each in values]).mean(0).to(value.dtype)
        elif name not in free:
            for each, own in zip(runs, values, strict=True):
                if not torch.equal(own, value):
                    raise InputError(
                        f"{each.path} and {last.path} hold different {name}: hash functions and what else was fitted "
                        "cannot be averaged; give checkpoints of one fit, as the epochs of one run"
                    )
        found[name] = value
    load_weights(model, found, last.path)  # which makes the codes of its weights
    return found | {name: value for name, value in model.state_dict().items() if name in free and _owner(name) in coded}


def _prepared(run: SavedRun) -> object:
    """How a run's inputs are made: mean and deviation of images, and else, or where a package chose those, its data."""
    data = run.config.data
    unknown = data.name not in SHIPPED and None in (data.mean, data.std)
    return data.name if run.sequences or unknown else statistics_of(run)


def _owner(name: str) -> str:
    return name.rpartition(".")[0] + "."
