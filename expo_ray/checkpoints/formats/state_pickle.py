"""The pickle inside a `pytorch_model.bin`, read as data: nothing in it is ever run or imported.

A pickle is a program. This reader lets only those instructions pass that torch writes for a dict of
tensors, answers the few names it may ask for with records of its own, and refuses every other name.
"""

from __future__ import annotations

import io
import pickle
import pickletools
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeGuard

from expo_ray.errors import CheckpointError

STORAGE_DTYPES = {
    "DoubleStorage": "F64",
    "FloatStorage": "F32",
    "HalfStorage": "F16",
    "BFloat16Storage": "BF16",
    "LongStorage": "I64",
    "IntStorage": "I32",
    "ShortStorage": "I16",
    "CharStorage": "I8",
    "ByteStorage": "U8",
    "BoolStorage": "BOOL",
}
CONVERT_HINT = (
    "convert it to safetensors first: load it in transformers with from_pretrained and save it "
    "with save_pretrained"
)
# What torch.save writes (protocol 2).
_INSTRUCTIONS = frozenset(
    [
        "PROTO",
        "STOP",
        "MARK",
        "GLOBAL",
        "REDUCE",
        "BUILD",
        "BINPERSID",
        "BINPUT",
        "LONG_BINPUT",
        "BINGET",
        "LONG_BINGET",
        "NONE",
        "NEWTRUE",
        "NEWFALSE",
        "BININT",
        "BININT1",
        "BININT2",
        "LONG1",
        "BINFLOAT",
        "BINUNICODE",
        "SHORT_BINSTRING",
        "BINSTRING",
        "EMPTY_DICT",
        "EMPTY_LIST",
        "EMPTY_TUPLE",
        "TUPLE",
        "TUPLE1",
        "TUPLE2",
        "TUPLE3",
        "APPEND",
        "APPENDS",
        "SETITEM",
        "SETITEMS",
    ]
)
_MALFORMED = (
    pickle.UnpicklingError,
    EOFError,
    ValueError,
    KeyError,
    IndexError,
    TypeError,
    AttributeError,
    OverflowError,
    RecursionError,
)


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """A tensor as the pickle describes it: a view of a storage."""

    storage_key: str
    dtype: str
    num_storage_elements: int
    storage_offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]


def read_state(data: bytes, *, where: str) -> dict[str, StoredTensor]:
    """Return the tensors of a state dict by name, checked field by field.

    Args:
        data: The whole pickle.
        where: The file, for messages.

    Raises:
        CheckpointError: It asks for code, is malformed, or is no plain dict of tensors.
    """
    try:
        _check_instructions(data, where)
        state = _Reader(data, where).load()
    except _MALFORMED as error:
        raise CheckpointError(
            "the pickle of the weights is malformed", where=where, got=str(error)[:200]
        ) from error
    if not isinstance(state, dict):
        raise _not_a_state(where, type(state).__name__)
    for name, tensor in state.items():
        if not isinstance(name, str) or not isinstance(tensor, StoredTensor):
            raise _not_a_state(where, f"{str(name)[:100]!r}: {type(tensor).__name__}")
    return dict(state)


def _check_instructions(data: bytes, where: str) -> None:
    for instruction, argument, _ in pickletools.genops(data):
        if instruction.name not in _INSTRUCTIONS:
            raise CheckpointError(
                "the pickle holds an instruction that weights do not need",
                where=where,
                got=instruction.name,
                hint="do not load this file with anything: it may run code",
            )
        # The memo is an array: one large index would allocate gigabytes.
        if instruction.name == "LONG_BINPUT" and (argument or 0) > len(data):
            raise ValueError(f"memo index {argument}")


@dataclass(frozen=True, slots=True)
class _StorageType:
    dtype: str


@dataclass(frozen=True, slots=True)
class _Storage:
    key: str
    dtype: str
    num_elements: int


class _RebuildTensor:
    __slots__ = ()

    def __call__(
        self,
        storage: object,
        offset: object,
        shape: object,
        stride: object,
        requires_grad: object = False,
        hooks: object = None,
        metadata: object = None,
    ) -> StoredTensor:
        if metadata:  # such as neg: what is stored is not what is meant
            raise ValueError(f"a tensor with metadata {str(metadata)[:100]}")
        if not isinstance(storage, _Storage) or not _is_size(offset):
            raise ValueError("a tensor without a storage")
        if not _are_sizes(shape) or not _are_sizes(stride):
            raise ValueError(f"a tensor with the sizes {str((shape, stride))[:100]}")
        key, dtype, num_elements = storage.key, storage.dtype, storage.num_elements
        return StoredTensor(key, dtype, num_elements, offset, shape, stride)


class _RebuildParameter:
    __slots__ = ()

    def __call__(self, data: object, *_: object) -> object:
        return data


_ALLOWED: Mapping[tuple[str, str], object] = {
    ("collections", "OrderedDict"): OrderedDict,
    ("torch._utils", "_rebuild_tensor_v2"): _RebuildTensor(),
    ("torch._utils", "_rebuild_parameter"): _RebuildParameter(),
    **{("torch", name): _StorageType(dtype) for name, dtype in STORAGE_DTYPES.items()},
}


class _Reader(pickle.Unpickler):
    """Builds our own records, whatever the pickle asks for."""

    def __init__(self, data: bytes, where: str) -> None:
        super().__init__(io.BytesIO(data))
        self._where = where

    def find_class(self, module: str, name: str) -> object:
        found = _ALLOWED.get((module, name))
        if found is None:
            raise CheckpointError(
                "the pickle asks for something that is no plain tensor",
                where=self._where,
                got=f"{module}.{name}"[:200],
                expected="tensors of ordinary dtypes in a dict",
                hint=f"where you trust the file, {CONVERT_HINT}",
            )
        return found

    def persistent_load(self, pid: object) -> _Storage:
        if not isinstance(pid, tuple) or len(pid) != 5 or pid[0] != "storage":
            raise ValueError("a reference that is no storage")
        _, kind, key, _, num_elements = pid
        if not isinstance(kind, _StorageType) or not isinstance(key, str):
            raise ValueError("a storage without type or key")
        if not _is_size(num_elements):
            raise ValueError("a storage without a size")
        return _Storage(key, kind.dtype, num_elements)


def _is_size(value: object) -> TypeGuard[int]:
    return type(value) is int and 0 <= value < 2**63


def _are_sizes(values: object) -> TypeGuard[tuple[int, ...]]:
    return isinstance(values, tuple) and all(map(_is_size, values))


def _not_a_state(where: str, got: str) -> CheckpointError:
    return CheckpointError(
        "the file holds no plain dict of tensors",
        where=where,
        got=got,
        expected="tensor name -> tensor",
        hint=CONVERT_HINT,
    )
