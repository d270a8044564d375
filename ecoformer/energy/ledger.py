"""The ledger: what each module did, by operation and kind of work."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace

from ecoformer.energy import kinds
from ecoformer.energy.entry import Entry
from ecoformer.energy.kinds import Counts
from ecoformer.energy.profile import Profile


@dataclass
class Ledger:
    """All entries of one forward pass, under one convention, for the whole batch.

    `uncounted` lists operations that ran but that no rule knows; a ledger with such entries is a lower bound. Without
    `has_attention` no attention was recognised, and the attention cores have no figures, which is not zero.
    """

    convention: str
    params: int
    input_shape: tuple[int, ...]
    dtype: str
    entries: list[Entry] = field(default_factory=list)
    uncounted: list[str] = field(default_factory=list)
    has_attention: bool = True

    @property
    def counts(self) -> Counts:
        """Counts per kind of the whole pass."""
        return kinds.total(entry.counts for entry in self.entries)

    @property
    def muls(self) -> int:
        """Multiplications, those in fused multiply-adds included."""
        return kinds.muls(self.counts)

    @property
    def adds(self) -> int:
        """Additions, those in fused multiply-adds included."""
        return kinds.adds(self.counts)

    def energy_pj(self, profile: Profile) -> float:
        """Modelled energy of the pass in picojoules."""
        return profile.energy_pj(self.entries, self.convention)

    def area_um2(self, profile: Profile) -> float | None:
        """Area of one unit per arithmetic operation, as the paper adds it up; None without figures."""
        return profile.area_um2(self.entries)

    def select(self, keep: Callable[[Entry], bool]) -> Ledger:
        """A ledger of some entries; everything else stays."""
        return self._of(entry for entry in self.entries if keep(entry))

    def attention(self, projections: bool = False) -> Ledger:
        """The attention cores alone; with `projections`, all that runs inside attention layers."""
        return self.select(lambda entry: entry.core or (projections and bool(entry.attention)))

    def by_module(self, depth: int | None = None) -> dict[str, Ledger]:
        """One ledger per module, or per the first `depth` parts of the module names, in order of execution."""
        return self.group(lambda entry: ".".join(entry.module.split(".")[:depth]))

    def by_stage(self) -> dict[str, Ledger]:
        """One ledger per stage ("stages.0", "patch_embeds.1") or top-level module ("head")."""
        return self.group(lambda entry: stage_of(entry.module))

    def by_layer(self) -> dict[str, Ledger]:
        """One ledger per block ("stages.0.blocks.1"), or per stage where a module is in no block."""
        return self.group(lambda entry: layer_of(entry.module))

    def by_op(self) -> dict[str, Ledger]:
        """One ledger per operation name."""
        return self.group(lambda entry: entry.op)

    def group(self, key: Callable[[Entry], str]) -> dict[str, Ledger]:
        """One ledger per value of `key`, in order of first execution."""
        groups: dict[str, list[Entry]] = {}
        for entry in self.entries:
            groups.setdefault(key(entry), []).append(entry)
        return {name: self._of(entries) for name, entries in groups.items()}

    def _of(self, entries: Iterable[Entry]) -> Ledger:
        return replace(self, entries=list(entries))


def stage_of(module: str) -> str:
    """ "stages.0" of "stages.0.blocks.1.mlp"; "head" of "head.fc"; "(model)" of the model itself."""
    found = re.match(r"[^.]+\.\d+|[^.]+", module)
    return found.group() if found else "(model)"


def layer_of(module: str) -> str:
    """The shortest prefix that ends in the last index: "stages.0.blocks.1" of "stages.0.blocks.1.mlp.fc1"."""
    found = re.match(r".*?\.\d+(?:\.blocks\.\d+|\.\d+)?", module)
    return found.group() if found else stage_of(module)
