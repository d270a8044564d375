"""Hardware profiles: what one operation of each kind costs, at which precision, and on whose authority."""

from collections.abc import Container, Iterable
from dataclasses import dataclass, field
from fnmatch import fnmatchcase

from ecoformer.energy.kinds import ARITHMETIC, KINDS, MEMORY, Entry
from ecoformer.errors import InputError


@dataclass(frozen=True)
class Price:
    """Picojoules, and square micrometres of one unit (None: no figure), with where the figures come from.

    An empty origin means that the profile does not price the kind: memory, in profiles of arithmetic alone.
    """

    pj: float
    um2: float | None
    origin: str
    assumed: bool


@dataclass(frozen=True)
class Precision:
    """Prices per kind for numbers of `bits` bits."""

    name: str
    bits: int
    prices: dict[str, Price]


@dataclass(frozen=True)
class PriceRule:
    """Modules whose names match `modules` (shell pattern), and optionally some kinds, use another precision."""

    modules: str
    precision: str
    kinds: tuple[str, ...] = KINDS


@dataclass(frozen=True)
class Profile:
    """Prices at a default precision, and rules that choose another per module. Rules are tried in order."""

    name: str
    summary: str
    default: str
    precisions: dict[str, Precision]
    rules: tuple[PriceRule, ...] = ()
    sources: dict[str, str] = field(default_factory=dict)

    @property
    def prices_memory(self) -> bool:
        return any(p.prices[kind].pj > 0 for p in self.precisions.values() for kind in MEMORY)

    def precision_of(self, module: str, kind: str) -> Precision:
        """The precision at which a module's work of some kind is priced."""
        named = (rule.precision for rule in self.rules if kind in rule.kinds and fnmatchcase(module, rule.modules))
        return self.precisions[next(named, self.default)]

    def require_counted(self, convention: str) -> None:
        """Raise InputError for a profile with memory prices under a convention that counts no bytes."""
        if convention == "paper" and self.prices_memory:
            raise InputError(
                f"profile {self.name} prices memory, which convention=paper does not count: "
                "use convention=audited, or a profile without memory"
            )

    def energy_pj(self, entries: Iterable[Entry], convention: str = "audited") -> float:
        """Energy of some ledger entries. Bytes are scaled from the width counted to the width priced.

        Raises InputError as `require_counted`.
        """
        self.require_counted(convention)
        return sum(self.kind_energies(entries).values())

    def kind_energies(self, entries: Iterable[Entry]) -> dict[str, float]:
        """Picojoules per kind."""
        energies = dict.fromkeys(KINDS, 0.0)
        # Integer sums per price keep the total exact and independent of the order of modules.
        for (kind, price, bits, counted), amount in self._amounts(entries, KINDS).items():
            scale = bits / counted if kind in MEMORY and counted else 1.0
            energies[kind] += amount * price.pj * scale
        return energies

    def area_um2(self, entries: Iterable[Entry]) -> float | None:
        """Summed area of one unit per arithmetic operation; None if a kind that occurs has no area figure."""
        area = 0.0
        for (_, price, _, _), amount in self._amounts(entries, ARITHMETIC).items():
            if price.um2 is None:
                return None
            area += amount * price.um2
        return area

    def _amounts(self, entries: Iterable[Entry], kinds: Container[str]) -> dict[tuple[str, Price, int, int], int]:
        amounts: dict[tuple[str, Price, int, int], int] = {}
        for entry in entries:
            for kind in [kind for kind in entry.counts if kind in kinds]:
                precision = self.precision_of(entry.module, kind)
                key = (kind, precision.prices[kind], precision.bits, entry.bits)
                amounts[key] = amounts.get(key, 0) + entry.counts[kind]
        return amounts
