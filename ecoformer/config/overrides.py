"""Overrides of a command line before Hydra reads them: where a key takes text, its value stays as it was typed.

Hydra would read 2024_11_27 and 1e3 as numbers, and refuses `=`, brackets and letters outside ASCII without quotes.
"""

import math
import re
from collections.abc import Iterable, Iterator

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep, QuotedString, RangeSweep
from hydra.errors import HydraException

from ecoformer.config.keys import keys_of
from ecoformer.errors import InputError

FUNCTION = re.compile(r"(choice|range|interval|glob|sort|shuffle|tag|extend_list|int|float|str|bool|json_str)\(.*\)")
PAIRS = {"(": ")", "[": "]", "{": "}"}


def as_typed(arguments: Iterable[str], schema: type, sweeps: bool = False) -> list[str]:
    """The arguments with the values of text keys quoted for Hydra where it would read them as anything else.

    Left alone: what the user quoted, null, interpolations, and sweeps: functions such as choice() or glob(), and with
    `sweeps` (as with -m) values between commas, each of which stays as it was typed.
    """
    keys = keys_of(schema)

    def kept(argument: str) -> str:
        name, equals, value = argument.partition("=")
        key = keys.get(name.lstrip("+~"))
        if name.startswith("~") and key is not None:  # without its option, a group has the defaults of the schema
            of_group = ".KEY=VALUE" if "." in name else "=OPTION"
            value = of_group if key.is_group else "=null" if key.optional else "=VALUE"
            raise InputError(f"{name}: a setting always has a value: write {name[1:]}{value}")
        if equals and not name.strip("+~"):
            raise InputError(f"cannot read the override {argument}: write key=value")
        if not equals or not value or key is None:
            return argument
        if str in key.types:
            return f"{name}={_sweep(value) if sweeps else _text(value)}"
        if key.item is str and value[0] == "[" and value[-1] == "]":
            return f"{name}=[{','.join(_text(part, in_list=True) for part in _parts(value[1:-1]))}]"
        return argument

    return [kept(argument) for argument in arguments]


def require_ends(arguments: Iterable[str], intervals: bool) -> None:
    """Raise InputError for a range() without values or end, and for interval() where values must be listed."""
    for argument in arguments:
        try:
            sweep = OverridesParser.create().parse_override(argument).value()
        except HydraException:  # Hydra says it
            continue
        if isinstance(sweep, RangeSweep):
            start, stop, step = float(sweep.start or 0), float(sweep.stop or 0), float(sweep.step)
            if not 0 < (stop - start) * step < math.inf:
                raise InputError(f"{argument}: steps of {step:g} lead from {start:g} to no {stop:g}: give another step")
        if isinstance(sweep, IntervalSweep) and not intervals:
            raise InputError(
                f"{argument}: a sweep goes through values: list them, or draw some with `ecoformer search`"
            )


def quoted(text: str) -> str:
    """A value that Hydra's override grammar reads back as `text`: backslashes count only before a quote."""
    return "'" + re.sub(r"(\\*)('|\Z)", lambda found: 2 * found[1] + ("\\'" if found[2] else ""), text) + "'"


def _sweep(value: str) -> str:
    choices = re.fullmatch(r"choice\((.*)\)", value)
    # Without its choice(), in which Hydra forgets the quotes of what it hands to the jobs.
    return ",".join(map(_text, _parts(choices[1] if choices else value)))


def _text(value: str, in_list: bool = False) -> str:
    """The value in words that Hydra reads as this text; unchanged where it does so anyway, or where it is no text."""
    value = value.strip() if in_list else value
    if not value or FUNCTION.fullmatch(value):
        return value
    try:
        read = OverridesParser.create().parse_override(f"key={value}")
    except HydraException:
        return quoted(value)
    if isinstance(read._value, QuotedString) or read.value() is None:
        return value
    if read.value() == value and not value[0].isdigit():  # within functions Hydra reads 007 as 7
        return value
    return quoted(value)


def _parts(value: str) -> Iterator[str]:
    """What stands between the commas that no quotes and no brackets enclose."""
    part, quote, closing = "", "", [""]
    for index, character in enumerate(value):
        if quote:
            quote = "" if character == quote and value[index - 1] != "\\" else quote
        elif character in "'\"" and not part.strip():
            quote = character
        elif character in PAIRS:
            closing.append(PAIRS[character])
        elif character == closing[-1]:
            closing.pop()
        elif character == "," and closing == [""]:
            yield part
            part = ""
            continue
        part += character
    yield part
