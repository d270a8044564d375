"""Set runs that differ in their attention alone side by side: accuracy, energy in both conventions, a plot.

    python scripts/attention_kinds.py RUNS [--out DIR]

RUNS holds one finished run of each attention, as the commands in docs/attention_kinds.md leave them. Writes table.json,
table.md and energy.png.
"""

from ecoformer.cli.arguments import folder_report

main = folder_report(__doc__, "RUNS", "the table and the plot go", "ecoformer.lab.study.kinds.kinds_report")
