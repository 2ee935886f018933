"""Records that hold content only: file manifests, identities and behaviors."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Protocol, cast

from rblstore.errors import InputError
from rblstore.objects import limits
from rblstore.objects.canonical import Json, encode_json
from rblstore.objects.dtypes import span_bytes
from rblstore.objects.fields import Fields, require_sorted
from rblstore.objects.ids import BehaviorId, ContentId, FileManifestId, IdentityId, RecordId
from rblstore.objects.paths import check_path, check_paths
from rblstore.objects.record import Record

Form = Literal["adapter", "overlay"]
Action = Literal["adds", "modifies", "removes", "replaces"]
Domain = Literal["file", "tensor"]


class Shaped(Protocol):
    """What has an element type and a shape."""

    @property
    def dtype(self) -> str:
        """Element type, as safetensors names it."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Extents, outermost first."""


@dataclass(frozen=True, order=True)
class StoredTensor:
    """Where a tensor's value is: its element type, shape and content.

    Attributes:
        dtype: Element type, as safetensors names it.
        shape: Extents, outermost first; () for a scalar.
        content: SHA-256 of its raw little-endian bytes.
    """

    dtype: str
    shape: tuple[int, ...]
    content: ContentId

    @property
    def size(self) -> int:
        """Bytes."""
        return span_bytes(self.dtype, self.shape)

    def is_like(self, other: Shaped) -> bool:
        """Whether elements of the two correspond: equal shapes, or one with more rows than the other."""
        same_rank = len(self.shape) == len(other.shape)
        return same_rank and self.dtype == other.dtype and self.shape[1:] == other.shape[1:]

    def body(self) -> dict[str, Json]:
        """JSON members."""
        return {"content": str(self.content), "dtype": self.dtype, "shape": list(self.shape)}

    @classmethod
    def take(cls, fields: Fields) -> StoredTensor:
        """Reads the three members out of a larger object."""
        tensor = cls(fields.text("dtype", 32), fields.integers("shape"), fields.id("content", ContentId))
        span_bytes(tensor.dtype, tensor.shape)
        return tensor


@dataclass(frozen=True)
class NamedTensor:
    """One tensor of a safetensors file."""

    name: str
    tensor: StoredTensor

    def body(self) -> dict[str, Json]:
        """JSON members."""
        return {"name": self.name, **self.tensor.body()}

    @classmethod
    def read(cls, value: Any) -> NamedTensor:
        """Reads one element of a manifest."""
        fields = Fields(value, "tensor entry")
        entry = cls(fields.text("name", limits.TENSOR_NAME_BYTES), StoredTensor.take(fields))
        fields.done()
        return entry


@dataclass(frozen=True)
class FileManifest(Record):
    """A safetensors file: the header's bytes, then the tensors in the order of their offsets.

    The file is the concatenation of the header content (the eight length bytes included) and each tensor's content.

    Attributes:
        header: Content of the 8-byte length and the header's JSON, padding included.
        tensors: Every tensor, in file order.
    """

    KIND: ClassVar[str] = "file-manifest"
    ID: ClassVar[type[RecordId]] = FileManifestId

    header: ContentId
    tensors: tuple[NamedTensor, ...]

    def body(self) -> dict[str, Json]:
        return {"header": str(self.header), "tensors": [entry.body() for entry in self.tensors]}

    @classmethod
    def from_fields(cls, fields: Fields) -> FileManifest:
        manifest = cls(fields.id("header", ContentId), fields.items("tensors", NamedTensor.read))
        require_sorted(sorted(entry.name for entry in manifest.tensors), "file-manifest record: tensor names")
        return manifest

    def contents(self) -> tuple[ContentId, ...]:
        """The file's contents in the order in which they concatenate."""
        return (self.header, *(entry.tensor.content for entry in self.tensors))


