"""The parts of a report: of one run, from what it left; of a folder of runs, from its tables and pictures."""

from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from ecoformer.errors import InputError
from ecoformer.files import read_json, read_text
from ecoformer.files.run_names import COMPRESSION_TABLE, CONFIG, CONSOLE, HASH_FITS, METRICS, PROVENANCE, SUMMARY
from ecoformer.files.table import Column, Table
from ecoformer.report import html
from ecoformer.report.runs import RunRecord, has_epochs, read_run_dir
from ecoformer.report.tables import figure_rows
from ecoformer.report.training import plot_hash_fits, plot_training_curves

Sections = list[tuple[str, list[str]]]
LOG_LINES = 200  # of the console log's end


def is_run(folder: Path) -> bool:
    return any((folder / name).is_file() for name in (CONFIG, SUMMARY, METRICS))


def tables_in(folder: Path) -> list[Path]:
    """The Markdown tables that a report wrote into a folder; a README is prose."""
    found = (path for path in folder.glob("*.md") if path.name != "README.md")
    return sorted(found, key=lambda path: (path.stem != "table", path.name))


def run_sections(folder: Path, ledger: Sequence[str]) -> Sections:
    """Figures, curves, hash fits, ledger (its parts are handed in), other pictures, provenance, settings, console."""
    run = read_run_dir(folder)
    with TemporaryDirectory() as temporary:
        drawn = Path(temporary)
        curves = _curves({run.settings.get("attention.name") or folder.name: folder}, drawn / "curves.png")
        fits = [html.picture(drawn / HASH_FITS)] if plot_hash_fits(folder, drawn / HASH_FITS) else []
    figures = [html.note(f"{folder.name}: {run.state}")]
    if run.summary is not None:
        figures.append(html.pairs(figure_rows(run.summary)))
    log = folder / CONSOLE
    end = "\n".join(read_text(log).splitlines()[-LOG_LINES:]) if log.is_file() else ""
    return [
        ("Figures", figures),
        ("Training", curves),
        ("Hash functions", fits),
        ("Ledger", list(ledger)),
        ("Compression", _markdown(folder / COMPRESSION_TABLE)),
        ("Pictures", [html.picture(path) for path in sorted(folder.glob("*.png")) if path.name != HASH_FITS]),
        ("Provenance", [html.pairs(_start_rows(start)) for start in starts_of(folder)]),
        ("Settings", _settings(run)),
        ("Console", [html.folded(f"the last {LOG_LINES} lines", f"<pre>{html.escape(end)}</pre>")] if end else []),
    ]


def folder_sections(runs: Sequence[RunRecord], folder: Path, report: Path) -> Sections:
    """Tables and pictures of `report`, the folder itself or where its report was written, and the runs below it."""
    pictures = sorted(report.glob("*.png"))
    curves: list[str] = []
    if not any("curves" in path.stem for path in pictures):
        with TemporaryDirectory() as temporary:
            shown = {str(run.path.relative_to(folder)): run.path for run in runs}
            curves = _curves(shown, Path(temporary) / "curves.png")
    return [
        ("Tables", [part for path in tables_in(report) for part in _markdown(path)]),
        ("Pictures", [html.picture(path) for path in pictures]),
        ("Training", curves),
        ("Runs", [html.table(_runs_table(runs, folder))] if runs else []),
    ]


def starts_of(folder: Path) -> list[dict[str, Any]]:
    """The starts in a run's provenance.json; none of a run that was made before there was one, or cannot be read."""
    try:
        return [start for start in read_json(folder / PROVENANCE)["starts"] if isinstance(start, dict)]
    except (InputError, KeyError, TypeError):
        return []


def _curves(runs: dict[str, Path], out: Path) -> list[str]:
    shown = {label: path for label, path in runs.items() if has_epochs(path)}
    if not shown:
        return []
    plot_training_curves(shown, out)
    return [html.picture(out, "validation top-1 and training loss over the epochs")]


def _start_rows(start: dict[str, Any]) -> list[tuple[str, str]]:
    rows = [(key, start.get(key)) for key in ("started", "ended", "outcome", "command", "folder")]
    rows += [(f"git, {where}", _commit(found)) for where, found in (start.get("git") or {}).items()]
    rows += [(host, "; ".join(names)) for host, names in (start.get("hosts") or {}).items()]
    rows += [(name, version) for name, version in (start.get("versions") or {}).items()]
    return [(name, "-" if value is None else str(value)) for name, value in rows]


def _commit(found: dict[str, Any] | None) -> str:
    if not found:
        return "no checkout"
    state = "clean" if found.get("clean") else "changed"
    return f"{found.get('commit')}, {state}, {found.get('untracked')} untracked files"


def _runs_table(runs: Sequence[RunRecord], folder: Path) -> Table:
    rows = []
    for run in runs:
        first: dict[str, Any] = next(iter(starts_of(run.path)), {})
        project = (first.get("git") or {}).get("project") or {}
        rows.append(
            {"run": str(run.path.relative_to(folder)), "state": run.state, **(run.summary or {}), **first, **project}
        )
    columns = [
        Column("run", "run", left=True),
        Column("state", "state", left=True),
        Column("top-1 %", lambda row: row.get("top1"), "{:.2f}"),
        Column("best epoch", lambda row: row.get("best_epoch")),
        Column("epochs", lambda row: row.get("epochs")),
        Column("started", lambda row: row.get("started")),
        Column("hosts", lambda row: ", ".join(row["hosts"]) if row.get("hosts") else None),
        Column(
            "commit",
            lambda row: f"{row['commit'][:10]}{'' if row.get('clean') else '+'}" if row.get("commit") else None,
        ),
    ]
    return Table(columns, rows)


def _settings(run: RunRecord) -> list[str]:
    rows = [(name, str(value)) for name, value in sorted(run.settings.items())]
    return [html.folded(f"all {len(rows)}", html.pairs(rows))] if rows else []


def _markdown(path: Path) -> list[str]:
    return html.from_markdown(read_text(path)) if path.is_file() else []
