"""Many ways to replace the attention of one MSA model, measured side by side without any training.

Shapes: B batch, S pixels.
"""

import copy
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ecoformer.energy import Profile, count
from ecoformer.errors import InputError
from ecoformer.fit.hashes import fit_hashes
from ecoformer.kinds import make_spec
from ecoformer.lab.closeness.blocks import AGAINST_SOFTMAX, quality
from ecoformer.lab.closeness.controls import RANDOM, random_hash, uniform_copy
from ecoformer.lab.closeness.source import Source, pick_images
from ecoformer.model.convert import convert
from ecoformer.nn.specs import AttentionSpec, split_setting

Accuracy = Callable[[nn.Module], float]


@dataclass(frozen=True)
class Setting:
    """A replacement to measure: its name in tables, and the spec that makes it."""

    name: str
    spec: AttentionSpec


def parse_setting(text: str) -> Setting:
    """ "KIND" or "KIND:key=value,..." as in configs; "random-" before it leaves the hash functions random.

    Raises InputError for unknown kinds and options, and for a random hash of a kind without hashes.
    """
    spec = make_spec(*split_setting(text.removeprefix(RANDOM)))
    if spec is None:
        raise InputError(f"setting {text!r}: stock attention replaces nothing; name another kind")
    return Setting(text, random_hash(spec) if text.startswith(RANDOM) else spec)


def attention_energy(model: nn.Module, names: Iterable[str], img_size: int, profile: Profile) -> dict[str, Any]:
    """Picojoules of one image in the named attention layers, in both conventions: {"paper": {...}, "audited": {...}}.

    `core_pj` is what lies between the projections, `layer_pj` includes them; `uncounted` lists unknown operations.
    """
    wanted, found = set(names), {}
    for convention in ("paper", "audited"):
        ledger = count(model, img_size, convention=convention)
        layers = ledger.attention(projections=True).select(lambda entry: entry.attention in wanted)
        found[convention] = {
            "core_pj": layers.attention().energy_pj(profile),
            "layer_pj": layers.energy_pj(profile),
            "uncounted": ledger.uncounted,
        }
    return found


def measure_setting(
    msa: nn.Module,
    setting: Setting,
    *,
    calibration: Tensor,
    held_out: Tensor,
    seed: int,
    profile: Profile,
    map_images: int = 4,
    accuracy: Accuracy | None = None,
) -> dict[str, Any]:
    """Convert a copy of `msa`, fit its hash functions, and compare it with `msa` block by block.

    Args:
        calibration, held_out: (B, 3, S, S), normalised: images to fit on, and others to measure on.
        seed: of the random hash functions and of the fit.
        accuracy: top-1 of a model in percent; left out if None.
    Returns:
        A JSON-ready dict: setting, seed, seconds (of the fit), energy (see `attention_energy`), top1, and blocks (the
        fields of `AGAINST_SOFTMAX`, with `fit`, the hash fit report of the block).
    """
    model = copy.deepcopy(msa)
    img_size = held_out.shape[-1]
    torch.manual_seed(seed)  # kinds that draw hash functions when they are built
    convert(model, setting.spec, img_size=img_size)
    started = time.perf_counter()
    reports = {report.block: asdict(report) for report in fit_hashes(model, calibration, seed=seed)}
    seconds = time.perf_counter() - started
    rows = quality(msa, model, held_out, map_images=map_images)
    return {
        "setting": setting.name,
        "seed": seed,
        "seconds": seconds,
        "top1": None if accuracy is None else accuracy(model),
        "energy": attention_energy(model, [row.block for row in rows], img_size, profile),
        "blocks": [{**row.figures(AGAINST_SOFTMAX), "fit": reports.get(row.block)} for row in rows],
    }


def sweep(
    source: Source,
    settings: Sequence[Setting],
    *,
    fit_images: int,
    images: int,
    map_images: int,
    seeds: Sequence[int],
    profile: Profile,
    with_accuracy: bool,
    on_row: Callable[[dict[str, Any]], None],
) -> dict[str, Any]:
    """Every setting with every seed; JSON-ready, the rows under "rows".

    Args:
        source: with MSA attention.
        fit_images, images: of the training split to fit on, of the validation split to measure on.
        with_accuracy: also top-1 on the whole validation split, of the source and of uniform attention too.
        on_row: gets all that is found so far, after every row.
    Raises:
        InputError: more images than there are, or a setting that does not fit the model.
    """
    config, data, msa = source.config, source.data, source.model
    held_out = pick_images(data.val_loader, data.num_val, images, seed=0)
    rows: list[dict[str, Any]] = []
    found = {
        "title": f"{config.model.name} on {config.data.name}, {config.data.img_size} px",
        "model_kwargs": config.model.kwargs,
        "epochs": source.epoch,
        "fit_images": fit_images,
        "images": images,
        "num_val": data.num_val,
        "threads": torch.get_num_threads(),
        "top1": {},
        "rows": rows,
    }
    if with_accuracy:
        found["top1"] = {"msa": source.accuracy(msa), "uniform": source.accuracy(uniform_copy(msa))}
    for seed in seeds:
        calibration = data.calibration_images(fit_images, seed=seed)
        for setting in settings:
            row = measure_setting(
                msa,
                setting,
                calibration=calibration,
                held_out=held_out,
                seed=seed,
                profile=profile,
                map_images=map_images,
                accuracy=source.accuracy if with_accuracy else None,
            )
            rows.append(row)
            on_row(found)
    return found
