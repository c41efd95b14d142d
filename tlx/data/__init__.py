"""Data sets, their augmentation, and the batches made of them."""

from tlx.data.augment import OPS, Augment, Draws
from tlx.data.images import ArrayImages, FileImages, Images
from tlx.data.load import Data, load_data
from tlx.data.loader import Loader
from tlx.data.op import Op
from tlx.data.sources.registry import KINDS
from tlx.data.sources.source import DataLike, Kind, Source

__all__ = [
    "KINDS",
    "OPS",
    "ArrayImages",
    "Augment",
    "Data",
    "DataLike",
    "Draws",
    "FileImages",
    "Images",
    "Kind",
    "Loader",
    "Op",
    "Source",
    "load_data",
]
