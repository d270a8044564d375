"""The images of a folder as WebDataset shards."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path


def add(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    entry = tarfile.TarInfo(name)
    entry.size = len(content)
    archive.addfile(entry, io.BytesIO(content))


def write_shards(split: Path, out: Path, name: str, num_shards: int, **options: object) -> list[Path]:
    """out/NAME-0.tar, ... with all images of split/CLASS/*, in order, and their class numbers."""
    out.mkdir(parents=True, exist_ok=True)
    classes = sorted(path.name for path in split.iterdir())
    samples = [(path, label) for label, folder in enumerate(classes) for path in sorted((split / folder).iterdir())]
    paths = []
    for shard in range(num_shards):
        start, stop = (len(samples) * edge // num_shards for edge in (shard, shard + 1))
        paths.append(out / f"{name}-{shard}.tar")
        with tarfile.open(paths[-1], "w", **options) as archive:  # type: ignore[call-overload]
            for path, label in samples[start:stop]:
                key = f"{path.parent.name}_{path.stem}"
                add(archive, f"{key}{path.suffix}", path.read_bytes())
                add(archive, f"{key}.cls", str(label).encode())
    return paths
