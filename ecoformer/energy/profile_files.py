"""Profiles from YAML files: where they are looked up, and what is refused in them.

A profile prices every kind at one or more precisions. A figure carries either the key of a source or a labelled
assumption; a kind may also be priced as so many operations of other kinds. See docs/energy.md for the format.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import yaml

from ecoformer.energy.kinds import ARITHMETIC, KINDS, MEMORY
from ecoformer.energy.profile import Precision, Price, Profile, Rule
from ecoformer.errors import InputError

PROFILE_FOLDER = Path(__file__).parent / "profiles"
FOLDER_VARIABLE = "ECOFORMER_PROFILES"


def profile_names() -> list[str]:
    """Names that `load_profile` knows without a path."""
    return sorted({path.stem for folder in _folders() for path in folder.glob("*.yaml")})


def _folders() -> list[Path]:
    extra = os.environ.get(FOLDER_VARIABLE)
    return [*([Path(extra)] if extra else []), PROFILE_FOLDER]


def load_profile(name_or_path: str | Path) -> Profile:
    """Read a profile by name or by the path of a YAML file.

    Names are looked up in the folder that the environment variable ECOFORMER_PROFILES names, then among the shipped
    ones. Raises InputError if there is none, or if it is malformed.
    """
    text = str(name_or_path)
    if text.endswith((".yaml", ".yml")) or os.sep in text:
        path = Path(text)
        if not path.is_file():
            raise InputError(f"profile file {path} does not exist")
        return _read(path)
    for folder in _folders():
        if (folder / f"{text}.yaml").is_file():
            return _read(folder / f"{text}.yaml")
    raise InputError(
        f"profile {text!r} does not exist: choose one of {', '.join(profile_names())}, or give the path of a YAML file"
    )


def _read(path: Path) -> Profile:
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        first_line = str(error).splitlines()[0]
        raise InputError(f"profile {path} is no valid YAML: {first_line}") from error
    return _Reader(path).profile(data)


class _Reader:
    """Checks a profile's parsed YAML; every message names the file and the key."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def fault(self, what: str) -> InputError:
        return InputError(f"profile {self.path}: {what}")

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
        if isinstance(data, bool) or not isinstance(data, int | float) or not 0 <= data < float("inf"):
            raise self.fault(f"{where} must be a number of at least 0, got {data!r}")
        return float(data)

    def profile(self, data: Any) -> Profile:
        keys = {"summary", "sources", "assumptions", "precision", "precisions", "rules"}
        data = self.mapping(data, "the file", keys)
        for key in ("summary", "precision", "precisions"):
            if key not in data:
                raise self.fault(f"key {key!r} is missing")
        sources = self.mapping(data.get("sources", {}), "sources")
        assumptions = self.mapping(data.get("assumptions", {}), "assumptions")
        self.origins = {key: (self.text(text, f"sources.{key}"), False) for key, text in sources.items()}
        self.origins |= {key: (self.text(text, f"assumptions.{key}"), True) for key, text in assumptions.items()}
        listed = self.mapping(data["precisions"], "precisions")
        precisions = {name: self.precision(name, part) for name, part in listed.items()}
        default = self.text(data["precision"], "precision")
        if default not in precisions:
            raise self.fault(f"precision {default!r} is not among precisions: {', '.join(precisions) or 'none'}")
        rules = data.get("rules", [])
        if not isinstance(rules, list):
            raise self.fault(f"rules must be a list, got {type(rules).__name__}")
        return Profile(
            name=self.path.stem,
            summary=self.text(data["summary"], "summary"),
            default=default,
            precisions=precisions,
            rules=tuple(self.rule(part, f"rules[{i}]", precisions) for i, part in enumerate(rules)),
            sources={key: text for key, (text, _) in self.origins.items()},
        )

    def precision(self, name: str, data: Any) -> Precision:
        where = f"precisions.{name}"
        part = self.mapping(data, where, {"bits", *KINDS})
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
        for kind, figure in composed.items():
            prices[kind] = self.composite(figure, f"{where}.{kind}", plain)
        missing = [kind for kind in ARITHMETIC if kind not in prices]
        if missing:
            raise self.fault(f"{where} gives no figure for {', '.join(missing)}")
        return Precision(name, bits, prices)

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
        origin, assumed = self.origin(figure, where)
        pj = sum(n * prices[kind].pj for kind, n in amounts.items())
        areas = [(n, prices[kind].um2) for kind, n in amounts.items()]
        um2 = sum(n * area for n, area in areas if area is not None)
        if any(area is None for _, area in areas):
            return Price(pj, None, origin, assumed)
        return Price(pj, um2, origin, assumed)

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

    def rule(self, data: Any, where: str, precisions: dict[str, Precision]) -> Rule:
        part = self.mapping(data, where, {"modules", "precision", "kinds"})
        pattern = self.text(part.get("modules"), f"{where}.modules")
        precision = self.text(part.get("precision"), f"{where}.precision")
        if precision not in precisions:
            raise self.fault(f"{where}.precision {precision!r} is not among precisions: {', '.join(precisions)}")
        kinds = part.get("kinds", list(KINDS))
        if not isinstance(kinds, list) or not kinds or any(kind not in KINDS for kind in kinds):
            raise self.fault(f"{where}.kinds must list some of {', '.join(KINDS)}, got {kinds!r}")
        return Rule(pattern, precision, tuple(kinds))
