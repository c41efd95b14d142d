"""Read what torch.save wrote, in both of its formats, with no framework and without running its pickle.

`tlx.models.unpickle` interprets the pickle; here are the two containers, whose every size is checked against the file,
and the search for the weights among what else people save beside them.
"""

from __future__ import annotations

import math
import struct
import warnings
import zipfile
from collections.abc import Callable, Iterator
from io import BytesIO
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tlx.errors import WeightsError, WeightsNotFound
from tlx.models.formats import MAX_NAME, SAVE, Checkpoint, refuse_zip, some
from tlx.models.unpickle import Opaque, Refused, Storage, Tensor, interpret

# torch/serialization.py: the numbers that open a file of the format before 1.6.
_LEGACY_MAGIC, _LEGACY_PROTOCOL = 0x1950A86A20F9469CFC6C, 1001
_MAX_DEPTH = 32  # of modules or dictionaries within each other; the paths to all are kept, so it is quadratic
_MAX_ENTRIES = 10**5  # of all modules of a pickled one, which may share a few; the largest of the zoo have some 10,000

# Where people keep the weights, the first first. Averages come behind the weights that they are averages of.
NESTED = (
    *("state_dict", "model_state_dict", "model_state", "model", "net", "network", "module", "weights", "params"),
    *("model_ema", "state_dict_ema", "ema_state_dict", "params_ema", "ema", "teacher", "student"),
)

Buffers = Callable[[Storage], NDArray[Any]]
Content = tuple[Any, Buffers, list[str]]  # the last: classes and functions that were not built


def widen_bfloat16(bits: NDArray[np.uint16]) -> NDArray[np.float32]:
    """Return bfloat16 numbers, given as their bits, as the float32 numbers they equal."""
    return (bits.astype(np.uint32) << np.uint32(16)).view(np.float32)


def read_pth(path: Path) -> Checkpoint:
    """Return the tensors of a file of torch.save as read-only arrays by name, from where in it the weights are.

    bfloat16 comes as float32; tensors that share memory in the file share it here. A pickled module gives its
    parameters and buffers. Everything else in the file is passed over, and a note counts it.

    Raises:
        WeightsError: the file is missing, damaged or truncated, or holds no tensors.
    """
    try:
        data = path.read_bytes()
        with warnings.catch_warnings():
            # pickletools warns of a broken escape in a text, which only a damaged file has: what follows refuses it.
            warnings.simplefilter("ignore", DeprecationWarning)
            content, buffers, unknown = _read_zip(data) if data.startswith(b"PK\x03\x04") else _read_legacy(data)
        state, notes = _find_weights(content, unknown)
        tensors = {str(name): value for name, value in state.items() if isinstance(value, Tensor)}
        arrays = {name: _array(value, buffers(value.storage)) for name, value in tensors.items()}
        return Checkpoint(arrays, tuple(f"{path.name}: {note}" for note in notes))
    except (OSError, EOFError, ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RuntimeError,
            MemoryError, struct.error, zipfile.BadZipFile) as error:  # fmt: skip
        reason = " ".join(str(error).split()) or type(error).__name__
        if isinstance(error, FileNotFoundError):
            raise WeightsNotFound(f"{path}: no such file") from error
        if not isinstance(error, Refused | OSError):
            reason = f"damaged or not a .pth file ({reason})"
        raise WeightsError(f"{path}: {reason}", fix=error.fix if isinstance(error, Refused) else "") from error


# Where the weights are --------------------------------------------------------------------------------------------


def _find_weights(content: Any, unknown: list[str]) -> tuple[dict[Any, Any], list[str]]:
    """Return the dictionary that holds the weights, and what to say of the rest."""
    places = _dictionaries_of_tensors(content)
    if not places:
        holds = some(f"{key!r} ({_kind(value)})" for key, value in _entries(content).items()) or _kind(content)
        raise Refused(f"holds no dictionary of tensors; it holds {holds}", f"save the weights alone, with {SAVE}")
    order = sorted(places, key=lambda place: (_rank(place), -_count(places[place])))
    chosen, state = order[0], places[order[0]]
    notes = []
    rivals = [place for place in order[1:] if 2 * _count(places[place]) >= _count(state) and not _of_optimizer(place)]
    if rivals:
        also = some(repr(".".join(place)) if place else "the top" for place in rivals)
        notes.append(f"the weights are those under {'.'.join(chosen) or 'the top'!r}; it also has some under {also}")
    others = [str(key) for key in _entries(content) if chosen and str(key) != chosen[0]]
    if others:
        notes.append(f"{len(others)} entries beside {'.'.join(chosen)!r} are passed over: {some(others)}")
    strange = [f"{key} ({_kind(value)})" for key, value in state.items() if not isinstance(value, Tensor)]
    if strange:
        notes.append(f"{len(strange)} entries are no tensors and are passed over: {some(strange)}")
    if unknown:
        notes.append(f"Python objects in it are not built: {some(unknown)}")
    return state, notes


