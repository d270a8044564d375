"""Gather any folder of runs into one table and one plot of accuracy against energy.

    python scripts/sweep_report.py DIR [--out DIR]

Runs are found at any depth: those of `ecoformer train -m`, of `ecoformer study`, or put there by hand. Columns are the
settings in which they differ. Failed and unfinished runs are listed with how far they came.
"""

from ecoformer.cli.arguments import folder_report

main = folder_report(
    __doc__, "DIR", "sweep.json, .md, .csv, .tex and front.png go", "ecoformer.lab.study.reports.sweep_report"
)
