"""ListOps: generated expressions keep to the grammar, and their values are those of a naive evaluator."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path
from statistics import median

import numpy as np
import pytest

from ecoformer.config.schema import DATA_NAMES, DataConfig
from ecoformer.data.listops import VOCABULARY, decoded, generated, require_apart
from ecoformer.data.sequences import SequenceSource
from ecoformer.data.sources import SOURCES, Splits, data_source
from ecoformer.errors import InputError

OPERATIONS = {"[MIN": min, "[MAX": max, "[MED": lambda xs: int(median(xs)), "[SM": lambda xs: sum(xs) % 10}
FIRST = "[MED 9 5 8 [SM 4 9 3 [MIN 8 8 0 0 4 ] 2 7 7 [MED 1 8 ] ] 0 ]"  # training sample of up to 64 tokens
SMALL = {"max_train_samples": 300, "max_val_samples": 50}


def listops(**keys) -> DataConfig:
    return DataConfig(name="listops", **{"seq_len": 64, **SMALL, **keys})


def parse(tokens: list[str]) -> tuple[int, int, list[int]]:
    """(value, depth, numbers of arguments) of the expression at the head of `tokens`, which it consumes."""
    token = tokens.pop(0)
    if token not in OPERATIONS:
        return int(token), 1, []
    parts = []
    while tokens[0] != "]":
        parts.append(parse(tokens))
    tokens.pop(0)
    values, depths, counts = zip(*parts, strict=True)
    return OPERATIONS[token](values), 1 + max(depths), [len(parts), *itertools.chain(*counts)]


@pytest.mark.parametrize(
    ("depth", "args", "low", "high"),
    [(2, 2, 4, 4), (2, 10, 4, 64), (4, 5, 30, 64), (10, 10, 200, 400), (20, 3, 50, 99)],
)
def test_expressions_keep_to_the_grammar_and_have_their_value(depth: int, args: int, low: int, high: int):
    # Depth 2 with two arguments is all of 4 * 10 * 10 expressions: a number that can be had.
    few = {"max_train_samples": 60, "max_val_samples": 20}
    found = generated(listops(max_depth=depth, max_args=args, min_tokens=low, seq_len=high, **few))
    assert [(split, len(source)) for split, source in found.items()] == [("val", 20), ("test", 20), ("train", 60)]
    seen = [source.sample(index).tobytes() for source in found.values() for index in range(len(source))]
    assert len(set(seen)) == 100  # no expression twice, within a split or across
    depths = set()
    for source in found.values():
        for index, target in enumerate(source.targets.tolist()):
            tokens = decoded(source.sample(index)).split()
            assert low <= len(tokens) <= high
            value, deep, counts = parse(tokens)
            assert (value, tokens) == (target, [])
            assert min(counts) >= 2 and max(counts) <= args
            depths.add(deep)
    assert max(depths) == depth or depth == 20 > max(depths)


def test_samples_do_not_depend_on_how_many_there_are_and_no_answer_rules():
    small, large = (generated(listops(max_val_samples=20, max_train_samples=count))["train"] for count in (500, 3000))
    assert small.symbols.tolist() == large.symbols[: len(small.symbols)].tolist()
    # Tables of results stand on these samples.
    assert (decoded(small.sample(0)), small.targets[0]) == (FIRST, 6)
    share = np.bincount(large.targets, minlength=10) / len(large)
    assert share.max() < 0.2 and share.min() > 0.05
    operators = np.bincount(large.symbols, minlength=15)[10:14]
    assert operators.min() / operators.max() > 0.9


def test_batches(open_data):
    data = open_data(name="listops", seq_len=40, **SMALL)
    assert (data.vocab_size, data.seq_len, data.num_classes, data.num_train, data.num_val) == (16, 40, 10, 300, 50)
    for ids, targets in data.val_loader:
        for row, target in zip(ids, targets, strict=True):
            real = int((row != 0).sum())
            assert (row[real:] == 0).all()
            assert parse([VOCABULARY[token - 1] for token in row[:real].tolist()])[0] == target


def write(path: Path, *rows: str, header: str = "Source\tTarget") -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_text("\r\n".join([header, *rows, ""]))  # as Python's csv writer, which made the published files
    return path.parent


ROW = "( ( ( ( [MED 3 ) ( ( ( [SM 7 ) 8 ) ] ) ) 4 ) ] )\t4"


def test_the_published_files(open_data, tmp_path: Path):
    root = tmp_path / "lra"
    for split, rows in (("train", [ROW] * 6 + ["( ( ( [MAX 1 ) 2 ) ] )\t2"]), ("val", [ROW] * 3), ("test", [ROW] * 2)):
        write(root / f"basic_{split}.tsv", *rows)
    data = open_data(name="listops", root=root, seq_len=12)
    assert (data.num_train, data.num_val, data.vocab_size) == (7, 3, 16)
    ids, targets = next(iter(data.val_loader))
    assert [VOCABULARY[token - 1] for token in ids[0].tolist() if token] == [
        "[MED",
        "3",
        "[SM",
        "7",
        "8",
        "]",
        "4",
        "]",
    ]
    assert targets.tolist() == [4, 4, 4]
    assert open_data(name="listops", root=root, seq_len=12, val_split="test").num_val == 2
    (root / "basic_val.tsv").unlink()
    cut = open_data(name="listops", root=root, seq_len=5, val_share=0.3)
    assert (cut.num_train, cut.num_val) == (5, 2)
    assert cut.notes[0].startswith("data.seq_len=5 cuts ") and cut.notes[0].endswith(" of 5 training samples")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (
            "( ( [MIN 1 ) 2 ) ]\t1\nFOO\t3",
            "line 3 has an unknown token 'FOO': tokens are 0 1 2 3 4 5 6 7 8 9 [MIN [MAX ",
        ),
        ("( )\t3", "line 2 has no token: tokens are"),
        ("[MIN 1 2 ]\t11", "line 2 has the target '11': a digit is needed"),
        ("[MIN 1 2 ]", "line 2 has 1 fields, the first line names 2: correct it"),
    ],
)
def test_lines_that_are_no_sample(open_data, tmp_path: Path, row: str, message: str):
    root = write(tmp_path / "lra" / "basic_train.tsv", *row.split("\n"))
    with pytest.raises(InputError) as caught:
        open_data(name="listops", root=root, seq_len=12)
    assert str(caught.value).startswith(f"{root}/basic_train.tsv {message}") and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"seq_len": None}, "data=listops needs data.seq_len: set it to the tokens of a sequence, such as 512"),
        ({"seq_len": 0}, "data.seq_len=0 must be at least 1, or null"),
        (
            {"max_depth": 3, "max_args": 3, "min_tokens": 30},
            "data.min_tokens=30: expressions of data.max_depth=3, data.max_args=3 have at most 17 tokens: raise them",
        ),
        (
            {"seq_len": 30, "min_tokens": 40},
            "data.seq_len=30 holds no expression of 40 tokens: raise it, or lower data.min_tokens (the shortest "
            "expression has 4)",
        ),
        (
            {"max_depth": 2, "max_args": 2, "seq_len": 4, "max_train_samples": 400},
            "data.max_depth=2, data.max_args=2 and 4 to 4 tokens: 359424 draws give 300 new expressions for a train "
            "split of 400: allow more, or lower data.max_train_samples and max_val_samples",
        ),
        (
            {"max_depth": 3, "max_args": 10, "seq_len": 122, "min_tokens": 115},
            "data.max_depth=3, data.max_args=10 and 115 to 122 tokens: 52224 draws give 0 new expressions for a val "
            "split of 50: allow more, or lower data.max_train_samples and max_val_samples",
        ),
        ({"max_depth": 1}, "data.max_depth=1 must be at least 2, or null"),
        ({"val_split": "dev"}, "data.val_split=dev must be val or test for data=listops, or null"),
        (
            {"root": "x", "max_depth": 4},
            "data.max_depth=4 is for generated expressions, data.root=x holds its own: leave out one of them",
        ),
        ({"mean": [0.5] * 3}, "data.mean=[0.5, 0.5, 0.5] is for images, data=listops are sequences: leave it out"),
        ({"in_memory": False}, "data.in_memory=false: data=listops are held in memory: leave it out"),
        ({"augment": {}}, "augment.hflip=0.5 is for images, data=listops are sequences: set augment=none"),
        (
            {"augment": {"hflip": 0.0, "mixup": 0.2}},
            "augment.mixup=0.2 is for images, data=listops are sequences: set augment=none",
        ),
        (
            {"train": {"batch_size": 400}},
            "train.batch_size=400 is more than 300 training samples: lower train.batch_size to at most 300",
        ),
    ],
)
def test_refusals(open_data, keys: dict, message: str):
    with pytest.raises(InputError) as caught:
        open_data(name="listops", **{"seq_len": 64, **SMALL, **keys})
    assert str(caught.value) == message


def test_expressions_that_a_training_may_have_seen_are_refused():
    trained = DataConfig("listops", seq_len=64)
    require_apart(replace(trained, max_val_samples=2000), trained)
    with pytest.raises(InputError, match=r"max_val_samples=2001: the training kept 2000 apart .* ask for at most 2000"):
        require_apart(replace(trained, max_val_samples=2001), trained)
    require_apart(replace(trained, root="x", max_val_samples=2001), trained)
    with pytest.raises(InputError, match=r"the training kept 10 apart"):
        require_apart(trained, replace(trained, max_val_samples=10))


def counted(data: DataConfig, **_: object) -> Splits:
    source = SequenceSource.of("counted", [bytes([number]) for number in range(8)], [0, 1] * 4)
    return Splits(["even", "odd"], source, source, vocab_size=9)


def test_sequences_of_a_plugin(open_data):
    data_source("counted")(counted)
    try:
        data = open_data(name="counted", seq_len=2, dev_samples=2)
        assert (data.num_train, data.num_val, data.vocab_size) == (6, 2, 9)
        with pytest.raises(InputError, match=r"^data=counted needs data\.seq_len: set it to the tokens of a sequence"):
            open_data(name="counted")
    finally:
        DATA_NAMES.remove("counted")
        del SOURCES["counted"]
