"""What `ecoformer export` does: a checkpoint or a timm model to ONNX or torch.export, compared with eager."""

import argparse
import contextlib
import importlib.util
import io
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

import ecoformer.models  # noqa: F401  registers the converted models
from ecoformer.errors import InputError
from ecoformer.files import atomic_write
from ecoformer.kinds import fit_hashes
from ecoformer.model.create import create
from ecoformer.model.layers import require_input
from ecoformer.nn.coded import CodedLinear
from ecoformer.nn.inputs import example_input, input_size, takes_sequences
from ecoformer.run.start import model_of_run, read_run

STEP = 32  # pixels between the image sizes of --dynamic-size, the reduction of the last stage
Run = Callable[[Tensor], Tensor]


def run(args: argparse.Namespace) -> int:
    missing = [name for name in ("onnx", "onnxruntime", "onnxscript") if importlib.util.find_spec(name) is None]
    if args.format == "onnx" and missing:
        raise InputError(f"--format onnx needs {', '.join(missing)}: pip install 'ecoformer[export]'")
    return export(*load(args), args)


def load(args: argparse.Namespace) -> tuple[nn.Module, int]:
    """The model in eval mode and its image size, or the tokens of its sequences."""
    if Path(args.source).exists():
        if args.pretrained:
            raise InputError("--pretrained goes with a model name: a checkpoint has its own weights")
        run = read_run(args.source)
        model = model_of_run(run)
        size: Any = input_size(model, run.config.data.img_size)
    elif timm.is_model(args.source):
        torch.manual_seed(args.seed)
        model = create(
            args.source, key="SOURCE", img_size=args.img_size, pretrained=args.pretrained, pretrained_key="--pretrained"
        )
        defaults: Any = model.pretrained_cfg
        size = input_size(model, defaults.get("input_size", (3, 224, 224))[-1])
    else:
        raise InputError(f"{args.source} is neither a file nor a timm model name: see timm.list_models()")
    size = args.img_size or size
    require_input(model, size)
    if not Path(args.source).exists() and fit_hashes(model, example_input(model, size, seed=args.seed), args.seed):
        kind = "sequence" if takes_sequences(model) else "image"
        print(f"note: {args.source} is not trained: its hash functions are fitted to a random {kind}", file=sys.stderr)
    for module in model.eval().requires_grad_(False).modules():
        if isinstance(module, CodedLinear):
            module.harden()
    return model, size


def export(model: nn.Module, size: int, args: argparse.Namespace) -> int:
    checked = [example_input(model, size, batch_size, seed=args.seed + 1) for batch_size in (1, 3)]
    if takes_sequences(model):
        checked[1][1:, -(-size // 2) :] = 0  # padding
    if args.dynamic_size:
        other = -(-size // 2) if takes_sequences(model) else size + STEP
        checked.append(example_input(model, other, seed=args.seed + 1))
    with torch.no_grad(), warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")  # about deprecations inside the exporters
        program = (
            _program_of_any_size(model, size, args.seed, checked)
            if args.dynamic_size
            else _program(model, example_input(model, size, 2, seed=args.seed), {})
        )
        content = io.BytesIO()
        if args.format == "onnx":
            converted = torch.onnx.export(program, dynamo=True)
            assert converted is not None
            content.write(converted.model_proto.SerializeToString())
        else:
            torch.export.save(program, content)
    with atomic_write(args.out) as file:
        file.write(content.getvalue())
    run = reopen(args.out, args.format)
    with torch.no_grad():
        worst = float(torch.stack([(run(batch) - model(batch)).abs().max() for batch in checked]).max())  # NaN stays
    shapes = ", ".join("x".join(map(str, batch.shape)) for batch in checked)
    print(f"{args.out}: {len(content.getvalue()) / 2**20:.1f} MiB; largest difference to eager {worst:.2e} on {shapes}")
    if not worst <= args.tolerance:
        print(f"the difference is above --tolerance {args.tolerance:g}: do not use this file", file=sys.stderr)
        return 1
    return 0


def _program(model: nn.Module, example: Tensor, sizes: dict[int, Any]) -> ExportedProgram:
    free: dict[int, Any] = {0: Dim("batch", min=1), **sizes}
    return torch.export.export(model, (example,), dynamic_shapes=(free,), strict=False)


def _program_of_any_size(model: nn.Module, size: int, seed: int, checked: list[Tensor]) -> ExportedProgram:
    """The program with height and width, or tokens, free. Raises InputError if it is not one for all sizes."""
    if takes_sequences(model):
        sizes: dict[int, Any] = {1: Dim("tokens", min=1, max=size)}
    else:
        sizes = {2: STEP * Dim("height_by_32", min=1), 3: STEP * Dim("width_by_32", min=1)}
        size = max(size, 2 * STEP)  # the tracer takes a size of one step for a constant
    example = example_input(model, size, 2, seed=seed)
    try:
        program = _program(model, example, sizes)
        for batch in checked:
            program.module()(batch)
    except (torch._dynamo.exc.UserError, AssertionError, RuntimeError) as error:
        lines = str(error).splitlines()
        reason = next((line.strip(" -") for line in lines if "specialized" in line), lines[0]).partition(". If")[0]
        raise InputError(
            f"--dynamic-size: {type(model).__name__} is not the same program at every size "
            f"({reason}): leave it out and export each size with --img-size"
        ) from error
    return program


def reopen(path: Path, kind: str) -> Run:
    """What was written, as a function of a batch."""
    if kind == "torch_export":
        module: Any = torch.export.load(str(path)).module()
        return module
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda batch: torch.from_numpy(session.run(None, {name: batch.numpy()})[0])
