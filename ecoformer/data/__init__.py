"""Data sets as loaders of normalised batches: `build_data` is the door."""

from ecoformer.data.decode import ImageSource
from ecoformer.data.loader import BatchLoader
from ecoformer.data.module import DataModule, build_data

__all__ = ["BatchLoader", "DataModule", "ImageSource", "build_data"]
