"""One line of a ledger."""

from dataclasses import dataclass

from ecoformer.energy.kinds import Counts

CORE = "core"
LOOSE = "product of activations"


@dataclass(frozen=True)
class Entry:
    """The work of one operation in one module, summed over its calls.

    Attributes:
        module, module_class: the innermost module that ran it.
        function: the function of the model's code that asked for it ("hash_attention"), empty in the paper convention.
        op: the operation ("aten.mul.Tensor"), or the term of the paper's accounting ("Conv2d").
        attention: name of the attention layer around it, if any; "(model)" if that is the whole model.
        part: "Conv2d", "Linear" (functional ones included), "LayerNorm", the class of another convolution or norm,
            CORE for what an attention core does, LOOSE for a product of two activations in no such core, or "".
        bits: width of the numbers it worked on; 0 for integers.
    """

    module: str
    module_class: str
    function: str
    op: str
    attention: str
    part: str
    bits: int
    calls: int
    counts: Counts

    @property
    def core(self) -> bool:
        """Whether it belongs to the attention proper, not to a projection, convolution or norm."""
        return self.part == CORE
