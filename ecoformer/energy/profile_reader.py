"""A profile from the parsed YAML of its file: what it holds, and what is refused in it.

A profile prices every kind at one or more precisions. A figure carries either the key of a source or a labelled
assumption; a kind may also be priced as so many operations of other kinds, and what is not priced at all follows from
the prices of an addition and of a multiplication or multiply-add.
"""

from collections.abc import Container, Iterable, Mapping
from pathlib import Path
from typing import Any

from ecoformer.energy.kinds import KINDS, MEMORY
from ecoformer.energy.profile import Precision, Price, PriceRule, Profile
from ecoformer.errors import InputError

PRICED, BESIDE = {"mac", *KINDS}, {"bits", "base", "summary"}  # keys of the short form
# What a kind without a price is made of, and the assumption that this is.
DERIVED: dict[str, tuple[dict[str, int], str]] = {
    "fma": ({"mul": 1, "add": 1}, "No price given: one multiplication and one addition."),
    "mul": ({"fma": 1}, "No price given: it runs on the multiply-add unit."),
    "compare": ({"add": 1}, "No price given: a subtraction whose sign is read."),
    "div": ({"mul": 7, "add": 6}, "No price given: table seed, two Newton-Raphson steps, product and correction."),
    "sqrt": ({"mul": 7, "add": 2}, "No price given: table seed, two Newton-Raphson steps of the root, product."),
    "exp": ({"mul": 8, "add": 8}, "No price given: range reduction and a polynomial of degree 6."),
    "binary_mul": ({"add": 1}, "No price given for one bit: as an addition, which is too much."),
    "popcount": ({"add": 1}, "No price given for one bit: as an addition, which is too much."),
    "shift": ({"add": 1}, "No price given for an exponent or a shift: as an addition, which is too much."),
}