def _dictionaries_of_tensors(content: Any) -> dict[tuple[str, ...], dict[Any, Any]]:
    """Return every dictionary that holds tensors, by the keys that lead to it."""
    visits = count()
    places: dict[tuple[str, ...], dict[Any, Any]] = {}
    queue: list[tuple[tuple[str, ...], Any]] = [((), content)]
    visited: set[int] = set()  # an object may lie in many places, or within itself
    for place, value in queue:
        if id(value) in visited:
            continue
        visited.add(id(value))
        entries = _entries(value, visits)
        if _count(entries):
            places[place] = entries
        if len(place) < _MAX_DEPTH:
            queue += [((*place, str(k)), v) for k, v in entries.items() if isinstance(v, dict | Opaque)]
    return places


def _rank(place: tuple[str, ...]) -> list[int]:
    unknown = len(NESTED)
    optimizer = [2 * unknown] if _of_optimizer(place) else []
    return optimizer + ([NESTED.index(key) if key in NESTED else unknown for key in place] or [unknown])


def _of_optimizer(place: tuple[str, ...]) -> bool:
    return any("optim" in key.lower() for key in place)


def _count(entries: dict[Any, Any]) -> int:
    return sum(isinstance(value, Tensor) for value in entries.values())


def _kind(value: Any) -> str:
    return value.name if isinstance(value, Opaque) else type(value).__name__.lower()


def _entries(value: Any, visits: Iterator[int] | None = None) -> dict[Any, Any]:
    """Return what a dictionary, or an object that was not built, holds: a module its parameters and buffers."""
    if not isinstance(value, Opaque):
        return value if isinstance(value, dict) else {}
    is_module = isinstance(value.entries.get("_modules"), dict)
    return _state_of_module(value, visits or count()) if is_module else value.entries


def _state_of_module(module: Opaque, visits: Iterator[int]) -> dict[Any, Any]:
    """Return what the state_dict() of a pickled module would be, as torch.nn.Module keeps it in its attributes."""
    state: dict[Any, Any] = {}
    stack: list[tuple[str, Opaque]] = [("", module)]
    while stack:
        prefix, owner = stack.pop()
        if prefix.count(".") > _MAX_DEPTH or len(prefix) > MAX_NAME:
            raise Refused("holds too many modules within modules")
        kept_out = owner.entries.get("_non_persistent_buffers_set")
        skipped = kept_out.entries if isinstance(kept_out, Opaque) else {}
        for kind in ("_parameters", "_buffers"):
            tensors = owner.entries.get(kind)
            for name, tensor in _counted(tensors, visits):
                if isinstance(tensor, Tensor) and name not in skipped:
                    state[f"{prefix}{name}"] = tensor
        inner = _counted(owner.entries.get("_modules"), visits)
        stack += reversed([(f"{prefix}{name}.", child) for name, child in inner if isinstance(child, Opaque)])
    return state


def _counted(entries: Any, visits: Iterator[int]) -> Iterator[tuple[Any, Any]]:
    """Yield the items of a dictionary while there are not too many in all: a few kilobytes can share theirs often."""
    for name, value in entries.items() if isinstance(entries, dict) else ():
        if next(visits) > _MAX_ENTRIES or (isinstance(name, str) and len(name) > MAX_NAME):
            raise Refused("holds too many modules within modules, or too long names")
        yield name, value


