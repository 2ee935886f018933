"""Turning a live model's composition into another: as a whole, or not at all."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, ClassVar, Final
from weakref import ReferenceType, WeakKeyDictionary, ref

from rblstore.checkpoints.attaching import LIBRARY_ERRORS, AttachSpec, attach_adapters
from rblstore.checkpoints.ledger import PlainState, forget_ledger, marks
from rblstore.errors import ConflictError, RblError
from rblstore.live.parking import Condition, Mounting, ParkingLot
from rblstore.objects.history_records import Composition, Slot
from rblstore.operations.live_class import LiveClasses
from rblstore.operations.live_committed import tips_hold
from rblstore.operations.live_compositions import Compositions
from rblstore.operations.live_values import LiveBrokenError, LiveValues
from rblstore.operations.load import laid_out_behaviors
from rblstore.operations.stored_models import composed_state
from rblstore.repository import Store

if TYPE_CHECKING:
    import torch
    from torch import nn

    from rblstore.live.residue import Finding, Kind
    from rblstore.operations.live_form import LiveForm
    from rblstore.operations.live_model import LiveModel
    from rblstore.operations.value_cache import ValueKey

Proof = Callable[[], Callable[[], None]]
"""Called before a change; what it returns is called after it, and raises to take the change back."""

_BOUND: WeakKeyDictionary[nn.Module, ReferenceType[LiveModel]] = WeakKeyDictionary()

# What adapters leave alone and people change while behaviors are on: live.residue() names it, and nobody takes it back.
_THE_USERS: Final[tuple[Kind, ...]] = ("attribute", "config", "extra_state", "generation_config")
# What putting back may raise; an interrupt goes on as it is, and leaves a model that only a switch makes whole.
_FAILURES: tuple[type[Exception], ...] = (*LIBRARY_ERRORS, MemoryError, RblError)


class AlreadyBoundError(ConflictError):
    """A model is bound already."""

    code: ClassVar[str] = "already_bound"


class UncommittedError(ConflictError):
    """An adapter's tensors were changed in memory, and a change of the model would lose them."""

    code: ClassVar[str] = "uncommitted"


def refuse_bound(plain: nn.Module) -> None:
    """Refuses a model that another live model holds.

    Raises:
        AlreadyBoundError: One does.
    """
    holder = _BOUND.get(plain)
    live = None if holder is None else holder()
    if live is not None and not live.closed:
        raise AlreadyBoundError(
            f"this {type(plain).__name__} is bound already, to {live.bound_to.short}",
            object=type(plain).__name__,
            hint="Use that live model, or close it first.",
        )


