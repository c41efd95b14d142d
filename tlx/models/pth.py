"""Read PyTorch's .pth files, in both of its formats, with no framework and without running their pickle.

A pickle is a program for a small stack machine, and `pickle.Unpickler` lets it import, call and allocate. Here the
opcodes that a state dict needs are interpreted one by one: no name is ever imported, what may be called is the table
`_CALLS`, and every size is checked against the file. The names of the format that appear below are data of the file.
"""

from __future__ import annotations

import math
import pickletools
import struct
import warnings
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tlx.errors import WeightsError, WeightsNotFound

# torch/serialization.py: the numbers that open a file of the format before 1.6.
_LEGACY_MAGIC, _LEGACY_PROTOCOL = 0x1950A86A20F9469CFC6C, 1001
_MAX_DIMS, _MAX_ARGS = 16, 8  # torch's rebuild functions take at most seven
_NESTED = ("state_dict", "model_state_dict", "model")

_STORAGES = {
    "FloatStorage": "<f4",
    "DoubleStorage": "<f8",
    "HalfStorage": "<f2",
    "BFloat16Storage": "bfloat16",
    "LongStorage": "<i8",
    "IntStorage": "<i4",
    "ShortStorage": "<i2",
    "CharStorage": "|i1",
    "ByteStorage": "|u1",
    "BoolStorage": "|b1",
}

Buffers = Callable[["_Storage"], NDArray[Any]]


class Refused(ValueError):
    """What is wrong with the bytes; `read_pth` adds the file's name."""


@dataclass(frozen=True, slots=True)
class _Global:
    name: str


@dataclass(frozen=True, slots=True)
class _Storage:
    """A block of numbers of the file; a legacy file may also cut a window out of another block."""

    key: str
    dtype: str
    count: int
    offset: int = 0


@dataclass(frozen=True, slots=True)
class _Tensor:
    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


def widen_bfloat16(bits: NDArray[np.uint16]) -> NDArray[np.float32]:
    """Return bfloat16 numbers, given as their bits, as the float32 numbers they equal."""
    return (bits.astype(np.uint32) << np.uint32(16)).view(np.float32)


def read_pth(path: Path) -> dict[str, NDArray[Any]]:
    """Return the tensors of a .pth file as read-only arrays by name, looking into one of `_NESTED` where it is there.

    bfloat16 comes as float32; tensors that share memory in the file share it here.

    Raises:
        WeightsError: the file is missing, damaged or truncated, or holds anything but tensors in dictionaries.
    """
    try:
        data = path.read_bytes()
        with warnings.catch_warnings():
            # pickletools warns of a broken escape in a text, which only a damaged file has: what follows refuses it.
            warnings.simplefilter("ignore", DeprecationWarning)
            content, buffers = _read_zip(data) if data.startswith(b"PK\x03\x04") else _read_legacy(data)
        if not isinstance(content, dict):
            raise Refused("holds no dictionary of tensors; save the module's state_dict()")
        state = next((content[key] for key in _NESTED if isinstance(content.get(key), dict)), content)
        if strange := [str(name) for name, value in state.items() if not isinstance(value, _Tensor)]:
            raise Refused(f"{strange[0]!r} is not a tensor; save the module's state_dict() alone")
        return {str(name): _array(value, buffers(value.storage)) for name, value in state.items()}
    except (OSError, EOFError, ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RuntimeError,
            MemoryError, struct.error, zipfile.BadZipFile) as error:  # fmt: skip
        reason = " ".join(str(error).split()) or type(error).__name__
        if isinstance(error, FileNotFoundError):
            raise WeightsNotFound(f"{path}: no such file") from error
        if not isinstance(error, Refused | OSError):
            reason = f"damaged or not a .pth file ({reason})"
        raise WeightsError(f"{path}: {reason}") from error


def _array(tensor: _Tensor, block: NDArray[Any]) -> NDArray[Any]:
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


def _block(data: bytes | memoryview, storage: _Storage) -> NDArray[Any]:
    if storage.dtype == "bfloat16":
        block: NDArray[Any] = widen_bfloat16(np.frombuffer(data, "<u2", storage.count))
    else:
        block = np.frombuffer(data, storage.dtype, storage.count)
    block.flags.writeable = False
    return block


