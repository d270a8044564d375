"""What `ecoformer energy` does with its arguments: tables, breakdowns, explanations, pictures."""

import argparse
import logging
import sys
import warnings
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import torch
from torch import nn

from ecoformer.energy import count, load_profile
from ecoformer.energy.conventions import CONVENTIONS
from ecoformer.energy.difference import difference
from ecoformer.energy.ledger import breakdown
from ecoformer.energy.profile import Profile
from ecoformer.errors import InputError, first_line
from ecoformer.files.table import render
from ecoformer.fit.hashes import fit_new_hashes
from ecoformer.lab.energy import energy_tables as tables
from ecoformer.lab.energy.cases import Case, cases, checkpoint_cases
from ecoformer.lab.energy.published import TITLE, compare_published, faults
from ecoformer.nn.inputs import example_input, in_words

Made = TypeVar("Made")
Refused = tuple[Case, InputError]


# Options that a mode does not look at.
DRAWN, CHOSEN = ("plots", "measure", "witness"), ("model", "checkpoint", "attention", "img_size")
IGNORED = {"by": DRAWN, "explain": DRAWN, "published": (*DRAWN, *CHOSEN), "show_profile": DRAWN}


def run(args: argparse.Namespace) -> int:
    for mode, options in IGNORED.items():
        if getattr(args, mode) and (given := [name for name in options if getattr(args, name)]):
            flags = [f"--{name.replace('_', '-')}" for name in (mode, given[0])]
            raise InputError(f"{flags[1]} has no effect beside {flags[0]}: leave out one of them")
    profile = load_profile(args.profile)
    if args.published:
        return published(args)
    if args.show_profile:
        print(render(tables.profile_table(profile), args.format, f"{profile.name}: {profile.summary}"))
        return 0
    if args.calibrate is not None:
        from ecoformer.lab.energy import measured

        return measured.run(args)
    if args.out or args.prices:
        raise InputError("--out and --prices go with --calibrate: leave them out")
    chosen = list(asked_for(args))
    if args.by or args.explain:
        details, refused = tried(chosen, lambda case: detail(case, args, profile))
        print("\n".join(details))
    else:
        rows, refused = tried(chosen, lambda case: row(case, args, profile))
        print(tables.render_rows(rows, args.format))
        if args.plots:
            left_out = [case for case, _ in refused]
            draw([case for case in chosen if case not in left_out], rows, args, profile)
    for case, reason in refused:
        print(f"error: {case.name} is left out: {reason}", file=sys.stderr)
    return 2 if refused else 0


def asked_for(args: argparse.Namespace) -> Iterator[Case]:
    """Checkpoints with their baselines, then the product of what else was given."""
    checkpoints = args.checkpoint or []
    yield from checkpoint_cases(checkpoints, args.attention, args.img_size, args.clamp)
    models = args.model or ([] if checkpoints else ["pvt_v2_b0"])
    kinds = args.attention or ["stock", "msa", "ecoformer"]
    yield from cases(models, kinds, args.img_size, args.num_bits, args.num_anchors, args.clamp)


def tried(chosen: list[Case], make: Callable[[Case], Made]) -> tuple[list[Made], list[Refused]]:
    """What is made of the cases that can be counted, and the other cases. Raises InputError if none can be."""
    found: list[Made] = []
    refused: list[Refused] = []
    for case in chosen:
        try:
            found.append(make(case))
        except InputError as error:
            refused.append((case, error))
    if not found:
        raise refused[0][1]
    return found, refused


def row(case: Case, args: argparse.Namespace, profile: Profile) -> dict[str, Any]:
    found = case.row(args.convention, profile, strict=args.strict)
    if args.witness:
        model = case.build("cpu")
        fit_new_hashes(model, example_input(model, case.img_size, 2), seed=0)
        counted = witnesses(model, case.img_size)
        found |= counted
        for name, words in counted.items():
            if isinstance(words, str):
                print(f"{case.model} {case.attention}: {name} {words}", file=sys.stderr)
    if args.measure:
        from ecoformer.energy.measure import measure_model

        measured = measure_model(case.build("cpu"), case.img_size, args.measure)
        if measured.reason:
            print(f"{case.model} {case.attention}: measured joules unavailable: {measured.reason}", file=sys.stderr)
        found |= {"measured": str(measured), "joules_per_image": measured.joules_per_image}
    return found


