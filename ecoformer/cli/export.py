"""Write a model as an ONNX file or a torch.export program, and check what was written against eager PyTorch.

    python scripts/export.py runs/b0/best.pt --format onnx --out b0.onnx
    python scripts/export.py twins_svt_small_ecoformer --format torch_export --out twins.pt2

The source is a checkpoint of train.py or a timm model name. A name gives a model without training: --pretrained takes
timm's weights; hash functions are fitted to random images, good enough to time the result, not to use it. The batch
size stays free; --dynamic-size leaves height and width free too. Needs the "export" extra for ONNX.
"""

from ecoformer.cli.arguments import Parser, not_negative, out_file, positive, script, seed


@script("ecoformer.run.export", __doc__)
def main(p: Parser) -> None:
    p.add_argument("source", help="a checkpoint of train.py, or a timm model name")
    p.add_argument("--format", choices=("onnx", "torch_export"), required=True)
    p.add_argument("--out", type=out_file, required=True, metavar="FILE")
    p.add_argument("--img-size", "--seq-len", type=positive, help="pixels or tokens; default: the model's own")
    p.add_argument("--dynamic-size", action="store_true", help="leave height and width free, by 32 pixels; or tokens")
    p.add_argument("--pretrained", action="store_true", help="timm's weights, with a model name")
    p.add_argument("--tolerance", type=not_negative, default=1e-3, help="largest difference to eager")
    p.add_argument("--seed", type=seed, default=0)
