"""`ecoformer train --help` and `ecoformer eval --help`: groups and their options, then every key with its default."""

import dataclasses
import json
import textwrap
from pathlib import Path
from typing import Any

from ecoformer.config.keys import Key, keys_of
from ecoformer.config.loading import CONFIGS
from ecoformer.config.schema import SCHEMAS

WIDTH = 100
EXAMPLES = {
    "train": """\
Train a timm vision model with stock, softmax (MSA), EcoFormer or other attention.

  ecoformer train experiment=digits_ecoformer
  ecoformer train experiment=cifar10_pvt_v2_b0_msa data.root=DIR output_dir=runs/msa
  ecoformer train model=pvt_v2_b0 attention=ecoformer data=folder data.root=DIR
  ecoformer train experiment=... --show           the composed settings; nothing else is done
  ecoformer train experiment=... dry_run=true     the launch plan; nothing is trained
  ecoformer train -m experiment=... seed=0,1,2    a sweep, one run after the other""",
    "eval": """\
Evaluate a checkpoint: top-1, top-5, loss, images/s, energy.

  ecoformer eval checkpoint=RUN/best.pt
  ecoformer eval checkpoint=RUN/best.pt data.root=DIR out=figures.json
  ecoformer eval model=NAME pretrained=true data.root=DIR    timm's weights, without a run""",
}
NO_GROUPS = ("hydra", "study")  # Hydra's own, and the tables of `ecoformer study`
FLAGS = """\
--show prints the composed settings. --multirun, --cfg job|hydra|all and --info are Hydra's, which
--hydra-help lists."""


def page(config_name: str) -> str:
    """What --help prints for "train" or "eval"."""
    groups = [folder for folder in sorted(CONFIGS.iterdir()) if folder.is_dir() and folder.name not in NO_GROUPS]
    keys = keys_of(SCHEMAS[config_name])
    if config_name == "eval":
        groups = [group for group in groups if group.name in keys]
    parts = [EXAMPLES[config_name], "Groups, chosen by GROUP=OPTION:", *map(_options, groups)]
    parts += ["", "Keys, set by KEY=VALUE (here with their defaults):"]
    parts += [_line(name, key) for name, key in keys.items() if not dataclasses.is_dataclass(key.default)]
    return "\n".join([parts[0], "", *parts[1:], "", FLAGS])


def _options(group: Path) -> str:
    names = ", ".join(sorted(path.stem for path in group.glob("*.yaml")))
    return textwrap.fill(names, WIDTH, initial_indent=f"  {group.name:<11}", subsequent_indent=" " * 13)


def _line(name: str, key: Key) -> str:
    words = [key.about] if key.about else []
    if key.choices:
        words.append(f"one of {', '.join(key.choices)}")
    elif key.limit is not None:
        words.append(key.limit.words.partition(";")[0])
    head = f"  {name}={_written(key.default)}"
    return textwrap.fill("; ".join(words), WIDTH, initial_indent=f"{head:<38}  ", subsequent_indent=" " * 40) or head


def _written(default: Any) -> str:
    return default if isinstance(default, str) else json.dumps(default).replace(" ", "").replace('"', "")
