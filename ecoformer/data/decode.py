"""One image file to one uint8 array: the evaluation resize, every mode of PIL turned into RGB, and broken files.

Each that cannot be decoded is reported once by name, and more than a limit of them end the run.

Shape suffixes: B images, S side of the square output in pixels.
"""

import functools
import logging
import math
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
from PIL import Image
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from ecoformer.errors import InputError, one_line

log = logging.getLogger(__name__)
T = TypeVar("T")
CHUNK = 256
THREADED_ABOVE_PIXELS = 64 * 64  # below, threads wait for the interpreter lock longer than they decode
PROGRESS_ABOVE_IMAGES = 2000
LUMA = (0.299, 0.587, 0.114)  # of red, green and blue (ITU-R BT.601), as Pillow and Long Range Arena have it
CROP_FIRST_PIXELS = 2**24  # of a resized image: above, only what the crop keeps of it is computed


class CorruptImage(InputError):
    """One image cannot be decoded, or not be read; `name` is its path, `reason` what the decoder or the system says."""

    def __init__(self, name: str, fault: Exception) -> None:
        unread = fault.strerror if isinstance(fault, OSError) else None  # a decoder's has none
        self.name, self.reason = name, unread or one_line(fault)
        super().__init__(
            f"{name} cannot be decoded ({self.reason}): repair or remove the file"
            if unread is None
            else f"{name} cannot be read ({unread}): correct its permissions, or what it lies on"
        )


class CorruptImages:
    """The broken images that this process has met, over all its loaders and epochs.

    Args:
        limit: of different images (data.max_corrupt); 0: the first one ends the run.
    """

    def __init__(self, limit: int = 0) -> None:
        self.limit = limit
        self.names: set[str] = set()
        self._lock = threading.Lock()

    def add(self, name: str, message: str) -> None:
        """Count and log an image that was not met before. Raises InputError above the limit."""
        with self._lock:
            if name in self.names:
                return
            self.names.add(name)
            count = len(self.names)
        if count > self.limit:
            excess = f"; {count} such images are more than data.max_corrupt={self.limit}" if self.limit else ""
            raise InputError(f"{message}{excess}")
        log.warning("%s; skipped, %d of at most data.max_corrupt=%d", message, count, self.limit)


class ImageSource(Protocol):
    """A labelled list of images that are opened one at a time."""

    def __len__(self) -> int: ...

    def open(self, index: int) -> Image.Image: ...

    def name(self, index: int) -> str:
        """What to call the image in a message: its path where it has one."""
        ...


def to_rgb(image: Image.Image) -> Image.Image:
    """RGB from any mode: palettes are looked up, transparency is composed, whole numbers of 16 and 32 bits scaled.

    Their range is the smallest even number of bits, from 8 on, that holds the image's largest value. Raises ValueError
    for pixels without a known range.
    """
    if image.mode == "F":
        raise ValueError("floating-point pixels have no known range")
    if image.mode.startswith("I"):  # PIL clips these at 255 when it converts them
        grey = np.asarray(image).astype(np.int64)
        if grey.min() < 0:
            raise ValueError(f"pixels down to {grey.min()} have no known range")
        bits = max(8, int(grey.max()).bit_length())
        return Image.fromarray((grey >> (bits + bits % 2 - 8)).astype(np.uint8)).convert("RGB")
    if "transparency" in image.info or image.mode in ("RGBA", "LA", "PA", "RGBa", "La"):
        return _composed(image.convert("RGBA"))
    return image if image.mode == "RGB" else image.convert("RGB")


def _composed(image: Image.Image) -> Image.Image:
    """RGBA on white, or on black where white would leave nothing to be seen."""
    if image.getchannel("A").getextrema() == (255, 255):
        return image.convert("RGB")
    for colour in ("white", "black"):
        composed = Image.alpha_composite(Image.new("RGBA", image.size, colour), image).convert("RGB")
        if not is_constant(composed):
            break
    return composed


def grey(pixels_3SS: torch.Tensor) -> torch.Tensor:
    """uint8 colours (..., 3, S, S) to grey values (..., 1, S, S); what is grey stays as it is."""
    return (pixels_3SS * torch.tensor(LUMA).view(3, 1, 1)).sum(-3, keepdim=True).round().to(torch.uint8)


def is_constant(image: Image.Image) -> bool:
    """Whether all pixels of an RGB image are the same."""
    return all(low == high for low, high in image.getextrema())  # type: ignore[misc]


def decoded(image: Image.Image) -> Image.Image:
    """RGB of an image that was opened. Raises ValueError for pixels without a known range."""
    cut = image.mode != "F" and any(";16" in str(tile[3]) for tile in getattr(image, "tile", ()))
    image.load()
    rgb = to_rgb(image)
    # Of 16-bit colours PIL keeps the upper 8 bits; 12-bit values would be next to black.
    if cut and not image.mode.startswith("I") and max(high for _, high in rgb.getextrema()) < 16:  # type: ignore[misc]
        raise ValueError("its 16-bit colours hold values below 4096 only: convert it to 8 bits")
    return rgb


@functools.cache
def jpeg_decoder() -> Callable[[bytes], Any] | None:
    """TorchCodec's, where it is installed and fits this torch: the pixels of Pillow in less time."""
    try:
        from torchcodec.decoders import decode_jpeg
    except Exception:  # its libraries fail in their own ways beside a torch that they were not made for
        return None
    return decode_jpeg


