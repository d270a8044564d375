"""When does which attention pay? Ledger, time and memory of an encoder against the number of tokens.

    python scripts/sequence_study.py --tokens 64,128,...,8192 --format table --out DIR
    python scripts/sequence_study.py --advise --at-tokens 1024 --width 384 --budget params=30e6

Writes DIR/study.json, report.md and a plot per metric, and keeps measurements in DIR/measured.json, point by point, so
that an interrupted study goes on where it was. --rounds 0 measures nothing and uses what DIR holds. Time and memory are
those of --layers blocks at batch 1 in float32, scaled to the shape; see docs/sequence_study.md.
"""

from ecoformer.cli.arguments import Parser, names, not_negative, out_folder, script


@script("ecoformer.lab.sequence.command", __doc__, resumable=True)
def main(p: Parser) -> None:
    p.add_argument("--tokens", help="comma-separated; ... doubles (default: 64,128,...,8192)")
    p.add_argument("--kinds", type=names, help="default: all; attention kinds, low_rank[_RANK], linformer_TOKENS")
    shapes = ("bert_base", "vit_b_block", "custom")
    p.add_argument("--shape", choices=shapes, help="default: custom with --width, else bert_base")
    p.add_argument("--width", type=int, help="channels of a custom shape")
    p.add_argument("--heads", type=int, help="default: width / 64")
    p.add_argument("--mlp", type=int, help="default: 4 x width")
    p.add_argument("--depth", type=int, help="blocks of a custom shape (default: 12)")
    p.add_argument("--format", choices=("table", "json", "md"), default="table")
    p.add_argument("--out", type=out_folder, metavar="DIR", help="where results are written, and measurements kept")
    p.add_argument("--rounds", type=int, help="measurements of every point; 0: none (default: 3)")
    p.add_argument("--layers", type=int, help="blocks that are measured (default: 1); time is scaled to the shape's")
    p.add_argument("--threads", type=int, help="default: torch's choice")
    p.add_argument("--max-seconds", type=not_negative, help="stop measuring after so long; the next call goes on")
    p.add_argument("--advise", action="store_true", help="say which kind costs least instead")
    p.add_argument("--at-tokens", type=int, help="tokens of --advise")
    p.add_argument("--budget", help="limits of --advise: energy_mj=5,params=50e6,weight_mib=,time_s=,memory_mib=")
