"""State trees: what ``state_dict`` of an optimizer gives, as strict JSON and named tensors, and back without loss.

A tree is made of dicts with text or integers for keys, lists, tuples, tensors, numpy arrays and numbers, and of
integers, floats, booleans, None, text and bytes. Nothing else is taken, and nothing is ever pickled. Tensors and arrays
go into a safetensors file under names that say where they stand in the tree; the rest is RFC 8785 JSON
(docs/format.md, "State trees"). Both directions obey the same caps, so what was written can be read.
"""

from __future__ import annotations

import math
import re
import struct
from collections import Counter, OrderedDict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Any, ClassVar, Final

from rblstore.errors import InputError, UsageError
from rblstore.objects import limits
from rblstore.objects.canonical import Json, decode_json, encode_json
from rblstore.objects.dtypes import TORCH_NAMES

if TYPE_CHECKING:
    import torch

VERSION: Final = 1
TEXT_BYTES: Final = limits.MESSAGE_BYTES
"""The most bytes of one text, or of one ``bytes`` value."""
INTEGER_DIGITS: Final = 4096
"""The most hexadecimal digits of one integer."""
TREE_DEPTH: Final = limits.JSON_DEPTH - 4
"""How deep containers may be nested."""

_TYPES: Final = {f"torch.{name}" for name in TORCH_NAMES.values()}
_DICTS: Final[Mapping[str, type[Any]]] = {"dict": dict, "ordered": OrderedDict, "counter": Counter}
_SEQUENCES: Final[Mapping[str, type[Any]]] = {"list": list, "tuple": tuple}
_TAGS: Final = {kind: tag for tag, kind in chain(_DICTS.items(), _SEQUENCES.items())}
_HEX: Final = re.compile(r"-?[1-9a-f][0-9a-f]*")
_NAN: Final = "nan:"
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f-\x9f]")
_WHAT: Final = "state.json"


class UnstorableStateError(UsageError):
    """A state holds something that cannot be stored without a pickle, or too much of it."""

    code: ClassVar[str] = "unstorable_state"


class BadStateError(InputError):
    """A stored state breaks the rules of its format."""

    code: ClassVar[str] = "bad_state"


@dataclass(frozen=True)
class EncodedTree:
    """A tree in two parts.

    Attributes:
        text: ``state.json``: RFC 8785 JSON.
        tensors: By the names that the JSON has for them; those of the tree themselves, not copies.
    """

    text: bytes
    tensors: Mapping[str, torch.Tensor]


def encode_tree(tree: Any) -> EncodedTree:
    """Writes a tree as JSON and tensors.

    Args:
        tree: See the module.

    Raises:
        UnstorableStateError: It holds something else, or more than the caps allow; the error names where.
    """
    writer = _Writer()
    node = writer.node(tree, (), 0)
    text = encode_json({"rblstore_state": VERSION, "tree": node})
    if len(text) > limits.RECORD_BYTES:
        raise UnstorableStateError(
            f"the state without its tensors takes {len(text)} bytes, more than the {limits.RECORD_BYTES} allowed"
        )
    return EncodedTree(text, writer.tensors)


def decode_tree(text: bytes, tensors: Mapping[str, torch.Tensor]) -> Any:
    """Reads a tree, which may be hostile.

    Args:
        text: ``state.json``.
        tensors: Everything in ``state.safetensors``, by name. The tree holds these very tensors.

    Raises:
        BadStateError: The JSON breaks a rule, is not the canonical form of what it says, or names other tensors.
    """
    try:
        body = decode_json(text, what=_WHAT, max_bytes=limits.RECORD_BYTES, max_entries=limits.RECORD_ENTRIES)
        if not isinstance(body, dict) or body.keys() != {"rblstore_state", "tree"}:
            raise BadStateError(f"{_WHAT}: not a state", object=_WHAT)
        if body["rblstore_state"] != VERSION or type(body["rblstore_state"]) is not int:
            raise BadStateError(
                f"{_WHAT}: its version is not known", object=_WHAT, hint="A newer rblstore wrote it; upgrade."
            )
        if encode_json(body) != text:
            raise BadStateError(f"{_WHAT}: not in canonical form", object=_WHAT)
    except BadStateError:
        raise
    except InputError as error:
        raise BadStateError(error.message, object=_WHAT) from error
    reader = _Reader(tensors)
    tree = reader.node(body["tree"], "", 0)
    if left := sorted(tensors.keys() - reader.taken):
        raise BadStateError(f"{_WHAT}: it says nothing of the tensor {left[0][:200]!r}", object=left[0][:200])
    return tree


