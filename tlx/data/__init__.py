"""Data sets, their geometry, and the batches made of them."""

from tlx.data.images import ArrayImages, FileImages, Images
from tlx.data.loader import Loader
from tlx.data.sources import SOURCES, Data, load
from tlx.data.transforms import Augment, Geometry

__all__ = ["SOURCES", "ArrayImages", "Augment", "Data", "FileImages", "Geometry", "Images", "Loader", "load"]
