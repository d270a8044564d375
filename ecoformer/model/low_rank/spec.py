"""How far a weight matrix is cut down: a fixed rank, a share of its parameters, or a share of its energy."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ecoformer.errors import InputError, is_whole

DEFAULT_RATIO = 0.5


@dataclass(frozen=True)
class LowRankSpec:
    """The rank of every factorised layer, by one of three rules; without any, ratio=0.5.

    Args:
        rank: the same rank everywhere, as Greenformers' LRT does (Cahyawijaya, 2021).
        ratio: the two factors hold at most this share of the weight's parameters, or rank 1 where that is more.
        energy: the smallest rank that keeps this share of the squared singular values, so of the squared
            Frobenius norm: the relative error is then at most sqrt(1 - energy).
    Raises:
        InputError: more than one rule, or a value out of range.
    """

    rank: int | None = None
    ratio: float | None = None
    energy: float | None = None

    def __post_init__(self) -> None:
        given = {key: value for key, value in vars(self).items() if value is not None}
        if len(given) > 1:
            listed = " and ".join(f"compress.{key}={value}" for key, value in given.items())
            raise InputError(f"{listed} exclude each other: set one of rank, ratio and energy")
        if self.rank is not None and (not is_whole(self.rank) or self.rank < 1):
            raise InputError(f"compress.rank={self.rank!r} must be a whole number of at least 1")
        for key in ("ratio", "energy"):
            value = getattr(self, key)
            if value is not None and not (isinstance(value, (int, float)) and 0 < value < 1):
                raise InputError(f"compress.{key}={value!r} must be above 0 and below 1")

    def __str__(self) -> str:
        given = {key: value for key, value in vars(self).items() if value is not None} or {"ratio": DEFAULT_RATIO}
        return ", ".join(f"{key}={value}" for key, value in given.items())

    def rank_of(self, rows: int, columns: int, singular_values: Tensor | None) -> int:
        """The rank for a rows x columns weight, at least 1 and at most its full rank.

        `singular_values` in descending order; only `energy` needs them. Raises InputError if it has none.
        """
        full = min(rows, columns)
        if self.rank is not None:
            return min(self.rank, full)
        if self.energy is None:
            share = DEFAULT_RATIO if self.ratio is None else self.ratio
            return min(max(1, math.floor(share * rows * columns / (rows + columns))), full)
        if singular_values is None:
            raise InputError(
                f"compress.energy={self.energy} needs weights and the model has none (meta tensors): "
                "set compress.rank or compress.ratio"
            )
        kept = singular_values.double().square().cumsum(0)
        return min(int(torch.searchsorted(kept, self.energy * kept[-1])) + 1, full)


def saves(rank: int, rows: int, columns: int) -> bool:
    """Whether two factors of this rank hold fewer parameters than the weight itself."""
    return rank * (rows + columns) < rows * columns
