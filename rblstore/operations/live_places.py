"""Where in a live model stored tensors are, and how a value gets there."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, ClassVar, NamedTuple

from rblstore.errors import ConflictError
from rblstore.operations.value_cache import ValueKey

if TYPE_CHECKING:
    import torch
    from torch import nn

    from rblstore.live.binding import Binding, Fused, Read


class TiedTensorsError(ConflictError):
    """Two tensors are one in a live model, and have different values in what it is to be."""

    code: ClassVar[str] = "tied_tensors"


class UnwritableTensorError(ConflictError):
    """A live tensor holds no values that could be compared or written."""

    code: ClassVar[str] = "unwritable_tensor"


class Place(NamedTuple):
    """One live tensor.

    Attributes:
        name: The stored name whose value it holds.
        live_name: Its name in the plain model.
        tensor: The tensor itself.
    """

    name: str
    live_name: str
    tensor: torch.Tensor


class LivePlaces:
    """The map from stored names to a live model's tensors, whatever is attached to it.

    Args:
        model: The live model.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._names: frozenset[str] = frozenset()
        self._binding: Binding | None = None
        self._aliases: dict[str, tuple[str, ...]] = {}
        self._groups: dict[str, Fused] = {}
        self._wraps: dict[type, bool] = {}  # whether modules of a class may wrap others

    def learn(self, names: Collection[str], *, absent: Collection[str] = ()) -> None:
        """Binds further stored names.

        Args:
            names: Which; those that are known cost nothing.
            absent: Those that may have no place in the model (the head of another task).

        Raises:
            UnmappedTensorError: One has no place in the model.
        """
        if self._binding is not None and self._names.issuperset(names):
            return
        from rblstore.checkpoints.plain_view import plain_tensors
        from rblstore.live.binding import bind

        bind(self._model, frozenset(names) - self._names, absent=absent)  # what was let through before stays so
        every = self._names.union(names)
        binding = bind(self._model, every, absent=every)
        tensors = plain_tensors(self._model)
        sharing: dict[int, list[str]] = {}
        for name, live_name in binding.direct.items():
            sharing.setdefault(id(tensors[live_name]), []).append(name)
        self._names, self._binding = every, binding
        self._aliases = {name: tuple(shared) for shared in sharing.values() if len(shared) > 1 for name in shared}
        self._groups = {stored: group for group in binding.fused for stored, _ in group.sources}

    @property
    def binding(self) -> Binding:
        """Of every name that is known."""
        assert self._binding is not None, "names are learned first"
        return self._binding

    def direct(self, names: Iterable[str], wanted: Mapping[str, ValueKey]) -> list[Place]:
        """The places of those names that have one each; each live tensor once.

        Args:
            names: Which.
            wanted: What the whole model is to hold.

        Raises:
            TiedTensorsError: One live tensor is to hold two values.
            UnwritableTensorError: A tensor is on the meta device.
        """
        live_names, aliases = self.binding.direct, self._aliases
        found: dict[int, Place] = {}
        for place in self._at((name, live_names[name]) for name in names if name in live_names):
            name = place.name
            for other in aliases.get(name, ()):
                if wanted.get(other, wanted[name]) != wanted[name]:
                    raise TiedTensorsError(
                        f"{name!r} and {other!r} are one tensor in the live model, and differ in what it is to be",
                        object=name,
                        hint="Load that commit in place of switching to it.",
                    )
            found[id(place.tensor)] = place
        return list(found.values())

    def every(self, names: Iterable[str]) -> list[Place]:
        """The places of those names that have one each, several names of one tensor included.

        Raises:
            UnmappedTensorError: A tensor is not where it was.
            UnwritableTensorError: A tensor is on the meta device.
        """
        direct = self.binding.direct
        return list(self._at((name, direct[name]) for name in names if name in direct))

    def _at(self, names: Iterable[tuple[str, str]]) -> Iterator[Place]:
        """Places by (stored name, live name); modules on the way to several are looked up once."""
        from peft.tuners.tuners_utils import BaseTunerLayer
        from peft.utils.other import AuxiliaryTrainingWrapper

        from rblstore.checkpoints.plain_view import plain_model, unwrapped
        from rblstore.live.binding import UnmappedTensorError

        wrappers = (BaseTunerLayer, AuxiliaryTrainingWrapper)

        modules: dict[str, nn.Module] = {"": unwrapped(plain_model(self._model))}
        wraps = self._wraps

        def module(path: str) -> nn.Module:
            found = modules.get(path)
            if found is None:
                above, _, leaf = path.rpartition(".")
                child = module(above)._modules[leaf]  # noqa: SLF001 - get_submodule is ten times slower
                if child is None:
                    raise KeyError(path)
                kind = type(child)
                if kind not in wraps:
                    wraps[kind] = issubclass(kind, wrappers) or kind.__module__.startswith("peft.")
                modules[path] = found = unwrapped(child) if wraps[kind] else child
            return found

        for name, live_name in names:
            path, _, leaf = live_name.rpartition(".")
            try:
                owner = module(path)
                tensor = owner._parameters.get(leaf)  # noqa: SLF001 - likewise
                if tensor is None:
                    tensor = owner._buffers[leaf]  # noqa: SLF001
            except KeyError:
                tensor = None
            if tensor is None:
                raise UnmappedTensorError(
                    f"the live model has no tensor {live_name!r} any more",
                    object=live_name,
                    hint="Its structure was changed: attach the repository anew.",
                )
            if tensor.is_meta:
                raise UnwritableTensorError(
                    f"{live_name!r} is on the meta device and has no values",
                    object=live_name,
                    hint="Load the model whole.",
                )
            yield Place(name, live_name, tensor)

    def fused(self, names: Iterable[str]) -> list[Fused]:
        """The groups of which one of the names is a part."""
        groups = {id(group): group for name in names if (group := self._groups.get(name)) is not None}
        return list(groups.values())

    def convert(self, group: Fused, read: Read) -> list[tuple[Place, torch.Tensor]]:
        """The live tensors that a group's stored ones become, and their values.

        Raises:
            UnmappedTensorError: They do not convert.
        """
        from rblstore.checkpoints.plain_view import plain_tensors
        from rblstore.live.binding import UnmappedTensorError

        tensors = plain_tensors(self._model)
        made = group.convert(self.binding.model, read, tensors[group.target].dtype)
        for live_name, value in made.items():
            if live_name not in tensors or tensors[live_name].shape != value.shape:
                raise UnmappedTensorError(f"{live_name!r} has no place for what is stored", object=live_name)
        return [(Place(group.sources[0][0], name, tensors[name]), value) for name, value in made.items()]

    def assign(self, place: Place, value: torch.Tensor) -> None:
        """Writes a value into a tensor's own memory, rounding as loading does; for another shape, into new memory.

        Gradients are off.
        """
        tensor = place.tensor
        if tensor.shape == value.shape:
            tensor.copy_(value)
        else:
            self.replace(place, value.to(device=tensor.device, dtype=tensor.dtype, copy=True))

    def replace(self, place: Place, data: torch.Tensor) -> None:
        """Gives a tensor other memory, of another shape, and tells the modules that have it."""
        tensor = place.tensor
        rows = (len(tensor), len(data)) if tensor.dim() and data.dim() else None
        tensor.data = data
        if tensor.grad is not None and tensor.grad.shape != data.shape:
            tensor.grad = None
        if rows is not None and rows[0] != rows[1]:
            self._resize(tensor, *rows)

    def _resize(self, tensor: torch.Tensor, before: int, after: int) -> None:
        from torch import nn

        from rblstore.checkpoints.plain_view import plain_model, plain_modules, unwrapped
        from rblstore.divergence.model_limits import embedding_of

        plain = plain_model(self._model)
        embedding, head = (
            None if (found := embedding_of(plain, output=output)) is None else unwrapped(found)
            for output in (False, True)
        )
        config = getattr(plain, "config", None)
        for _, module in plain_modules(self._model):
            own = [*module._parameters.values(), *module._buffers.values()]  # noqa: SLF001 - its own, not its children's
            if not any(one is tensor for one in own):
                continue
            for attribute in ("num_embeddings", "out_features"):
                if getattr(module, attribute, None) == before:
                    setattr(module, attribute, after)
            if config is None:
                continue
            if module is embedding:
                config.get_text_config().vocab_size = after
                if hasattr(plain, "vocab_size"):
                    plain.vocab_size = after
            elif module is not head and isinstance(module, nn.Linear) and getattr(config, "num_labels", 0) == before:
                config.num_labels = after
                if hasattr(plain, "num_labels"):
                    plain.num_labels = after
