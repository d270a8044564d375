"""Any image source as sequences of grey pixels, row by row: Long Range Arena's image task. Grey value p is id p + 1."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from ecoformer.config.keys import one_of
from ecoformer.config.schema import ARCHIVES, SEQUENCES, DataConfig
from ecoformer.data.folders import FolderSource
from ecoformer.data.sequences import BYTES
from ecoformer.data.sources import CIFAR, SOURCES, data_source
from ecoformer.data.splits import Splits, held_out
from ecoformer.errors import InputError


@data_source("pixels")
def load_pixels(data: DataConfig, **options: Any) -> Splits:
    """The images of data.pixels_of. Raises InputError as their source does, and if nothing says what to validate on."""
    of = data.pixels_of
    if of is None:
        raise InputError("data=pixels needs data.pixels_of: set it to the images, such as cifar10")
    if of not in SOURCES or of in SEQUENCES:
        raise InputError(one_of("data.pixels_of", of, [name for name in SOURCES if name not in SEQUENCES]))
    options["with_train"] = True  # validation may be cut off it
    if of in ARCHIVES and data.val_split is None and data.dev_samples == 0:
        raise InputError(f"data.pixels_of={of} needs data.val_split, or data.dev_samples: say what to validate on")
    images = SOURCES[of](replace(data, name=of), **options)
    assert images.train is not None, "it was asked for"
    of_test = of in CIFAR or (isinstance(images.val, FolderSource) and Path(images.val.root).name == "test")
    found = {"train": images.train, "test" if of_test else "val": images.val}
    named = of in ARCHIVES  # there data.val_split is the name of what was read
    train, val = held_out(replace(data, val_split=None) if named else data, found, f"data.pixels_of={of}")
    return Splits(images.class_names, train, val, notes=images.notes, vocab_size=BYTES + 1)
