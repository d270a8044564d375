"""Cases of a comparison: a model, an attention, an image size; built without weights, counted, put in rows."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Any

from torch import nn

from ecoformer.energy.counting import count
from ecoformer.energy.ledger import Ledger
from ecoformer.energy.profile import Profile
from ecoformer.energy.summary import figures
from ecoformer.kinds import SPECS, make_spec
from ecoformer.lab.subject import Subject, attentions_of, default_size, run_of
from ecoformer.nn.specs import AttentionSpec, split_setting


@dataclass(frozen=True)
class Case(Subject):
    """One row to be: a kind, with settings of its own if wanted ("distilled:projection=ternary").

    `num_bits` and `num_anchors` are None for attention without them.
    """

    num_bits: int | None = None
    num_anchors: int | None = None

    @property
    def label(self) -> str:
        """The attention with its settings: "ecoformer, 16 bits, 25 anchors"."""
        settings = [(self.num_bits, "bits"), (self.num_anchors, "anchors")]
        return ", ".join([self.attention, *(f"{n} {unit}" for n, unit in settings if n is not None)])

    def spec(self) -> AttentionSpec | None:
        """The attention spec of this case; None for stock. Raises InputError for an unknown attention."""
        kind, chosen = split_setting(self.attention)
        options = {"num_bits": self.num_bits, "num_anchors": self.num_anchors, "clamp": self.clamp}
        known = spec_fields(kind)
        return make_spec(kind, {k: v for k, v in options.items() if k in known and v is not None} | chosen)

    def build(self, device: str = "meta") -> nn.Module:
        """The model in evaluation mode, on meta tensors unless told otherwise.

        Raises InputError for unknown names, or attention that the model or its token counts refuse.
        """
        return self.make(self.spec(), device).eval()

    def count(self, convention: str, strict: bool = False) -> Ledger:
        return count(self.build(), self.img_size, convention=convention, strict=strict)

    def row(self, convention: str, profile: Profile, strict: bool = False) -> dict[str, Any]:
        found = figures(self.count(convention, strict), profile)
        return {**self.settings(), "convention": convention, "profile": profile.name, **found}


def spec_fields(attention: str) -> set[str]:
    """Names of the options of an attention; empty for stock and unknown names."""
    return {field.name for field in fields(SPECS[attention])} if attention in SPECS else set()


def cases(
    models: Sequence[str],
    attentions: Sequence[str] = ("stock", "msa", "ecoformer"),
    img_sizes: Sequence[int] | None = None,
    num_bits: Sequence[int] = (16,),
    num_anchors: Sequence[int] = (25,),
    clamp: bool = False,
) -> Iterator[Case]:
    """The product of all settings, each attention only along those that it has; sizes: None for each model's own."""
    for model in models:
        for img_size in [default_size(model)] if img_sizes is None else img_sizes:
            for attention in attentions:
                kind, chosen = split_setting(attention)
                known = spec_fields(kind) - chosen.keys()
                for bits in num_bits if "num_bits" in known else [chosen.get("num_bits")]:
                    for anchors in num_anchors if "num_anchors" in known else [chosen.get("num_anchors")]:
                        yield Case(model, attention, img_size, bits, anchors, clamp=clamp)


def checkpoint_cases(
    checkpoints: Sequence[str],
    attentions: Sequence[str] | None = None,
    img_sizes: Sequence[int] | None = None,
    clamp: bool = False,
) -> Iterator[Case]:
    """Each checkpoint's model, and the same architecture with other attention (None: stock and MSA)."""
    for checkpoint in checkpoints:
        config = run_of(checkpoint).config
        for size in [default_size("", checkpoint)] if img_sizes is None else img_sizes:
            for attention in attentions_of(checkpoint, attentions):
                kind, chosen = split_setting(attention)
                held: dict[str, Any] = {f.name: f.default for f in fields(SPECS[kind])} if kind in SPECS else {}
                held |= config.attention if attention == config.attention["name"] else chosen
                bits, anchors = held.get("num_bits"), held.get("num_anchors")
                yield Case(config.model.name, attention, size, bits, anchors, clamp=clamp, checkpoint=checkpoint)
