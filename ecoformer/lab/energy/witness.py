"""Other counters beside ours: fvcore's and torch's own, on the same model."""

import logging
import warnings
from typing import Any

import torch
from torch import nn

from ecoformer.errors import first_line
from ecoformer.nn.inputs import example_input


def witnesses(model: nn.Module, img_size: int) -> dict[str, Any]:
    """Multiply-adds of one image or sequence as others count them, by name; "unavailable: REASON" where one cannot.

    They run the model, which must hold values and fitted hash functions. fvcore counts a multiply-add as one operation,
    and leaves out what it has no handle for (fused attention, say); torch's counter counts two, in matrix products,
    convolutions and attention alone.
    """
    image = example_input(model, img_size)
    found: dict[str, Any] = {}
    for name, counter in (("fvcore", _fvcore), ("torch", _torch)):
        try:
            found[f"witness_{name}"] = round(counter(model.eval(), image))
        except Exception as error:  # theirs, whatever it is: it ends neither the table nor the other witness
            found[f"witness_{name}"] = f"unavailable: {first_line(error)}"
    return found


def _fvcore(model: nn.Module, image: torch.Tensor) -> float:
    from fvcore.nn import FlopCountAnalysis

    logging.getLogger("fvcore.nn.jit_analysis").setLevel(logging.ERROR)  # it lists what it leaves out
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return float(FlopCountAnalysis(model, image).unsupported_ops_warnings(False).total())


def _torch(model: nn.Module, image: torch.Tensor) -> float:
    from torch.utils.flop_counter import FlopCounterMode

    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(image)
    return counter.get_total_flops() / 2
