"""What `ecoformer energy --calibrate` does: measured joules from a JSON file, prices as a profile that tables load."""

import argparse
import sys
from pathlib import Path
from typing import Any

from ecoformer.energy.calibration import PRICES, Measured, calibrate
from ecoformer.energy.kinds import KINDS
from ecoformer.errors import InputError
from ecoformer.files import json_text, read_json, write_text
from ecoformer.lab.energy.cases import Case
from ecoformer.nn.inputs import size_of

JOULES = ("joules", "joules_per_image")
SETTINGS = ("attention", "img_size", "num_bits", "num_anchors", "clamp", "checkpoint")


def run(args: argparse.Namespace) -> int:
    found = calibrate(samples_in(args.calibrate), args.prices or PRICES)
    if args.out is not None:
        write_text(args.out, found.to_yaml())
    print(json_text(found.to_dict(), indent=2) if args.format == "json" else found.table(args.format))
    if args.out is not None:
        print(f"wrote {args.out}: ecoformer energy --convention audited --profile {args.out}", file=sys.stderr)
    return 0


def samples_in(path: Path) -> list[Measured]:
    """The samples of a file: a list of objects with joules and either counts per kind or the settings of a model.

    What `energy --measure` and `benchmark --joules` write as JSON will do. Raises InputError for anything else.
    """
    rows = read_json(path, "measured samples")
    if not (isinstance(rows, list) and rows and all(isinstance(row, dict) for row in rows)):
        raise InputError(f"{path} holds no measured samples: give a list of objects with joules, and counts or a model")
    known = [(number, row) for number, row in enumerate(rows, start=1) if _joules(row) is not None]
    if not known:
        raise InputError(f"{path}: no sample has joules: give them as {' or '.join(JOULES)}")
    if left := len(rows) - len(known):
        print(f"{left} of {len(rows)} samples {'has' if left == 1 else 'have'} no joules: left out", file=sys.stderr)
    return [_sample(f"{path} sample {number}", row) for number, row in known]


def _joules(row: dict[str, Any]) -> Any:
    return next((row[key] for key in JOULES if row.get(key) is not None), None)


def _sample(where: str, row: dict[str, Any]) -> Measured:
    if "counts" in row:
        work = row["counts"]
        known = isinstance(work, dict) and work.keys() <= set(KINDS)
        if not known or not all(type(n) is int and n >= 0 for n in work.values()):
            raise InputError(f"{where}: counts must be whole numbers of {', '.join(KINDS)}")
        return str(row.get("label", where.rpartition("/")[2])), work, _joules(row)
    if not isinstance(row.get("model"), str):
        raise InputError(f"{where}: neither counts nor a model: give one of them")
    given = {key: row[key] for key in SETTINGS if row.get(key) is not None}
    if row.get("checkpoint", "") is None:
        raise InputError(f"{where}: its architecture is of a checkpoint that it does not name: give its counts")
    case = Case(row["model"], **{"img_size": size_of(row["model"]), **given})
    try:
        return str(row.get("label", case.name)), case.count("audited"), _joules(row)
    except InputError as error:
        raise InputError(f"{where}: {error}") from error