def detail(case: Case, args: argparse.Namespace, profile: Profile) -> str:
    title = f"{case.name}, {profile.name}"
    if args.explain:
        model = case.build()
        both = [count(model, case.img_size, convention=c, strict=args.strict) for c in CONVENTIONS]
        return render(tables.difference_table(difference(*both), profile), args.format, title)
    ledger = case.count(args.convention, strict=args.strict)
    title += f", {args.convention}, uncounted: {', '.join(ledger.uncounted) or 'none'}"
    return render(breakdown(ledger, profile, args.by), args.format, title)


def published(args: argparse.Namespace) -> int:
    comparisons = compare_published()
    notes = [f"{c.model} {c.quantity}: {c.note}" for c in comparisons if c.note]
    notes += [f"DIFFERS: {c.model} {c.quantity}: printed {c.printed}, ours {c.rounded}" for c in faults(comparisons)]
    print(render(tables.published_table(comparisons), args.format, TITLE, [*notes, tables.BASELINES]))
    return 1 if faults(comparisons) else 0


def draw(chosen: list[Case], rows: list[dict[str, Any]], args: argparse.Namespace, profile: Profile) -> None:
    # Imported here: matplotlib takes longer to load than most tables take to count.
    from ecoformer.lab.energy.plots import plot_bits_anchors, plot_layers, plot_resolution
    from ecoformer.report.figures import save_figure

    first = {key: rows[0][key] for key in ("model", "img_size")}
    same = [case for case in chosen if case.model == first["model"] and case.img_size == first["img_size"]]
    by_attention = {case.attention: case for case in reversed(same)}
    ledgers = {case.label: case.count(args.convention) for case in reversed(by_attention.values())}
    size = in_words(first["model"], first["img_size"])
    title = f"{first['model']}, {size}, {args.convention} convention, {profile.name}"
    figures = {"layers.png": plot_layers(ledgers, profile, title)}
    if len({row["img_size"] for row in rows if row["model"] == first["model"]}) > 1:
        swept = ("num_bits", args.num_bits[0]), ("num_anchors", args.num_anchors[0])
        line = [r for r in rows if all(r[key] in (None, value) for key, value in swept)]
        figures["resolution.png"] = plot_resolution([r for r in line if r["model"] == first["model"]])
    coded = [r for r in rows if r["num_anchors"] is not None and all(r[k] == v for k, v in first.items())]
    if coded and len(args.num_bits) * len(args.num_anchors) > 1:
        figures["bits_anchors.png"] = plot_bits_anchors([r for r in coded if r["attention"] == coded[0]["attention"]])
    for name, figure in figures.items():
        save_figure(figure, args.plots / name)
        print(f"wrote {args.plots / name}", file=sys.stderr)


def witnesses(model: nn.Module, img_size: int) -> dict[str, Any]:
    """Multiply-adds of one image or sequence as others count them, by name; "unavailable: REASON" where one cannot.

    They run the model, which must hold values and fitted hash functions. fvcore counts a multiply-add as one operation,
    and leaves out what it has no handle for (fused attention, say); torch's counter counts two, in matrix products,
    convolutions and attention alone.
    """
    image = example_input(model, img_size)
    found: dict[str, Any] = {}
    for name, counter in (("fvcore", _fvcore), ("torch", _torch)):
        try:
            found[f"witness_{name}"] = round(counter(model.eval(), image))
        except Exception as error:  # theirs, whatever it is: it ends neither the table nor the other witness
            found[f"witness_{name}"] = f"unavailable: {first_line(error)}"
    return found


def _fvcore(model: nn.Module, image: torch.Tensor) -> float:
    from fvcore.nn import FlopCountAnalysis

    logging.getLogger("fvcore.nn.jit_analysis").setLevel(logging.ERROR)  # it lists what it leaves out
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return float(FlopCountAnalysis(model, image).unsupported_ops_warnings(False).total())


def _torch(model: nn.Module, image: torch.Tensor) -> float:
    from torch.utils.flop_counter import FlopCounterMode

    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(image)
    return counter.get_total_flops() / 2
