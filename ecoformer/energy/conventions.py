"""What is written down of a forward pass: everything (`audited`), or what the paper counts (`paper`)."""

import re
import sys
from abc import ABC, abstractmethod
from collections import Counter
from dataclasses import dataclass
from functools import cache
from typing import Any

from torch import Tensor, nn

from ecoformer.energy.call import Call, stored_bytes
from ecoformer.energy.cores import Cores, find_cores, is_within
from ecoformer.energy.dataflow import DataFlow
from ecoformer.energy.kinds import CORE, LOOSE, Counts, Entry, counts, scaled
from ecoformer.energy.recorder import ModuleStack
from ecoformer.energy.rules import COMPLEX, PRODUCTS, RULES, SOFTMAX, UNREAD
from ecoformer.energy.values import names

CONVENTIONS = ("paper", "audited")


class CountingDefect(Exception):
    """A rule failed on an operation that it should know: a defect of the ledger, not of its user."""


def _own_part(module: nn.Module | None) -> str:
    """`Entry.part` of the work that a module does by its class alone, or ""."""
    for known in (nn.Conv2d, nn.Linear, nn.LayerNorm):
        if isinstance(module, known):
            return known.__name__
    name = "" if module is None else type(module).__name__
    is_norm = module is not None and "norm" in name.lower() and not list(module.children())
    return name if is_norm or isinstance(module, nn.modules.conv._ConvNd) else ""


@dataclass
class _Note:
    """Work of one operation or module call, booked at the end, when it is known what is attention."""

    node: int | None
    module: str
    kind_of_module: nn.Module | None
    function: str
    op: str
    bits: int
    amount: Counts
    part: str | None = None
    core_only: bool = False


class Book(ABC):
    """Collects notes while a model runs, and sorts them into entries afterwards. One class per convention."""

    def __init__(self, stack: ModuleStack, flow: DataFlow) -> None:
        self.stack, self.flow = stack, flow
        self._notes: list[_Note] = []
        self._stated: set[str] = set()
        self.has_attention = False  # once `entries` has looked

    @abstractmethod
    def on_call(self, call: Call) -> None:
        """Note an operation whose rule is known."""

    def on_enter(self, name: str, module: nn.Module, args: tuple[Any, ...]) -> None:
        if _states_its_core(module):
            self._stated.add(name)

    def on_exit(self, module: nn.Module, args: tuple[Any, ...], out: Any) -> None:
        """Note that a module ended; nothing by default."""
        return

    def write(
        self,
        op: str,
        amount: Counts,
        bits: int,
        function: str = "",
        part: str | None = None,
        node: int | None = None,
        core_only: bool = False,
    ) -> None:
        """Note work of the running module; with `core_only`, only if its node turns out to be of an attention core."""
        module = self.stack.module
        self._notes.append(_Note(node, self.stack.name, module, function, op, bits, amount, part, core_only))

    def entries(self) -> list[Entry]:
        """What was noted, summed over calls of one operation in one module."""

        @cache
        def stated_around(module: str) -> str | None:
            around = [name for name in self._stated if is_within(module, name)]
            return min(around, key=len, default=None)

        cores = find_cores(self.flow, lambda module: stated_around(module) is not None)
        self.has_attention = bool(self._stated or cores.layer_of)
        counted: dict[tuple[Any, ...], Counts] = {}
        calls: Counter[tuple[Any, ...]] = Counter()
        for note in self._notes:
            layer = stated_around(note.module)
            in_core = layer is not None or note.node in cores.layer_of
            if note.core_only and not in_core:
                continue
            layer = cores.layer_around(note.module) if layer is None else layer
            attention = "" if layer is None else layer or "(model)"
            kind = type(note.kind_of_module).__name__ if note.kind_of_module is not None else ""
            part = note.part or _own_part(note.kind_of_module) or self._part(note, in_core, cores)
            key = (note.module, kind, note.function, note.op, attention, part, note.bits)
            counted.setdefault(key, Counter()).update(note.amount)
            calls[key] += 1
        return [
            Entry(*key, calls=calls[key], counts=Counter({k: n for k, n in found.items() if n}))  # type: ignore[misc]
            for key, found in counted.items()
        ]

    def _part(self, note: _Note, in_core: bool, cores: Cores) -> str:
        if in_core:
            return CORE
        if note.node in cores.loose:
            return LOOSE
        projects = note.node is not None and self.flow.nodes[note.node].is_projection
        return nn.Linear.__name__ if projects else ""


class AuditedBook(Book):
    """Every operation by its rule, and the bytes that it reads and writes."""

    def on_call(self, call: Call) -> None:
        bits, (real, whole) = _bits(call), memory(call)
        found = {bits: cost(call) + real}
        found[0] = found.get(0, counts()) + whole  # integers keep their width where a profile's floats have another
        for width, amount in found.items():
            if amount:
                self.write(call.full_name, amount, width, function=_calling_function(), node=self.flow.last)