def _array(tensor: Tensor, block: NDArray[Any]) -> NDArray[Any]:
    shape, strides = tensor.shape, tensor.strides
    size = math.prod(shape)
    last = tensor.offset + sum((n - 1) * step for n, step in zip(shape, strides, strict=True)) if size else 0
    # A stride of zero would let a few bytes declare any size, so a tensor may not outgrow its storage.
    if size > block.size or last >= max(block.size, 1):
        raise Refused(f"a tensor of shape {list(shape)} reaches beyond its storage of {block.size} numbers")
    if not size:
        return np.empty(shape, block.dtype)
    window = block[tensor.offset :]
    return np.lib.stride_tricks.as_strided(
        window, shape, tuple(step * block.itemsize for step in strides), writeable=False
    )


def _block(data: bytes | memoryview, storage: Storage) -> NDArray[Any]:
    if storage.dtype == "bfloat16":
        block: NDArray[Any] = widen_bfloat16(np.frombuffer(data, "<u2", storage.count))
    else:
        block = np.frombuffer(data, storage.dtype, storage.count)
    block.flags.writeable = False
    return block


def _itemsize(dtype: str) -> int:
    return 2 if dtype == "bfloat16" else np.dtype(dtype).itemsize


# The two containers -----------------------------------------------------------------------------------------------


def _read_zip(data: bytes) -> Content:
    archive = zipfile.ZipFile(BytesIO(data))
    entries = {info.filename: info for info in archive.infolist()}
    pickles = [name for name in entries if name.count("/") == 1 and name.endswith("/data.pkl")]
    if len(pickles) != 1 or any(name.endswith("/constants.pkl") for name in entries):
        raise Refused(*refuse_zip(entries))
    if len(entries) != len(archive.infolist()):
        raise Refused("holds two records of one name, so readers would disagree about its content")
    root = pickles[0].removesuffix("data.pkl")
    if sum(info.file_size for info in entries.values()) > len(data):
        raise Refused("declares more data than the file holds")

    def record(name: str) -> bytes:
        info = entries.get(root + name)
        if info is None:
            raise Refused(f"record {name!r} is missing")
        if info.compress_type != zipfile.ZIP_STORED or info.compress_size != info.file_size:
            raise Refused(f"record {name!r} is compressed, which the format forbids")
        return archive.read(info)

    if root + "byteorder" in entries and record("byteorder") != b"little":
        raise Refused("written on a big-endian machine, which is not supported")
    blocks: dict[str, NDArray[Any]] = {}

    def buffers(storage: Storage) -> NDArray[Any]:
        if (block := blocks.get(storage.key)) is None:
            content = record(f"data/{storage.key}")
            if storage.count * _itemsize(storage.dtype) > len(content):
                raise Refused(f"storage {storage.key!r} declares {storage.count} numbers in {len(content)} bytes")
            block = blocks[storage.key] = _block(content, storage)
        return block

    unknown: dict[str, None] = {}
    return interpret(BytesIO(record("data.pkl")), {}, unknown), buffers, list(unknown)


def _read_legacy(data: bytes) -> Content:
    stream = BytesIO(data)
    declared: dict[str, Storage] = {}
    unknown: dict[str, None] = {}

    def read() -> Any:
        return interpret(stream, declared, unknown)

    if not data or read() != _LEGACY_MAGIC or read() != _LEGACY_PROTOCOL:
        raise Refused("empty, or a pickle that torch.save did not write", f"save the weights with {SAVE}")
    if not read().get("little_endian"):
        raise Refused("written on a big-endian machine, which is not supported")
    content, keys = read(), read()
    blocks: dict[str, NDArray[Any]] = {}
    for key in keys:
        (count,) = struct.unpack("<q", stream.read(8))
        if (storage := declared.get(key)) is None:
            raise Refused(f"storage {key!r} belongs to no tensor")
        start, size = stream.tell(), count * _itemsize(storage.dtype)
        if count != storage.count or not 0 <= size <= len(data) - start:
            raise Refused(f"storage {key!r} declares {count} numbers, but the file ends before them")
        blocks[key] = _block(memoryview(data)[start : start + size], storage)
        stream.seek(size, 1)

    def buffers(storage: Storage) -> NDArray[Any]:
        if storage.key not in blocks:
            raise Refused(f"storage {storage.key!r} is missing")
        return blocks[storage.key][storage.offset : storage.offset + storage.count]

    return content, buffers, list(unknown)
