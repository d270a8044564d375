"""What minilm.py measured, kept as JSON row by row, and its tables."""

import statistics

from ecoformer import InputError
from ecoformer.files import read_json, write_json, write_text
from ecoformer.files.table import Column, Table, render, share

# What may differ between the rows of a file, and what tells them apart.
FREE = ("part", "model", "texts", "work", "out", "settings", "seed", "tune_steps", "tune_lr")
KEY = ("setting", "seed", "steps", "lr", "exact")

ERRORS = {"attention_error": "error", "of_uniform": "of uniform's", "random_error": "not fitted"}
ERRORS["uniform_error"] = "uniform"
KEYS = {"recall": "keys found", "random_recall": "not fitted finds", "chance_recall": "by chance"}


def mean(key):
    def of(row):
        values = [layer[key] for layer in row.get("layers", [])]
        return statistics.mean(values) if values and None not in values else None

    return of


def tables(part, rows):
    setting = [Column("setting", "setting", left=True)]
    setting += [Column(key, key) for key in KEY[1:3] if len({row.get(key) for row in rows}) > 1]
    if part == "time":
        return {part: Table([*setting, *(Column(key, key, "{:.1f}") for key in rows[0] if key != "setting")], rows)}
    if part == "exact":
        setting += [Column("layers as they were", "exact", left=True)]
        setting += [Column("KL of the next alone", "alone_kl", "{:.3f}")]
    judged = [Column("KL", "kl", "{:.3f}"), share("same first", "agreement")]
    judged += [share("accuracy", "accuracy")] if "accuracy" in rows[0] else []
    costs = [Column("mJ paper", "paper_pj", "{:.2f}", 1e9), Column("mJ audited", "audited_pj", "{:.2f}", 1e9)]
    costs[1:1] = [Column("of it attention", "paper_attention_pj", "{:.2f}", 1e9)]
    costs += [Column("of it attention", "audited_attention_pj", "{:.2f}", 1e9)]
    costs += [Column("M params", "params", "{:.2f}", 1e6), Column("MB", "bytes", "{:.1f}", 1e6)]
    if part in ("low_rank", "exact"):
        return {part: Table([*setting, *judged, *costs], rows)}
    layers = [{**row, **layer} for row in rows for layer in row.get("layers", [])]
    each = [Column(heading, key, "{:.3f}") for key, heading in (ERRORS | KEYS).items()]
    means = [Column(heading, mean(key), "{:.3f}") for key, heading in ERRORS.items()]
    return {
        part: Table([*setting, *means, *judged, *costs], rows),
        "layers": Table([*setting, Column("layer", "layer"), *each], layers),
    }


def keep(args, rows):
    """Write rows beside those of other settings, seeds and steps; else the run that made those must be the same."""
    file, run = args.out / f"{args.part}.json", {key: x for key, x in vars(args).items() if key not in FREE}
    before = read_json(file) if file.is_file() else {"run": run, "rows": []}
    if before["run"] != run:
        raise InputError(f"{file} holds rows of {before['run']}, not of {run}: choose another --out")
    new = [[row.get(key) for key in KEY] for row in rows]
    rows = [row for row in before["rows"] if [row.get(key) for key in KEY] not in new] + rows
    write_json(file, {"run": run, "rows": rows})
    for name, table in tables(args.part, rows).items() if rows else ():
        write_text(args.out / f"{name}.md", render(table, "md") + "\n")
