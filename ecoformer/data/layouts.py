"""The layouts of a data set, looked through without decoding, and what is found: samples per split and class, faults.

Those of images return the sources to decode.
"""

import re
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ecoformer.config.keys import check_limits
from ecoformer.config.schema import DataConfig
from ecoformer.data.archives import class_names, label_faults
from ecoformer.data.folders import VAL_NAMES, FolderSource, class_folders, scan_folder, shorten, too_few_classes, twins
from ecoformer.data.hf_disk import read_split, split_names
from ecoformer.data.sequences import SequenceSource
from ecoformer.data.shards import IMAGE_KEYS, LABEL_KEY, TRAIN_NAMES, ShardSource, find_shards, index_shards
from ecoformer.data.sources import SOURCES
from ecoformer.data.splits import LabelledSource
from ecoformer.errors import InputError, counted

EXAMPLE = 100  # symbols that are shown of a sequence


@dataclass(frozen=True)
class DataFault:
    """One thing that is wrong: a kind (empty class, corrupt image, ...), where, and what, in words."""

    kind: str
    where: str
    what: str = ""

    def __str__(self) -> str:
        return f"{self.kind}: {self.where}" + (f" ({self.what})" if self.what else "")


@dataclass
class SplitCount:
    """Images of a split, per class in the order of the class numbers; broken ones are counted too."""

    name: str
    images: int
    per_class: dict[str, int]


@dataclass
class SequenceCount:
    """Sequences of a split, per class; their lengths (min, median, max), the share that seq_len cuts, and the first."""

    name: str
    samples: int
    per_class: dict[str, int]
    lengths: dict[str, int]
    cut: float | None
    example: str


@dataclass
class Audit:
    """What was found under a root."""

    root: str
    layout: str  # folder, webdataset, hfds, listops or text_bytes
    splits: list[SplitCount | SequenceCount] = field(default_factory=list)
    faults: list[DataFault] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)  # what is passed over, and no fault


def count(split: str, targets: np.ndarray, names: list[str]) -> SplitCount:
    """Images per class; labels outside the classes count towards the split alone."""
    inside = targets[(targets >= 0) & (targets < len(names))]
    counts = np.bincount(inside, minlength=len(names)).tolist()
    return SplitCount(split, len(targets), dict(zip(names, counts, strict=True)))


def summary(split: SplitCount | SequenceCount) -> str:
    """Samples, classes, and the smallest and largest class; of sequences also their lengths, and the first one."""
    number, noun = (split.images, "image") if isinstance(split, SplitCount) else (split.samples, "sample")
    counts = sorted(split.per_class.items(), key=lambda item: item[1])
    if not counts:
        return f"{split.name}: {counted(number, noun)}, no classes"
    few, many = counts[0], counts[-1]
    empty = [name for name, count in counts if count == 0]
    note = f"; empty: {shorten(empty)}" if empty else ""
    line = (
        f"{split.name}: {counted(number, noun)} in {counted(len(counts), 'class')}, "
        f"{few[1]} ({few[0]}) to {many[1]} ({many[0]}) a class{note}"
    )
    if isinstance(split, SplitCount):
        return line
    cut = "" if split.cut is None else f", {split.cut:.1%} cut"
    lengths = "{min} to {max} tokens, median {median}".format(**split.lengths)
    return f"{line}; {lengths}{cut}\n  {split.example}"


def look_at_folders(data: DataConfig, root: Path, found: Audit, with_train: bool) -> list[LabelledSource]:
    """ROOT/train/CLASS and ROOT/val/CLASS: class lists, files that are no images, names that collide."""
    val = next((name for name in VAL_NAMES if (root / name).is_dir()), None)
    splits = [name for name in ("train", val) if name is not None and (root / name).is_dir()]
    if "train" not in splits and with_train:
        found.faults.append(DataFault("missing split", str(root / "train"), "training needs it, evaluation does not"))
    if val is None:
        found.faults.append(DataFault("missing split", str(root / "val"), "or test; training and evaluation need it"))
    classes = {split: set(class_folders(root / split)) for split in splits}
    if len(splits) == 2:
        for split, other in (splits, splits[::-1]):
            for name in sorted(classes[split] - classes[other]):
                found.faults.append(DataFault("class in one split only", str(root / split / name)))
    return [_look_at_split(root / split, found) for split in splits]


