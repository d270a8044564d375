"""ListOps: nested operations on digits, generated here or read from the published files.

The grammar is that of Nangia and Bowman (2018) as Long Range Arena (Tay et al., 2021) sets it: an expression is a
digit, or one of four operators with 2 to `max_args` expressions; below the root an operator comes with probability
0.25, at `max_depth` none. Lengths count operators, digits and closing brackets. Ids: 0 padding, 1-10 digits, 11-14
operators, 15 the closing bracket.
"""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ecoformer.config.schema import DataConfig
from ecoformer.data.augment import derive_seed
from ecoformer.data.id_files import load_ids
from ecoformer.data.sequences import SequenceSource
from ecoformer.data.sources import data_source
from ecoformer.data.splits import Splits, held_out
from ecoformer.data.tables import rows, split_files
from ecoformer.errors import InputError
from ecoformer.files import user_path

OPERATORS = ("[MIN", "[MAX", "[MED", "[SM")
VOCABULARY = (*"0123456789", *OPERATORS, "]")  # symbol s is id s + 1
CLOSE = len(VOCABULARY) - 1
OPERATOR_SHARE = 0.25
MAX_DEPTH, MAX_ARGS = 10, 10  # of Long Range Arena, as the numbers of samples
NUM_SAMPLES = {"train": 96_000, "val": 2_000, "test": 2_000}
LISTOPS_SEED = 0  # a constant, so that every run of every seed has the same samples
TREES = 1024  # that grow at a time
PATIENCE = 50  # batches of trees; beyond, each must bring a new expression on average


@data_source("listops")
def load_listops(data: DataConfig, *, with_train: bool, **_: Any) -> Splits:
    """Expressions and their values: generated, or of data.root: files of ids, or basic_{train,val,test}.tsv."""
    digits, vocab_size = list("0123456789"), len(VOCABULARY) + 1
    if data.root is None:
        sources, where = generated(data, with_train=with_train), "data=listops"
    else:
        root = user_path(data.root)
        if (imported := load_ids(data, root, vocab_size, digits)) is not None:
            return imported
        sources = {split: read_file(path) for split, path in split_files(root, "basic_{}.tsv").items()}
        where = f"data.root={root}"
    if not sources:
        raise InputError(
            f"{where} holds no basic_train.tsv, basic_val.tsv or basic_test.tsv: correct it, or leave it out for "
            "generated expressions"
        )
    train, val = held_out(data, sources, where)
    return Splits(digits, train, val, vocab_size=vocab_size)


def decoded(symbols: np.ndarray) -> str:
    return " ".join(VOCABULARY[symbol] for symbol in symbols)


def read_file(path: Path) -> SequenceSource:
    """One of the published files: columns Source and Target; parentheses, which say nothing new, are dropped.

    Raises InputError with the line of what is no expression or no digit.
    """
    symbol_of = {token: symbol for symbol, token in enumerate(VOCABULARY)}
    samples, targets = [], []
    for line, (source, target) in rows(path, ("Source", "Target")):
        tokens = [token for token in source.split() if token not in "()"]
        unknown = next((token for token in tokens if token not in symbol_of), None)
        if unknown is not None or not tokens:
            found = "no token" if unknown is None else f"an unknown token {unknown!r}"
            raise InputError(f"{path} line {line} has {found}: tokens are {' '.join(VOCABULARY)} ( )")
        if target not in VOCABULARY[:10]:
            raise InputError(f"{path} line {line} has the target {target!r}: a digit is needed")
        samples.append(bytes(symbol_of[token] for token in tokens))
        targets.append(int(target))
    return SequenceSource.of(str(path), samples, targets, decoded)


def generated(data: DataConfig, *, with_train: bool = True) -> dict[str, SequenceSource]:
    """The three splits; no expression is in two of them. data.max_train_samples and max_val_samples set their sizes.

    Raises InputError if depth and arguments cannot give the length, or not so many different expressions.
    """
    assert data.seq_len is not None, "checked with the other settings"
    depth, args = data.max_depth or MAX_DEPTH, data.max_args or MAX_ARGS
    low, high = data.min_tokens or 4, data.seq_len
    shape = f"data.max_depth={depth}, data.max_args={args}"
    longest = 1
    for _ in range(depth - 1):
        longest = 2 + args * longest
    if low > longest:
        raise InputError(f"data.min_tokens={low}: expressions of {shape} have at most {longest} tokens: raise them")
    if low > high or high < 4:
        raise InputError(
            f"data.seq_len={high} holds no expression of {low} tokens: raise it, or lower data.min_tokens (the "
            "shortest expression has 4)"
        )
    asked = {"val": data.max_val_samples, "test": data.max_val_samples, "train": data.max_train_samples}
    seen: set[bytes] = set()
    found = {}
    for split in asked if with_train else ("val", "test"):
        number = asked[split] or NUM_SAMPLES[split]
        rng = np.random.default_rng(derive_seed(LISTOPS_SEED, "listops", split))
        samples: list[bytes] = []
        targets: list[int] = []
        for batch in itertools.count(1):
            for sample, target in expressions(rng, depth, args, low, high):
                if sample not in seen and len(samples) < number:
                    seen.add(sample)
                    samples.append(sample)
                    targets.append(target)
            if len(samples) == number:
                break
            if len(samples) + PATIENCE < batch:
                raise InputError(
                    f"{shape} and {low} to {high} tokens: {batch * TREES} draws give {len(samples)} new expressions "
                    f"for a {split} split of {number}: allow more, or lower data.max_train_samples and max_val_samples"
                )
        found[split] = SequenceSource.of(f"listops {split}", samples, targets, decoded)
    return found