def copied_tree(tree: Any) -> Any:
    """The same tree with memory of its own: tensors and arrays are copied, tensors to the CPU.

    Args:
        tree: One that :func:`encode_tree` takes; whatever else is in it is left as it is.
    """
    kind = type(tree)
    if kind in _DICTS.values():
        copy = kind()
        for key, value in tree.items():
            copy[key] = copied_tree(value)
        return copy
    if kind in _SEQUENCES.values():
        return kind([copied_tree(value) for value in tree])
    if kind.__module__.split(".", 1)[0] in ("torch", "numpy"):
        import numpy as np
        import torch

        if isinstance(tree, torch.Tensor):
            return tree.detach().to("cpu", copy=True)
        if isinstance(tree, np.ndarray):
            return tree.copy()
    return tree


def tensors_of(tree: Any, path: str = "") -> Iterator[tuple[str, torch.Tensor]]:
    """Every torch tensor of a tree, and where it stands."""
    kind = type(tree)
    if kind in _DICTS.values():
        for key, value in tree.items():
            yield from tensors_of(value, f"{path}.{key}" if path else str(key))
    elif kind in _SEQUENCES.values():
        for at, value in enumerate(tree):
            yield from tensors_of(value, f"{path}.{at}" if path else str(at))
    elif kind.__module__.split(".", 1)[0] == "torch":
        import torch

        if isinstance(tree, torch.Tensor):
            yield path, tree


def _shown(path: tuple[str, ...]) -> str:
    return ".".join(path)[:200].encode("unicode_escape").decode("ascii") or "the state"


