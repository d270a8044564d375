"""Attention cores, found by what is computed.

Attention is a product of two activations whose result, normalised, weighs a third: softmax(q k^T) v, and in linear
attention q (k^T v) over its row sums. A core is made of

- every fused softmax attention;
- the product that a softmax of activations weighs, and the product of activations that this softmax normalises, if
  there is one (outlook attention has none: its weights come straight from a projection);
- two products of activations, the second taking the first's result and a factor that does not depend on it, with a
  division by an activation, or a softmax, before, between or after them;
- what runs between those products, what prepares their factors in the same module, and what follows them there
  without meeting another activation.

Products with parameters and norms with parameters are never core, however they are called: they are projections.
Only one small exception is passed through on the way: a square matrix that mixes heads (talking heads).
Class names and module borders play no part, except that attention which states its core (`paper_core_ops`) is taken
at its word. A product of two activations that fits nowhere is reported, not booked.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import takewhile

from ecoformer.energy.dataflow import DIVISION, FUSED, PASSED, PRODUCT, SOFT, DataFlow, Ids, Node


@dataclass
class Cores:
    """What was found in a graph.

    Attributes:
        layer_of: the innermost module around each core node's whole attention; "" is the model itself.
        loose: products of two activations in no core.
    """

    layer_of: dict[int, str]
    loose: frozenset[int]

    def layer_around(self, module: str) -> str | None:
        """The innermost attention layer that a module is, or is in; None if it is in none."""
        around = [layer for layer in set(self.layer_of.values()) if is_within(module, layer)]
        return max(around, key=len, default=None)


def find_cores(flow: DataFlow, is_stated: Callable[[str], bool]) -> Cores:
    """The cores of a pass; `is_stated` tells modules inside layers that state their own core, which are left out."""
    search = _Search(flow.nodes, {i for i, node in enumerate(flow.nodes) if is_stated(node.module)})
    groups = search.groups()
    layer_of: dict[int, str] = {}
    for products in groups:
        layer = _common([flow.nodes[i].module for i in products])
        layer_of |= dict.fromkeys(search.core(products), layer)
    loose = [i for i in search.products if i not in layer_of and search.is_of_activations(i)]
    return Cores(layer_of, frozenset(loose))


class _Search:
    def __init__(self, nodes: list[Node], left_out: set[int]) -> None:
        self.nodes, self.left_out = nodes, left_out
        self.products = [i for i, n in enumerate(nodes) if n.role == PRODUCT and i not in left_out]
        self.between: dict[int, set[int]] = {}  # last product of a core -> what leads to it from the first
        self.pairs: list[set[int]] = []
        self.users: list[list[int]] = [[] for _ in nodes]
        # One bit for each product and softmax: what a node depends on, however far back.
        self.behind: list[int] = []
        for i, node in enumerate(nodes):
            for source in node.sources:
                self.users[source].append(i)
            mask = 1 << i if node.role in (PRODUCT, SOFT) else 0
            for source in node.sources:
                mask |= self.behind[source]
            self.behind.append(mask)

    def is_of_activations(self, product: int) -> bool:
        return all(any(self.nodes[i].active for i in side) for side in self.nodes[product].factors)

    def groups(self) -> list[set[int]]:
        """Products that belong together, each group one attention."""
        for i, node in enumerate(self.nodes):
            if node.role == FUSED and node.active and i not in self.left_out:
                self._join({i}, set())
        for look in (self._weighted_by_softmax, self._chained):
            for product in self.products:
                left, right = self.nodes[product].factors
                look(product, left, right)
                look(product, right, left)
        return self.pairs

    def _join(self, products: set[int], path: set[int]) -> None:
        for product in products:
            self.between.setdefault(product, set()).update(path)
        touching = [pair for pair in self.pairs if pair & products]
        self.pairs = [pair for pair in self.pairs if pair not in touching]
        self.pairs.append(products.union(*touching))

    def _weighted_by_softmax(self, product: int, factor: Ids, other: Ids) -> None:
        if not any(self.nodes[i].active for i in other):
            return
        way = self._back(factor, mixing=True)
        for soft in [i for i in way if self.nodes[i].role == SOFT and self._independent(other, i)]:
            found, path = {product}, self._path(way, {soft})
            before = self._back(self.nodes[soft].sources, mixing=True)
            scores = {i for i in before if self.nodes[i].role == PRODUCT and i not in self.left_out}
            self._join(found | scores, path | {soft} | self._path(before, scores))

    def _chained(self, product: int, factor: Ids, other: Ids) -> None:
        way = self._back(factor, mixing=False)
        for first in [i for i in way if self.nodes[i].role == PRODUCT and i not in self.left_out]:
            if not (self._independent(other, first) and self.is_of_activations(product)):
                continue
            known = any(first in pair or product in pair for pair in self.pairs)
            sums = self._row_sums(product)
            if known or sums is not None or self._is_prepared(first) or self._is_prepared(product):
                self._join({first, product, *(sums or ())}, self._path(way, {first}))

    def _independent(self, ids: Iterable[int], product: int) -> bool:
        return not any(self.behind[i] >> product & 1 for i in ids)

    def _is_prepared(self, product: int) -> bool:
        """Whether a factor was normalised on its way."""
        ways = (self._back(side, mixing=False) for side in self.nodes[product].factors)
        return any(self.nodes[i].role in (SOFT, DIVISION) for way in ways for i in way)

    def _row_sums(self, product: int) -> set[int] | None:
        """Products by whose result a product is divided later in its module; None if there is no division."""
        found: set[int] | None = None
        for i in (product, *self._ahead({product})):
            for user in (u for u in self.users[i] if self.nodes[u].module == self.nodes[i].module):
                sources = self.nodes[user].sources
                if DIVISION in (self.nodes[user].role, *(self.nodes[s].role for s in sources)):
                    way = self._back(sources, mixing=False)
                    found = (found or set()) | {i for i in way if self.nodes[i].role == PRODUCT}
        return found

    def _back(self, ids: Iterable[int], mixing: bool) -> set[int]:
        """Everything reached backwards through what is neither a product nor a norm with parameters, ends included.

        With `mixing`, one square matrix of parameters is passed.
        """
        reached: dict[int, bool] = {}
        waiting = [(i, mixing) for i in ids]
        while waiting:
            i, may_mix = waiting.pop()
            if i in reached and reached[i] >= may_mix:
                continue
            reached[i] = may_mix
            node = self.nodes[i]
            if node.role in PASSED and i not in self.left_out:
                waiting += [(source, may_mix) for source in node.sources]
            elif node.mixes and may_mix:
                waiting += [(source, False) for source in node.factors[0] or node.sources]
        return set(reached)

    def _path(self, reached: set[int], start: set[int]) -> set[int]:
        """The part of `reached` that comes from `start`."""
        found = set(start)
        for i in sorted(reached):
            if any(source in found for source in self.nodes[i].sources):
                found.add(i)
        return {i for i in found - start if self.nodes[i].role in PASSED}

    def _ahead(self, core: set[int]) -> set[int]:
        """What follows in the same module and meets no activation but those of the core."""
        found, waiting = set(core), sorted(core)
        while waiting:
            i = waiting.pop(0)
            for user in self.users[i]:
                node = self.nodes[user]
                own = all(source in found for source in node.sources if self.nodes[source].active)
                if user not in found and own and node.role in PASSED and node.module == self.nodes[i].module:
                    found.add(user)
                    waiting.append(user)
        return found - core

    def core(self, products: set[int]) -> set[int]:
        """The nodes of an attention: its products and what is between, before and behind them."""
        found = set(products).union(*(self.between[i] for i in products))
        modules = {self.nodes[i].module for i in products}
        waiting = list(found)
        while waiting:
            node = self.nodes[waiting.pop()]
            for source in node.sources:
                near = self.nodes[source]
                if source not in found and near.role in PASSED and near.module in modules:
                    found.add(source)
                    waiting.append(source)
        return found | self._ahead(found)


def is_within(module: str, layer: str) -> bool:
    """Whether a module is another or a part of it, by name; "" is the model."""
    return not layer or module == layer or module.startswith(f"{layer}.")


def _common(modules: list[str]) -> str:
    """The innermost module around all of them."""
    levels = zip(*(module.split(".") for module in modules), strict=False)
    return ".".join(parts[0] for parts in takewhile(lambda parts: len(set(parts)) == 1, levels))
