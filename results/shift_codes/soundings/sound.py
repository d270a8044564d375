"""What holds shift codes back, layer by layer: terms of place, rounded exponents, the weights of the projection.

    python results/shift_codes/soundings/sound.py CHECKPOINT DATA IMAGES STEPS FEATURES FORM...

Fits codes to every attention layer of a plain ViT with softmax attention, each at the layer's own inputs, and prints a
line a layer and form: the squared relative error on 256 further training images, and its root as a share of uniform
attention's. Forms join words by +:

    base    ternary projection, 16 levels      real, powers       weights of the projection: any, signed powers of two
    late    any weights for half of the steps, then those of the form for as many
    pos     an offset of every exponent for every place               half, exact    steps of half an exponent, none
    static  a weight for every pair of places, times a power of two of the query        near    of neighbours alone
    local=8 a power of two of the query for each of its nine neighbours, with this exponent at the start
    tables  no powers: 4 levels a direction of queries and of keys, a fitted weight for every pair of levels
    levels=32, scale=2, steep=2, lr=0.03, steps=1500, batch=64        levels, sizes of the start, settings of the fit
"""

import json
import math
import sys
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ecoformer.fit.output_fit import fit_to_output
from ecoformer.fit.target import SoftmaxTarget
from ecoformer.lab.closeness.source import load_source
from ecoformer.nn.heads import split_heads
from ecoformer.nn.projections import read_projections
from ecoformer.ops.codes.distilled import DistilledHash, Rounding, Standardiser, random_distilled_hash
from ecoformer.ops.codes.forms import CodeForm, Shifts
from ecoformer.ops.codes.powers import straight_through_powers
from ecoformer.ops.codes.ternary import straight_through_ternary

HELD_OUT = 256
NEAR = Shifts(-8, 24)  # one neighbour may outweigh all other keys


@dataclass(frozen=True)
class Finer:
    """Powers of two with exponents of half steps (2^0.5 as 1.5, one more addition), or of none."""

    low: int
    high: int
    halves: bool

    def __call__(self, y: Tensor, slope: float | None = None) -> Tensor:
        held = y.clamp(self.low, self.high)
        if not self.halves:
            return held.exp2()
        twice = (2 * held).round()
        near = (twice / 2).floor() + (twice % 2) * math.log2(1.5)
        return (held + (near - held).detach()).exp2()


@dataclass(frozen=True)
class Placed(DistilledHash):
    """The codes with terms of place: `place_HKN` for queries, then keys, or `pair_HNN` with a gate of the query."""

    fitted = (*DistilledHash.fitted, "place_HKN", "pair_HNN", "gate_HD", "gate_bias_H")

    place_HKN: Tensor | None = None
    pair_HNN: Tensor | None = None
    gate_HD: Tensor | None = None
    gate_bias_H: Tensor | None = None
    near_NN: Tensor | None = None

    def codes(self, x_BND: Tensor, slope: float | None = None) -> tuple[Tensor, Tensor]:
        if self.place_HKN is None:
            return super().codes(x_BND, slope)
        y = self.to_codes(x_BND).unflatten(-1, (2, *self.query_bias_HK.shape)).permute(2, 0, 3, 1, 4)
        query, key = (y_BHNK + place.mT for y_BHNK, place in zip(y, self.place_HKN.chunk(2, dim=1), strict=True))
        return self.form(query), self.form(key)

    def attend(self, x_BND: Tensor, v_BHNC: Tensor | None = None, *rest: Tensor | None, **softness: float) -> Tensor:
        if self.pair_HNN is None or self.gate_HD is None or self.gate_bias_H is None:
            return super().attend(x_BND, v_BHNC, *rest, **softness)
        query, key = self.codes(x_BND)
        gate_BHN1 = self.form((x_BND @ self.gate_HD.mT + self.gate_bias_H).mT).unsqueeze(-1)
        pair_HNN = self.pair_HNN.exp2() if self.near_NN is None else self.pair_HNN.exp2() * self.near_NN
        weight = query @ key.mT + self.floor_H[:, None, None] + gate_BHN1 * pair_HNN
        return weight @ v_BHNC / weight.sum(dim=-1, keepdim=True)


