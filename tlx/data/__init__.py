"""Data sets, their geometry, and the batches made of them."""

from tlx.data.augment import Augment, Geometry
from tlx.data.images import ArrayImages, FileImages, Images
from tlx.data.load import SOURCES, Data, load_data
from tlx.data.loader import Loader

__all__ = ["SOURCES", "ArrayImages", "Augment", "Data", "FileImages", "Geometry", "Images", "Loader", "load_data"]
