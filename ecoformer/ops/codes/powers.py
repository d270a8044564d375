"""Weights that are signed powers of two: a product with one is a shift, a projection shifts and additions.

Elhoushi et al., DeepShift: Towards Multiplication-Less Neural Networks, CVPR Workshops 2021 (arXiv:1905.13298), in its
form DeepShift-Q, which rounds the logarithm of a weight. Shapes: F features, D channels.
"""

from torch import Tensor

from ecoformer.ops.precision import full_precision

EXPONENTS = 16  # from the largest of a matrix down: four bits beside the sign. DeepShift-Q's code bounds nothing.
LOWEST, HIGHEST = -126, 127  # of the exponents of normal numbers of float32 and bfloat16; both fit into a byte


def nearest_powers(weight_FD: Tensor) -> tuple[Tensor, Tensor]:
    """(signs in {-1, 0, +1}, whole exponents) of the signed powers of two nearest to the weights, (F, D) each.

    Nearest by the logarithm: sign(w) 2^round(log2 |w|), of EXPONENTS exponents; a weight too small for them gets the
    smallest, 0 stays 0. Powers within the range are their own nearest.
    """
    exponents_FD = full_precision(weight_FD.detach()).abs().log2().round()
    high = exponents_FD.amax().clamp(LOWEST + EXPONENTS - 1, HIGHEST)
    return weight_FD.detach().sign(), exponents_FD.clamp(high - (EXPONENTS - 1), high)


def powers(signs: Tensor, exponents: Tensor) -> Tensor:
    """signs 2^exponents in float32, which holds all of them exactly; any dtype and shape."""
    # The sign of a sign is itself: said for the ledger, which takes nobody's word for what a tensor holds.
    return signs.sign() * exponents.float().exp2()


def straight_through_powers(weight_FD: Tensor) -> Tensor:
    """The nearest powers in the weights' dtype; the gradient is that of the weights as they are."""
    nearest_FD = powers(*nearest_powers(weight_FD)).to(weight_FD.dtype)
    return nearest_FD + (weight_FD - weight_FD.detach())  # 0, without rounding
