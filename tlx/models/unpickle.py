"""Read a pickle as the data that it is: dictionaries, tensors, and inert stand-ins for every other object.

A pickle is a program for a small stack machine, and `pickle.Unpickler` lets it import, call and allocate. Here its
opcodes are interpreted one by one: no name is ever imported, what may be called is the table `_CALLS`, and whatever
else the program would build becomes an `Opaque`. The names of torch that appear below are data of the file.
"""

from __future__ import annotations

import pickletools
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from io import BytesIO
from typing import Any

_MAX_DIMS, _MAX_ARGS = 16, 8  # torch's rebuild functions take at most seven
_MAX_BITS = 4096  # of an integer, whose every use takes time with its length; torch's own have up to 77

STORAGES = {
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
    "ComplexFloatStorage": "<c8",
    "ComplexDoubleStorage": "<c16",
}


class Refused(ValueError):
    """What is wrong with the bytes, and what mends it; the reader adds the file's name."""

    def __init__(self, problem: str, fix: str = "") -> None:
        super().__init__(problem)
        self.fix = fix


@dataclass(frozen=True, slots=True)
class Global:
    """A name of a module that the format itself uses: a kind of storage, or one of `_CALLS`."""

    name: str


@dataclass(slots=True, eq=False)
class Opaque:
    """A Python object that is not built: the name of its class or function, and what the pickle would put into it."""

    name: str
    entries: dict[Any, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Storage:
    """A block of numbers of the file; a legacy file may also cut a window out of another block."""

    key: str
    dtype: str
    count: int
    offset: int = 0


@dataclass(frozen=True, slots=True)
class Tensor:
    """A view of a storage."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


def _store(target: Any, items: list[Any]) -> None:
    """Set pairs in a dictionary. A key that is neither text nor number is but counted: to hash a nest can take ages."""
    entries = target.entries if isinstance(target, Opaque) else target
    if not isinstance(entries, dict) or len(items) % 2:
        raise Refused("the pickle sets items of something that is no dictionary")
    for key, value in zip(items[::2], items[1::2], strict=True):
        entries[key if isinstance(key, str | int) else f"<a {_name(key)}>"] = value


def _ordered_dict(*pairs: list[list[Any]]) -> dict[Any, Any]:
    """Python 2 hands over a list of pairs. It is emptied, so no file can build many dictionaries out of one list."""
    result: dict[Any, Any] = {}
    for listed in pairs:
        for key, value in listed:
            _store(result, [key, value])
        listed.clear()
    return result


def _set(*items: list[Any]) -> Opaque:
    names = [item for listed in items for item in listed if isinstance(item, str)]
    for listed in items:
        listed.clear()
    return Opaque("set", dict.fromkeys(names))


def _tensor(storage: Any, offset: Any, shape: Any, strides: Any, *_: Any) -> Tensor | Opaque:
    if isinstance(storage, Opaque):
        return storage  # of a kind that NumPy lacks
    if not isinstance(storage, Storage) or len(shape) != len(strides) or len(shape) > _MAX_DIMS:
        raise Refused("a tensor is declared without a storage or with unfit strides")
    numbers = (offset, *shape, *strides)
    if not all(type(number) is int and number >= 0 for number in numbers):
        raise Refused("a tensor declares a negative or broken size")
    return Tensor(storage, offset, tuple(shape), tuple(strides))


def _subclass(function: Any, kind: Any, args: Any, *_: Any) -> Any:
    """A tensor of a class of its own, or with attributes: the tensor alone."""
    known = isinstance(function, Global) and function.name in _TENSORS
    return _call(function, args) if known else Opaque(_name(kind))


_TENSORS = ("torch._utils _rebuild_tensor", "torch._utils _rebuild_tensor_v2")
_CALLS: dict[str, Callable[..., Any]] = {
    "collections OrderedDict": _ordered_dict,
    "collections defaultdict": lambda *_: {},
    "builtins set": _set,
    "__builtin__ set": _set,
    **dict.fromkeys(_TENSORS, _tensor),
    "torch._utils _rebuild_parameter": lambda data, *_: data,
    "torch._utils _rebuild_parameter_with_state": lambda data, *_: data,
    "torch._tensor _rebuild_from_type_v2": _subclass,
}


def _global(name: str, unknown: dict[str, None]) -> Global | Opaque:
    module, _, attribute = name.partition(" ")
    if name in _CALLS or (module in ("torch", "torch.cuda") and attribute in STORAGES):
        return Global(name)
    unknown[name.replace(" ", ".")] = None
    return Opaque(name.replace(" ", "."))


def _name(value: Any) -> str:
    return value.name.replace(" ", ".") if isinstance(value, Global | Opaque) else type(value).__name__


def _call(function: Any, args: Any) -> Any:
    known = isinstance(function, Global) and function.name in _CALLS
    if known and isinstance(args, tuple) and len(args) <= _MAX_ARGS:
        return _CALLS[function.name](*args)
    return Opaque(_name(function))


def _build(target: Any, state: Any) -> None:
    """Give an opaque object its attributes, by reference; those of a dictionary, such as `_metadata`, go."""
    if isinstance(target, Opaque) and not target.entries:
        parts = state if isinstance(state, tuple) else (state,)  # a class with slots has two
        target.entries = next((part for part in parts if isinstance(part, dict) and part), {})


def _persistent(pid: Any, declared: dict[str, Storage]) -> Any:
    """Read ``("storage", type, key, location, count)``; legacy adds a window ``(key, offset, count)`` or None.

    A legacy file of a whole module has ``("module", class, file, source)`` too, which stands for the class.
    """
    if isinstance(pid, tuple) and pid and pid[0] == "module" and isinstance(pid[-1], str) and len(pid) == 4:
        return pid[1]
    if not isinstance(pid, tuple) or not 5 <= len(pid) <= 6 or pid[0] != "storage":
        return Opaque("persistent object")
    _, kind, key, _, count, *rest = pid
    if isinstance(kind, Opaque):
        return kind  # of numbers that NumPy lacks
    dtype = STORAGES.get(_name(kind).rpartition(".")[2])
    if type(count) is not int or count < 0 or dtype is None or not isinstance(key, str):
        raise Refused("a storage declares a negative or broken size")
    storage = Storage(key, dtype, count)
    if declared.setdefault(key, storage) != storage:
        raise Refused(f"storage {key!r} is declared twice in different ways")
    if not rest or rest[0] is None:
        return storage
    _, offset, size = rest[0]
    if type(offset) is not int or type(size) is not int or not 0 <= offset <= offset + size <= count:
        raise Refused(f"a window reaches beyond its storage {key!r}")
    return Storage(key, storage.dtype, size, offset)


_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_LITERALS = {
    *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"),
    *("STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"),
    *("BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"),
}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_EMPTY: dict[str, Callable[[], Any]] = {
    "EMPTY_TUPLE": tuple,
    "EMPTY_LIST": list,
    "EMPTY_DICT": dict,
    "EMPTY_SET": lambda: Opaque("set"),
    "NEXT_BUFFER": lambda: Opaque("buffer"),
}
_MARKED = {"TUPLE", "LIST", "DICT", "FROZENSET", "APPENDS", "ADDITEMS", "SETITEMS", "OBJ", "INST", "POP_MARK"}


def interpret(stream: BytesIO, declared: dict[str, Storage], unknown: dict[str, None]) -> Any:
    """Run one pickle up to its STOP and return what is on top of the stack.

    Args:
        stream: is left behind the STOP.
        declared: is filled with the storages that the pickle names.
        unknown: is filled with the names of the classes and functions that it asks for in vain.
    """
    stack: list[Any] = []
    below: list[list[Any]] = []  # the stacks under each open MARK
    memo: dict[int, Any] = {}
    arg: Any
    for op, arg, _ in pickletools.genops(stream):
        name = op.name
        if name in _LITERALS:
            if type(arg) is int and arg.bit_length() > _MAX_BITS:
                raise Refused(f"damaged: an integer of {arg.bit_length():,} bits")
            stack.append(arg)
        elif name in _CONSTANTS:
            stack.append(_CONSTANTS[name])
        elif name in _EMPTY:
            stack.append(_EMPTY[name]())
        elif name in ("PUT", "BINPUT", "LONG_BINPUT"):
            memo[arg] = stack[-1]
        elif name == "MEMOIZE":
            memo[len(memo)] = stack[-1]
        elif name in ("GET", "BINGET", "LONG_BINGET"):
            stack.append(memo[arg])
        elif name == "MARK":
            below.append(stack)
            stack = []
        elif name in _MARKED:
            items, stack = stack, below.pop()
            _marked(name, arg, items, stack, unknown)
        elif name in _TUPLES:
            count = _TUPLES[name]
            if len(stack) < count:
                raise Refused("damaged: its pickle takes more than it has")
            stack[-count:] = [tuple(stack[-count:])]
        elif name == "APPEND":
            item = stack.pop()
            _extend(stack[-1], [item])
        elif name == "SETITEM":
            value, key = stack.pop(), stack.pop()
            _store(stack[-1], [key, value])
        elif name == "GLOBAL":
            stack.append(_global(arg, unknown))
        elif name == "STACK_GLOBAL":
            attribute, module = stack.pop(), stack.pop()
            if not isinstance(module, str) or not isinstance(attribute, str):
                raise Refused("damaged: its pickle names something by a thing that is no text")
            stack.append(_global(f"{module} {attribute}", unknown))
        elif name == "BINPERSID":
            stack.append(_persistent(stack.pop(), declared))
        elif name == "PERSID":
            stack.append(Opaque("persistent object"))
        elif name in ("EXT1", "EXT2", "EXT4"):
            stack.append(_global(f"extension {arg}", unknown))
        elif name in ("REDUCE", "NEWOBJ"):
            args, function = stack.pop(), stack.pop()
            stack.append(_call(function, args) if name == "REDUCE" else Opaque(_name(function)))
        elif name == "NEWOBJ_EX":
            function = stack[-3]
            stack[-3:] = [Opaque(_name(function))]
        elif name == "BUILD":
            attributes = stack.pop()
            _build(stack[-1], attributes)
        elif name == "DUP":
            stack.append(stack[-1])
        elif name == "POP":
            if stack:
                stack.pop()
            else:
                stack = below.pop()
        elif name == "STOP":
            return stack.pop()
        elif name not in ("PROTO", "FRAME", "READONLY_BUFFER"):
            raise Refused(f"damaged: its pickle uses {name}, which is unknown")
    raise Refused("damaged: its pickle does not end")


def _marked(name: str, arg: Any, items: list[Any], stack: list[Any], unknown: dict[str, None]) -> None:
    """Do what an opcode does with the items down to the last MARK."""
    if name == "TUPLE":
        stack.append(tuple(items))
    elif name == "LIST":
        stack.append(items)
    elif name == "DICT":
        stack.append({})
        _store(stack[-1], items)
    elif name == "FROZENSET":
        stack.append(Opaque("frozenset"))
    elif name == "OBJ":
        stack.append(Opaque(_name(items[0])))
    elif name == "INST":
        stack.append(Opaque(_name(_global(arg, unknown))))
    elif name == "APPENDS":
        _extend(stack[-1], items)
    elif name == "ADDITEMS":
        _store(stack[-1], [part for item in items for part in (item, None)])
    elif name == "SETITEMS":
        _store(stack[-1], items)


def _extend(target: Any, items: Iterable[Any]) -> None:
    if isinstance(target, list):
        target.extend(items)
    elif not isinstance(target, Opaque):
        raise Refused("the pickle appends to something that is no list")
