"""Copies of what is being trained, taken between two steps: the tensors in memory of their own, the rest as bytes.

What goes into which file under which name is what PEFT and transformers decide when they save. They are asked once, at
the first snapshot, and again whenever names, shapes, element types, ties or settings have changed; in between, a
snapshot is a copy of tensors and nothing else. Where what they write is not what lies in the model under that name
(experts that are taken apart, embeddings that are computed), they save at every snapshot: it takes longer, and
:attr:`PhiCopier.blocking` says why.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import safe_open
from torch import nn

from rblstore.checkpoints.safetensors_header import encode_header
from rblstore.checkpoints.saving import UnsavableError, adapter_chosen, adapter_tensors, save_source
from rblstore.checkpoints.saving_module import is_plain_module, module_tensors, uncompiled
from rblstore.live.binding import DTYPES, same_bits
from rblstore.live.fingerprints import Kind, fingerprint, flat_bytes, kind_for

Scratch = Callable[[], AbstractContextManager[Path]]
Described = Mapping[str, tuple[str, tuple[int, ...]]]

STORED_DTYPES = {getattr(torch, name): stored for stored, name in DTYPES.items()}


@dataclass(frozen=True)
class WeightFile:
    """One safetensors file of a snapshot.

    Attributes:
        metadata: The free text in its header.
        tensors: In main memory, contiguous, by the names that they have in the file.
    """

    metadata: Mapping[str, str] | None
    tensors: Mapping[str, torch.Tensor]


@dataclass(frozen=True)
class Snapshot:
    """What a behavior's files were at one moment.

    Attributes:
        adapter: Whether it is a PEFT adapter; else a whole checkpoint.
        files: The bytes of every file that holds no tensors, by path.
        weights: The others, by path.
        places: For a module that is no transformers model, what tells which of its tensors are one: equal where they
            share their memory.
        buffers: What the tensors lie in, to be given back once they have been stored.
    """

    adapter: bool
    files: Mapping[str, bytes]
    weights: Mapping[str, WeightFile]
    places: Mapping[str, int] | None = None
    buffers: Buffers | None = None


class Buffers:
    """Memory for one snapshot, used again for the next."""

    def __init__(self) -> None:
        self._memory: dict[str, torch.Tensor] = {}

    def room(self, name: str, like: torch.Tensor) -> torch.Tensor:
        """Contiguous main memory for a tensor, page-locked where the tensor lies on an accelerator."""
        held = self._memory.get(name)
        pinned = like.device.type == "cuda"
        if held is None or held.shape != like.shape or held.dtype != like.dtype or held.is_pinned() != pinned:
            held = torch.empty(like.shape, dtype=like.dtype, device="cpu", pin_memory=pinned)
            self._memory[name] = held
        return held


class _Frozen(NamedTuple):
    """A tensor that nobody trains, as it was copied last, and the fingerprint that it had then."""

    copy: torch.Tensor
    kind: Kind
    print: int

    @classmethod
    def of(cls, live: torch.Tensor) -> _Frozen:
        copy = torch.empty(live.shape, dtype=live.dtype, device="cpu").copy_(live.detach())
        return cls(copy, kind_for(live), fingerprint(flat_bytes(live), kind_for(live)))

    def holds(self, live: torch.Tensor) -> bool:
        """Whether the tensor has these bits still; torch counts no writes of fused optimizers and of ``.data``."""
        return kind_for(live) == self.kind and fingerprint(flat_bytes(live), self.kind) == self.print


@dataclass(frozen=True)
class _Plan:
    """What the libraries made of the model when it looked like this."""

    signature: Any
    files: Mapping[str, bytes]
    weights: Mapping[str, tuple[Mapping[str, str] | None, tuple[str, ...]]]
    blocking: str | None = None
    owners: Mapping[str, tuple[str, str]] | None = None
    modules: int = 0


@dataclass
class PhiCopier:
    """Takes snapshots of one behavior of a model. For one thread.

    Args:
        model: A PEFT model, a transformers model or any module.
        adapter: The adapter's or slot's name; None where the model has one adapter, or none.
        scratch: Gives a folder that goes away afterwards.
    """

    model: nn.Module
    adapter: str | None
    scratch: Scratch
    _plan: _Plan | None = None
    _frozen: dict[str, _Frozen] = field(default_factory=dict)

    def __post_init__(self) -> None:
        from peft import PeftModel

        self.model = uncompiled(self.model)
        self.is_adapter = isinstance(self.model, PeftModel)
        if self.is_adapter:
            self.adapter = adapter_chosen(self.model, self.adapter)
        self._plain = is_plain_module(self.model)

    @property
    def blocking(self) -> str | None:
        """Why every snapshot has to wait for PEFT or transformers to save; None where none has to."""
        return None if self._plan is None else self._plan.blocking

    def take(self, buffers: Buffers) -> Snapshot:
        """Copies the behavior as it is now; returns when the copy is whole.

        Args:
            buffers: Where the tensors go; in nobody's use until the snapshot has been stored.

        Raises:
            UnsavableError: PEFT or transformers cannot save the model.
        """
        live = self._quick() or self._live()
        signature = self._signature(live)
        if self._plan is None or self._plan.signature != signature:
            self._frozen.clear()
            self._plan = self._ask(live, signature)
        if self._plan.blocking is not None:
            with self._saved() as folder:
                files, weights = _read(folder)
                copied = {path: WeightFile(metadata, _loaded(folder / path)) for path, (metadata, _) in weights.items()}
            return Snapshot(self.is_adapter, files, copied, None, buffers)
        found = {}
        waiting = False
        for path, (metadata, names) in self._plan.weights.items():
            tensors = {}
            for name in names:
                tensors[name] = self._copied(name, live[name], buffers)
                waiting |= live[name].device.type == "cuda"
            found[path] = WeightFile(metadata, tensors)
        if waiting:
            torch.cuda.synchronize()
        places = _places(live) if self._plain else None
        return Snapshot(self.is_adapter, self._plan.files, found, places, buffers)

    def forget(self) -> None:
        """Drops the copies that it keeps; snapshots that were taken keep theirs."""
        self._frozen.clear()

    def _copied(self, name: str, live: torch.Tensor, buffers: Buffers) -> torch.Tensor:
        with torch.no_grad():
            if self.is_adapter or live.requires_grad or not isinstance(live, nn.Parameter) or live.is_inference():
                room = buffers.room(name, live)
                return room.copy_(live.detach(), non_blocking=True)
            # One copy of what is not trained serves every snapshot, for as long as nobody writes to it.
            held = self._frozen.get(name)
            if held is None or not held.holds(live):
                held = self._frozen[name] = _Frozen.of(live)
            return held.copy

    def _live(self) -> Mapping[str, torch.Tensor]:
        """The live tensors by the names under which the libraries save them, as far as names tell."""
        if self.is_adapter:
            return adapter_tensors(self.model, str(self.adapter))
        if self._plain:
            module_tensors(self.model)  # refuses what cannot be saved
        return dict(self.model.state_dict(keep_vars=True))

    def _quick(self) -> Mapping[str, torch.Tensor] | None:
        """An adapter's live tensors from where they hung before; None where it takes PEFT to say which they are.

        PEFT goes through all of the model to say so, which takes longer than copying a small adapter.
        """
        plan = self._plan
        if plan is None or plan.owners is None:
            return None
        modules = modules_by_name(self.model)
        if len(modules) != plan.modules:
            return None
        found = {}
        for name, (path, key) in plan.owners.items():
            module = modules.get(path)
            if module is None:
                return None
            tensor = module._parameters.get(key)  # noqa: SLF001 - getattr would ask properties and wrappers
            if tensor is None:
                tensor = module._buffers.get(key)  # noqa: SLF001
            if tensor is None:
                return None
            found[name] = tensor
        return found

    def _owners(self, live: Mapping[str, torch.Tensor]) -> Mapping[str, tuple[str, str]] | None:
        """Module and name of every live tensor, or None where one of them is made up by PEFT."""
        hung = {_place(tensor): name for name, tensor in (*self.model.named_buffers(), *self.model.named_parameters())}
        if not all(tensor.numel() and _place(tensor) in hung for tensor in live.values()):
            return None
        split = {name: hung[_place(tensor)].rpartition(".") for name, tensor in live.items()}
        return {name: (path, key) for name, (path, _, key) in split.items()}

    def _signature(self, live: Mapping[str, torch.Tensor]) -> Any:
        if self.is_adapter:
            config = self.model.peft_config[str(self.adapter)]
            said = sorted(
                (key, sorted(value) if isinstance(value, set) else value) for key, value in vars(config).items()
            )
            return repr(said), tuple((name, tensor.shape, tensor.dtype) for name, tensor in live.items())
        held: list[Any] = [getattr(self.model, key, None) for key in ("config", "generation_config")]
        settings = tuple(one.to_json_string(use_diff=False) for one in held if hasattr(one, "to_json_string"))
        places = _places(live)
        return settings, tuple((name, tensor.shape, tensor.dtype, places[name]) for name, tensor in live.items())

    def _saved(self) -> _Saved:
        return _Saved(self)

    def _ask(self, live: Mapping[str, torch.Tensor], signature: Any) -> _Plan:
        """Lets the libraries save once, and compares what they wrote with what lies in the model."""
        with self._saved() as folder:
            files, weights = _read(folder)
            blocking = None
            for path, (metadata, names) in weights.items():
                blocking = blocking or _differing(folder / path, names, metadata, live)
        owners = self._owners(live) if self.is_adapter and blocking is None else None
        return _Plan(signature, files, weights, blocking, owners, len(modules_by_name(self.model)))


class _Saved:
    """A folder into which PEFT or transformers saved the model."""

    def __init__(self, copier: PhiCopier) -> None:
        self._copier = copier
        self._folder = copier.scratch()

    def __enter__(self) -> Path:
        folder = self._folder.__enter__()
        copier = self._copier
        several = copier.is_adapter and len(copier.model.peft_config) > 1
        try:
            save_source(
                copier.model,
                folder,
                identity=not copier.is_adapter,
                adapter_name=copier.adapter if several else None,
            )
        except BaseException as error:
            self._folder.__exit__(type(error), error, error.__traceback__)
            raise
        return folder

    def __exit__(self, *error: Any) -> None:
        self._folder.__exit__(*error)


def modules_by_name(model: nn.Module) -> dict[str, nn.Module]:
    """Every module of a model under the first of its names, as ``named_modules`` has them, in a tenth of its time."""
    found: dict[str, nn.Module] = {}
    seen: set[int] = set()
    waiting = [("", model)]
    while waiting:
        path, module = waiting.pop()
        if id(module) in seen:
            continue
        seen.add(id(module))
        found[path] = module
        below = f"{path}." if path else ""
        children = module._modules.items()  # noqa: SLF001 - named_children goes through a generator for each module
        waiting += [(below + name, child) for name, child in reversed(children) if child is not None]
    return found


def _places(live: Mapping[str, torch.Tensor]) -> dict[str, int]:
    """A number a tensor, the same for those that are one in memory."""
    numbers: dict[Any, int] = {}
    return {name: numbers.setdefault(_place(tensor), len(numbers)) for name, tensor in live.items()}


def _place(tensor: torch.Tensor) -> tuple[Any, ...]:
    return tensor.data_ptr(), tuple(tensor.shape), tensor.stride(), tensor.dtype


def _read(folder: Path) -> tuple[dict[str, bytes], dict[str, tuple[Mapping[str, str] | None, tuple[str, ...]]]]:
    """What was saved: the small files, and of the weight files the metadata and the names."""
    files, weights = {}, {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.suffix == ".safetensors":
            with safe_open(path, framework="pt") as file:
                weights[name] = (file.metadata(), tuple(file.keys()))
        elif path.is_file():
            files[name] = path.read_bytes()
    return files, weights


def _loaded(path: Path) -> dict[str, torch.Tensor]:
    with safe_open(path, framework="pt") as file:
        # Copies: the file goes away.
        return {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118 - no mapping


def described(tensors: Mapping[str, torch.Tensor]) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Element type, as safetensors names it, and shape of each tensor.

    Raises:
        UnsavableError: An element type that safetensors does not have.
    """
    found = {}
    for name, tensor in tensors.items():
        dtype = STORED_DTYPES.get(tensor.dtype)
        if dtype is None:
            raise UnsavableError(f"{name!r} is of {tensor.dtype}, which no safetensors file holds", object=name)
        found[name] = dtype, tuple(tensor.shape)
    return found


def _differing(
    path: Path, names: tuple[str, ...], metadata: Mapping[str, str] | None, live: Mapping[str, torch.Tensor]
) -> str | None:
    """Why a saved file cannot be had by copying live tensors under its names, or None."""
    if strange := [name for name in names if name not in live]:
        return f"{strange[0]!r} is saved under another name than it has in the model"
    with safe_open(path, framework="pt") as file:
        saved = {name: file.get_tensor(name) for name in names}
        for name, tensor in saved.items():
            if not same_bits(tensor, live[name].detach().cpu()):
                return f"{name!r} is saved with another value than it has in the model"
        header = encode_header(described(saved), metadata)
    with path.open("rb") as raw:
        if raw.read(len(header)) != header:
            return f"{path.name} is laid out in a way of its own"
    return None


def trainable(model: nn.Module) -> list[str]:
    """The names of a model's trainable parameters."""
    return [name for name, parameter in model.named_parameters() if parameter.requires_grad]
