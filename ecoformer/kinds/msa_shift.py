"""Softmax attention whose projections have weights that are powers of two: shifts and additions for products.

Shapes: B batch, H heads, N tokens, C head channels, D model channels.
"""

from dataclasses import dataclass

from ecoformer.nn.base import ReplacementAttention, attention_kind
from ecoformer.nn.msa import MultiHeadSelfAttention
from ecoformer.nn.power_linear import with_powers
from ecoformer.nn.projections import Projections
from ecoformer.nn.specs import AttentionSpec


@dataclass(frozen=True)
class ShiftMSASpec(AttentionSpec):
    """Plain softmax attention with signed powers of two for the weights of its projections.

    Elhoushi et al., "DeepShift: Towards Multiplication-Less Neural Networks", CVPR Workshops 2021, in the form that
    rounds the logarithms of weights (DeepShift-Q) and passes gradients straight through. A weight has a sign and one of
    16 exponents, from that of the largest weight of its matrix down. Of theirs we leave out the 32-bit fixed point of
    activations. You et al., "ShiftAddViT", NeurIPS 2023, reparameterise transformers so; of theirs we leave out all but
    these projections: the additive attention, the shifts of other layers and the mixture of experts.
    """

    name = "msa_shift"


@attention_kind(ShiftMSASpec)
class ShiftMSAttention(ReplacementAttention):
    """MSA whose projections are PowerLinears. Another kind that is built from it gets the powers, as it runs them."""

    takes_mask = True

    def add_parts(self, source: Projections | None) -> None:
        for part in self._roles_of_parts():
            self.add_module(part, with_powers(getattr(self, part)))

    attend = MultiHeadSelfAttention.attend
    attention_weights = MultiHeadSelfAttention.attention_weights
    paper_core_ops = MultiHeadSelfAttention.paper_core_ops  # what is saved are projections, Linears
