"""Data sets, their augmentation, and the batches made of them."""

from tlx.data.augment import OPS, Augment, Draws
from tlx.data.images import ArrayImages, FileImages, Images
from tlx.data.load import SOURCES, Data, load_data
from tlx.data.loader import Loader
from tlx.data.op import Op

__all__ = [
    "OPS",
    "SOURCES",
    "ArrayImages",
    "Augment",
    "Data",
    "Draws",
    "FileImages",
    "Images",
    "Loader",
    "Op",
    "load_data",
]
