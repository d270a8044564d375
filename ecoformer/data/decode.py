"""One image file to one uint8 array: the evaluation resize, and every mode of PIL turned into RGB.

Shape suffixes: B images, S side of the square output in pixels.
"""

from __future__ import annotations

import math
import struct
import zlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from PIL import Image
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from ecoformer.data.corrupt import CorruptImage, CorruptImages

INTERPOLATIONS = {
    name: Image.Resampling[name.upper()] for name in ("nearest", "bilinear", "bicubic", "box", "hamming", "lanczos")
}
# What PIL's decoders are known to raise on broken files; UnidentifiedImageError is an OSError.
DECODE_ERRORS = (OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error, Image.DecompressionBombError)
CHUNK = 256
THREADED_ABOVE_PIXELS = 64 * 64  # below, threads wait for the interpreter lock longer than they decode
PROGRESS_ABOVE_IMAGES = 2000


class ImageSource(Protocol):
    """A labelled list of images that are opened one at a time."""

    def __len__(self) -> int: ...

    def open(self, index: int) -> Image.Image: ...

    def name(self, index: int) -> str:
        """What to call the image in a message: its path where it has one."""
        ...


def to_rgb(image: Image.Image) -> Image.Image:
    """RGB from any mode: alpha is dropped, palettes are looked up, 16-bit grey keeps its upper 8 bits."""
    if image.mode == "RGB":
        return image
    if image.mode.startswith("I"):  # PIL clips 16-bit values at 255 when it converts them
        grey = np.asarray(image)
        image = Image.fromarray((grey.clip(0, 65535) >> 8).astype(np.uint8))
    elif image.mode == "F":
        raise ValueError("floating-point pixels have no known range")
    elif image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")  # the same colours; PIL warns of the direct way
    return image.convert("RGB")


def open_rgb(source: ImageSource, index: int) -> Image.Image:
    """The decoded image. Raises CorruptImage (an InputError) naming the file when it cannot be decoded."""
    try:
        with source.open(index) as image:
            image.load()  # decode before the file is closed
            return to_rgb(image)
    except DECODE_ERRORS as fault:
        raise CorruptImage(source.name(index), " ".join(str(fault).split()) or type(fault).__name__) from fault


@dataclass(frozen=True)
class EvalTransform:
    """Resize the shorter side to floor(S / crop_pct), then take the central S x S square (as timm evaluates)."""

    img_size: int
    crop_pct: float
    interpolation: str

    def __call__(self, image: Image.Image) -> torch.Tensor:
        """RGB image of any size -> uint8 tensor (3, S, S)."""
        return torch.from_numpy(self.array(image).transpose(2, 0, 1).copy())

    def array(self, image: Image.Image) -> np.ndarray:
        """RGB image of any size -> uint8 array (S, S, 3), which may be a view of the image."""
        short = math.floor(self.img_size / self.crop_pct)
        width, height = image.size
        portrait = width <= height
        size = (short, int(short * height / width)) if portrait else (int(short * width / height), short)
        if size != image.size:
            image = image.resize(size, INTERPOLATIONS[self.interpolation])
        if image.size != (self.img_size, self.img_size):
            left = round((image.width - self.img_size) / 2.0)
            top = round((image.height - self.img_size) / 2.0)
            image = image.crop((left, top, left + self.img_size, top + self.img_size))
        return np.asarray(image)


def decode_images(
    source: ImageSource,
    indices: Sequence[int] | np.ndarray,
    transform: EvalTransform,
    *,
    threads: int = 1,
    progress: str | None = None,
    corrupt: CorruptImages | None = None,
) -> tuple[torch.Tensor, np.ndarray]:
    """Decode the chosen images once into a uint8 tensor (B, 3, S, S), and say which of `indices` they are.

    Args:
        corrupt: counts the broken images that are left out; None: the first one ends the run.
        threads: used where the images are large enough for threads to help (PIL releases the interpreter
            lock inside its decoders and its resize).
        progress: label of a progress bar on a terminal's standard error; None: no bar.
    """
    size = transform.img_size
    corrupt = corrupt or CorruptImages()
    out = np.empty((len(indices), 3, size, size), dtype=np.uint8)
    readable = np.ones(len(indices), dtype=bool)

    def decode_chunk(start: int) -> int:
        stop = min(start + CHUNK, len(indices))
        for position in range(start, stop):
            try:
                out[position] = transform.array(open_rgb(source, int(indices[position]))).transpose(2, 0, 1)
            except CorruptImage as fault:
                readable[position] = False
                corrupt.add(fault.name, str(fault))
        return stop - start

    console = Console(stderr=True)
    shown = progress is not None and console.is_terminal and len(indices) > PROGRESS_ABOVE_IMAGES
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    if len(indices) and _pixels(source, int(indices[0])) <= THREADED_ABOVE_PIXELS:
        threads = 1
    with (
        Progress(*columns, console=console, disable=not shown) as bar,
        ThreadPoolExecutor(max(1, threads)) as pool,
    ):
        task = bar.add_task(f"decoding {progress}", total=len(indices))
        futures = [pool.submit(decode_chunk, start) for start in range(0, len(indices), CHUNK)]
        try:
            for future in futures:
                bar.advance(task, future.result())
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return torch.from_numpy(out if readable.all() else out[readable]), np.asarray(indices)[readable]


def _pixels(source: ImageSource, index: int) -> int:
    try:
        with source.open(index) as image:  # reads the header alone
            return math.prod(image.size)
    except DECODE_ERRORS:
        return 0
