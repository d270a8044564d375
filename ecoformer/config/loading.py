"""Composed YAML -> typed config, once. Every fault becomes an InputError that names the key and the remedy."""

import difflib
import functools
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import InterpolationResolutionError, MissingMandatoryValue, OmegaConfBaseException

from ecoformer.config.keys import check_limits, flat, keys_of
from ecoformer.config.schema import ARCHIVES, SCHEMAS, EvalConfig
from ecoformer.errors import InputError, first_line
from ecoformer.files import user_path
from ecoformer.nn.plugins import load_installed, load_modules

T = TypeVar("T")
CONFIGS = Path(__file__).resolve().parents[1] / "configs"  # the YAML that comes with the package
_structured: Callable[[Any], Any] = functools.cache(OmegaConf.structured)  # to make one takes longer than to merge it
# Free dictionaries; attention is checked by make_spec.
OPEN_KEYS = ("attention", "model.kwargs", "optim.kwargs", "schedule.kwargs")


def load_config(schema: type[T], composed: DictConfig | Mapping[str, Any]) -> T:
    """The config as an instance of `schema` (Config or EvalConfig).

    Raises InputError for an unknown key (with the nearest known one), a value of the wrong type or beyond its
    limit, a missing mandatory value, and an interpolation that cannot be resolved.
    """
    node: Any = composed if isinstance(composed, DictConfig) else OmegaConf.create(dict(composed))
    load_installed()  # first: what plugins bring may be what other keys name
    load_modules(OmegaConf.select(node, "plugins", default=[]))
    known = known_keys(schema)
    for key in _keys(OmegaConf.to_container(node)):
        if key not in known and not key.startswith(tuple(f"{name}." for name in OPEN_KEYS)):
            raise InputError(unknown_key(key, schema))
    try:
        if OmegaConf.get_type(node) is not schema:  # what Hydra composes is typed already
            node = OmegaConf.merge(_structured(schema), node)
        config = OmegaConf.to_object(node)
    except OmegaConfBaseException as error:
        raise InputError(describe_omegaconf(error)) from error
    assert isinstance(config, schema)
    check_limits(config)
    return config


def require_present(config: Any) -> None:
    """Raise InputError for a checkpoint or a folder of data that a command line names and that is not there.

    Their readers would say so too, after the seconds that torch takes to load.
    """
    if isinstance(config, EvalConfig):
        _require_one_model(config)
    given = flat(asdict(config))
    if (empty := next((key for key, value in given.items() if value == ""), None)) is not None:
        raise InputError(f"{empty}= is empty: give a value (an unset shell variable?), or leave it out")
    names = [given.get(key) for key in ("checkpoint", "init.checkpoint", "distill.checkpoint")]
    if given.get("resume", "off").endswith(".pt"):
        names.append(given["resume"])
    for path in filter(None, names):
        if not user_path(path).exists():
            raise InputError(f"checkpoint {path} does not exist: give the path of a run's last.pt or best.pt")
    root, name = given["data.root"], given["data.name"]
    if root is None or (name is not None and name not in ("imagenet", "folder", *ARCHIVES)):
        return
    # Without a name the data are those of the checkpoint, and may be one file: a table of texts.
    if not (user_path(root).is_dir() or (name is None and user_path(root).is_file())):
        raise InputError(f"data.root={root} is not a folder: set data.root to the folder of the data")


def _require_one_model(config: EvalConfig) -> None:
    name = config.model.name
    if name is None and config.checkpoint is None:
        raise InputError("checkpoint must be given: add checkpoint=RUN/best.pt, or model=NAME pretrained=true")
    if name is not None and config.checkpoint is not None:
        raise InputError(f"checkpoint={config.checkpoint} and model={name} are two models: give one of them")
    if config.pretrained != (name is not None):
        raise InputError("model=NAME and pretrained=true go together, for a timm model with timm's weights")
    if name is not None and config.attention:
        raise InputError(f"attention={config.attention.get('name')} is a checkpoint's, model={name} has its own")
    if name is None and config.model.in_chans is not None:
        raise InputError(f"model.in_chans={config.model.in_chans} is for model=NAME: a checkpoint has its own")