class PaperBook(Book):
    """The published accounting, generalised to any model.

    Conv2d, Linear and LayerNorm modules by their formulas, in full to multiplications and additions; a module whose
    products are of another kind than "mul" names it as its `product_kind` ("shift": by powers of two). An attention
    layer with `paper_core_ops` states its core; elsewhere every product outside those modules counts its length as
    multiplications and additions, and every softmax weight one multiplication, which is the paper's formula for softmax
    attention. All else is zero.
    """

    def on_call(self, call: Call) -> None:
        running = [module for _, module in self.stack.running]
        if isinstance(self.stack.module, nn.Linear | nn.Conv2d) or any(map(_states_its_core, running)):
            return
        if call.name in PRODUCTS:
            found = cost(call)
            product = counts(mul=found["fma"] + found["mul"], add=found["fma"])
            self.write(call.full_name, product, _bits(call), node=self.flow.last)
        elif call.name in SOFTMAX:
            self.write(call.full_name, counts(mul=call.elements), _bits(call), node=self.flow.last, core_only=True)

    def on_enter(self, name: str, module: nn.Module, args: tuple[Any, ...]) -> None:
        super().on_enter(name, module, args)
        if _states_its_core(module):
            batch, num_tokens, _ = _first(args).shape
            muls, adds, *shifts = module.paper_core_ops(num_tokens)  # type: ignore[operator]
            core = counts(mul=muls, add=adds, shift=sum(shifts))
            self.write("attention core", scaled(core, batch), _width(_first(args)), part=CORE)

    def on_exit(self, module: nn.Module, args: tuple[Any, ...], out: Any) -> None:
        if (base := _paper_base(module, args, out)) is not None:
            product = getattr(module, "product_kind", "mul")
            self.write(_own_part(module), counts({product: base}, add=base), _width(out))


def _calling_function() -> str:
    """Name of the innermost running function that is neither torch's nor ours."""
    frame = sys._getframe(1)
    while frame.f_back is not None:
        package = str(frame.f_globals.get("__name__", ""))
        if not (package == "torch" or package.startswith(("torch.", "ecoformer.energy."))):
            return frame.f_code.co_qualname
        frame = frame.f_back
    return ""


def _states_its_core(module: nn.Module) -> bool:
    return hasattr(module, "paper_core_ops")


def _paper_base(module: nn.Module, args: tuple[Any, ...], out: Any) -> int | None:
    """The paper's count of one module call, or None if the paper does not count such modules."""
    if isinstance(module, nn.Conv2d):
        kernel_height, kernel_width = module.kernel_size
        per_position = kernel_height * kernel_width * module.in_channels * (module.out_channels // module.groups)
        if module.bias is not None:
            per_position += module.out_channels
        return per_position * out.numel() // module.out_channels
    if isinstance(module, nn.Linear):
        return _first(args).numel() * module.out_features
    return 2 * _first(args).numel() if isinstance(module, nn.LayerNorm) else None


def _first(args: tuple[Any, ...]) -> Tensor:
    return next(arg for arg in args if isinstance(arg, Tensor))


def cost(call: Call) -> Counts:
    """Arithmetic of a call by its rule; of complex numbers in terms of real ones."""
    try:
        return scaled(RULES[call.name](call), COMPLEX[call.name] if call.is_complex else 1)
    except Exception as error:
        shapes = [tuple(x.shape) for x in call.inputs]
        raise CountingDefect(f"the rule of {call.full_name} failed on {shapes}: {error}") from error


def memory(call: Call) -> tuple[Counts, Counts]:
    """Bytes of floating-point numbers and of others, read and written: every input once, every result once.

    Views and uninitialised memory are free.
    """
    if call.name in UNREAD:
        return counts(), counts()
    # These also return statistics, which devices fill differently and inference never reads.
    results = call.outputs[:1] if re.search("batch_norm|embedding_bag", call.name) else call.outputs
    overwritten = call.writes_only
    found = {True: counts(), False: counts()}
    for x in results:
        found[_is_real(x)] += counts(written_bytes=stored_bytes(x))
    for x in call.inputs:
        if id(x) not in overwritten:
            found[_is_real(x)] += counts(read_bytes=_bytes_read(call, x))
    return found[True], found[False]


def _is_real(x: Tensor) -> bool:
    return x.is_floating_point() or x.is_complex()


GATHERING = names("index _unsafe_index index_select gather take embedding")
FILLING = names("fill zero copy full_like ones_like zeros_like new_full new_ones new_zeros")


def _bytes_read(call: Call, x: Tensor) -> int:
    source = call.args[0] if call.args else None
    if x is source and call.name in FILLING:
        return 0
    if x is source and call.name in GATHERING:
        return stored_bytes(call.outputs[0])
    if x is source and "embedding_bag" in call.name:
        return int(call.arg("indices").numel() * x.shape[-1] * x.element_size())
    return stored_bytes(x)


def _width(x: Tensor) -> int:
    return x.element_size() * 8


def _bits(call: Call) -> int:
    """Width of the floating-point numbers at work, 0 if there are none."""
    held = [*call.outputs, *call.inputs]
    real = [_width(x) for x in held if x.is_floating_point()] + [_width(x) // 2 for x in held if x.is_complex()]
    return max(real, default=0)