class LiveState:
    """What a live model is now, and the one way in which it changes.

    Args:
        store: The repository.
        outer: What is called while no adapters lie around the model: itself, or torch.compile's module around it.
        plain: The model itself.
        mounting: The adapters on it, or None.
        composition: What it is made of.
        form: How behaviors are held.
        values: Which values its own tensors have to hold.
        compositions: Those that were checked.
        cache_bytes: Memory for those and for adapters that were taken off.

    Attributes:
        broken: Whether a change failed half way and could not be taken back.
    """

    def __init__(
        self,
        store: Store,
        outer: nn.Module,
        plain: nn.Module,
        mounting: Mounting | None,
        composition: Composition,
        form: LiveForm,
        values: LiveValues,
        compositions: Compositions,
        *,
        cache_bytes: int,
    ) -> None:
        self.store = store
        self.compositions = compositions
        self.plain = plain
        self.mounting = mounting
        self.composition = composition
        self.form: LiveForm = form
        self.values = values
        self.broken = False
        self._outer = outer
        self._bound = plain
        self._pinned: tuple[object, Mounting] | None = None
        self._cache_bytes = cache_bytes
        self._classes = LiveClasses(store, plain, composition)
        self._values_of: list[tuple[nn.Module, LiveValues]] = [(plain, values)]
        self._first = PlainState.of(plain) if mounting is None else mounting.ledger.plain
        self._lot = ParkingLot(lambda: parked_share(cache_bytes))

    @property
    def model(self) -> nn.Module:
        """What to call."""
        if self.mounting is not None:
            return self.mounting.model
        return self._outer if self.plain is self._bound else self.plain

    @property
    def parked_bytes(self) -> int:
        """Memory that adapters off the model take."""
        return self._lot.size

    def register(self, live: LiveModel) -> None:
        """Remembers who holds the model, for as long as it lives; the one that was bound, where its class changed."""
        for plain, _ in self._values_of:
            _BOUND[plain] = ref(live)

    def close(self) -> None:
        """Forgets caches."""
        for plain, values in self._values_of:
            _BOUND.pop(plain, None)
            values.clear()
        self._lot.clear()

    def adapters(self, composition: Composition, form: LiveForm) -> tuple[Slot, ...]:
        """The slots that lie around the model in a form, in order."""
        return () if form == "merged" else self.compositions.adapters(composition)

    def become(self, target: Composition, form: LiveForm, *, discard: bool = False, proof: Proof | None = None) -> None:
        """Makes the model another composition, which was checked, or leaves it as it is.

        Args:
            target: The composition.
            form: How its behaviors are to be held.
            discard: Whether adapters' tensors that were changed in memory may be lost.
            proof: What has to hold afterwards.

        Raises:
            UncommittedError: Such tensors would be lost.
            RblError: Something cannot be read or attached; the model is as before.
            LiveBrokenError: Nor could it be put back.
        """
        wanted = self.adapters(target, form)
        if self.broken:
            self._rebuild(target, form, wanted)
            return
        had, old = self.adapters(self.composition, self.form), self.mounting
        fits = self._classes.will_do(self.plain, target)
        if fits:
            self.values.of(target, form)  # what cannot be written is refused before anything is touched
        keep = old is not None and wanted == had and fits and old.untouched
        device = next(self.plain.parameters()).device
        parking = old is not None and not keep and self._parkable(old, device, discard=discard)
        verdict = None if proof is None else proof()
        parked = self._parked(wanted, device) if wanted and not keep and fits else None
        key = id(self.plain), had
        lay_out = bool(wanted) and not keep and parked is None
        with self._laid_out(target, needed=lay_out) as specs, self._whole_or_not_at_all() as undo:
            new = self._change(undo, target, form, parked, specs, keep=keep)
            self.mounting, self.composition, self.form = new, target, form
            if verdict is not None:
                verdict()
        self._lot.take((id(self.plain), wanted))
        if old is not None and not keep:
            self._leave(old, key, parking=parking)

    @contextmanager
    def keeping(self) -> Iterator[None]:
        """Several changes as one: where what is done inside fails, the model becomes what it was, by reference."""
        was, flags = (self.composition, self.form), self._flags()
        if self.mounting is not None:
            self._pinned = (id(self.plain), self.adapters(*was)), self.mounting
        try:
            yield
        except BaseException:
            if not self.broken and (self.composition, self.form) != was:
                self._go_back(was, flags)
            raise
        finally:
            self._pinned = None

    def _go_back(self, was: tuple[Composition, LiveForm], flags: Sequence[tuple[torch.Tensor, bool]]) -> None:
        try:
            self.become(*was, discard=True)
            for tensor, flag in flags:
                tensor.requires_grad_(flag)
        except _FAILURES as error:
            self.broken = True  # whole, perhaps, but of a composition that nobody asked for
            raise _not_put_back(error) from error

    def _leave(self, old: Mounting, key: tuple[int, tuple[Slot, ...]], *, parking: bool) -> None:
        """Keeps adapters that were taken off for the next time, or forgets them."""
        if parking:
            self._lot.park(key, old)
        elif self._pinned is None or self._pinned[1] is not old:
            old.ledger.attached.clear()
            forget_ledger(old.model)

    def _change(
        self,
        undo: list[Callable[[], None]],
        target: Composition,
        form: LiveForm,
        parked: Mounting | None,
        specs: list[AttachSpec],
        *,
        keep: bool,
    ) -> Mounting | None:
        """Every step, each preceded by what takes it back; steps may be taken back twice, or before they were taken."""
        old = self.mounting
        thorough = old is not None and old.merged
        if old is not None and not keep:
            undo.append(partial(_mount_again, old))
            old.take_off()
            self._write_stored(self.composition, list(old.own))
            self._mend(old, unloaded=not self.adapters(target, form))
        if self._classes.will_do(self.plain, target):
            before, after = self.values.of(self.composition, self.form), self.values.of(target, form)
            undo.append(partial(self._unwrite, before, after))
            self.values.write(before, after)
            if thorough:
                self._write_differing(target, form)
        else:
            undo.append(partial(self._return_to, self.plain, self.composition, self.form))
            self._change_class(target)
            self._write_differing(target, form)
        if keep:
            return old
        if parked is not None:
            undo += [parked.take_off, partial(parked.write, parked.values_now())]
            parked.put_on()
            parked.write(parked.own)
            return parked
        if not specs:
            return None
        undo.append(partial(self._strip, target, PlainState.of(self.plain), marks(self.plain)))
        return self._attach(specs)

    def _unwrite(self, before: Mapping[str, ValueKey], after: Mapping[str, ValueKey]) -> None:
        """Puts back what a write changed, which puts back itself what it wrote where it fails: most often nothing."""
        changed = {name: key for name, key in before.items() if after.get(name) != key}
        if changed and self.values.differing(changed):
            self.values.write(after, before)

    def _mend(self, old: Mounting, *, unloaded: bool) -> None:
        """Undoes what adapters left, where the model is unloaded or theirs were taken off for the first time.

        Between adapters that come and go by reference only what using them leaves (``generate``) is looked for: a scan
        takes longer than the switch.
        """
        old.ledger.plain.drop_left_behind()
        if unloaded or not old.scanned:
            from rblstore.live.residue import mend

            mend(self.plain, old.ledger.plain, keep=_THE_USERS)
            old.scanned = True

    def residue(self) -> list[Finding]:
        """What is on the model that neither it nor its composition brought."""
        from rblstore.live.residue import residue

        return residue(self.model if self.mounting is not None else self.plain, self._first)

    def _change_class(self, target: Composition) -> None:
        """Makes the plain model one of the class that a composition needs, over the same body."""
        plain = self._classes.fitting(self.plain, self.composition, target)
        found = next((values for model, values in self._values_of if model is plain), None)
        if found is None:
            found = LiveValues(self.store, plain, cache_bytes=self._cache_bytes - parked_share(self._cache_bytes))
            first = self._values_of[0]
            for model, values in self._values_of[1:]:
                _BOUND.pop(model, None)
                values.clear()
            self._values_of = [first, (plain, found)]
            if (holder := _BOUND.get(first[0])) is not None:  # else it is being bound just now
                _BOUND[plain] = holder
        self.plain, self.values = plain, found
        self._first = PlainState.of(plain)

    def _return_to(self, plain: nn.Module, composition: Composition, form: LiveForm) -> None:
        """Takes a change of class back: the modules were shared, and may hold the other's values."""
        from rblstore.live.shells import share_modules, shares_modules

        if self.plain is not plain and shares_modules(self.plain, plain):
            share_modules(self.plain, plain)
        self.plain, self._first = plain, PlainState.of(plain)
        self.values = next(values for model, values in self._values_of if model is plain)
        self._write_differing(composition, form)

    def _attach(self, specs: list[AttachSpec]) -> Mounting:
        from rblstore.divergence.alignment import ALIGNMENT

        mounting = Mounting.of(attach_adapters(self.plain, specs))
        for tensor in mounting.tensors:
            if tensor.data_ptr() % ALIGNMENT:
                tensor.data = tensor.detach().clone()
        return mounting

    @contextmanager
    def _whole_or_not_at_all(self) -> Iterator[list[Callable[[], None]]]:
        now = (self.mounting, self.composition, self.form)
        flags = self._flags()
        undo: list[Callable[[], None]] = []
        try:
            self.broken = True
            yield undo
            self.broken = False  # inside, so that an interrupt on this very line is one like any other
        except BaseException:
            self.mounting, self.composition, self.form = now
            self._take_back(undo, flags)
            raise

    def _take_back(self, undo: Sequence[Callable[[], None]], flags: Sequence[tuple[torch.Tensor, bool]]) -> None:
        try:
            for step in reversed(undo):
                step()
            for tensor, flag in flags:
                tensor.requires_grad_(flag)
        except _FAILURES as error:
            raise _not_put_back(error) from error
        self.broken = False

    def _flags(self) -> list[tuple[torch.Tensor, bool]]:
        """Which tensors need gradients now."""
        own = [tensor for state in self._first.modules for tensor in state.module._parameters.values()]  # noqa: SLF001
        adapters = () if self.mounting is None else self.mounting.tensors
        return [(tensor, tensor.requires_grad) for tensor in (*own, *adapters) if tensor is not None]

    def adapters_changed(self) -> bool:
        """Whether the adapters' tensors hold other bits than those that were put on.

        Raises:
            UncommittedError: They do, and no branch's tip has them.
        """
        mounting = self.mounting
        if mounting is None:
            return False
        return self._changed(mounting, mounting.condition(next(self.plain.parameters()).device))

    def _changed(self, mounting: Mounting, condition: Condition) -> bool:
        overwritten = mounting.overwritten()
        if condition != "changed" and not overwritten:
            return False
        if overwritten or not tips_hold(self):
            names = ", ".join(repr(slot.name) for slot in self.adapters(self.composition, self.form))
            raise UncommittedError(
                f"the tensors of {names} were changed in memory since they were put on, and would be lost",
                object=names,
                hint="Commit them first, or pass discard=True.",
            )
        return True

    def _parkable(self, mounting: Mounting, device: torch.device, *, discard: bool) -> bool:
        condition = mounting.condition(device)
        if not discard:
            self._changed(mounting, condition)
        return condition == "intact" and not mounting.shapes

    def _parked(self, wanted: tuple[Slot, ...], device: torch.device) -> Mounting | None:
        key = id(self.plain), wanted
        if self._pinned is not None and self._pinned[0] == key and self._pinned[1] is not self.mounting:
            return self._pinned[1]
        found = self._lot.look(key)
        if found is not None and found.condition(device) != "intact":
            self._lot.take(key)
            return None
        return found

    @contextmanager
    def _laid_out(self, target: Composition, *, needed: bool) -> Iterator[list[AttachSpec]]:
        if not needed:
            yield []
            return
        with laid_out_behaviors(self.store, target) as (_, slots):
            yield [AttachSpec(*slot) for slot in slots]

    def _strip(self, target: Composition, state: PlainState, before: Mapping[str, tuple[int, int]]) -> None:
        """Takes back an attempt to attach, however far it got."""
        state.put_back()
        after = marks(self.plain)
        self._write_stored(target, [name for name, mark in before.items() if after.get(name) != mark])

    def _write_stored(self, composition: Composition, names: list[str]) -> None:
        """Gives tensors of the model, by their plain names, the values that lie beneath all adapters."""
        if not names:
            return
        from rblstore.live.detach import put_values
        from rblstore.live.recompose import stored_values
        from rblstore.operations.tensor_reading import tensor_reader

        tensors = composed_state(self.store, composition).tensors
        restore = stored_values(self.plain, tensors, tensor_reader(self.store, tensors))
        put_values(self.plain, names, restore)

    def _write_differing(self, composition: Composition, form: LiveForm) -> None:
        wanted = self.values.of(composition, form)
        differing = self.values.differing(wanted)
        self.values.write({}, {name: wanted[name] for name in differing})

    def _rebuild(self, target: Composition, form: LiveForm, wanted: tuple[Slot, ...]) -> None:
        """Makes a model of which nothing is known any more a composition: everything is compared."""
        with self._laid_out(target, needed=bool(wanted)) as specs:
            self._lot.clear()
            self.mounting = None
            self._first.put_back()
            if not self._classes.will_do(self.plain, target):
                self._change_class(target)
            self._write_differing(target, form)
            self.mounting = self._attach(specs) if specs else None
            self.composition, self.form, self.broken = target, form, False


def parked_share(cache_bytes: int) -> int:
    """How much of the memory for caches adapters that were taken off may take."""
    return cache_bytes // 4


def _not_put_back(error: Exception) -> LiveBrokenError:
    return LiveBrokenError(
        f"a change failed, and so did putting back what was before: {error}",
        hint="Switch to a commit that can be read, or load the model anew.",
    )


def _mount_again(mounting: Mounting) -> None:
    mounting.put_on(frozen=False)
    mounting.write(mounting.own)
