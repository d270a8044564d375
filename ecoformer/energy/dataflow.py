"""What came from what in a forward pass: one node for every operation, with the operations that made its operands."""

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from ecoformer.energy.call import Call
from ecoformer.energy.rules import PRODUCTS, SOFTMAX
from ecoformer.energy.rules_products import ATTENTION, OPERANDS
from ecoformer.energy.values import storage_of

# What a node is to the search for attention; see `DataFlow._role`.
INPUT, PLAIN, PRODUCT, PARAMETRIC, FUSED, SOFT, DIVISION = range(7)
PASSED = (PLAIN, SOFT, DIVISION)
Ids = tuple[int, ...]


@dataclass
class Node:
    """One operation.

    Attributes:
        module: name of the module that ran it.
        sources: the nodes that made its operands; parameters and buffers have none.
        factors: for an inner product, the nodes behind each of its two factors.
        active: whether its result depends on the model's input.
        mixes: a product with a square matrix of parameters, as of talking heads.
        is_projection: a matrix product with parameters, whether or not a Linear module ran it.
    """

    module: str
    role: int
    sources: Ids = ()
    factors: tuple[Ids, Ids] = ((), ())
    active: bool = False
    mixes: bool = False
    is_projection: bool = False


@dataclass
class DataFlow:
    """The graph of a pass. A tensor that was written in place also comes from whatever wrote into its storage."""

    nodes: list[Node] = field(default_factory=list)
    _makers: WeakTensorKeyDictionary = field(default_factory=WeakTensorKeyDictionary)
    _writers: dict[int, int] = field(default_factory=dict)

    @property
    def last(self) -> int:
        """The node of the operation that was recorded last."""
        return len(self.nodes) - 1

    def add_input(self, x: Tensor) -> None:
        self._makers[x] = len(self.nodes)
        self.nodes.append(Node("", INPUT, active=True))

    def record(self, call: Call, module: str) -> None:
        index = len(self.nodes)
        sources = self._made_by(call.inputs)
        left, right = OPERANDS.get(call.name, ("", ""))
        factors = self._made_by([call.arg(left)]), self._made_by([call.arg(right)])
        node = Node(module, PLAIN, sources, factors, any(self.nodes[i].active for i in sources))
        node.role = self._role(call, node)
        node.is_projection = node.role == PARAMETRIC and node.active and call.name in OPERANDS
        node.mixes = node.role == PARAMETRIC and _is_square(call)
        self.nodes.append(node)
        known = {storage_of(x) for x in call.inputs}
        for x in call.written:
            self._writers[storage_of(x)] = index
            self._makers[x] = index
        for x in call.outputs:
            self._makers[x] = index
            if storage_of(x) not in known:
                self._writers.pop(storage_of(x), None)  # memory that another tensor left behind

    def _made_by(self, operands: list[Any]) -> Ids:
        found: set[int] = set()
        for x in operands:
            if isinstance(x, Tensor):
                found.update(i for i in (self._makers.get(x), self._writers.get(storage_of(x))) if i is not None)
        return tuple(sorted(found))

    def _role(self, call: Call, node: Node) -> int:
        if call.name in ATTENTION:
            return FUSED
        if call.name in OPERANDS:
            live = [any(self.nodes[i].active for i in side) for side in node.factors]
            made = [any(self._computed(i) for i in side) for side in node.factors]
            return PRODUCT if any(live) and all(made) else PARAMETRIC
        if call.name in PRODUCTS or ("norm" in call.name and call.arg("weight") is not None):
            return PARAMETRIC
        if call.name in SOFTMAX and node.active:
            return SOFT
        divisor = call.arg("other" if call.name == "div" else "self")
        divides = call.name in ("div", "reciprocal", "rsqrt")
        return DIVISION if divides and any(self.nodes[i].active for i in self._made_by([divisor])) else PLAIN

    def _computed(self, index: int) -> bool:
        """Whether a node is an activation, or was computed from parameters by a product: a learned query's projection.

        Reshaped, gathered or resized parameters are still parameters.
        """
        node = self.nodes[index]
        while not node.active and node.role == PLAIN and node.sources:
            node = self.nodes[node.sources[0]]
        return node.active or node.role in (PARAMETRIC, PRODUCT, FUSED)


def _is_square(call: Call) -> bool:
    """Whether the parameters map so many numbers to as many, pointwise: a matrix, or a 1 x 1 convolution."""
    if call.name in OPERANDS:
        shape = call.arg(OPERANDS[call.name][1]).shape
        return len(shape) > 1 and shape[-1] == shape[-2]
    weight = call.arg("weight")
    return weight is not None and weight.dim() > 2 and weight.shape[0] == weight.shape[1] == weight.numel() ** 0.5