class ProfileReader:
    """Checks a profile's parsed YAML; every message names the file and the key."""

    def __init__(self, name: str, where: str) -> None:
        self.name, self.where = name, where

    def fault(self, what: str) -> InputError:
        return InputError(f"profile {self.where}: {what}")

    def mapping(self, data: Any, where: str, known: set[str] | None = None) -> dict[str, Any]:
        if not isinstance(data, dict) or not all(isinstance(key, str) for key in data):
            raise self.fault(f"{where} must be a mapping of names, got {type(data).__name__}")
        unknown = sorted(set(data) - known) if known is not None else []
        if unknown:
            raise self.fault(f"{where} has unknown key {unknown[0]!r}; known: {', '.join(sorted(known or ()))}")
        return data

    def text(self, data: Any, where: str) -> str:
        if not isinstance(data, str) or not data.strip():
            raise self.fault(f"{where} must be a text, got {data!r}")
        return data

    def number(self, data: Any, where: str) -> float:
        try:
            value = float("nan") if isinstance(data, bool) else float(data)  # YAML takes 1e-3 for a text
        except (TypeError, ValueError, OverflowError):
            value = float("nan")
        if not 0 <= value < float("inf"):
            raise self.fault(f"{where} must be a number of at least 0, got {data!r}")
        return value

    def profile(self, data: Any) -> Profile:
        keys = {"summary", "sources", "assumptions", "precision", "precisions", "rules", "calibration"}
        if isinstance(data, dict) and data.keys() & PRICED:  # the short form, with a key that is not of it
            keys = PRICED | BESIDE
        data = self.mapping(data, "the file", keys)
        if "precisions" not in data:
            raise self.fault("key 'precisions' is missing")
        sources = self.mapping(data.get("sources", {}), "sources")
        assumptions = self.mapping(data.get("assumptions", {}), "assumptions")
        self.origins = {key: (self.text(text, f"sources.{key}"), False) for key, text in sources.items()}
        self.origins |= {key: (self.text(text, f"assumptions.{key}"), True) for key, text in assumptions.items()}
        listed = self.mapping(data["precisions"], "precisions")
        precisions = {name: self.precision(name, part) for name, part in listed.items()}
        default = self.text(data.get("precision", next(iter(precisions), None)), "precision")
        if default not in precisions:
            raise self.fault(f"precision {default!r} is not among precisions: {', '.join(precisions) or 'none'}")
        rules = data.get("rules", [])
        if not isinstance(rules, list):
            raise self.fault(f"rules must be a list, got {type(rules).__name__}")
        return Profile(
            name=self.name,
            summary=self.text(data.get("summary", Path(self.where).name), "summary"),
            default=default,
            precisions=precisions,
            rules=tuple(self.rule(part, f"rules[{i}]", precisions) for i, part in enumerate(rules)),
            sources={key: text for key, (text, _) in self.origins.items()},
        )

    def precision(self, name: str, data: Any) -> Precision:
        where = f"precisions.{name}"
        part = self.mapping(data, where, {"bits", "mac", *KINDS})
        if "mac" in part:
            if "fma" in part:
                raise self.fault(f"{where} has mac and fma, which are the same: keep one")
            part = {"fma" if kind == "mac" else kind: figure for kind, figure in part.items()}
        bits = part.get("bits")
        if isinstance(bits, bool) or not isinstance(bits, int) or bits < 1:
            raise self.fault(f"{where}.bits must be a whole number of at least 1, got {bits!r}")
        plain, composed = {}, {}
        for kind, figure in part.items():
            if kind == "bits":
                continue
            figure = self.mapping(figure, f"{where}.{kind}", {"pj", "um2", "as", "source", "assumption"})
            if "as" in figure:
                composed[kind] = figure
            else:
                plain[kind] = self.price(figure, f"{where}.{kind}")
        prices = {kind: Price(0.0, None, "", False) for kind in MEMORY} | plain
        self.derive(("fma", "mul"), prices, composed)  # first: a figure may be so many of these
        prices |= {kind: self.composite(figure, f"{where}.{kind}", prices) for kind, figure in composed.items()}
        if "add" not in prices or not {"mul", "fma"} & prices.keys():
            raise self.fault(f"{where} needs at least the price of an add, and of a mac or a mul")
        self.derive(DERIVED, prices, composed)
        return Precision(name, bits, prices)

    def derive(self, kinds: Iterable[str], prices: dict[str, Price], but: Container[str]) -> None:
        """Price the kinds without a figure, as far as the prices of what they are made of are known."""
        for kind in kinds:
            made_of, assumption = DERIVED[kind]
            if kind not in prices and kind not in but and made_of.keys() <= prices.keys():
                prices[kind] = self.sum_of(made_of, prices, assumption, True)

    def price(self, figure: dict[str, Any], where: str) -> Price:
        if "pj" not in figure:
            raise self.fault(f"{where} needs pj, or as")
        origin, assumed = self.origin(figure, where)
        um2 = self.number(figure["um2"], f"{where}.um2") if "um2" in figure else None
        return Price(self.number(figure["pj"], f"{where}.pj"), um2, origin, assumed)

    def composite(self, figure: dict[str, Any], where: str, prices: dict[str, Price]) -> Price:
        if "pj" in figure or "um2" in figure:
            raise self.fault(f"{where} has both as and a figure: keep one")
        parts = self.mapping(figure["as"], f"{where}.as")
        unknown = [kind for kind in parts if kind not in prices]
        if unknown:
            raise self.fault(f"{where}.as names {unknown[0]!r}, which has no figure of its own")
        amounts = {kind: self.number(n, f"{where}.as.{kind}") for kind, n in parts.items()}
        return self.sum_of(amounts, prices, *self.origin(figure, where))

    @staticmethod
    def sum_of(amounts: Mapping[str, float], prices: dict[str, Price], origin: str, assumed: bool) -> Price:
        parts = [(n, prices[kind]) for kind, n in amounts.items()]
        areas = [n * part.um2 for n, part in parts if part.um2 is not None]
        um2 = sum(areas) if len(areas) == len(parts) else None
        return Price(sum(n * part.pj for n, part in parts), um2, origin, assumed)

    def origin(self, figure: dict[str, Any], where: str) -> tuple[str, bool]:
        given = [key for key in ("source", "assumption") if key in figure]
        if len(given) != 1:
            raise self.fault(f"{where} needs either a source or an assumption")
        assumed = given[0] == "assumption"
        listed = figure[given[0]] if isinstance(figure[given[0]], list) else [figure[given[0]]]
        keys = [self.text(key, f"{where}.{given[0]}") for key in listed]
        for key in keys:
            if key not in self.origins or self.origins[key][1] != assumed:
                raise self.fault(f"{where}.{given[0]} {key!r} is not among {given[0]}s")
        return " ".join(self.origins[key][0] for key in keys), assumed

    def rule(self, data: Any, where: str, precisions: dict[str, Precision]) -> PriceRule:
        part = self.mapping(data, where, {"modules", "precision", "kinds"})
        pattern = self.text(part.get("modules"), f"{where}.modules")
        precision = self.text(part.get("precision"), f"{where}.precision")
        if precision not in precisions:
            raise self.fault(f"{where}.precision {precision!r} is not among precisions: {', '.join(precisions)}")
        kinds = part.get("kinds", list(KINDS))
        if not isinstance(kinds, list) or not kinds or any(kind not in KINDS for kind in kinds):
            raise self.fault(f"{where}.kinds must list some of {', '.join(KINDS)}, got {kinds!r}")
        return PriceRule(pattern, precision, tuple(kinds))
