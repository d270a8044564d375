"""Profiles from YAML files and from bare prices: where they are looked up, and what they begin with.

A profile may begin with another one and change some of it. The short form is prices alone, of a multiply-add and an
addition at least. See docs/energy.md; `profile_reader` says what a profile holds.
"""

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from ecoformer.energy.profile import Profile
from ecoformer.energy.profile_reader import BESIDE, PRICED, ProfileReader
from ecoformer.errors import InputError, first_line
from ecoformer.files import user_path

PROFILE_FOLDER = Path(__file__).parent / "profiles"
FOLDER_VARIABLE = "ECOFORMER_PROFILES"
Prices = str | Path | Mapping[str, Any] | Profile  # what `load_profile` takes
LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # as safe, and faster where PyYAML has it


def profile_names() -> list[str]:
    """Names that `load_profile` knows without a path."""
    return sorted({path.stem for folder in _folders() for path in folder.glob("*.yaml")})


def _folders() -> list[Path]:
    extra = os.environ.get(FOLDER_VARIABLE)
    return [*([Path(extra)] if extra else []), PROFILE_FOLDER]


def load_profile(given: Prices) -> Profile:
    """A profile by name, by the path of a YAML file, or from its prices; a profile is returned as it is.

    Names are looked up in the folder that the environment variable ECOFORMER_PROFILES names, then among the shipped
    ones. Prices are picojoules a kind, {"mac": 0.23, "add": 0.03} or the text "mac=0.23,add=0.03"; `bits` of the
    numbers (else 32) and `base`, a profile of which these prices are changed, may stand beside them.
    Raises InputError if there is none, or if it is malformed.
    """
    if isinstance(given, Profile):
        return given
    path, text = Path("prices"), str(given)
    if isinstance(given, Mapping):
        bare = all(not isinstance(value, Mapping) for value in given.values())
        name = ",".join(f"{key}={value}" for key, value in given.items()) if bare else "prices"
        where, data = "prices", dict(given)
    elif re.match(r"\w+=", text) and not Path(text).is_file():
        lines = "\n".join(part.strip().replace("=", ": ") for part in text.split(","))
        name, where, data = text, text, _yaml(text, lines)
    else:
        path = _path_of(text)
        name, where, data = path.stem, str(path), _yaml(path)
    return ProfileReader(name, where).profile(_with_base(path, data))


def _in_full(data: Any, base: Any = None) -> Any:
    """The short form as a file would say it, at the default precision of its base; anything else as it is."""
    if not isinstance(data, dict) or not data.keys() & PRICED or not data.keys() <= PRICED | BESIDE:
        return data
    figures: dict[str, Any] = {"bits": data["bits"]} if "bits" in data else {} if base else {"bits": 32}
    for kind in data.keys() & PRICED:
        name = "fma" if kind == "mac" and "fma" not in data else kind
        figures[name] = {"pj": data[kind], "assumption": "given"}
    listed = (base or {}).get("precisions", {"given": {}})
    return {
        **{key: data[key] for key in ("base", "summary") if key in data},
        "assumptions": {"given": "Given as a bare price, without a source."},
        "precisions": {(base or {}).get("precision", next(iter(listed))): figures},
    }


def _path_of(text: str, beside: Path | None = None) -> Path:
    if text.endswith((".yaml", ".yml", ".json")) or os.sep in text:
        path = user_path(text) if beside is None else beside.parent / text
        if not path.is_file():
            raise InputError(f"profile file {path} {'is a folder' if path.is_dir() else 'does not exist'}")
        return path
    for folder in _folders():
        if (folder / f"{text}.yaml").is_file():
            return folder / f"{text}.yaml"
    raise InputError(
        f"profile {text!r} does not exist: choose one of {', '.join(profile_names())}, or give the path of a YAML file"
    )


class _KeysOnce(LOADER):  # type: ignore[misc, valid-type]
    """YAML in which a key stands once: of two prices for one thing nobody knows which was meant."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value]
        if twice := [key for number, key in enumerate(keys) if key in keys[:number]]:
            raise yaml.YAMLError(f"key {twice[0]!r} is given twice")
        return dict(super().construct_mapping(node, deep))


def _yaml(where: str | Path, text: str | None = None) -> Any:
    """The content of a file, or of a text that messages call `where`."""
    try:
        return yaml.load(Path(where).read_text(encoding="utf-8") if text is None else text, _KeysOnce)
    except (OSError, ValueError, yaml.YAMLError) as error:  # ValueError: no UTF-8, or thousands of digits
        raise InputError(f"profile {where} is no valid YAML: {first_line(error)}") from error


def _with_base(path: Path, data: Any, above: tuple[Path, ...] = ()) -> Any:
    """The YAML of `data` on top of that of the profile which its key `base` names, and of that one's base."""
    if not isinstance(data, dict) or "base" not in data:
        return _in_full(data)
    base, chain = _path_of(str(data["base"]), beside=path), (*above, path.resolve())
    if base.resolve() in chain:
        itself = "the file itself" if base.resolve() == chain[-1] else "a file that begins with this one"
        raise InputError(f"profile {path}: base: {data['base']} is {itself}: name another profile")
    below = _with_base(base, _yaml(base), chain)
    if not isinstance(below, dict) or not isinstance(below.get("precisions"), dict) or not below["precisions"]:
        raise InputError(f"profile {base}, the base of {path}, has no precisions: name another profile")
    return _merged(below, {key: value for key, value in _in_full(data, below).items() if key != "base"})


def _merged(below: Any, above: Any) -> Any:
    if not (isinstance(below, dict) and isinstance(above, dict)):
        return above
    if "pj" in above or "as" in above:  # a figure replaces another one whole
        return above
    return {**below, **{key: _merged(below.get(key), value) for key, value in above.items()}}
