"""The ledger: what each module did, by operation and kind of work."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace

from ecoformer.energy import kinds
from ecoformer.energy.kinds import LOOSE, Counts, Entry
from ecoformer.energy.profile import Profile
from ecoformer.energy.profile_files import Prices, load_profile
from ecoformer.errors import InputError, require
from ecoformer.files import json_text
from ecoformer.files.table import Column, Table, energy_text, energy_unit, largest_unit, render, share

MJ = 1e9  # picojoules
DIGITS = 10  # a table is in the largest unit of which the whole is at least a tenth, so that small modules have digits
AMOUNT_UNITS = ((1e9, "G"), (1e6, "M"), (1e3, "k"), (1.0, ""))


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

    def table(self, by: str = "layer", profile: Prices = "45nm_fp32", format: str = "table") -> str:
        """A line per part with its operations and energy, as text that fits a terminal.

        Args:
            by: "stage", "layer", "module", "op" or "kind" (of operation).
            profile: prices as `load_profile` takes them: a name, a file, {"mac": 0.23, "add": 0.03}.
            format: "table", "md", "csv", "latex" or "json".
        Raises:
            InputError: a profile, a way to group or a format that does not exist.
        """
        prices = load_profile(profile)
        shape = "x".join(map(str, self.input_shape))
        title = (
            f"input {shape}, {self.params:,} parameters, convention {self.convention}, {prices.name}: "
            f"{energy_text(self.energy_pj(prices))}"
        )
        notes = [f"uncounted, so these are lower bounds: {', '.join(self.uncounted)}"] if self.uncounted else []
        if loose := self.select(lambda entry: entry.part == LOOSE).muls:
            notes.append(f"{loose:,} multiplications are in products of two activations that belong to no attention")
        return render(breakdown(self, prices, by), format, title, notes)

    def to_markdown(self, by: str = "layer", profile: Prices = "45nm_fp32") -> str:
        """`table` in Markdown."""
        return self.table(by, profile, "md")

    def to_json(self, profile: Prices = "45nm_fp32") -> str:
        """The ledger and all of its entries, priced, as JSON."""
        prices = load_profile(profile)
        whole = {
            "convention": self.convention,
            "profile": prices.name,
            "input_shape": self.input_shape,
            "dtype": self.dtype,
            "params": self.params,
            "counts": dict(self.counts),
            "muls": self.muls,
            "adds": self.adds,
            "energy_pj": self.energy_pj(prices),
            "attention_energy_pj": _cores_pj(self, prices),
            "uncounted": self.uncounted,
        }
        entries = [
            {**vars(entry), "counts": dict(entry.counts), "energy_pj": self._of([entry]).energy_pj(prices)}
            for entry in self.entries
        ]
        return json_text({**whole, "entries": entries}, indent=2)

    def diff(self, other: Ledger, by: str = "layer", profile: Prices = "45nm_fp32") -> str:
        """What each part does more (+) or less (-) in `other`, as text; parts that are the same are left out.

        Raises InputError as `table` does, and for another that is no ledger, or one of another convention.
        """
        require(other, Ledger, "ledger: give what ecoformer.energy.count returns", "other=")
        if other.convention != self.convention:
            raise InputError(f"other= is counted by convention={other.convention}, not {self.convention}: count it so")
        prices = load_profile(profile)
        shapes = ["x".join(map(str, ledger.input_shape)) for ledger in (self, other)]
        inputs = "" if shapes[0] == shapes[1] else f", of input {shapes[1]} where this one has {shapes[0]}"
        return render(differences(self, other, prices, by), "table", f"{prices.name}; + is more in the other{inputs}")

    @property
    def counts(self) -> Counts:
        """Counts per kind of the whole pass."""
        whole: Counts = Counter()
        for entry in self.entries:
            whole.update(entry.counts)
        return whole

    @property
    def muls(self) -> int:
        """Multiplications, those in fused multiply-adds included."""
        return self.counts["mul"] + self.counts["fma"]

    @property
    def adds(self) -> int:
        """Additions, those in fused multiply-adds included."""
        return self.counts["add"] + self.counts["fma"]

    def energy_pj(self, profile: Prices) -> float:
        """Modelled energy of the pass in picojoules."""
        return load_profile(profile).energy_pj(self.entries, self.convention)

    def area_um2(self, profile: Prices) -> float | None:
        """Area of one unit per arithmetic operation, as the paper adds it up; None without figures."""
        return load_profile(profile).area_um2(self.entries)

    def select(self, keep: Callable[[Entry], bool]) -> Ledger:
        """A ledger of some entries; everything else stays."""
        return self._of(entry for entry in self.entries if keep(entry))

    def attention(self, projections: bool = False) -> Ledger:
        """The attention cores alone, none without attention; with `projections`, all inside attention layers."""
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

    def by_kind(self) -> dict[str, Ledger]:
        """One ledger per kind of operation that occurs, of its counts alone."""
        parts = [
            replace(entry, counts=kinds.counts({kind: n})) for entry in self.entries for kind, n in entry.counts.items()
        ]
        return self._of(parts).group(lambda entry: next(iter(entry.counts)))

    def group(self, key: Callable[[Entry], str]) -> dict[str, Ledger]:
        """One ledger per value of `key`, in order of first execution."""
        groups: dict[str, list[Entry]] = {}
        for entry in self.entries:
            groups.setdefault(key(entry), []).append(entry)
        return {name: self._of(entries) for name, entries in groups.items()}

    def _of(self, entries: Iterable[Entry]) -> Ledger:
        return replace(self, entries=list(entries))


def breakdown(ledger: Ledger, profile: Profile, by: str) -> Table:
    """One line per stage, layer, module, operation or kind of a ledger, with its share of the energy.

    Raises InputError for another way to group.
    """
    whole = ledger.energy_pj(profile)
    joules, unit = energy_unit([DIGITS * whole])
    if by == "kind":
        columns = [
            Column("kind", 0),
            Column("count", lambda row: ledger.counts[row[0]], "{:,}"),
            Column(unit, 1, "{:.4f}", joules),
            share("share", lambda row: row[1] / whole if whole else None),
        ]
        energies = profile.kind_energies(ledger.entries)
        return Table(columns, [(kind, pj) for kind, pj in energies.items() if ledger.counts[kind]])
    amount, prefix = largest_unit([DIGITS * ledger.muls, DIGITS * ledger.adds], AMOUNT_UNITS)
    columns = [
        Column(by, lambda row: row[0] or "(model)", left=True),
        Column(f"{prefix} mul".strip(), lambda row: row[1].muls, "{:.4f}", amount),
        Column(f"{prefix} add".strip(), lambda row: row[1].adds, "{:.4f}", amount),
        Column(unit, lambda row: row[1].energy_pj(profile), "{:.4f}", joules),
        share("share", lambda row: row[1].energy_pj(profile) / whole if whole else None),
        Column(f"attn {unit}", lambda row: _cores_pj(row[1], profile), "{:.4f}", joules),
    ]
    return Table(columns, list(_grouped(ledger, by).items()))


def differences(before: Ledger, after: Ledger, profile: Profile, by: str) -> Table:
    """One line per part of two ledgers that differs, and their sum."""
    sides = [_grouped(ledger, by) for ledger in (before, after)]
    nothing = before._of([])
    rows = []
    for name in dict.fromkeys([*sides[0], *sides[1]]):
        one, two = (side.get(name, nothing) for side in sides)
        if (one.counts, one.energy_pj(profile)) != (two.counts, two.energy_pj(profile)):
            rows.append((name or "(model)", one, two))
    rows.append(("all", before, after))
    joules, unit = energy_unit([DIGITS * ledger.energy_pj(profile) for ledger in (before, after)])
    amounts = [DIGITS * amount for ledger in (before, after) for amount in (ledger.muls, ledger.adds)]
    amount, prefix = largest_unit(amounts, AMOUNT_UNITS)
    columns = [
        Column(by, 0, left=True),
        Column(f"{prefix} mul".strip(), lambda row: row[2].muls - row[1].muls, "{:+.4f}", amount),
        Column(f"{prefix} add".strip(), lambda row: row[2].adds - row[1].adds, "{:+.4f}", amount),
        Column(f"{unit} before", lambda row: row[1].energy_pj(profile), "{:.4f}", joules),
        Column(f"{unit} after", lambda row: row[2].energy_pj(profile), "{:.4f}", joules),
        Column(unit, lambda row: row[2].energy_pj(profile) - row[1].energy_pj(profile), "{:+.4f}", joules),
    ]
    return Table(columns, rows)


def _grouped(ledger: Ledger, by: str) -> dict[str, Ledger]:
    ways = ("stage", "layer", "module", "op", "kind")
    if by not in ways:
        raise InputError(f"by={by!r} does not exist: choose one of {', '.join(ways)}")
    return dict(getattr(ledger, f"by_{by}")())


def _cores_pj(ledger: Ledger, profile: Profile) -> float | None:
    return ledger.attention().energy_pj(profile) if ledger.has_attention else None


def stage_of(module: str) -> str:
    """ "stages.0" of "stages.0.blocks.1.mlp"; "head" of "head.fc"; "(model)" of the model itself."""
    found = re.match(r"[^.]+\.\d+|[^.]+", module)
    return found.group() if found else "(model)"


def layer_of(module: str) -> str:
    """The shortest prefix that ends in the last index: "stages.0.blocks.1" of "stages.0.blocks.1.mlp.fc1"."""
    found = re.match(r".*?\.\d+(?:\.blocks\.\d+|\.\d+)?", module)
    return found.group() if found else stage_of(module)
