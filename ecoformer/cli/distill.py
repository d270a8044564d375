"""From a trained model to binary linear attention in one command, without training. See docs/distilled_hash.md.

    ecoformer distill --model vit_tiny_patch16_224 --pretrained --data ROOT --out FILE
    ecoformer distill --checkpoint RUN/best.pt --data ROOT --attention distilled:projection=ternary --out FILE

The attention of the model (stock or MSA) is replaced, layer after layer, by codes that are fitted to its output on
training images. FILE is a checkpoint for eval.py and for init.checkpoint; pictures of the errors and of every block
are put beside it, in a folder of its name. Accuracy is that of the validation split, before and after, and of two
controls without any attention whose values are fitted alike: where these lose nothing, top-1 tells nothing.
"""

import argparse

from ecoformer.cli.arguments import Parser, given_path, out_checkpoint, positive, script, seed, stage_or_pattern
from ecoformer.errors import InputError


@script(__name__, __doc__)
def main(p: Parser) -> None:
    p.add_argument("--model", help="timm's name; not needed with one of our checkpoints")
    p.add_argument(
        "--checkpoint", type=given_path, metavar="FILE", help="a stock or MSA run's best.pt, or published weights"
    )
    p.add_argument("--pretrained", action="store_true", help="timm's weights")
    p.add_argument("--data", metavar="ROOT", help="data.root; a folder with train/ and val/ by default")
    p.add_argument("--data-name", help="data.name, if it is not an image folder")
    p.add_argument("--img-size", type=positive, help="pixels; default: those of the checkpoint")
    p.add_argument("--num-images", type=positive, default=64, help="training images of the fit")
    p.add_argument(
        "--attention",
        metavar="KIND:key=value,...",
        help="what to convert to, e.g. distilled:num_features=32,projection=ternary, hedgehog; default: distilled",
    )
    p.add_argument("--num-bits", type=int, help="short for distilled_hash:num_bits=N, codes of 0 and 1")
    p.add_argument("--steps", type=int, help="of the fit of each layer")
    p.add_argument("--joint-steps", type=int, help="then, of a fit of all layers together to the logits")
    add_fit_options(p)
    p.add_argument("--no-controls", action="store_true", help="leave out uniform attention and none")
    p.add_argument("--no-accuracy", action="store_true", help="leave out top-1")
    p.add_argument("--seed", type=seed, default=0, help="of the choice of images and of the fit")
    p.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    p.add_argument("--threads", type=positive, help="CPU threads")
    p.add_argument("--format", choices=("table", "json"), default="table")
    p.add_argument(
        "--out", type=out_checkpoint, metavar="FILE", required=True, help="the distilled model, e.g. distilled.pt"
    )


def add_fit_options(p: argparse.ArgumentParser) -> None:
    """What one distillation and a study of many have in common."""
    p.add_argument("--layers", nargs="+", type=stage_or_pattern, metavar="STAGE", help="as attention.layers")
    p.add_argument(
        "--relaxation",
        choices=("sigmoid", "straight_through"),
        help="what stands for the step of bits in a fit; see attention.relaxation",
    )
    p.add_argument("--fit-values", choices=("auto", "true", "false"), help="see attention.fit_values")
    p.add_argument("--held-out", type=positive, default=64, help="validation images that errors are measured on")
    p.add_argument("--max-val", type=positive, help="top-1 on so many validation images only")
    p.add_argument("--profile", default="45nm_fp32", help="energy prices")


def run(args: argparse.Namespace) -> int:
    if args.attention is not None and args.num_bits is not None:
        raise InputError(
            f"--num-bits {args.num_bits} is a kind of its own: leave out it or --attention {args.attention}"
        )
    # Imported late: --help should not wait for torch.
    import torch

    from ecoformer.energy import load_profile
    from ecoformer.files import json_text
    from ecoformer.files.table import render
    from ecoformer.lab.closeness.distill import measure_distilled, spec_of
    from ecoformer.lab.closeness.distill_report import block_table, code_text, plot_errors, summary_lines
    from ecoformer.lab.closeness.maps import plot_maps
    from ecoformer.lab.closeness.source import load_source

    spec = spec_of(
        args.attention or ("distilled" if args.num_bits is None else f"distilled_hash:num_bits={args.num_bits}"),
        relaxation=args.relaxation,
        fit_steps=args.steps,
        fit_values=args.fit_values,
        joint_steps=args.joint_steps,
    )
    profile = load_profile(args.profile)
    profile.require_counted("paper")  # before anything is fitted
    if args.threads is not None:
        torch.set_num_threads(args.threads)
    keys = ("model", "checkpoint", "pretrained", "data_name", "img_size", "max_val", "device")
    source = load_source(root=args.data, out=args.out, **{key: getattr(args, key) for key in keys})
    model, figures = measure_distilled(
        source,
        spec,
        num_images=args.num_images,
        num_held_out=args.held_out,
        seed=args.seed,
        profile=profile,
        with_accuracy=not args.no_accuracy,
        controls=not args.no_controls,
        layers=args.layers,
    )
    # First, for a disk may be full.
    title = f"{figures['model']}, {code_text(figures)}, from {figures['source']}: attention-output error, held out"
    table = render(block_table(figures), "table", title, summary_lines(figures))
    print(json_text(figures, indent=2) if args.format == "json" else table, flush=True)
    metrics = {key: figures[key] for key in ("top1_before", "top1_after", "seconds")}
    source.save(args.out, model, spec, args.layers, metrics)
    folder = args.out.with_suffix("")
    folder = folder.with_name(folder.name + "_pictures")
    plot_errors(figures, folder / "errors.png")
    plot_maps(figures["blocks"], source.model, model, source.held_out(1)[0], folder)
    if args.format != "json":
        print(f"wrote {args.out}, pictures in {folder}")
    return 0