class _Writer:
    """Turns values into nodes, and keeps tensors apart."""

    def __init__(self) -> None:
        self.tensors: dict[str, torch.Tensor] = {}
        self._entries = 2

    def node(self, value: Any, path: tuple[str, ...], depth: int) -> Json:
        kind = type(value)
        if value is None or kind is bool:
            return bool(value) if kind is bool else None
        if kind is str:
            return self._text(value, path)
        if kind is int:
            return self._integer(value, path)
        if kind is float:
            return self._tagged("float", _float_text(value))
        if kind is bytes:
            if len(value) > TEXT_BYTES:
                raise self._refusal(path, f"{len(value)} bytes, more than the {TEXT_BYTES} allowed")
            return self._tagged("bytes", value.hex())
        if kind in _TAGS:
            return self._container(value, _TAGS[kind], path, depth)
        return self._tensor(value, path)

    def _refusal(self, path: tuple[str, ...], why: str) -> UnstorableStateError:
        where = _shown(path)
        return UnstorableStateError(
            f"{where} cannot be stored: {why}",
            object=where,
            hint="States hold dicts, lists, tuples, tensors, arrays, numbers, booleans, None, text and bytes.",
        )

    def _count(self, entries: int, path: tuple[str, ...]) -> None:
        self._entries += entries
        if self._entries > limits.RECORD_ENTRIES:
            raise self._refusal(path, f"the state has more than {limits.RECORD_ENTRIES} entries")

    def _tagged(self, tag: str, text: str) -> Json:
        self._entries += 2
        return [tag, text]

    def _text(self, value: str, path: tuple[str, ...]) -> str:
        try:
            size = len(value.encode("utf-8"))
        except UnicodeEncodeError:
            raise self._refusal(path, "a text that is not valid Unicode") from None
        if size > TEXT_BYTES:
            raise self._refusal(path, f"a text of {size} bytes, more than the {TEXT_BYTES} allowed")
        return value

    def _integer(self, value: int, path: tuple[str, ...]) -> Json:
        if abs(value) <= limits.JSON_INTEGER:
            return value
        if value.bit_length() > 4 * INTEGER_DIGITS:
            raise self._refusal(path, f"an integer of {value.bit_length()} bits")
        return self._tagged("int", f"{value:x}")

    def _container(self, value: Any, tag: str, path: tuple[str, ...], depth: int) -> Json:
        if depth >= TREE_DEPTH:
            raise self._refusal(path, f"nested deeper than {TREE_DEPTH}")
        nodes: list[Json] = [tag]
        if tag in _DICTS:
            self._count(1 + 2 * len(value), path)
            for key, item in value.items():
                if type(key) not in (str, int):
                    raise self._refusal(path, f"a key is a {type(key).__name__}, neither text nor an integer")
                where = (*path, self._text(str(key)[: limits.TEXT_BYTES], path))
                nodes.append(self._integer(key, where) if type(key) is int else self._text(key, where))
                nodes.append(self.node(item, where, depth + 1))
        else:
            self._count(1 + len(value), path)
            nodes.extend(self.node(item, (*path, str(at)), depth + 1) for at, item in enumerate(value))
        return nodes

    def _tensor(self, value: Any, path: tuple[str, ...]) -> Json:
        import numpy as np
        import torch

        if type(value) in (torch.Tensor, torch.nn.Parameter):
            tensor, tag = value.detach(), "tensor"
        elif type(value) is np.ndarray or (isinstance(value, np.generic) and type(value) is value.dtype.type):
            if value.dtype.kind not in "biufc" or not value.dtype.isnative:
                raise self._refusal(path, f"an array of {value.dtype.str}")
            tag = "array" if type(value) is np.ndarray else "scalar"
            try:
                tensor = torch.from_numpy(np.array(value, order="C"))
            except TypeError:
                raise self._refusal(path, f"an array of {value.dtype.str}") from None
        else:
            raise self._refusal(path, f"it is a {type(value).__module__}.{type(value).__qualname__}")
        if (
            tensor.layout is not torch.strided
            or tensor.is_quantized
            or tensor.is_meta
            or str(tensor.dtype) not in _TYPES
        ):
            raise self._refusal(path, f"a tensor of {tensor.dtype} on {tensor.device}, {tensor.layout}")
        return self._tagged(tag, self._name(path, tensor))

    def _name(self, path: tuple[str, ...], tensor: torch.Tensor) -> str:
        name = ".".join(path)
        plain = 0 < len(name.encode()) <= limits.TENSOR_NAME_BYTES and not _CONTROL.search(name)
        if not plain or name == "__metadata__" or name in self.tensors:
            # Two paths may read the same ("a.b"), and others cannot be names at all.
            number = len(self.tensors)
            while (name := f"tensor-{number}") in self.tensors:
                number += 1
        self.tensors[name] = tensor
        return name


def _float_text(value: float) -> str:
    if math.isnan(value):
        return _NAN + struct.pack(">d", value).hex()
    return repr(value)


