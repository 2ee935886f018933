"""What hung where in a model and what it held, and what of that is no longer so."""

from __future__ import annotations

import weakref
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import nn

from rblstore.checkpoints.plain_view import plain_tensors
from rblstore.errors import ConflictError
from rblstore.live.fingerprints import WHOLE_BYTES, Kind, chunks_of, fingerprint, flat_bytes, kind_for, spots
from rblstore.live.mutations import Change, Mutation

Place = tuple[Any, ...]


class UnguardableError(ConflictError):
    """A model's tensors are not in one place where they can be read."""

    code: ClassVar[str] = "unguardable"


def check_readable(tensors: Iterable[tuple[str, torch.Tensor]]) -> None:
    """Refuses tensors that are offloaded, sharded or not laid out as plain memory.

    Raises:
        UnguardableError: Naming the first one.
    """
    for name, tensor in tensors:
        why = None
        if tensor.is_meta:
            why = "is on the meta device: it was offloaded, or never loaded"
        elif hasattr(tensor, "to_local"):
            why = "is sharded over processes"
        elif tensor.layout is not torch.strided or tensor.is_quantized:
            why = "is sparse, or quantized by torch"
        if why is not None:
            hint = "Load the whole model into the memory of one device."
            raise UnguardableError(f"the tensor {name} {why}", object=name, hint=hint)


def model_within(model: nn.Module) -> nn.Module:
    """The model inside what ``torch.compile`` and data parallelism put around it."""
    while True:
        if isinstance(inner := getattr(model, "_orig_mod", None), nn.Module):
            model = inner
        elif isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
            model = model.module
        else:
            return model


@dataclass(eq=False)
class _Watched:
    """One name, what hung there when it was last found unchanged, and the fingerprints that it has to have."""

    name: str
    tensor: weakref.ref[torch.Tensor]
    place: Place
    version: int
    trainable: bool
    kind: Kind
    chunks: list[tuple[int, int]]
    prints: list[int]
    spot: int
    reported: set[Change] = field(default_factory=set)

    @property
    def lost(self) -> bool:
        """Whether it is known to have changed, so that there is nothing left to compare with."""
        return bool(self.reported - {"requires_grad"})


@dataclass(frozen=True, eq=False)
class Piece:
    """A piece of a tensor's memory, which cannot be given to anything else while the piece is held.

    Attributes:
        tensor: Whose memory.
        start: Where the piece begins, in bytes.
        end: Where it ends.
        kind: Of the fingerprint.
        expected: The fingerprint that it has to have.
        watched: Who hangs there.
    """

    tensor: torch.Tensor
    start: int
    end: int
    kind: Kind
    expected: int
    watched: tuple[_Watched, ...]

    @property
    def size(self) -> int:
        """Bytes."""
        return self.end - self.start

    def changed(self) -> bool:
        """Reads the memory: whether its fingerprint is another one."""
        return fingerprint(flat_bytes(self.tensor)[self.start : self.end], self.kind) != self.expected


def _version(tensor: torch.Tensor) -> int:
    # Tensors of inference mode have no count of writes.
    return -1 if tensor.is_inference() else tensor._version  # noqa: SLF001 - there is no public one


def _place(tensor: torch.Tensor) -> Place:
    return tensor.shape, tensor.dtype, tensor.device, tensor.data_ptr(), tensor.stride()


