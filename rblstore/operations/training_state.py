"""``training``: training states beside commits, kept and read back without a pickle.

A state is evidence about its commit: it points at it, lives while it lives, and goes with it when ``rbl gc`` takes it.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, ClassVar, Final

from rblstore.checkpoints.safetensors_header import encode_header, lay_out
from rblstore.checkpoints.state_tree import (
    BadStateError,
    EncodedTree,
    UnstorableStateError,
    decode_tree,
    encode_tree,
)
from rblstore.errors import NotFoundError
from rblstore.live.optimizer_state import StateMismatchError
from rblstore.live.optimizer_state import capture_state as capture
from rblstore.live.optimizer_state import restore_state as restore
from rblstore.objects import limits
from rblstore.objects.content_records import FileEntry, FileManifest, NamedTensor, StoredTensor
from rblstore.objects.dtypes import BITS, TORCH_NAMES
from rblstore.objects.history_records import Commit
from rblstore.objects.ids import CommitId, ContentId, FileManifestId, RecordId, TrainingStateId
from rblstore.objects.training_records import TrainingState
from rblstore.operations.evidence_time import evidence_time
from rblstore.operations.progress import Meter, Progress
from rblstore.operations.result import Result
from rblstore.repository import Store
from rblstore.revisions import UnknownRevisionError, find_record, resolve

if TYPE_CHECKING:
    import torch

    from rblstore.transaction import Transaction

__all__ = [
    "BadStateError", "NoStateError", "StateDetail", "StateInfo", "StateMismatchError", "UnstorableStateError",
    "capture", "describe_state", "load_state", "restore", "state_info", "states", "store_state",
]  # fmt: skip

TREE_FILE: Final = "state.json"
TENSORS_FILE: Final = "state.safetensors"
_ELEMENT_TYPES: Final = {f"torch.{name}": dtype for dtype, name in TORCH_NAMES.items()}
_VERSIONED: Final = ("transformers", "peft", "accelerate", "numpy")


class NoStateError(NotFoundError):
    """A commit has no training state."""

    code: ClassVar[str] = "no_state"


@dataclass(frozen=True)
class StateInfo(Result):
    """A stored training state.

    Attributes:
        state: Its id.
        commit: The commit that was made in it.
        step: Optimizer steps done.
        bytes: Of its files.
        tensors: How many tensors it holds.
        environment: Versions of what wrote it.
        author: Who.
        time: When.
    """

    state: TrainingStateId
    commit: CommitId
    step: int
    bytes: int
    tensors: int
    environment: dict[str, str]
    author: str
    time: str


@dataclass(frozen=True)
class StatePart:
    """One of the things that a training state holds: ``optimizer``, ``random``, ...

    Attributes:
        name: The first word of its tensors' names.
        tensors: How many.
        bytes: Of the tensors.
    """

    name: str
    tensors: int
    bytes: int


@dataclass(frozen=True)
class StateDetail(StateInfo):
    """A stored training state, and what it is made of.

    Attributes:
        parts: Sorted by name.
    """

    parts: tuple[StatePart, ...]


def store_state(
    target: Store | Transaction,
    commit: CommitId,
    tree: Any,
    *,
    step: int,
    author: str,
    progress: Progress | None = None,
) -> TrainingStateId:
    """Keeps a training state beside a commit.

    Args:
        target: The repository; or a transaction under way, which the commit may be in, too.
        commit: The commit that was made in this state.
        tree: What ``capture`` gave, or any tree that :mod:`rblstore.checkpoints.state_tree` takes.
        step: Optimizer steps done.
        author: Who.
        progress: Is told bytes.

    Raises:
        UnstorableStateError: The tree holds what cannot be stored without a pickle.
        NotFoundError: No such commit.
    """
    encoded = encode_tree(tree)
    if not isinstance(target, Store):
        return _add(target, commit, encoded, step, author, progress)
    target.record(commit, Commit)
    with target.transaction(author) as transaction:
        return _add(transaction, commit, encoded, step, author, progress)


@dataclass(frozen=True)
class _Memory:
    """A tensor's bytes."""

    data: memoryview

    @property
    def size(self) -> int:
        return len(self.data)

    def read_into(self, out: memoryview, start: int) -> None:
        out[:] = self.data[start : start + len(out)]


def _raw(tensor: torch.Tensor) -> memoryview:
    import torch

    flat = tensor.detach().cpu().resolve_conj().resolve_neg().contiguous().reshape(-1)
    if not flat.numel():
        return memoryview(b"")
    return memoryview((torch.view_as_real(flat).reshape(-1) if flat.is_complex() else flat).view(torch.uint8).numpy())


