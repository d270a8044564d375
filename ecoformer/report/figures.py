"""Writing figures without a display and without leaving half a file."""

from __future__ import annotations

from pathlib import Path

from matplotlib.figure import Figure

from ecoformer.files import atomic_write


def save_figure(figure: Figure, out: Path, dpi: int = 150) -> None:
    """Write a PNG atomically. A `Figure` of its own needs no pyplot, no backend and no display."""
    with atomic_write(out) as file:
        figure.savefig(file, format="png", dpi=dpi)
