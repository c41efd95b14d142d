"""What a weights file is, by its first bytes: its name says little, and often nothing."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from numpy.typing import NDArray

from tlx.errors import WeightsError

SAVE = "torch.save(model.state_dict(), 'weights.pth')"
_SAVE_THERE = f"load it where it was made, and save the model there with {SAVE}"
_UNPACK = "unpack it, and pass the file that was in it"
_LISTED = 4  # names that a note or an error spells out before it counts
_SPELLED = 100  # characters of such a name; the longest in the zoo has 62
MAX_NAME = 1000  # characters of an array's name; looking for prefixes takes their square
MAX_INDEX = 64 << 20  # bytes of an index of weights; those of models of a trillion numbers have some megabytes

FileKind = Literal["safetensors", "index", "torch"]

# What else people call weights: its first bytes, its name, and what to do.
_FOREIGN: tuple[tuple[bytes, str, str], ...] = (
    (b"version https://git-lfs", "a pointer of Git LFS, not the file itself", "run `git lfs pull` there"),
    (b"\x1f\x8b", "compressed by gzip", "unpack it with gunzip, or tar if it is an archive"),
    (b"BZh", "compressed by bzip2", _UNPACK),
    (b"\xfd7zXZ", "compressed by xz", _UNPACK),
    (b"\x28\xb5\x2f\xfd", "compressed by zstd", _UNPACK),
    (b"7z\xbc\xaf", "a 7z archive", _UNPACK),
    (b"Rar!", "a RAR archive", _UNPACK),
    (b"\x89HDF", "an HDF5 file, as Keras writes it", f"convert it to the model in PyTorch, then {SAVE}"),
    (b"\x93NUMPY", "one array of NumPy", "pass a checkpoint, with an array for each name"),
    (b"GGUF", "a GGUF file", f"pass the original checkpoint, or {SAVE}"),
    (b"<", "a web page, not weights", "download the file itself; the page may ask to log in"),
)
_TAR = (257, b"ustar")
_TFLITE = (4, b"TFL3")


@dataclass(frozen=True, slots=True, eq=False)
class Checkpoint:
    """The arrays of a weights file by name, and notes on where in the file they were and what was passed over."""

    arrays: dict[str, NDArray[Any]]
    notes: tuple[str, ...] = ()


def some(names: Iterable[str]) -> str:
    """Return the first names, and how many more there are."""
    names = list(names)
    more = len(names) - _LISTED
    return ", ".join(map(spelled, names[:_LISTED])) + (f" and {more} more" if more > 0 else "")


def spelled(name: str) -> str:
    """Return a name as an error shows it: of one that is too long, its beginning and its end."""
    return name if len(name) <= _SPELLED else f"{name[: _SPELLED // 2]}...{name[-_SPELLED // 4 :]}"


def kind_of(path: Path, head: bytes, size: int) -> FileKind:
    """Return how to read a file, from its first 512 bytes and its size; its suffix decides where they are damaged.

    Raises:
        WeightsError: it is something else; the error says what, and what to do.
    """
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") <= size - 8:
        return "safetensors"
    if head.startswith((b"PK\x03\x04", b"\x80")):
        return "torch"
    if head.lstrip().startswith(b"{") and path.suffix != ".safetensors":
        return "index"
    for start, what, fix in _FOREIGN:
        if head.lstrip().startswith(start):
            raise WeightsError(f"{path}: {what}", fix=fix)
    if head[_TAR[0] :].startswith(_TAR[1]):
        raise WeightsError(f"{path}: a tar archive", fix=_UNPACK)
    if head[_TFLITE[0] :].startswith(_TFLITE[1]):
        raise WeightsError(f"{path}: a TensorFlow Lite model", fix=_SAVE_THERE)
    if path.suffix == ".onnx" or (head[:1] == b"\x08" and head[2:3] == b"\x12"):  # ir_version, producer_name
        raise WeightsError(f"{path}: an ONNX model", fix=_SAVE_THERE)
    if path.suffix in (".pb", ".index") or ".data-0000" in path.name or head.startswith(b"model_checkpoint_path"):
        raise WeightsError(f"{path}: a file of TensorFlow", fix=_SAVE_THERE)
    if path.suffix == ".safetensors":
        return "safetensors"
    if path.suffix in (".pth", ".pt"):
        return "torch"
    raise WeightsError(
        f"{path}: {'an empty file' if not size else 'unknown kind of weights'}; expected what torch.save writes, "
        "safetensors, or the folder of a finished run",
        fix=SAVE,
    )


def refuse_zip(names: Iterable[str]) -> tuple[str, str]:
    """Return what a zip archive is that torch.save did not write, and what to do."""
    names = list(names)
    if any(name.endswith("/constants.pkl") or "/code/" in name for name in names):
        return "a TorchScript archive, as torch.jit.save writes it", _SAVE_THERE
    if any(name.rpartition("/")[2] == "archive_format" for name in names):
        return "a program that torch.export saved", _SAVE_THERE
    if names and all(name.endswith(".npy") for name in names):
        return "an .npz file of NumPy", f"save the weights as safetensors, or with {SAVE}"
    if any(name.endswith(("model.weights.h5", "keras_metadata.pb", "saved_model.pb")) for name in names):
        return "a model of Keras or TensorFlow", f"convert it to the model in PyTorch, then {SAVE}"
    return f"a zip archive of {some(names) or 'nothing'}, but not of tensors: it has no data.pkl", _UNPACK


def shards(path: Path, text: bytes) -> list[Path]:
    """Return the files that an index lists, as Hugging Face cuts large checkpoints.

    Raises:
        WeightsError: it is no index, or lists what does not lie beside it.
    """
    try:
        names = set(json.loads(text)["weight_map"].values())
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        raise WeightsError(
            f"{path}: JSON, but no index of weights: it has no weight_map", fix="pass the weights themselves"
        ) from None
    if strange := [name for name in names if not isinstance(name, str) or Path(name).name != name]:
        raise WeightsError(f"{path}: lists {strange[0]!r}, which is no file beside it")
    missing = [name for name in sorted(names) if not (path.parent / name).is_file()]
    if missing:
        raise WeightsError(
            f"{path}: {len(missing)} of its {len(names)} files are missing: {some(missing)}",
            fix=f"put them into {path.parent}",
        )
    return [path.parent / name for name in sorted(names)]