@dataclass(frozen=True)
class Tables(DistilledHash):
    """A weight for every pair of levels of a direction's query and key: sums of rows without shifts, one a level."""

    fitted = (*DistilledHash.fitted, "table_HKLL")

    table_HKLL: Tensor | None = None  # logarithms to the base 2

    def codes(self, x_BND: Tensor, slope: float | None = None) -> tuple[Tensor, Tensor]:
        assert self.table_HKLL is not None
        y = self.to_codes(x_BND).unflatten(-1, (2, *self.query_bias_HK.shape)).permute(2, 0, 3, 1, 4)
        query, key = (one_of(y_BHNK, self.table_HKLL.shape[-1]) for y_BHNK in y)
        return query.flatten(-2), torch.einsum("bhnkm,hklm->bhnkl", key, self.table_HKLL.exp2()).flatten(-2)


def one_of(y: Tensor, levels: int) -> Tensor:
    """1 at the level next to y, else 0; the gradient is that of straight lines from level to level."""
    place = (y + (levels - 1) / 2).clamp(0, levels - 1).unsqueeze(-1)
    steps = torch.arange(levels, dtype=y.dtype)
    near = (1 - (place - steps).abs()).clamp_min(0)
    return near + ((place.round() == steps).to(y.dtype) - near).detach()


@dataclass(frozen=True)
class Local(DistilledHash):
    """The weights of codes, and 2^e more for a key at each offset, e a rounded projection of the query."""

    fitted = (*DistilledHash.fitted, "gate_HOD", "gate_bias_HO")

    gate_HOD: Tensor | None = None
    gate_bias_HO: Tensor | None = None
    offset_ONN: Tensor | None = None

    def attend(self, x_BND: Tensor, v_BHNC: Tensor | None = None, *rest: Tensor | None, **softness: float) -> Tensor:
        assert self.gate_HOD is not None and self.gate_bias_HO is not None and self.offset_ONN is not None
        query, key = self.codes(x_BND)
        exponent_BHNO = torch.einsum("bnd,hod->bhno", x_BND, self.gate_HOD) + self.gate_bias_HO[:, None]
        near = torch.einsum("bhno,onm->bhnm", NEAR(exponent_BHNO), self.offset_ONN)
        weight = query @ key.mT + self.floor_H[:, None, None] + near
        return weight @ v_BHNC / weight.sum(dim=-1, keepdim=True)


def local(codes: DistilledHash, offset_ONN: Tensor, gate: float, dim: int) -> Local:
    generator = torch.Generator().manual_seed(1)
    shape = len(codes.floor_H), len(offset_ONN)
    kept = {field.name: getattr(codes, field.name) for field in fields(DistilledHash)}
    gates = {"gate_HOD": 0.01 * torch.randn(*shape, dim, generator=generator), "gate_bias_HO": torch.full(shape, gate)}
    return Local(**kept, **gates, offset_ONN=offset_ONN)


def offsets(num_tokens: int) -> Tensor:
    """(9, N, N), 1 where a key is a query's neighbour in one direction, or itself.

    Tokens before the map have themselves.
    """
    side = math.isqrt(num_tokens)
    before = num_tokens - side * side
    row, column = torch.arange(side * side) // side, torch.arange(side * side) % side
    found = torch.zeros(3, 3, num_tokens, num_tokens)
    for y in range(3):
        for x in range(3):
            same = (row[None] - row[:, None] == y - 1) & (column[None] - column[:, None] == x - 1)
            found[y, x, before:, before:] = same.float()
    found[1, 1] = torch.eye(num_tokens)
    return found.flatten(0, 1)


def around(offset_ONN: Tensor, words: dict[str, str]) -> tuple[Tensor, float]:
    return offset_ONN, float(words["local"])


def neighbours(num_tokens: int) -> Tensor:
    """1 where two tokens of a square map are at most one row and column apart, and for tokens before the map."""
    side = math.isqrt(num_tokens)
    before = num_tokens - side * side
    row, column = torch.arange(side * side) // side, torch.arange(side * side) % side
    near = torch.ones(num_tokens, num_tokens)
    near[before:, before:] = ((row[:, None] - row).abs() <= 1).float() * ((column[:, None] - column).abs() <= 1)
    return near