def decoded_pixels(image: Image.Image) -> torch.Tensor:
    """As `decoded`, to a uint8 tensor (3, H, W); JPEGs by `jpeg_decoder` if there is one."""
    file, decode = getattr(image, "fp", None), jpeg_decoder()
    # It would turn what EXIF says is turned, as neither Pillow nor timm does.
    if decode and file is not None and image.format == "JPEG" and image.mode == "RGB" and "exif" not in image.info:
        file.seek(0)
        with suppress(Exception):  # it refuses some files that Pillow reads, and Pillow says better what is wrong
            pixels: torch.Tensor = decode(file.read())
            return pixels
    return torch.from_numpy(np.array(decoded(image))).permute(2, 0, 1)


def read_image(source: ImageSource, index: int, transform: Callable[[Image.Image], T]) -> T:
    """One picture's whole way: opened, decoded, made RGB, transformed. Raises as `read_opened`."""
    return read_opened(source, index, lambda image: transform(decoded(image)))


def read_opened(source: ImageSource, index: int, transform: Callable[[Image.Image], T]) -> T:
    """What a transform that decodes makes of an image.

    Raises CorruptImage (an InputError) naming the file for whatever goes wrong with it.
    """
    try:
        with source.open(index) as image:
            return transform(image)
    # Files of others reach every corner of PIL's decoders, and a transform may ask for more memory than there is.
    except Exception as fault:
        raise CorruptImage(source.name(index), fault) from fault


@dataclass(frozen=True)
class EvalTransform:
    """Resize the shorter side to floor(S / crop_pct), then take the central S x S square (as timm evaluates).

    With `in_chans` 1 images are made grey before that, with 3 (C below) they stay in RGB.
    """

    img_size: int
    crop_pct: float
    interpolation: str
    in_chans: int = 3

    def __call__(self, image: Image.Image) -> torch.Tensor:
        """Image of any size, decoded or only opened -> uint8 tensor (C, S, S)."""
        return torch.from_numpy(self.array(decoded(image)).transpose(2, 0, 1).copy())

    def array(self, image: Image.Image) -> np.ndarray:
        """RGB image of any size -> uint8 array (S, S, C), which may be a view of the image."""
        pixels = np.asarray(self._square(image.convert("L") if self.in_chans == 1 else image))
        return pixels.reshape(*pixels.shape[:2], self.in_chans)

    def _square(self, image: Image.Image) -> Image.Image:
        side, size = self.img_size, self.resized(image.size)
        left, top = (round((length - side) / 2.0) for length in size)
        box = (left, top, left + side, top + side)
        if math.prod(size) > CROP_FIRST_PIXELS:
            scales = (image.width / size[0], image.height / size[1]) * 2
            west, north, east, south = (edge * scale for edge, scale in zip(box, scales, strict=True))
            method = Image.Resampling[self.interpolation.upper()]
            return image.resize((side, side), method, box=(west, north, east, south))
        if size != image.size:
            image = image.resize(size, Image.Resampling[self.interpolation.upper()])
        return image if size == (side, side) else image.crop(box)

    def resized(self, size: tuple[int, int]) -> tuple[int, int]:
        """Width and height before the crop. Raises ValueError beyond the size that PIL reads (a 8000 x 1 strip)."""
        short = math.floor(self.img_size / self.crop_pct)
        width, height = size
        out = (short, int(short * height / width)) if width <= height else (int(short * width / height), short)
        if Image.MAX_IMAGE_PIXELS is not None and math.prod(out) > 2 * Image.MAX_IMAGE_PIXELS:
            raise ValueError(
                f"{width} x {height} px, whose shorter side resized to {short} px makes {out[0]} x {out[1]}"
            )
        return out


def decode_images(
    source: ImageSource,
    indices: Sequence[int] | np.ndarray,
    transform: EvalTransform,
    *,
    threads: int = 1,
    progress: str | None = None,
    corrupt: CorruptImages | None = None,
) -> tuple[torch.Tensor, np.ndarray]:
    """Decode the chosen images once into a uint8 tensor (B, C, S, S), and say which of `indices` they are.

    Args:
        corrupt: counts the broken images that are left out; None: the first one ends the run.
        threads: used where the images are large enough for threads to help (PIL releases the interpreter
            lock inside its decoders and its resize).
        progress: label of a progress bar on a terminal's standard error; None: no bar.
    """
    size = transform.img_size
    corrupt = corrupt or CorruptImages()
    out = np.empty((len(indices), transform.in_chans, size, size), dtype=np.uint8)
    readable = np.ones(len(indices), dtype=bool)

    def decode_chunk(start: int) -> int:
        stop = min(start + CHUNK, len(indices))
        for position in range(start, stop):
            try:
                out[position] = read_image(source, int(indices[position]), transform.array).transpose(2, 0, 1)
            except CorruptImage as fault:
                readable[position] = False
                corrupt.add(fault.name, str(fault))
        return stop - start

    console = Console(stderr=True)
    shown = progress is not None and console.is_terminal and len(indices) > PROGRESS_ABOVE_IMAGES
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    if len(indices) and _pixels(source, int(indices[0])) <= THREADED_ABOVE_PIXELS:
        threads = 1
    with Progress(*columns, console=console, disable=not shown) as bar, ThreadPoolExecutor(max(1, threads)) as pool:
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
    except Exception:  # it is named when it is read
        return 0
