"""ecoformer COMMAND ...: the one command line. It imports a command's module only when that command is asked for."""

import errno
import importlib
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType

from ecoformer.errors import handling

STOPPED = "stopped by SIGINT"
# Command: the module in this package that holds its `main`, and what it does.
COMMANDS: dict[str, tuple[str, str]] = {
    "train": ("train", "train a model: experiment=NAME [key=value ...]"),
    "eval": ("eval", "evaluate a checkpoint: checkpoint=RUN/best.pt, or timm's weights: model=NAME pretrained=true"),
    "energy": ("energy", "operations and energy of models with stock, softmax and other attention"),
    "benchmark": ("benchmark", "images/s and peak memory of variants that take turns"),
    "benchmark-hash": ("benchmark_hash", "time and memory of a hash fit"),
    "benchmark-data": ("benchmark_data", "what loading images costs, beside timm's loader"),
    "distill": ("distill", "a trained model to distilled hashes, without training"),
    "distill-study": ("distill_study", "distilled hashes over checkpoints, bits and seeds"),
    "hash-quality": ("hash_quality", "what any hash is worth beside random codes and uniform attention"),
    "study": ("study", "run, resume and report a whole table: TABLE --data DIR"),
    "report": ("report", "a run or a folder of runs as one HTML file"),
    "sweep": ("sweep", "one table of any folder of runs"),
    "search": ("search", "let Optuna look for the front of accuracy against energy"),
    "sequence": ("sequence", "what each attention costs against the number of tokens"),
    "check-data": ("check_data", "look through a data set before a job"),
    "export": ("export", "a checkpoint to ONNX or torch.export"),
    "import": ("import_weights", "published weights to a checkpoint, every key accounted for"),
    "import-sequences": ("import_sequences", "others' pickled sequences to a file that training reads"),
    "average": ("average", "the mean of several checkpoints' weights, as a checkpoint"),
    "hub": ("hub", "a checkpoint to safetensors and a model card that timm loads"),
    "demo": ("demo", "the point in two minutes: train, convert without training, compare, on bundled digits"),
    "kinds": ("kinds", "runs that differ in their attention alone, side by side"),
    "plot-speed": ("plot_speed", "a picture of benchmark results"),
    "speed-section": ("speed_section", "write benchmark results into a document"),
}


def usage() -> str:
    """What `ecoformer --help` prints."""
    width = max(map(len, COMMANDS)) + 2
    lines = [f"  {name:<{width}}{about}" for name, (_, about) in COMMANDS.items()]
    about = "EcoFormer attention on timm backbones: convert, train, and an honest account of what it costs."
    end = "\necoformer COMMAND --help says what a command takes."
    return "\n".join([f"usage: ecoformer COMMAND [ARGUMENT ...]\n\n{about}\n", *lines, end])


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code: 0, 2 for what the user can mend, else the command's own.

    Where the reader of its output has gone, as `| head` does, it ends without a word: 141, as other programs.
    After Ctrl-C it ends with one line: 130.
    """
    try:
        with _interruptible_imports():
            try:
                return _run(argv)
            finally:
                sys.stdout.flush()
    except KeyboardInterrupt:  # of what writes whole files or none
        print(STOPPED, file=sys.stderr)
        return 128 + signal.SIGINT
    except OSError as error:
        if error.errno not in (errno.EPIPE, errno.ENOSPC) or error.filename is not None:
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for what Python flushes at its end
        if error.errno == errno.EPIPE:
            return 128 + signal.SIGPIPE
        print(f"error: cannot write what is said to its end: {error.strerror}; free space", file=sys.stderr)
        return 2


@contextmanager
def _interruptible_imports() -> Iterator[None]:
    """While it lasts, Ctrl-C ends the process at once where a module is being imported.

    Libraries answer a KeyboardInterrupt there with errors of their own, or swallow it.
    """

    def stop(signum: int, frame: FrameType | None) -> None:
        while frame is not None:
            if frame.f_code.co_filename.startswith("<frozen importlib"):
                print(STOPPED, file=sys.stderr, flush=True)
                os._exit(128 + signum)
            frame = frame.f_back
        raise KeyboardInterrupt

    is_ours = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    with handling([signal.SIGINT] if is_ours else [], stop):
        yield


def _run(argv: Sequence[str] | None) -> int:
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(usage())
        return 0 if arguments else 2
    name, *rest = arguments
    if name in ("--version", "-V"):
        from importlib.metadata import version

        print(f"ecoformer {version('ecoformer')}")
        return 0
    if name not in COMMANDS:
        import difflib

        near = difflib.get_close_matches(name, COMMANDS, n=1)
        hint = f"did you mean {near[0]}?" if near else f"choose one of {', '.join(COMMANDS)}"
        print(f"error: ecoformer {name} does not exist; {hint}", file=sys.stderr)
        return 2
    sys.argv[0] = f"ecoformer {name}"  # how argparse calls the program
    module = importlib.import_module(f"ecoformer.cli.{COMMANDS[name][0]}")
    return int(module.main(rest) or 0)
