"""Which class of the data is which output of the weights: names are compared wherever the two meet."""

import unicodedata
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

from ecoformer.data.splits import Source, Splits
from ecoformer.errors import InputError


@dataclass(frozen=True)
class KnownClasses:
    """The classes of weights in the order of their outputs, and what a message calls the weights."""

    names: list[str]
    weights: str  # such as "checkpoint RUN/best.pt"
    required: bool = True  # False: where no mapping is certain the data stay as they are


def match_classes(known: Sequence[str], found: Sequence[str]) -> list[int] | None:
    """For each class of the data the output of the weights that stands for it; None where that is not certain.

    Certain are the same names in any order and either Unicode form (older runs keep that of their system), and class
    numbers however they are written and sorted (0, 1, 10, 2 or 000, 001, 002, 010).
    """
    same: tuple[Callable[[str], Hashable | None], ...] = (partial(unicodedata.normalize, "NFC"), _number)
    for identity in same:
        ours, theirs = [identity(name) for name in known], [identity(name) for name in found]
        place = {name: index for index, name in enumerate(ours)}
        if None not in place and len(theirs) == len(place) == len(ours) and set(theirs) == set(place):
            return [place[name] for name in theirs]
    return None


def require_classes(known: KnownClasses, found: Sequence[str], where: str) -> list[int]:
    """`match_classes`, or an InputError with the first difference; `where` names the data that were really read."""
    order = match_classes(known.names, found)
    if order is not None:
        return order
    remedy = "set data.root to data with the classes it was trained on"
    if len(known.names) != len(found):
        raise InputError(f"{known.weights} knows {len(known.names)} classes, the data have {len(found)}: {remedy}")
    if _by_number(known.names) != _by_number(found):
        side, other = ("the data name", "it was trained on") if _by_number(found) else ("it knows", "the data have")
        remedy = f"{side} classes by number alone, {other} names: name them alike (class folders, or classes.txt)"
    index = next(index for index, pair in enumerate(zip(known.names, found, strict=True)) if pair[0] != pair[1])
    raise InputError(
        f"{known.weights}: class {index} was {known.names[index]} in training and is {found[index]} in {where}: "
        f"{remedy}"
    )


def counted_as(known: KnownClasses, splits: Splits, where: str, sources: list[Source]) -> Splits:
    """The splits, and `sources` in place, with the weights' class numbers; as they are where nothing is certain."""
    found = splits.class_names
    order = require_classes(known, found, where) if known.required else match_classes(known.names, found)
    index = next((index for index, output in enumerate(order or ()) if index != output), None)
    if order is None or index is None:
        return splits
    for source in sources:
        source.targets = np.asarray(order, np.int64)[source.targets]
    names = [found[order.index(output)] for output in range(len(order))]
    note = (
        f"classes are mapped by name: {where} sorts them in another order than {known.weights} "
        f"({found[index]} is class {order[index]} there, {index} here)"
    )
    return replace(splits, class_names=names, notes=[*splits.notes, note])


def difference_note(known: KnownClasses, found: Sequence[str], where: str) -> str | None:
    """The line about a classifier that is kept although its classes are called otherwise; None where they match."""
    if len(known.names) != len(found) or match_classes(known.names, found) is not None:
        return None
    index = next(index for index, pair in enumerate(zip(known.names, found, strict=True)) if pair[0] != pair[1])
    if _by_number(known.names):
        return f"{known.weights} knows its classes by number alone: class {index} is taken to be {found[index]}"
    return (
        f"the classifier of {known.weights} is kept, though its class {index} was {known.names[index]} and is "
        f"{found[index]} in {where}: init.reset_head=true starts with a new one"
    )


class ReorderedOutputs(nn.Module):
    """A classifier whose outputs come in another order of classes: (B, classes) -> (B, classes)."""

    def __init__(self, model: nn.Module, order: Sequence[int]) -> None:
        super().__init__()
        self.model = model
        self.register_buffer("order", torch.tensor(list(order)), persistent=False)

    def forward(self, x_B3SS: Tensor) -> Tensor:
        return self.model(x_B3SS)[:, self.order]


def on_classes(model: nn.Module, known: KnownClasses, found: Sequence[str], where: str) -> nn.Module:
    """A model with an output for each class of the data: all of `known` in the data's order, or a part of them.

    Raises:
        InputError: the data have classes that the model does not know; `where` names them.
    """
    order = match_classes(known.names, found)
    if order is None and set(found) <= set(known.names):  # a part of ImageNet
        order = [known.names.index(each) for each in found]
    if order is None:
        order = require_classes(known, found, where)
    return model if order == list(range(len(known.names))) else ReorderedOutputs(model, order)


def _number(name: str) -> int | None:
    return int(name) if name.isascii() and name.isdigit() else None


def _by_number(names: Sequence[str]) -> bool:
    return sorted(number for name in names if (number := _number(name)) is not None) == list(range(len(names)))