def _add(
    transaction: Transaction,
    commit: CommitId,
    encoded: EncodedTree,
    step: int,
    author: str,
    progress: Progress | None,
) -> TrainingStateId:
    live, text = encoded.tensors, encoded.text
    described = {name: (_ELEMENT_TYPES[str(tensor.dtype)], tuple(tensor.shape)) for name, tensor in live.items()}
    header = encode_header(described)
    if len(header) > limits.SAFETENSORS_HEADER_BYTES:
        raise UnstorableStateError(f"the state has {len(live)} tensors, whose header takes {len(header)} bytes")
    spans = lay_out(described)
    meter = Meter(progress, sum(span.size for span in spans))
    whole = hashlib.sha256(header)
    stored_text = transaction.add_content([text])
    stored_header = transaction.add_content([header])
    added = []
    for span in spans:
        data = _raw(live[span.name])
        added.append(transaction.add_source(_Memory(data), element_width=BITS[span.dtype] // 8))
        whole.update(data)
        meter.add("storing the training state", span.size)
    manifest = FileManifest(
        stored_header.content,
        tuple(
            NamedTensor(span.name, StoredTensor(span.dtype, span.shape, one.content))
            for span, one in zip(spans, added, strict=True)
        ),
    )
    manifest_id = FileManifestId(transaction.add_record(manifest))
    size = len(header) + sum(span.size for span in spans)
    record = TrainingState(
        commit,
        (
            FileEntry(TREE_FILE, stored_text.content, len(text)),
            FileEntry(TENSORS_FILE, ContentId(whole.hexdigest()), size, manifest_id),
        ),
        step,
        _environment(),
        author,
        evidence_time(transaction.store, commit, TrainingState),
    )
    return TrainingStateId(transaction.add_record(record))


def _environment() -> dict[str, str]:
    import platform
    from importlib.metadata import PackageNotFoundError, version

    import torch

    # torch's own word names the build as well (+cu130), which the package's version may not.
    found = {"python": platform.python_version(), "torch": str(torch.__version__)}
    for name in _VERSIONED:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def find_state(store: Store, revision: str) -> TrainingStateId:
    """The latest training state of a commit, or the one of an id.

    Raises:
        NoStateError: The commit has none.
        UnknownRevisionError: No such commit or state.
    """
    try:
        record_id = find_record(store, revision)
    except UnknownRevisionError:
        record_id = resolve(store, revision).commit
    with store.catalog.read() as reader:
        kind = reader.record_kind(record_id)
    if kind == TrainingState.KIND:
        return TrainingStateId(record_id)
    commit = resolve(store, revision).commit
    with store.catalog.read() as reader:
        found = reader.evidence(commit, TrainingState.KIND)
    if not found:
        raise NoStateError(
            f"commit {commit.short} has no training state",
            object=commit,
            hint="Train with save_state=True; `rbl training list` shows which commits have one.",
        )
    records = [(store.record(one, TrainingState).time, at, one) for at, one in enumerate(found)]
    return TrainingStateId(max(records)[2])


def load_state(store: Store, revision: str = "HEAD", *, progress: Progress | None = None) -> Any:
    """A stored training state as the tree that was stored; every digest is compared.

    Args:
        store: The repository.
        revision: A commit, whose latest state is read, or a state's id.
        progress: Is told bytes read.

    Returns:
        The tree, its tensors on the CPU with memory of their own.

    Raises:
        NoStateError: The commit has none.
        BadStateError: What is stored breaks the format's rules.
        CorruptError: Stored bytes are damaged.
    """
    from rblstore.operations.tensor_memory import TensorReading, are_plain

    record = store.record(find_state(store, revision), TrainingState)
    files = {entry.path: entry for entry in record.files}
    if files.keys() != {TREE_FILE, TENSORS_FILE} or (manifest_id := files[TENSORS_FILE].manifest) is None:
        raise BadStateError(f"a training state of commit {record.commit.short} has other files than it should")
    text = store.content_bytes(files[TREE_FILE].sha256, limits.RECORD_BYTES)
    tensors = {entry.name: entry.tensor for entry in store.record(manifest_id, FileManifest).tensors}
    if not are_plain(tensors):
        raise BadStateError(f"a training state of commit {record.commit.short} has tensors that torch cannot hold")
    with TensorReading(store, tensors, progress) as reading:
        return decode_tree(text, reading.tensors())


def state_info(store: Store, state: RecordId) -> StateInfo:
    """A stored training state in short; none of its contents is read.

    Raises:
        CorruptError: Its record is missing or damaged.
    """
    record = store.record(state, TrainingState)
    manifests = [entry.manifest for entry in record.files if entry.manifest is not None]
    return StateInfo(
        TrainingStateId(state),
        record.commit,
        record.step,
        sum(entry.size for entry in record.files),
        sum(len(store.record(one, FileManifest).tensors) for one in manifests),
        record.environment,
        record.author,
        record.time,
    )


def describe_state(store: Store, revision: str = "HEAD") -> StateDetail:
    """A training state and what it is made of; none of its tensors is read.

    Args:
        store: The repository.
        revision: A commit, whose latest state it is, or a state's id.

    Raises:
        NoStateError: The commit has none.
        UnknownRevisionError: No such commit or state.
    """
    info = state_info(store, find_state(store, revision))
    found: dict[str, list[int]] = {}
    for entry in store.record(info.state, TrainingState).files:
        for one in () if entry.manifest is None else store.record(entry.manifest, FileManifest).tensors:
            found.setdefault(one.name.partition(".")[0], []).append(one.tensor.size)
    parts = tuple(StatePart(name, len(sizes), sum(sizes)) for name, sizes in sorted(found.items()))
    return StateDetail(**{field.name: getattr(info, field.name) for field in fields(info)}, parts=parts)


def states(store: Store, revision: str | None = None) -> list[StateInfo]:
    """Training states in the order in which they were stored.

    Args:
        store: The repository.
        revision: Only those of this commit; None for all.

    Raises:
        UnknownRevisionError: No such commit.
    """
    if revision is not None:
        commit = resolve(store, revision).commit
        with store.catalog.read() as reader:
            found = reader.evidence(commit, TrainingState.KIND)
    else:
        with store.catalog.read() as reader:
            found = [record_id for record_id, _ in reader.records(TrainingState.KIND)]
    return [state_info(store, one) for one in found]