def start(
    x_BND: Tensor, standard: Standardiser, layer: nn.Module, features: int, words: dict[str, str]
) -> DistilledHash:
    source = read_projections(layer, "layer")
    heads, dim, tokens = source.num_heads, x_BND.shape[-1], x_BND.shape[1]
    query, key = (standard.unfold(projection) for projection in (source.query, source.key))
    generator = torch.Generator().manual_seed(0)
    drawn = random_distilled_hash(x_BND, query, key, heads, features, generator, weighted=False)
    codes = Placed(**{field.name: getattr(drawn, field.name) for field in fields(drawn)})
    levels = Shifts.of(int(words.get("levels", 16)))
    form: CodeForm = levels
    if "half" in words or "exact" in words:
        form = Finer(levels.low, levels.high, "half" in words)
    nearest = straight_through_powers if "powers" in words else straight_through_ternary
    scaled = {name: float(words.get("scale", 1)) * getattr(codes, name) for name in DistilledHash.fitted[:4]}
    codes = replace(codes, form=form, rounding=None if "real" in words else Rounding(nearest, standard.deviation_D))
    codes = replace(codes, **scaled)
    if "tables" in words:
        step = torch.arange(4) - 1.5
        table = (float(words.get("steep", 0.5)) * step[:, None] * step).expand(heads, features, 4, 4).contiguous()
        kept = {field.name: getattr(codes, field.name) for field in fields(DistilledHash)}
        return Tables(**kept, table_HKLL=table)
    if "pos" in words:
        codes = replace(codes, place_HKN=torch.zeros(heads, 2 * features, tokens))
    if "static" in words or "near" in words:
        gate = {"gate_HD": 0.01 * torch.randn(heads, dim, generator=generator), "gate_bias_H": torch.zeros(heads)}
        codes = replace(codes, pair_HNN=torch.zeros(heads, tokens, tokens), **gate)
    return replace(codes, near_NN=neighbours(tokens) if "near" in words else None)


def error(found: Tensor, target: Tensor) -> float:
    return float(((found - target).square().sum((0, 2, 3)) / target.square().sum((0, 2, 3))).mean())


def sound(
    name: str, layer: nn.Module, x_BND: Tensor, count: int, steps: str, features: str, forms: list[str], **options: Any
) -> None:
    """Fit each form to a layer on the first `count` of its inputs, and print a line of its error on the others.

    `options`: what the inputs are called (`inputs`), samples a step (`batch`), and `offset_ONN`, which gives the
    neighbours' places from the form's words.
    """
    with torch.no_grad():
        softmax = SoftmaxTarget.of(layer, name, x_BND)
        v_BHNC, target = softmax.v_BHNC, split_heads(softmax.output(), softmax.v_BHNC.shape[1])
    standard = Standardiser.of(x_BND)
    x_BND = standard(x_BND)
    uniform = error(v_BHNC[count:].mean(2, keepdim=True), target[count:])
    for form in forms:
        words = dict(([*word.split("="), ""])[:2] for word in form.split("+"))
        codes = start(x_BND[:count], standard, layer, int(features), words)
        if "local" in words:
            codes = local(codes, *options["offset_ONN"](words), x_BND.shape[-1])
        fit = partial(
            fit_to_output,
            inputs=[x_BND[:count], v_BHNC[:count]],
            target_BHNC=target[:count],
            generator=torch.Generator().manual_seed(0),
            lr=float(words.get("lr", 0.01)),
            steps=int(words.get("steps", steps)) // (2 if "late" in words else 1),
            batch_size=int(words.get("batch", options["batch"])),
        )
        if "late" in words:
            codes = replace(fit(replace(codes, rounding=None)).hashing, rounding=codes.rounding)
        fitted = fit(codes).hashing
        with torch.no_grad():
            found = error(fitted.attend(x_BND[count:], v_BHNC[count:]), target[count:])
        row = {"layer": name, "features": int(features), "form": form, options["inputs"]: count, "squared_error": found}
        print(json.dumps(row | {"of_uniform": (found / uniform) ** 0.5}), flush=True)


def main() -> None:
    checkpoint, data, images, steps, features, *forms = sys.argv[1:]
    torch.set_num_threads(1)
    source, count = load_source(checkpoint=checkpoint, root=data, only_msa=True), int(images)
    layers = {name: module for name, module in source.model.named_modules() if name.endswith(".attn")}
    inputs: dict[str, list[Tensor]] = {name: [] for name in layers}
    for name, module in layers.items():
        module.register_forward_pre_hook(lambda module, args, name=name: inputs[name].append(args[0]))
    with torch.no_grad():
        for batch in source.data.calibration_images(count + HELD_OUT, 0).split(64):
            source.model(batch)
    for name, layer in layers.items():
        x_BND = torch.cat(inputs[name])
        places = partial(around, offsets(x_BND.shape[1]))
        sound(name, layer, x_BND, count, steps, features, forms, inputs="images", batch=16, offset_ONN=places)


if __name__ == "__main__":
    main()
