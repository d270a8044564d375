"""One HTML file about a run, or about a folder of runs: tables, curves, hash fits, ledger, pictures, provenance.

    ecoformer report DIR [--out FILE.html]

The file needs no network and no script. DIR is a run directory, the folder of a study or of a sweep, or any other with
runs below it.
"""

import argparse
from pathlib import Path
from tempfile import TemporaryDirectory

from ecoformer.cli.arguments import Parser, given_path, out_file, script
from ecoformer.errors import InputError

NAME = "report.html"


@script(__name__, __doc__)
def main(p: Parser) -> None:
    p.add_argument("folder", type=given_path, metavar="DIR")
    p.add_argument("--out", type=out_file, metavar="FILE.html", help=f"where it goes (default: DIR/{NAME})")


def run(args: argparse.Namespace) -> int:
    # Imported late: --help should not wait for matplotlib and torch.
    from ecoformer.files import write_text
    from ecoformer.report import html, pages

    folder, out = args.folder, args.out or args.folder / NAME
    sections = pages.run_sections(folder, ledger_parts(folder)) if pages.is_run(folder) else of_runs(folder)
    write_text(out, html.page("/".join(folder.resolve().parts[-2:]), sections))
    print(out)
    return 0


def of_runs(folder: Path) -> list[tuple[str, list[str]]]:
    """The sections of a folder: of the report in it, or of the one that `ecoformer sweep` would write.

    Raises InputError if it holds neither tables nor runs.
    """
    from ecoformer.lab.study.reports import sweep_report
    from ecoformer.report import pages
    from ecoformer.report.runs import find_runs

    if pages.tables_in(folder):
        try:
            runs = find_runs(folder)
        except InputError:  # tables of what was not run here
            runs = []
        return pages.folder_sections(runs, folder, folder)
    runs = find_runs(folder)
    with TemporaryDirectory() as written:
        sweep_report(folder, Path(written))
        return pages.folder_sections(runs, folder, Path(written))


def ledger_parts(folder: Path) -> list[str]:
    """The ledger of a run's best or latest weights by stage, or why there is none."""
    from ecoformer.energy import count
    from ecoformer.energy.ledger import breakdown
    from ecoformer.energy.profile_files import load_profile
    from ecoformer.files.run_names import BEST, LAST
    from ecoformer.nn.inputs import input_size
    from ecoformer.report import html
    from ecoformer.run.start import model_of_run, read_run

    checkpoint = next((folder / name for name in (BEST, LAST) if (folder / name).exists()), None)
    if checkpoint is None:
        return [html.note(f"not counted: the run has neither {BEST} nor {LAST}")]
    try:
        saved = read_run(checkpoint)
        energy, model = saved.config.energy, model_of_run(saved)
        profile = load_profile(energy.profile)
        size = input_size(model, saved.config.data.img_size)
        ledger = count(model, size, convention=energy.convention, strict=False)
    except InputError as error:  # such as a kind of a plugin that is not loaded here
        return [html.note(f"not counted: {error}")]
    return [
        html.table(breakdown(ledger, profile, "stage")),
        html.note(f"{energy.convention} convention, {profile.name}"),
    ]
