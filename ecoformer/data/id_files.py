"""Files of ids: SPLIT.npz with ids (samples, N), 0 for padding at their end, and labels (samples,); and their making.

The pickled Long Range Arena of others is read for that alone, by an unpickler that makes NumPy arrays and nothing else.
"""

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy._core import multiarray

from ecoformer.config.schema import DataConfig
from ecoformer.data.sequences import SequenceSource
from ecoformer.data.splits import Splits, held_out
from ecoformer.data.tables import split_files
from ecoformer.errors import InputError, one_line
from ecoformer.files import atomic_write

KEYS = ("input_ids_0", "label")  # of a sample in the pickles
LARGEST_ID = 2**15 - 2


def load_ids(data: DataConfig, root: Path, vocab_size: int, names: list[str] | None = None) -> Splits | None:
    """The splits of a folder that holds SPLIT.npz, None without such files; `names` of the classes: else numbers.

    The vocabulary has `vocab_size` ids, or what the files need. Raises InputError for damaged files and labels beyond
    the classes.
    """
    sources = {split: _source(path) for split, path in split_files(root, "{}.npz").items()}
    if not sources:
        return None
    largest = max(int(source.targets.max()) for source in sources.values())
    names = names or [str(number) for number in range(largest + 1)]
    if largest >= len(names):
        raise InputError(f"data.root={root} has a label {largest}, the classes are 0 to {len(names) - 1}: correct it")
    vocab_size = max(vocab_size, *(2 + int(source.symbols.max()) for source in sources.values()))
    train, val = held_out(data, sources, f"data.root={root}")
    return Splits(names, train, val, vocab_size=vocab_size)


def _source(path: Path) -> SequenceSource:
    try:
        with np.load(path, allow_pickle=False) as arrays:
            ids, labels = arrays["ids"], arrays["labels"]
    except Exception as error:  # of zipfile, zlib and NumPy
        raise InputError(
            f"{path} cannot be read ({one_line(error)}): make it with ecoformer import-sequences"
        ) from error
    check_ids(ids, labels, path)
    real = ids != 0
    lengths = real.sum(1)
    starts = np.cumsum(lengths) - lengths

    def decode(symbols: np.ndarray) -> str:
        return " ".join(str(symbol + 1) for symbol in symbols.tolist())

    return SequenceSource(str(path), ids[real] - 1, starts, lengths, labels.astype(np.int64), decode)


def check_ids(ids: np.ndarray, labels: np.ndarray, path: Path) -> None:
    """Raise InputError for what are no ids and labels of the same samples, and for padding that is not at the end."""
    for name, array, dims in (("ids", ids, 2), ("labels", labels, 1)):
        if array.ndim != dims or array.dtype.kind not in "iu" or len(array) == 0:
            raise InputError(
                f"{path}: {name} are {array.dtype} of shape {array.shape}: give whole numbers in {dims} dimensions"
            )
    if len(ids) != len(labels) or ids.min() < 0 or ids.max() > LARGEST_ID or labels.min() < 0:
        raise InputError(
            f"{path} holds {len(ids)} samples with ids {ids.min()} to {ids.max()}, and {len(labels)} labels from "
            f"{labels.min()}: as many are needed, ids from 0 to {LARGEST_ID}, labels from 0"
        )
    odd = (ids[:, 0] == 0) | ((ids[:, :-1] == 0) & (ids[:, 1:] != 0)).any(1)
    if odd.any():
        raise InputError(f"{path}: sample {int(odd.argmax())} is empty or has a 0 inside: 0 is padding, at the end")


def import_pickle(path: Path, out: Path) -> tuple[np.ndarray, np.ndarray]:
    """Write what a pickle holds to `out` (.npz), and return ids and labels. Raises InputError for anything but both."""
    try:
        with path.open("rb") as file:
            found = ArraysOnly(file, path).load()
    except InputError:
        raise
    except Exception as error:  # a damaged pickle fails in many ways
        raise InputError(f"{path} cannot be unpickled ({one_line(error)}): give one with ids and labels") from error
    ids, labels = _columns(found, path)
    check_ids(ids, labels, path)
    ids = ids.astype(np.min_scalar_type(int(ids.max())))
    with atomic_write(out) as file:
        np.savez_compressed(file, ids=ids, labels=labels.astype(np.int64))
    return ids, labels


def _columns(found: Any, path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Ids and labels of a list of samples."""
    try:
        keys = set().union(*found)
        ids, labels = (np.asarray([sample[key] for sample in found]) for key in KEYS)
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"{path} must hold a list of samples with {' and '.join(KEYS)}, padded to one length ({one_line(error)})"
        ) from error
    if "input_ids_1" in keys:
        raise InputError(f"{path} has pairs of sequences (input_ids_1): give a task of single ones")
    return ids, labels


class ArraysOnly(pickle.Unpickler):
    """Makes NumPy arrays and Python's own containers; raises InputError for whatever else a pickle names."""

    def __init__(self, file: IO[bytes], path: Path) -> None:
        super().__init__(file)
        self.path = path

    def find_class(self, module: str, name: str) -> Any:
        found = ALLOWED.get((module.replace("numpy._core", "numpy.core"), name))
        if found is None:
            raise InputError(f"{self.path} names {module}.{name}: NumPy arrays, lists and dictionaries alone are read")
        return found

    def persistent_load(self, pid: Any) -> Any:
        raise InputError(f"{self.path} refers to what lies outside of it: give a pickle that holds its ids itself")


ALLOWED: dict[tuple[str, str], Callable[..., Any]] = {
    ("numpy.core.multiarray", "_reconstruct"): multiarray._reconstruct,
    ("numpy.core.multiarray", "scalar"): multiarray.scalar,
    ("numpy.core.numeric", "_frombuffer"): (
        lambda held, dtype, shape, order: np.frombuffer(held, dtype).reshape(shape, order=order)
    ),
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    ("_codecs", "encode"): lambda text, codec: text.encode("latin1"),  # bytes of old pickles, in no other codec
}