def known_keys(schema: type) -> list[str]:
    """Dotted names of all keys of a schema, groups included."""
    groups = ["experiment"] if schema is SCHEMAS["train"] else []  # without a key of its own
    return [*keys_of(schema), *groups]


def unknown_key(key: str, schema: type) -> str:
    """The one line about a key that does not exist: the nearest known key, else the keys beside it."""
    known = known_keys(schema)
    near = [] if key.startswith("attention.") else _near(key, known)
    if not near and schema is SCHEMAS["train"]:
        known += _attention_keys()
        near = _near(key, known)
    if key in known:
        parent = key.rpartition(".")[0]
        if not parent:
            return f"{key}: the file that --config-name names has no such group: leave out --config-name, or the group"
        return f"{key} is not an option of this {parent} group: choose another {parent}=OPTION, or leave it out"
    if near:
        return f"unknown key {key}; did you mean {' or '.join(near)}?"
    parent, beside = _beside(key, known)
    if parent in OPEN_KEYS and not beside:
        return f"{key} is not set before: write +{key}=VALUE"
    return f"unknown key {key}; known{f' under {parent}' if parent else ''}: {', '.join(beside)}"


def _attention_keys() -> list[str]:
    # From the kinds' YAML, which a test holds to the kinds: these load torch, for what is a hint in a message alone.
    options = {str(name) for path in (CONFIGS / "attention").glob("*.yaml") for name in OmegaConf.load(path)}
    return [f"attention.{name}" for name in sorted(options)]


def _near(key: str, known: list[str]) -> list[str]:
    leaf = key.rpartition(".")[2]
    near = _closest(leaf, _beside(key, known)[1], 0.6) or [name for name in known if name.rpartition(".")[2] == leaf]
    return near or _closest(leaf, known, 0.75)


def _beside(key: str, known: list[str]) -> tuple[str, list[str]]:
    """The nearest group above a key that exists, and the keys in it."""
    parent = key.rpartition(".")[0]
    while parent and parent not in known:
        parent = parent.rpartition(".")[0]
    prefix = f"{parent}." if parent else ""
    return parent, [name for name in known if name.startswith(prefix) and "." not in name[len(prefix) :]]


def _closest(leaf: str, keys: list[str], cutoff: float) -> list[str]:
    leaves = {key.rpartition(".")[2]: key for key in keys}
    return [leaves[name] for name in difflib.get_close_matches(leaf, leaves, n=1, cutoff=cutoff)]


def describe_omegaconf(error: OmegaConfBaseException, given: str | None = None) -> str:
    """The one line about an OmegaConf error; `given` is the value as the user wrote it, where that is known."""
    said = first_line(error)
    key = getattr(error, "full_key", None) or ""
    if isinstance(error, MissingMandatoryValue):
        key = key or said.rpartition(" ")[2].strip("'")
        if key in ("model.name", "data.name"):
            return f"{key} must be given: add experiment=NAME, or {key.partition('.')[0]}=OPTION; --help lists both"
        return f"{key} must be given: add {key}=VALUE"
    if isinstance(error, InterpolationResolutionError):
        return f"{key}: {said}"
    quoted = re.search(r"[Vv]alue '(.*?)'", said)
    value = quoted[1] if quoted else given
    expected = expected_of(key)
    if expected:
        return f"{key}{'' if value is None else f'={value}'} must be {expected}"
    return f"{key}: {said}" if key else said


def _keys(tree: Any, prefix: str = "") -> Iterable[str]:
    """Dotted names of all keys of nested dictionaries, groups included."""
    for name, value in tree.items():
        yield f"{prefix}{name}"
        if isinstance(value, dict):
            yield from _keys(value, f"{prefix}{name}.")


def expected_of(key: str) -> str | None:
    """In words, what a key, or an item of it, takes; None for a key without a simple type."""
    name, _, item = key.partition("[")
    found = next((keys_of(schema)[name] for schema in SCHEMAS.values() if name in keys_of(schema)), None)
    return None if found is None else found.expected(item=bool(item))