def _look_at_split(split: Path, found: Audit) -> FolderSource:
    """The images of a split, as training reads them; files that are none and names that differ in case are faults."""
    scan = scan_folder(split)
    fault = too_few_classes(split, scan.class_names)
    if fault is not None:
        found.faults.append(DataFault("classes" if scan.class_names else "no classes", str(split), fault))
    for kind, paths in (("not an image", scan.unread), ("empty class", scan.empty)):
        found.faults += [DataFault(kind, str(split / path)) for path in paths]
    for path, twin in (*scan.twins, *twins(scan.class_names)):
        found.faults.append(DataFault("same name in another case", str(split / path), f"beside {twin}"))
    found.notes += scan.notes(unread=False)
    source = scan.source()
    found.splits.append(count(split.name, source.targets, scan.class_names))
    return source


def look_at_shards(data: DataConfig, root: Path, found: Audit, with_train: bool) -> list[LabelledSource]:
    """Shards of both splits: samples, keys, labels."""
    sources: list[tuple[str, LabelledSource]] = []
    wanted = [("train", data.train_split, TRAIN_NAMES)] if with_train else []
    for name, split, names in (*wanted, ("val", data.val_split, ("validation", *VAL_NAMES))):
        try:
            paths = find_shards(root, split, names, f"data.{name}_split")
        except InputError as error:
            found.faults.append(DataFault("missing split", name, str(error)))
            continue
        indices = index_shards(paths, data.image_key, data.label_key)
        for index in indices:
            found.faults += [DataFault("shard", str(index.path), fault) for fault in index.faults]
        keys = Counter(re.sub(r"\.[^./]*$", "", key) for index in indices for key in index.keys)
        found.faults += [DataFault("key used twice", f"{name} split", key) for key, count in keys.items() if count > 1]
        sources.append((name, ShardSource(indices)))
        if not keys:
            needed = f"{data.image_key or IMAGE_KEYS} and {data.label_key or LABEL_KEY} make a sample"
            found.faults.append(DataFault("no samples", f"{name} split", f"{len(paths)} shards; {needed}"))
    _check_labels(data, root, found, sources, None)
    return [source for _, source in sources]


def look_at_rows(data: DataConfig, root: Path, found: Audit, with_train: bool) -> list[LabelledSource]:
    """The splits of a Hugging Face dataset: columns and labels."""
    sources: list[tuple[str, LabelledSource]] = []
    known: list[str] | None = None
    for name in ("train", "val") if with_train else ("val",):
        training = name == "train"
        split = data.train_split if training else data.val_split
        if split is None and split_names(root) == ["all"]:
            split = "all"
            if training:
                continue  # one table: it is looked through once
        try:
            source, known = read_split(data, root, training=training, split=split)
        except InputError as error:
            found.faults.append(DataFault("missing split", name, str(error)))
            continue
        sources.append((split or name, source))
    _check_labels(data, root, found, sources, known)
    return [source for _, source in sources]


def look_at_sequences(data: DataConfig, found: Audit) -> None:
    """Training and validation split of listops or text_bytes, and how many samples are in both.

    Raises InputError for the first thing that is wrong.
    """
    check_limits(data, "data.")
    splits = SOURCES[data.name](data, world_size=1, with_train=True, num_classes=None)
    seen: set[bytes] = set()
    for name, source in (("train", splits.train), (data.val_split or "val", splits.val)):
        if not isinstance(source, SequenceSource):
            continue  # there is no training split
        lengths = {key: int(of(source.lengths)) for key, of in (("min", min), ("median", np.median), ("max", max))}
        cut = None if data.seq_len is None else float((source.lengths > data.seq_len).mean())
        per_class = count(name, source.targets, splits.class_names).per_class
        target, text = int(source.targets[0]), " ".join(source.decode(source.sample(0)[:EXAMPLE]).split())
        example = f"{splits.class_names[target]}: {text}"
        found.splits.append(SequenceCount(name, len(source), per_class, lengths, cut, example))
        samples = [source.sample(index).tobytes() for index in range(len(source))]
        if twice := sum(sample in seen for sample in samples):
            found.notes.append(f"{twice} of {len(source)} {name} samples are in the train split too")
        seen.update(samples)
    found.notes += splits.notes


def _check_labels(
    data: DataConfig, root: Path, found: Audit, sources: list[tuple[str, LabelledSource]], known: list[str] | None
) -> None:
    try:
        names = class_names(data, root, known)
    except InputError as error:
        found.faults.append(DataFault("classes", str(root), str(error)))
        top = max((int(source.targets.max()) for _, source in sources if len(source)), default=-1)
        names = [str(number) for number in range(top + 1)]
    for split, source in sources:
        found.splits.append(count(split, source.targets, names))
        found.faults += [DataFault("labels", f"{split} split", fault) for fault in label_faults(source.targets, names)]