def _itemsize(dtype: str) -> int:
    return 2 if dtype == "bfloat16" else np.dtype(dtype).itemsize


# The two containers ------------------------------------------------------------------------------------------------


def _read_zip(data: bytes) -> tuple[Any, Buffers]:
    archive = zipfile.ZipFile(BytesIO(data))
    entries = {info.filename: info for info in archive.infolist()}
    pickles = [name for name in entries if name.count("/") == 1 and name.endswith("/data.pkl")]
    if len(pickles) != 1:
        raise Refused("a zip archive, but not of tensors: it has no data.pkl")
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

    def buffers(storage: _Storage) -> NDArray[Any]:
        if (block := blocks.get(storage.key)) is None:
            content = record(f"data/{storage.key}")
            if storage.count * _itemsize(storage.dtype) > len(content):
                raise Refused(f"storage {storage.key!r} declares {storage.count} numbers in {len(content)} bytes")
            block = blocks[storage.key] = _block(content, storage)
        return block

    return _interpret(BytesIO(record("data.pkl"))), buffers


def _read_legacy(data: bytes) -> tuple[Any, Buffers]:
    stream = BytesIO(data)
    if not data or _interpret(stream) != _LEGACY_MAGIC or _interpret(stream) != _LEGACY_PROTOCOL:
        raise Refused("empty or not a .pth file")
    if not _interpret(stream).get("little_endian"):
        raise Refused("written on a big-endian machine, which is not supported")
    declared: dict[str, _Storage] = {}
    content, keys = _interpret(stream, declared), _interpret(stream)
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

    def buffers(storage: _Storage) -> NDArray[Any]:
        if storage.key not in blocks:
            raise Refused(f"storage {storage.key!r} is missing")
        return blocks[storage.key][storage.offset : storage.offset + storage.count]

    return content, buffers


# The stack machine -------------------------------------------------------------------------------------------------


def _store(target: Any, items: list[Any]) -> None:
    """Set pairs in a dictionary. Tuples as keys are refused: hashing a nest of them can take for ever."""
    if not isinstance(target, dict) or len(items) % 2:
        raise Refused("the pickle sets items of something that is no dictionary")
    for key, value in zip(items[::2], items[1::2], strict=True):
        if not isinstance(key, str | int):
            raise Refused(f"a dictionary has a key of type {type(key).__name__}")
        target[key] = value


def _ordered_dict(*pairs: list[list[Any]]) -> dict[Any, Any]:
    """Python 2 hands over a list of pairs. It is emptied, so no file can build many dictionaries out of one list."""
    result: dict[Any, Any] = {}
    for listed in pairs:
        for key, value in listed:
            _store(result, [key, value])
        listed.clear()
    return result


def _tensor(storage: Any, offset: Any, shape: Any, strides: Any, *_: Any) -> _Tensor:
    if not isinstance(storage, _Storage) or len(shape) != len(strides) or len(shape) > _MAX_DIMS:
        raise Refused("a tensor is declared without a storage or with unfit strides")
    numbers = (offset, *shape, *strides)
    if not all(type(number) is int and number >= 0 for number in numbers):
        raise Refused("a tensor declares a negative or broken size")
    return _Tensor(storage, offset, tuple(shape), tuple(strides))


_CALLS: dict[str, Callable[..., Any]] = {
    "collections OrderedDict": _ordered_dict,
    "torch._utils _rebuild_tensor": _tensor,
    "torch._utils _rebuild_tensor_v2": _tensor,
    "torch._utils _rebuild_parameter": lambda data, *_: data,
}


def _global(name: str) -> _Global:
    module, _, attribute = name.partition(" ")
    if name in _CALLS or (module in ("torch", "torch.cuda") and attribute in _STORAGES):
        return _Global(name)
    raise Refused(
        f"refused, because its pickle asks for {name.replace(' ', '.')!r}; only tensors in dictionaries are read. "
        "If you trust the file, save its state_dict() alone or as .safetensors"
    )