@dataclass(frozen=True)
class FileEntry:
    """One file of an identity or behavior.

    Attributes:
        path: Relative, with forward slashes.
        sha256: Of the whole file. Without a manifest this is also its content id.
        size: Bytes.
        manifest: For a safetensors file, its manifest; else None.
    """

    path: str
    sha256: ContentId
    size: int
    manifest: FileManifestId | None = None

    def body(self) -> dict[str, Json]:
        """JSON members."""
        manifest = None if self.manifest is None else str(self.manifest)
        return {"manifest": manifest, "path": self.path, "sha256": str(self.sha256), "size": self.size}

    @classmethod
    def read(cls, value: Any) -> FileEntry:
        """Reads one element of a file list."""
        fields = Fields(value, "file entry")
        entry = cls(
            fields.text("path", limits.PATH_BYTES),
            fields.id("sha256", ContentId),
            fields.integer("size"),
            fields.optional_id("manifest", FileManifestId),
        )
        fields.done()
        return entry


def read_files(fields: Fields, minimum: int) -> tuple[FileEntry, ...]:
    """The member ``files`` of a record: sorted by path, and no two paths in one another's way.

    Raises:
        InputError: It breaks a rule.
    """
    files = fields.items("files", FileEntry.read, minimum=minimum)
    require_sorted([entry.path for entry in files], "file list")
    check_paths(entry.path for entry in files)
    return files


def tensor_root(tensors: Iterable[tuple[str, StoredTensor]]) -> ContentId:
    """A digest over logical tensors, the same however they are spread over files.

    Args:
        tensors: (logical name, tensor) in any order.

    Returns:
        SHA-256 over one canonical JSON line a tensor, [name, dtype, shape, content], sorted by name (code points).
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors):
        digest.update(encode_json([name, tensor.dtype, list(tensor.shape), str(tensor.content)]) + b"\n")
    return ContentId(digest.hexdigest())


@dataclass(frozen=True)
class Identity(Record):
    """A base checkpoint: its files, and a digest of its logical tensors.

    Attributes:
        files: Sorted by path.
        tensor_root: See :func:`tensor_root`; over the tensors of the primary weight files.
    """

    KIND: ClassVar[str] = "identity"
    ID: ClassVar[type[RecordId]] = IdentityId

    files: tuple[FileEntry, ...]
    tensor_root: ContentId

    def body(self) -> dict[str, Json]:
        return {"files": [entry.body() for entry in self.files], "tensor_root": str(self.tensor_root)}

    @classmethod
    def from_fields(cls, fields: Fields) -> Identity:
        return cls(read_files(fields, 1), fields.id("tensor_root", ContentId))


@dataclass(frozen=True)
class Ground:
    """Something that must lie beneath a behavior.

    Attributes:
        on: Whether ``target`` is a logical tensor or a file.
        target: The tensor's logical name or the file's path.
        content: What it must be: the tensor's content, or the file's SHA-256.
        dtype: For a tensor, its element type; None for a file.
        shape: For a tensor, its shape; None for a file.
    """

    on: Domain
    target: str
    content: ContentId
    dtype: str | None = None
    shape: tuple[int, ...] | None = None

    @classmethod
    def tensor(cls, name: str, tensor: StoredTensor) -> Ground:
        """The ground that one tensor is."""
        return cls("tensor", name, tensor.content, tensor.dtype, tensor.shape)

    def value_body(self) -> dict[str, Json]:
        """JSON members without domain and target."""
        if self.dtype is None or self.shape is None:
            return {"content": str(self.content)}
        return {"content": str(self.content), "dtype": self.dtype, "shape": list(self.shape)}

    @classmethod
    def read_value(cls, on: Domain, target: str, value: Any) -> Ground:
        """Reads what :meth:`value_body` gives."""
        fields = Fields(value, "ground")
        if on == "tensor":
            ground = cls.tensor(target, StoredTensor.take(fields))
        else:
            ground = cls(on, target, fields.id("content", ContentId))
        fields.done()
        return ground

    @classmethod
    def read(cls, value: Any) -> Ground:
        """Reads one element of a behavior's ground."""
        fields = Fields(value, "ground")
        on = cast("Domain", fields.choice("on", ("file", "tensor")))
        ground = cls.read_value(on, fields.text("target", limits.TENSOR_NAME_BYTES), fields.take("beneath"))
        fields.done()
        return ground

    def body(self) -> dict[str, Json]:
        """JSON members."""
        return {"beneath": self.value_body(), "on": self.on, "target": self.target}


