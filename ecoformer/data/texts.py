"""Texts at byte level: folders of files, tables, and Hugging Face datasets. Byte b is id b + 1."""

from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from ecoformer.config.schema import DataConfig
from ecoformer.data.folders import class_folders, of_system
from ecoformer.data.hf_disk import LABEL_KEY, is_saved, read_texts, split_names
from ecoformer.data.id_files import load_ids
from ecoformer.data.sequences import BYTES, SequenceSource, class_numbers
from ecoformer.data.sources import data_source
from ecoformer.data.splits import Splits, held_out
from ecoformer.data.tables import SPLITS, TABLES, lines, rows, split_files
from ecoformer.errors import InputError
from ecoformer.files import user_path

TEXT_KEY = "text"
UNLABELLED = "unsup"  # reviews of the IMDb release that belong to no class


@dataclass
class Texts:
    """A split: texts as bytes, the class of each by name, and what a message calls the split."""

    where: str
    texts: list[bytes] = field(default_factory=list)
    labels: list[str] = field(default_factory=list)

    def add(self, text: str | bytes, label: str, name: str) -> None:
        """Raises InputError for an empty text, or none of a class."""
        content = text if isinstance(text, bytes) else text.encode(errors="surrogateescape")
        if not content:
            raise InputError(f"{name} has no text: a sample needs at least one byte; remove it")
        if not label:
            raise InputError(f"{name} has no label: give it the name of a class, or remove it")
        self.texts.append(content)
        self.labels.append(label)


@data_source("text_bytes")
def load_texts(data: DataConfig, **_: Any) -> Splits:
    """Texts of data.root; docs/data.md has the layouts. Raises InputError for whatever is wrong with it."""
    if data.root is None:
        raise InputError("data=text_bytes needs data.root: set it to a folder of texts, a table, or a saved dataset")
    root = user_path(data.root)
    if not root.exists():
        raise InputError(f"data.root={root} does not exist: set data.root to a folder of texts, a table, or a dataset")
    if (imported := load_ids(data, root, BYTES + 1)) is not None:
        return imported
    found, notes = _read(data, root)
    names, numbers = class_numbers({split: texts.labels for split, texts in found.items()}, f"data.root={root}")
    sources = {split: SequenceSource.of(texts.where, texts.texts, numbers[split]) for split, texts in found.items()}
    train, val = held_out(data, sources, f"data.root={root}")
    return Splits(names, train, val, notes=notes, vocab_size=BYTES + 1)


def _read(data: DataConfig, root: Path) -> tuple[dict[str, Texts], list[str]]:
    """The splits by name, and notes on what was passed over."""
    if root.is_file():
        return _table(data, root), []
    if tables := split_files(root, *(f"{{}}{ending}" for ending in TABLES)):
        return {split: _rows(data, path) for split, path in tables.items()}, []
    if is_saved(root):
        return _dataset(data, root), []
    if folders := split_files(root, "{}"):
        return _folders(folders)
    raise InputError(
        f"data.root={root} holds no texts: it has no train/CLASS/*.txt, no train.tsv or train.csv (or .xz, .gz, .bz2) "
        "and nothing that save_to_disk wrote"
    )


def _folders(folders: dict[str, Path]) -> tuple[dict[str, Texts], list[str]]:
    """SPLIT/CLASS/*.txt, as the IMDb release has them."""
    found, notes = {}, []
    for split, folder in folders.items():
        texts, passed = Texts(str(folder)), 0
        found[split] = texts
        for name, there in class_folders(folder).items():
            if name == UNLABELLED:
                notes.append(f"{folder / name}: texts without a class are not read")
                continue
            entries = [path for path in (folder / there).iterdir() if not of_system(path.name)]
            paths = sorted(path for path in entries if path.suffix == ".txt")
            if not paths:
                raise InputError(f"{folder / name} holds no texts (*.txt): add some, or remove the class")
            passed += len(entries) - len(paths)
            for path in paths:
                try:
                    texts.add(path.read_bytes(), name, str(path))
                except OSError as error:
                    raise InputError(f"{path} cannot be read ({error.strerror}): correct its permissions") from error
        if passed:
            notes.append(f"{folder}: {passed} files and folders are not read as texts (*.txt)")
        if not texts.texts:
            raise InputError(f"{folder} holds no class folders: put the texts under {folder}/CLASS/*.txt")
    return found, notes


def _columns(data: DataConfig) -> tuple[list[str], list[str]]:
    return [data.text_key or TEXT_KEY, data.label_key or LABEL_KEY], ["data.text_key", "data.label_key"]


def _rows(data: DataConfig, path: Path) -> Texts:
    """One split's table of texts and labels, with a line of names."""
    texts = Texts(str(path))
    for line, (text, label) in rows(path, *_columns(data)):
        texts.add(text, label, f"{path} line {line}")
    return texts


def _table(data: DataConfig, path: Path) -> dict[str, Texts]:
    """One table: of the training split, or without names of columns, of paths .../SPLIT/CLASS/FILE and texts."""
    _, first = next(lines(path), (0, [""]))
    if _place(*first[:1]) is None:
        return {"train": _rows(data, path)}
    splits = {split: Texts(f"{path} [{split}]") for split in SPLITS}
    for line, row in lines(path):
        if not any(row):
            continue
        place, rest = _place(*row[:1]), row[1:]
        if place is None or not rest:
            raise InputError(f"{path} line {line} is not PATH TAB TEXT with a path .../train/CLASS/FILE: correct it")
        if place[1] != UNLABELLED:
            splits[place[0]].add("\t".join(rest), place[1], f"{path} line {line}")  # a text may hold tabs
    return {split: texts for split, texts in splits.items() if texts.texts}


def _place(path: str = "") -> tuple[str, str] | None:
    """(split, class) of a path .../SPLIT/CLASS/FILE; None for what is no such path."""
    folder, label, _ = ("", "", "", *PurePosixPath(path).parts)[-3:]
    split = next((split for split, names in SPLITS.items() if folder in names), None)
    return None if split is None else (split, label)


def _dataset(data: DataConfig, root: Path) -> dict[str, Texts]:
    """What save_to_disk wrote; one table without splits is the training split."""
    names = split_names(root)
    there = {"train": "all"} if names == ["all"] else {}
    for split, known in SPLITS.items():
        if present := [name for name in known if name in names]:
            there[split] = present[0]
    found = {}
    for split, name in there.items():
        texts = found[split] = Texts(f"{root} [{name}]")
        for row, (text, label) in enumerate(read_texts(root, name, *_columns(data)[0])):
            texts.add(text, label, f"{texts.where}: row {row}")
    return found
