"""Command-line arguments of the scripts: what is wrong with them is one line, as everywhere."""

import argparse
import importlib
import math
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

from ecoformer.errors import InputError, Interrupted, mistake
from ecoformer.files import refuse_overwriting, require_writable, user_path


class Parser(argparse.ArgumentParser):
    """Bad arguments raise InputError instead of printing the usage; the script prints it and exits with 2."""

    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message}; see --help")


class Help(argparse.RawDescriptionHelpFormatter):
    """Help that says every option's default, where its own words do not."""

    def add_argument(self, action: argparse.Action) -> None:
        said = "" if action.help is None else action.help
        defaults = action.default if isinstance(action.default, list | tuple) else [action.default]
        known = [default for default in defaults if default not in (None, argparse.SUPPRESS) and default is not False]
        if action.option_strings and known and "default" not in said:
            default = (" " if action.nargs else ",").join(map(str, known))
            action.help = f"{said} (default: {default})".strip().replace("%", "%%")
        super().add_argument(action)


AddArguments = Callable[[Parser], None]
Run = Callable[[argparse.Namespace], int]


def names(text: str, between: str = ",") -> list[str]:
    """A comma-separated list of names, each once. Raises ArgumentTypeError if there are none."""
    found = [part.strip() for part in re.split(between, text) if part.strip()]
    if not found:
        raise argparse.ArgumentTypeError(f"{text!r} lists nothing")
    return list(dict.fromkeys(found))


def settings(text: str) -> list[str]:
    """A comma-separated list of "KIND" and "KIND:key=value,...", each once."""
    return names(text, r",(?![^,:=]*=)")


def positive(text: str) -> int:
    """A whole number of at least 1. Raises ArgumentTypeError for anything else."""
    if not text.isascii() or not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} must be a whole number of at least 1")
    return int(text)


def seed(text: str) -> int:
    """A whole number of 32 bits, as the key seed. Raises ArgumentTypeError for anything else."""
    if not text.isascii() or not text.isdigit() or int(text) >= 2**32:
        raise argparse.ArgumentTypeError(f"{text!r} must be a whole number between 0 and {2**32 - 1}")
    return int(text)


def not_negative(text: str) -> float:
    """A finite number of at least 0. Raises ArgumentTypeError for anything else."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} must be a number of at least 0")
    return value


def positives(text: str) -> list[int]:
    """A comma-separated list of whole numbers of at least 1, each once. Raises ArgumentTypeError for anything else."""
    return [positive(part) for part in names(text)]


def in_order(words: str, many: int | None = None) -> Callable[[str], list[int]]:
    """A type: comma-separated numbers of at least 1 as they stand, `many` of them; others are refused as no WORDS.

    It raises ArgumentTypeError as `positive` does.
    """

    def parsed(text: str) -> list[int]:
        try:
            found = [positive(part.strip()) for part in text.split(",")]
        except argparse.ArgumentTypeError:
            found = []
        if not found or many not in (None, len(found)):
            raise argparse.ArgumentTypeError(f"{text!r} must be {words}")
        return found

    return parsed


def given_path(text: str) -> Path:
    """A type: the path of what is read, as `user_path`; ArgumentTypeError for its InputError."""
    try:
        return user_path(text)
    except InputError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def out_file(text: str, folder: bool = False) -> Path:
    """A type: the path of a file to be written. Raises ArgumentTypeError where it could not be, before any work."""
    path = given_path(text)
    try:
        require_writable(path, text, folder=folder)
    except InputError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    return path


def out_checkpoint(text: str) -> Path:
    """A type: the path of a checkpoint to be written, as `out_file`; not one that says it is of another format."""
    if Path(text).suffix.lower() in (".safetensors", ".npz", ".onnx", ".pt2"):
        raise argparse.ArgumentTypeError(f"{text}: a checkpoint is a .pt file; ecoformer hub and export write others")
    return out_file(text)


def out_folder(text: str) -> Path:
    """A type: the path of a folder to be written to, as `out_file`."""
    return out_file(text, folder=True)


def stage_or_pattern(text: str) -> int | str:
    """An item of `attention.layers`: a stage's number, or a pattern of module names."""
    return int(text) if text.isdecimal() else text


def script(run: str | Run, about: str | None, resumable: bool = False) -> Callable[[AddArguments], Callable[..., int]]:
    """Decorator: a command's `main(argv=None)`, from the function that adds its arguments to the parser.

    `main` calls `run(args)`, or that of the module that `run` names: it is imported only then, since it may load torch,
    for which a refused argument need not wait. It returns the exit code; a user's mistake is one line on stderr and
    code 2. With `resumable`, Ctrl-C is one line too, and code 130: the same command goes on where it was. `about` is
    what --help says.
    """

    def decorate(add_arguments: AddArguments) -> Callable[..., int]:
        def main(argv: Sequence[str] | None = None) -> int:
            parser = Parser(description=about, formatter_class=Help)
            add_arguments(parser)
            try:
                args = parser.parse_intermixed_args(argv)  # options may stand between
                _keep_sources(args)
                return importlib.import_module(run).run(args) if isinstance(run, str) else run(args)
            except (InputError, OSError) as error:
                message = mistake(error)
                if message is None:
                    raise
                print(f"error: {message}", file=sys.stderr)
                return 2
            except Interrupted as stop:
                print(f"{stop}: the same command goes on where it was" if resumable else stop, file=sys.stderr)
                return stop.exit_code
            except KeyboardInterrupt:
                if not resumable:
                    raise
                print("stopped: the same command goes on where it was", file=sys.stderr)
                return 130

        return main

    return decorate


def _keep_sources(args: argparse.Namespace) -> None:
    """Raise InputError where --out would write over a file that the command reads."""
    values = dict(vars(args))
    out = values.pop("out", None)
    given = [each for value in values.values() for each in (value if isinstance(value, list) else [value])]
    refuse_overwriting(given, out, f"--out {out}")


def folder_report(about: str | None, metavar: str, out: str, report: str) -> Callable[..., int]:
    """The `main` of a command that gathers a folder of runs and prints what it found.

    Args:
        about: its help.
        metavar, out: what its help calls the folder, and says of --out.
        report: MODULE.FUNCTION that takes the folder and --out (the folder itself if not given) and returns a text.
    """

    def run(args: argparse.Namespace) -> int:
        module, _, function = report.rpartition(".")
        print(getattr(importlib.import_module(module), function)(args.folder, args.out or args.folder))
        return 0

    @script(run, about)
    def main(p: Parser) -> None:
        p.add_argument("folder", type=given_path, metavar=metavar)
        p.add_argument("--out", type=out_folder, help=f"where {out} (default: {metavar})")

    return main