@dataclass(frozen=True)
class Effect:
    """What a behavior does to one logical tensor or file.

    Attributes:
        on: Whether ``target`` is a logical tensor or a file.
        target: The tensor's logical name or the file's path.
        action: ``adds`` (nothing may lie beneath), ``modifies`` (computed from what lies beneath, as LoRA does),
            ``replaces`` (a stored value in its stead) or ``removes`` (overlays only).
        beneath: What must lie beneath, or None for ``adds``.
        value: For ``adds`` and ``replaces``, what lies there afterwards; else None.
    """

    on: Domain
    target: str
    action: Action
    beneath: Ground | None
    value: Ground | None

    def body(self) -> dict[str, Json]:
        """JSON members."""
        return {
            "action": self.action,
            "beneath": None if self.beneath is None else self.beneath.value_body(),
            "on": self.on,
            "target": self.target,
            "value": None if self.value is None else self.value.value_body(),
        }

    @classmethod
    def read(cls, value: Any) -> Effect:
        """Reads one element of a behavior's effects."""
        fields = Fields(value, "effect")
        on = cast("Domain", fields.choice("on", ("file", "tensor")))
        target = fields.text("target", limits.TENSOR_NAME_BYTES)
        action = cast("Action", fields.choice("action", ("adds", "modifies", "removes", "replaces")))
        beneath, after = fields.take("beneath"), fields.take("value")
        fields.done()
        if (beneath is None) != (action == "adds"):
            raise InputError(f"effect on {target!r}: {action!r} with{'out' if beneath is None else ''} ground")
        if (after is None) != (action in ("modifies", "removes")):
            raise InputError(f"effect on {target!r}: {action!r} with{'out' if after is None else ''} a value")
        return cls(
            on,
            target,
            action,
            None if beneath is None else Ground.read_value(on, target, beneath),
            None if after is None else Ground.read_value(on, target, after),
        )


@dataclass(frozen=True)
class Behavior(Record):
    """One removable unit of adaptation, bound to what it stands on.

    Attributes:
        form: ``adapter`` (a PEFT adapter) or ``overlay`` (tensors and files that replace or add to the identity's).
        files: The files it came in, sorted by path.
        effects: What it does, sorted by (on, target).
        ground: What it stands on besides its effects' ground, sorted by (on, target); for behaviors without effects on
            tensors, the config, tokenizer and input embedding.
    """

    KIND: ClassVar[str] = "behavior"
    ID: ClassVar[type[RecordId]] = BehaviorId

    form: Form
    files: tuple[FileEntry, ...]
    effects: tuple[Effect, ...]
    ground: tuple[Ground, ...] = ()

    def body(self) -> dict[str, Json]:
        return {
            "effects": [effect.body() for effect in self.effects],
            "files": [entry.body() for entry in self.files],
            "form": self.form,
            "ground": [ground.body() for ground in self.ground],
        }

    @classmethod
    def from_fields(cls, fields: Fields) -> Behavior:
        behavior = cls(
            cast("Form", fields.choice("form", ("adapter", "overlay"))),
            read_files(fields, 0),
            fields.items("effects", Effect.read),
            fields.items("ground", Ground.read),
        )
        require_sorted([(effect.on, effect.target) for effect in behavior.effects], "behavior record: effects")
        require_sorted([(ground.on, ground.target) for ground in behavior.ground], "behavior record: ground")
        check_paths(effect.target for effect in behavior.effects if effect.on == "file")
        for ground in behavior.ground:
            if ground.on == "file":
                check_path(ground.target)
        if behavior.form == "adapter" and any(effect.action == "removes" for effect in behavior.effects):
            raise InputError("behavior record: an adapter removes nothing")
        if behavior.form == "overlay" and any(effect.action == "modifies" for effect in behavior.effects):
            raise InputError("behavior record: an overlay modifies nothing, it replaces")
        return behavior

    @property
    def grounds(self) -> tuple[Ground, ...]:
        """Everything that must lie beneath: the effects' ground and the behavior's own."""
        return (*(effect.beneath for effect in self.effects if effect.beneath is not None), *self.ground)

    @property
    def additive(self) -> bool:
        """Whether it only modifies, so that it commutes with others of its kind."""
        return bool(self.effects) and all(effect.action == "modifies" for effect in self.effects)