class _Reader:
    """Turns nodes into values; what it takes has one spelling only."""

    def __init__(self, tensors: Mapping[str, torch.Tensor]) -> None:
        self._tensors = tensors
        self.taken: set[str] = set()

    def _refusal(self, path: str, why: str) -> BadStateError:
        where = path[:200].encode("unicode_escape").decode("ascii") or "the state"
        return BadStateError(f"{_WHAT}: {where}: {why}", object=where)

    def node(self, node: Any, path: str, depth: int) -> Any:
        if node is None or isinstance(node, (bool, int)):
            return node
        if isinstance(node, str):
            return self._text(node, path)
        if not isinstance(node, list) or not node or not isinstance(node[0], str):
            raise self._refusal(path, "not a value")
        tag = node[0]
        if tag in _DICTS or tag in _SEQUENCES:
            if depth >= TREE_DEPTH:
                raise self._refusal(path, f"nested deeper than {TREE_DEPTH}")
            if tag in _SEQUENCES:
                return _SEQUENCES[tag]([self.node(item, f"{path}.{at}", depth + 1) for at, item in enumerate(node[1:])])
            return self._dict(node, path, depth)
        if len(node) != 2 or not isinstance(node[1], str):
            raise self._refusal(path, f"{tag[:20]!r} without its one text")
        return self._leaf(tag, node[1], path)

    def _text(self, text: str, path: str) -> str:
        if len(text) > TEXT_BYTES or len(text.encode("utf-8")) > TEXT_BYTES:
            raise self._refusal(path, "a text that is too long")
        return text

    def _dict(self, node: list[Any], path: str, depth: int) -> Any:
        if len(node) % 2 == 0:
            raise self._refusal(path, "a key without a value")
        found = _DICTS[node[0]]()
        for key_node, item in zip(node[1::2], node[2::2], strict=True):
            key: Any = key_node if type(key_node) is int else None
            if isinstance(key_node, str):
                key = self._text(key_node, path)
            elif isinstance(key_node, list) and len(key_node) == 2 and key_node[0] == "int":
                key = self.node(key_node, path, depth)
            if key is None:
                raise self._refusal(path, "a key that is neither text nor an integer")
            if key in found:
                raise self._refusal(path, f"the key {str(key_node)[:80]!r} appears twice")
            found[key] = self.node(item, f"{path}.{str(key_node)[:80]}" if path else str(key_node)[:80], depth + 1)
        return found

    def _leaf(self, tag: str, text: str, path: str) -> Any:
        if tag == "float":
            return self._float(text, path)
        if tag == "int":
            if len(text) > INTEGER_DIGITS + 1 or not _HEX.fullmatch(text):
                raise self._refusal(path, f"{text[:24]!r} is not an integer")
            value = int(text, 16)
            if abs(value) <= limits.JSON_INTEGER or value.bit_length() > 4 * INTEGER_DIGITS:
                raise self._refusal(path, "an integer in another spelling than its own")
            return value
        if tag == "bytes":
            if len(text) > 2 * TEXT_BYTES or len(text) % 2 or not re.fullmatch("[0-9a-f]*", text):
                raise self._refusal(path, "bytes that are not hexadecimal, or too many")
            return bytes.fromhex(text)
        if tag in ("tensor", "array", "scalar"):
            return self._tensor(tag, text, path)
        raise self._refusal(path, f"{tag[:20]!r} is not known")

    def _float(self, text: str, path: str) -> float:
        value: float | None = None
        if text.startswith(_NAN) and re.fullmatch("[0-9a-f]{16}", text[len(_NAN) :]):
            (value,) = struct.unpack(">d", bytes.fromhex(text[len(_NAN) :]))
        elif len(text) <= 32 and re.fullmatch(r"-?(inf|[0-9][0-9.e+-]*)", text):
            try:
                value = float(text)
            except ValueError:
                value = None
        if value is None or _float_text(value) != text:
            raise self._refusal(path, f"{text[:24]!r} is not a float in its own spelling")
        return value

    def _tensor(self, tag: str, name: str, path: str) -> Any:
        tensor = self._tensors.get(name)
        if tensor is None or name in self.taken:
            raise self._refusal(
                path, f"the tensor {name[:80]!r} is {'named twice' if name in self.taken else 'missing'}"
            )
        self.taken.add(name)
        if tag == "tensor":
            return tensor
        try:
            array = tensor.numpy()
        except TypeError:
            raise self._refusal(path, f"no array has elements of {tensor.dtype}") from None
        if tag == "array":
            return array
        if array.shape != ():
            raise self._refusal(path, "a number with a shape")
        return array[()]