def require_apart(asked: DataConfig, trained: DataConfig) -> None:
    """Raise InputError where expressions asked for after a training may be among those that it generated.

    It left out as many of validation and test as it had itself.
    """
    generates = all(data.name == "listops" and data.root is None for data in (asked, trained))
    wanted, most = (data.max_val_samples or NUM_SAMPLES["val"] for data in (asked, trained))
    if generates and wanted > most:
        raise InputError(
            f"data.max_val_samples={wanted}: the training kept {most} apart from its own, more may have been trained "
            f"on: ask for at most {most}"
        )


@dataclass(frozen=True)
class Level:
    """Nodes of one depth, the arguments of one operator side by side: their tree, whether they are operators, which
    symbol they are, and how many arguments they have."""

    tree: np.ndarray
    operator: np.ndarray
    symbol: np.ndarray
    count: np.ndarray

    @classmethod
    def drawn(cls, rng: np.random.Generator, tree: np.ndarray, operator: np.ndarray, max_args: int) -> "Level":
        size = len(tree)
        symbol = np.where(operator, 10 + rng.integers(len(OPERATORS), size=size), rng.integers(10, size=size))
        return cls(tree, operator, symbol, np.where(operator, rng.integers(2, max_args + 1, size=size), 0))

    def of(self, nodes: np.ndarray) -> "Level":
        return Level(self.tree[nodes], self.operator[nodes], self.symbol[nodes], self.count[nodes])


def expressions(rng: np.random.Generator, depth: int, args: int, low: int, high: int) -> Iterator[tuple[bytes, int]]:
    """(symbols, value) of those of TREES random expressions that have `low` to `high` tokens.

    All trees grow together, a level at a time, and one that is too long grows no further.
    """
    levels = [Level.drawn(rng, np.arange(TREES), np.full(TREES, True), args)]
    length = np.full(TREES, 2)
    for number in range(2, depth + 1):
        grown = levels[-1].of(levels[-1].operator & (length <= high)[levels[-1].tree])
        tree = np.repeat(grown.tree, grown.count)
        operator = rng.random(len(tree)) < (OPERATOR_SHARE if number < depth else 0.0)
        levels.append(Level.drawn(rng, tree, operator, args))
        length += np.bincount(tree, 1 + operator, TREES).astype(length.dtype)
    kept = (length >= low) & (length <= high)
    flat, values, sizes = written([level.of(kept[level.tree]) for level in levels])
    for end, size, value in zip(np.cumsum(sizes).tolist(), sizes.tolist(), values.tolist(), strict=True):
        yield flat[end - size : end].tobytes(), value


def written(levels: list[Level]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The expressions of whole trees one after another as symbols, and of each its value and its length."""
    value = size = np.zeros(0, np.int64)
    sizes: list[np.ndarray] = []
    for level in reversed(levels):  # an operator's value needs those of its arguments
        count = level.count[level.operator]
        starts = np.cumsum(count) - count
        values, lengths = level.symbol.astype(np.int64), np.ones(len(level.symbol), np.int64)
        if len(count):
            ordered = value[np.lexsort((value, np.repeat(starts, count)))]
            smallest, largest = ordered[starts], ordered[starts + count - 1]
            median = (ordered[starts + (count - 1) // 2] + ordered[starts + count // 2]) // 2  # rounded down
            results = [smallest, largest, median, np.add.reduceat(value, starts) % 10]  # in the order of OPERATORS
            values[level.operator] = np.choose(level.symbol[level.operator] - 10, results)
            lengths[level.operator] = 2 + np.add.reduceat(size, starts)
        value, size = values, lengths
        sizes.insert(0, size)
    flat = np.empty(int(size.sum()), np.uint8)
    place = np.cumsum(size) - size  # of every node's first symbol, from the roots down
    for level, size, inner in zip(levels, sizes, [*sizes[1:], np.zeros(0, np.int64)], strict=True):
        flat[place] = level.symbol
        flat[(place + size - 1)[level.operator]] = CLOSE
        before = np.cumsum(inner) - inner
        count = level.count[level.operator]
        first = before[np.cumsum(count) - count]  # of each operator's arguments
        place = before + np.repeat(place[level.operator] + 1 - first, count)
    return flat, value, sizes[0]
