"""Many distillations, one row each, kept in OUT/table.json and resumed from it: results/distilled_hash, shift_codes.

    ecoformer distill-study --checkpoints RUN/best.pt ... --data ROOT --seeds 0 1 2 --out OUT \\
        --attention distilled distilled:num_features=32,projection=ternary distilled_hash hedgehog

A row that table.json already holds is not made again. Rows have dataset, model, source (msa or stock), codes, features,
levels, projection, values, training_seed, fit_seed, top1_source, top1_after, kl, agreement, error_per_layer,
uniform_per_layer, energy_pj and energy_audited_pj, ecoformer_energy_pj, finetuned, and the controls. Errors are
relative L2 of the attention output, on held-out images; energies picojoules of one image. Pictures are drawn anew at
the end.
"""

from ecoformer.cli.arguments import Parser, given_path, out_folder, positive, script, seed
from ecoformer.cli.distill import add_fit_options


@script("ecoformer.lab.closeness.distill_study", __doc__, resumable=True)
def main(p: Parser) -> None:
    p.add_argument("--checkpoints", nargs="+", type=given_path, required=True, metavar="FILE", help="stock or MSA runs")
    p.add_argument("--data", metavar="ROOT", help="data.root, if it is not where the runs had it")
    p.add_argument("--attention", nargs="+", default=[], metavar="KIND:key=value,...", help="default: distilled")
    p.add_argument("--num-bits", nargs="+", type=int, default=[], help="short for distilled_hash:num_bits=N")
    p.add_argument("--seeds", nargs="+", type=seed, default=[0], help="of the fit")
    p.add_argument("--steps", nargs="+", type=int, default=[None], help="of the fit of each layer")
    p.add_argument("--joint-steps", nargs="+", type=int, default=[None], help="then, of a fit of all layers together")
    p.add_argument("--num-images", nargs="+", type=positive, default=[512], help="training images of the fit")
    add_fit_options(p)
    p.add_argument("--controls", action="store_true", help="measure the controls too, for the first seed of each model")
    p.add_argument("--beside", type=given_path, metavar="FILE", help="table.json of a training study, for front.png")
    p.add_argument("--keep", type=out_folder, metavar="FOLDER", help="write the distilled models there")
    p.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    p.add_argument("--threads", type=positive, default=1, help="CPU threads")
    p.add_argument("--out", type=out_folder, required=True, metavar="FOLDER")