class Watch:
    """The tensors of a plain model as they were when it was made.

    Args:
        model: A transformers model, a PEFT model around one, or any module.
        names: Which, by their names in the plain model; None for all.

    Raises:
        UnguardableError: Tensors are offloaded, sharded or sparse.
    """

    def __init__(self, model: nn.Module, names: Collection[str] | None) -> None:
        self._model = model_within(model)
        tensors = plain_tensors(self._model)
        wanted = {name: tensor for name, tensor in tensors.items() if names is None or name in names}
        check_readable(wanted.items())
        taken: dict[Place, _Watched] = {}
        self._watched = [_watched(name, tensor, taken) for name, tensor in wanted.items()]
        self.size = sum(one.chunks[-1][1] for one in taken.values() if one.chunks)
        """Bytes, tied tensors once."""

    @property
    def names(self) -> tuple[str, ...]:
        """What is watched."""
        return tuple(one.name for one in self._watched)

    def look(self, step: int) -> tuple[list[Mutation], list[Piece]]:
        """Looks at every tensor, reads a few bytes of each and all of those that look as if they had been written.

        Args:
            step: The step that findings name.

        Returns:
            What changed, and every piece of memory that is yet to be read; pieces of tied tensors once.
        """
        now = plain_tensors(self._model)
        found: list[Mutation] = []
        spotted: dict[tuple[Place, Kind], int] = {}
        pieces: dict[tuple[Place, int, Kind, int], list[_Watched]] = {}
        holders: dict[Place, torch.Tensor] = {}
        for one in self._watched:
            if one.lost:
                continue
            tensor = now.get(one.name)
            if tensor is None or tensor.is_meta:
                what = "it was removed" if tensor is None else "it is on the meta device"
                found.append(_report(one, "removed", what, step))
                continue
            if tensor.requires_grad and not one.trainable and "requires_grad" not in one.reported:
                found.append(_report(one, "requires_grad", "", step))
            place, version = _place(tensor), _version(tensor)
            if place[:2] != one.place[:2]:
                found.append(_report(one, *_other_form(one.place, place), step))
                continue
            same = tensor is one.tensor()
            if not same or place != one.place or version != one.version:
                if any(piece.changed() for piece in _pieces_of(one, tensor)):
                    how = "by a write in place" if same else f"{_named(one.place[2])} to {_named(place[2])}"
                    found.append(_report(one, "value" if same else "replaced", how, step))
                    continue
                _settle(one, tensor)
            key = (place, one.kind)
            if key not in spotted:
                spotted[key] = spots(flat_bytes(tensor), one.kind)
            if spotted[key] != one.spot:
                found.append(_report(one, "value", _UNCOUNTED, step))
                continue
            holders[place] = tensor
            if one.chunks and one.chunks[-1][1] > WHOLE_BYTES:
                for number, expected in enumerate(one.prints):
                    pieces.setdefault((place, number, one.kind, expected), []).append(one)
        listed = []
        for (place, number, kind, expected), hung in pieces.items():
            listed.append(Piece(holders[place].detach(), *hung[0].chunks[number], kind, expected, tuple(hung)))
        return found, listed

    @staticmethod
    def found_changed(pieces: Iterable[Piece], step: int) -> list[Mutation]:
        """What it says about the tensors that some pieces were read and found to have changed.

        Args:
            pieces: They.
            step: The step at which they were taken.
        """
        hung = [one for piece in pieces for one in piece.watched]
        return [_report(one, "value", _UNCOUNTED, step) for one in dict.fromkeys(hung) if not one.lost]


_UNCOUNTED = "by a write that torch does not count"


def _watched(name: str, tensor: torch.Tensor, taken: dict[Place, _Watched]) -> _Watched:
    place, kind = _place(tensor), kind_for(tensor)
    tied = taken.get(place)
    if tied is None:
        chunks, prints, spot = _fingerprints(tensor, kind)
    else:
        chunks, prints, spot = tied.chunks, tied.prints, tied.spot
    made = _Watched(
        name, weakref.ref(tensor), place, _version(tensor), tensor.requires_grad, kind, chunks, prints, spot
    )
    taken.setdefault(place, made)
    return made


def _fingerprints(tensor: torch.Tensor, kind: Kind) -> tuple[list[tuple[int, int]], list[int], int]:
    flat = flat_bytes(tensor)
    chunks = chunks_of(tensor)
    return chunks, [fingerprint(flat[start:end], kind) for start, end in chunks], spots(flat, kind)


def _pieces_of(one: _Watched, tensor: torch.Tensor) -> list[Piece]:
    chunks = zip(one.chunks, one.prints, strict=True)
    return [Piece(tensor, start, end, one.kind, expected, (one,)) for (start, end), expected in chunks]


def _settle(one: _Watched, tensor: torch.Tensor) -> None:
    """Takes a tensor that holds what it has to hold for the one to look at from now on."""
    if kind_for(tensor) != one.kind:
        one.kind = kind_for(tensor)
        one.chunks, one.prints, one.spot = _fingerprints(tensor, one.kind)
    one.tensor, one.place, one.version = weakref.ref(tensor), _place(tensor), _version(tensor)


def _report(one: _Watched, change: Change, detail: str, step: int) -> Mutation:
    one.reported.add(change)
    return Mutation(one.name, change, detail, step)


def _other_form(before: Place, after: Place) -> tuple[Change, str]:
    if before[0] != after[0]:
        return "shape", f"{tuple(before[0])} to {tuple(after[0])}"
    return "dtype", f"{_named(before[1])} to {_named(after[1])}"


def _named(value: object) -> str:
    return str(value).removeprefix("torch.")