def _persistent(pid: Any, declared: dict[str, _Storage]) -> _Storage:
    """Read ``("storage", type, key, location, count)``; legacy adds a window ``(key, offset, count)`` or None."""
    if not isinstance(pid, tuple) or not 5 <= len(pid) <= 6 or pid[0] != "storage" or not isinstance(pid[1], _Global):
        raise Refused("refused, because it holds a pickled module and not only tensors; save its state_dict()")
    _, kind, key, _, count, *rest = pid
    if type(count) is not int or count < 0 or kind.name in _CALLS or not isinstance(key, str):
        raise Refused("a storage declares a negative or broken size")
    storage = _Storage(key, _STORAGES[kind.name.partition(" ")[2]], count)
    if declared.setdefault(key, storage) != storage:
        raise Refused(f"storage {key!r} is declared twice in different ways")
    if not rest or rest[0] is None:
        return storage
    _, offset, size = rest[0]
    if type(offset) is not int or type(size) is not int or not 0 <= offset <= offset + size <= count:
        raise Refused(f"a window reaches beyond its storage {key!r}")
    return _Storage(key, storage.dtype, size, offset)


def _fit(args: Any) -> bool:
    return isinstance(args, tuple) and len(args) <= _MAX_ARGS


_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_LITERALS = {
    *("BININT", "BININT1", "BININT2", "LONG1", "LONG4", "BINFLOAT"),
    *("BINUNICODE", "SHORT_BINUNICODE", "BINSTRING", "SHORT_BINSTRING"),
}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


def _interpret(stream: BytesIO, declared: dict[str, _Storage] | None = None) -> Any:
    """Run one pickle up to its STOP and return what is on top of the stack."""
    declared = {} if declared is None else declared
    stack: list[Any] = []
    below: list[list[Any]] = []  # the stacks under each open MARK
    memo: dict[int, Any] = {}
    arg: Any
    for op, arg, _ in pickletools.genops(stream):
        name = op.name
        if name in _LITERALS:
            stack.append(arg)
        elif name in _CONSTANTS:
            stack.append(_CONSTANTS[name])
        elif name in ("BINPUT", "LONG_BINPUT"):
            memo[arg] = stack[-1]
        elif name == "MEMOIZE":
            memo[len(memo)] = stack[-1]
        elif name in ("BINGET", "LONG_BINGET"):
            stack.append(memo[arg])
        elif name == "MARK":
            below.append(stack)
            stack = []
        elif name in ("TUPLE", "APPENDS", "SETITEMS"):
            items, stack = stack, below.pop()
            if name == "TUPLE":
                stack.append(tuple(items))
            elif name == "APPENDS":
                stack[-1].extend(items)
            else:
                _store(stack[-1], items)
        elif name in _TUPLES:
            count = _TUPLES[name]
            if len(stack) < count:
                raise Refused("damaged: its pickle takes more than it has")
            stack[-count:] = [tuple(stack[-count:])]
        elif name == "APPEND":
            item = stack.pop()
            stack[-1].append(item)
        elif name == "SETITEM":
            value, key = stack.pop(), stack.pop()
            _store(stack[-1], [key, value])
        elif name == "EMPTY_TUPLE":
            stack.append(())
        elif name == "EMPTY_LIST":
            stack.append([])
        elif name == "EMPTY_DICT":
            stack.append({})
        elif name == "GLOBAL":
            stack.append(_global(arg))
        elif name == "STACK_GLOBAL":
            attribute, module = stack.pop(), stack.pop()
            if not isinstance(module, str) or not isinstance(attribute, str):
                raise Refused("damaged: its pickle names something by a thing that is no text")
            stack.append(_global(f"{module} {attribute}"))
        elif name == "BINPERSID":
            stack.append(_persistent(stack.pop(), declared))
        elif name == "REDUCE":
            args, function = stack.pop(), stack.pop()
            if not isinstance(function, _Global) or function.name not in _CALLS or not _fit(args):
                raise Refused("refused, because its pickle calls something that builds no tensor")
            stack.append(_CALLS[function.name](*args))
        elif name == "BUILD":
            stack.pop()  # attributes of a dictionary, such as its `_metadata`
            if not isinstance(stack[-1], dict):
                raise Refused("refused, because its pickle sets attributes of something that is no dictionary")
        elif name == "STOP":
            return stack.pop()
        elif name not in ("PROTO", "FRAME"):
            raise Refused(f"refused, because its pickle uses {name}, which no dictionary of tensors needs")
    raise Refused("damaged: its pickle does not end")
