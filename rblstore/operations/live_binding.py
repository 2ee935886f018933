"""Binding a model in memory to a composition: every tensor compared, and what the model is found out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from rblstore.checkpoints.composition_ground import shown
from rblstore.errors import ConflictError
from rblstore.objects.content_records import Behavior
from rblstore.objects.history_records import Composition, Slot
from rblstore.operations.live_class import LiveClasses
from rblstore.operations.live_compositions import Compositions
from rblstore.operations.live_values import LiveValues
from rblstore.operations.load import laid_out_behaviors, load_composition
from rblstore.operations.progress import Progress
from rblstore.operations.stored_models import CONFIG, Member, composed_state
from rblstore.repository import Store

if TYPE_CHECKING:
    from torch import nn

    from rblstore.operations.live_form import LiveForm
    from rblstore.operations.live_switch import LiveState
    from rblstore.operations.value_cache import ValueKey


class OtherModelError(ConflictError):
    """The model in memory is not what was committed."""

    code: ClassVar[str] = "other_model"


class OtherAdaptersError(ConflictError):
    """The adapters on a model are not those of the commit."""

    code: ClassVar[str] = "other_adapters"


def bind_model(
    store: Store,
    model: Any,
    composition: Composition,
    compositions: Compositions,
    *,
    form: LiveForm | None,
    cache_bytes: int,
    probe: str | None = None,
    allow_no_effect: bool = False,
    progress: Progress | None,
) -> LiveState:
    """A model in memory as a composition, which it is afterwards.

    Args:
        store: The repository.
        model: See :func:`rblstore.operations.live_attaching.attach_model`.
        composition: What it is, or is to be.
        compositions: In which that was checked.
        form: How behaviors are to be held, or None.
        cache_bytes: Memory for caches.
        probe: Name of the probe under which behaviors that are put on have to have an effect; None for the default.
        allow_no_effect: Whether they need none.
        progress: Is told bytes read.

    Raises:
        OtherModelError: A tensor is not what was committed.
        OtherAdaptersError: Its adapters are not the commit's.
        UnbindableError: It cannot be bound at all.
        AlreadyBoundError: It is.
    """
    from rblstore.checkpoints.plain_view import plain_model
    from rblstore.live.bindable import check_bindable, uncompiled
    from rblstore.operations.live_switch import LiveState, parked_share, refuse_bound

    inner = uncompiled(model)
    plain = plain_model(inner)
    check_bindable(inner)
    refuse_bound(plain)
    values = LiveValues(store, plain, cache_bytes=cache_bytes - parked_share(cache_bytes))
    binding = _Binding(store, plain, values, composition, compositions, progress)
    if inner is plain:
        _refuse_hidden_adapters(plain)
        now, live_form = binding.plain_composition()
        mounting = None
    else:
        now, live_form = composition, _form("adapters")
        mounting = binding.mounting(inner)
    binding.refuse_strangers()
    state = LiveState(
        store,
        model if inner is plain else plain,
        plain,
        mounting,
        now,
        live_form,
        values,
        compositions,
        cache_bytes=cache_bytes,
    )
    wanted = form or ("merged" if now == composition and live_form == "merged" else "adapters")
    if (now, live_form) != (composition, wanted):
        if plain.training:
            from rblstore.operations.live_model import training_error

            raise training_error(plain)
        from rblstore.operations.live_effect import become_proved

        become_proved(state, composition, wanted, probe=probe, allow_no_effect=allow_no_effect)
    return state


def _form(name: LiveForm) -> LiveForm:
    return name


def _refuse_hidden_adapters(plain: nn.Module) -> None:
    from rblstore.checkpoints.plain_view import unwrapped

    for name, module in plain.named_modules():
        if unwrapped(module) is not module:
            raise OtherAdaptersError(
                f"adapters lie inside the model, at {name}",
                object=name,
                hint="Give the PeftModel that holds them, or take them off.",
            )


class _Binding:
    """What a model is found to be."""

    def __init__(
        self,
        store: Store,
        plain: nn.Module,
        values: LiveValues,
        composition: Composition,
        compositions: Compositions,
        progress: Progress | None,
    ) -> None:
        self._store = store
        self._plain = plain
        self._values = values
        self._composition = composition
        self._progress = progress
        self._members = compositions.checked(composition)

    def refuse_strangers(self) -> None:
        """Refuses a model with parameters that neither the checkpoint nor a behavior has.

        Raises:
            OtherModelError: It has such.
        """
        from torch import nn

        from rblstore.checkpoints.plain_view import plain_tensors
        from rblstore.live.binding import bind

        names = self._values.of(Composition(self._composition.identity, self._overlays()), "adapters")
        tensors = plain_tensors(self._plain)
        added = {effect.target for one in self._members for effect in one.behavior.effects if effect.action == "adds"}
        strange = [
            name
            for name in bind(self._plain, names, absent=frozenset(names)).unbound
            if isinstance(tensors[name], nn.Parameter) and name not in added and ".pooler." not in f".{name}"
        ]
        if strange:
            raise OtherModelError(
                f"the model has {len(strange)} parameters that the commit has not: {shown(strange)}",
                object=strange[0],
                hint=(
                    "Is this the model that was committed? repo.load(revision) gives that one. "
                    "Where the commit has another head: attach to the commit beneath it, then live.switch(revision)."
                ),
            )

    # -- a model without adapters -------------------------------------------------------------------------------

    def plain_composition(self) -> tuple[Composition, LiveForm]:
        """Which part of the composition a model without adapters is, and in which form.

        Raises:
            OtherModelError: None.
        """
        candidates = self._candidates()
        failed: list[tuple[str, list[str]]] = []
        first: Mapping[str, ValueKey] = {}
        differing: list[str] = []
        configured: tuple[str, ...] = ()
        refused: ConflictError | None = None
        for label, found, form in candidates:
            try:
                wanted = self._values.of(found, form)
            except ConflictError as error:
                if not first:
                    raise
                refused = error  # what cannot be merged is not merged
                continue
            if not first:
                first, differing = wanted, self._values.differing(wanted)
                wrong = differing
            else:
                # What both candidates want alike was compared already.
                other = {name: key for name, key in wanted.items() if first.get(name) != key}
                wrong = sorted({*(set(differing) - other.keys()), *self._values.differing(other)} & wanted.keys())
            if not wrong:
                settings = self._configured_as_identity(found)
                if not settings:
                    return found, form
                configured = configured or settings
            failed.append((label, wrong))
        if configured:
            raise self._other_settings(configured)
        raise self._other_model(differing, failed[1:], len(first), refused)

    def _configured_as_identity(self, found: Composition) -> tuple[str, ...]:
        """Settings that the composition's overlays change, and that the model has as they are without them."""
        if not any(slot in found.slots for slot in self._overlays()):
            return ()
        classes = LiveClasses(self._store, self._plain, found)
        return classes.configured_as_another(self._plain, found, Composition(found.identity))

    def _other_settings(self, settings: Sequence[str]) -> OtherModelError:
        return OtherModelError(
            f"the model's tensors are those committed, and its configuration is that of the bare identity: "
            f"{shown(list(settings))}",
            object=settings[0],
            hint="It would compute something else. Load the commit: repo.load(revision)",
        )

    def _candidates(self) -> list[tuple[str, Composition, LiveForm]]:
        """What it may be: the checkpoint beneath the adapters, the bare identity, the behaviors merged."""
        identity = self._composition.identity
        overlays = self._overlays()
        found: list[tuple[str, Composition, LiveForm]] = [
            ("what lies beneath the adapters", Composition(identity, overlays), "adapters")
        ]
        if overlays:
            found.append(("the bare identity", Composition(identity), "adapters"))
        if len(overlays) < len(self._members):
            found.append(("the commit, merged", self._composition, "merged"))
        return found

    def _overlays(self) -> tuple[Slot, ...]:
        return tuple(slot for slot, one in self._slots() if one.config is None)

    def _slots(self) -> list[tuple[Slot, Member]]:
        return list(zip(self._composition.slots, self._members, strict=True))

    def _other_model(
        self,
        differing: Sequence[str],
        others: Sequence[tuple[str, list[str]]],
        count: int,
        refused: ConflictError | None,
    ) -> OtherModelError:
        hint = "Bind it to the commit that it was loaded from, or load that one: repo.load(revision)"
        if refused is not None:
            hint += f". A merged checkout of this commit is nothing to bind: {refused.message}"
        near = [f"{len(wrong)} differ from {label}" for label, wrong in others if len(wrong) < len(differing)]
        return OtherModelError(
            f"the model is not what was committed: {len(differing)} of {count} tensors differ ({shown(differing)})"
            + (f"; {', '.join(near)}" if near else ""),
            object=differing[0],
            hint=hint,
        )

    # -- a model with adapters ----------------------------------------------------------------------------------

    def mounting(self, model: nn.Module) -> Any:
        """The adapters on a model, which are the composition's.

        Raises:
            OtherAdaptersError: They are not.
            OtherModelError: The model beneath them is not what was committed.
        """
        from rblstore.checkpoints.ledger import ledger_of
        from rblstore.live.adopting import adopted_ledger, names_on, used_otherwise
        from rblstore.live.parking import Mounting

        wanted = [(slot, one) for slot, one in self._slots() if one.config is not None]
        names = names_on(model)
        if names != [slot.name for slot, _ in wanted]:
            raise OtherAdaptersError(
                f"the model has the adapters {_listed(names)} active, the commit "
                f"{_listed([slot.name for slot, _ in wanted])}",
                object=names[0] if names else None,
                hint="Activate the commit's adapters in its order, or give the model without any.",
            )
        ledger = ledger_of(model)
        with ExitStack() as stack:
            _, laid = stack.enter_context(laid_out_behaviors(self._store, self._composition))
            self._compare_adapters(model, {name: directory for name, directory, _ in laid})
        replaced = self._compare_beneath(model, wanted)
        if settings := self._configured_as_identity(self._composition):
            raise self._other_settings(settings)
        if ledger is None:
            ledger = adopted_ledger(model, [(slot.name, replaced.get(slot.name, frozenset())) for slot, _ in wanted])
        for entry, (slot, _) in zip(ledger.attached, wanted, strict=True):
            if entry.weight != slot.weight:
                raise OtherAdaptersError(
                    f"{slot.name!r} is on the model with the weight {entry.weight}, in the commit with {slot.weight}",
                    object=slot.name,
                    hint="Give the model without adapters, or load the commit.",
                )
        if (reason := used_otherwise(model, ledger.attached)) is not None:
            raise OtherAdaptersError(
                f"the model does not compute what its adapters say: {reason}",
                object=names[0],
                hint="Enable them and put peft's own scaling back, or give the model without adapters.",
            )
        return Mounting.of(model)

    def _compare_adapters(self, model: nn.Module, directories: Mapping[str, Path]) -> None:
        from rblstore.live.adapters_alike import differing_settings, differing_tensors
        from rblstore.live.adopting import live_names

        for name, live in live_names(model).items():
            config: Any = getattr(model, "peft_config")[live]  # noqa: B009 - nn.Module's own attributes are untyped
            differing = differing_tensors(model, live, directories[name])
            if differing:
                raise OtherAdaptersError(
                    f"the adapter {name!r} is not the one committed: {len(differing)} tensors differ "
                    f"({shown(differing)})",
                    object=name,
                    hint="Commit it first, or load the commit.",
                )
            settings = differing_settings(config, directories[name])
            if settings:
                raise OtherAdaptersError(
                    f"the adapter {name!r} is configured otherwise than the one committed: {shown(settings)}",
                    object=name,
                    hint="Commit it first, or load the commit.",
                )

    def _compare_beneath(self, model: nn.Module, wanted: Sequence[tuple[Slot, Member]]) -> dict[str, frozenset[str]]:
        """Compares the model's own tensors; those that attaching an adapter replaces with a fresh load's.

        Returns:
            Live names by the adapter that replaced them, as far as the composition tells.
        """
        from rblstore.live.binding import bind

        keys = self._values.of(self._composition, "adapters")
        differing = self._values.differing(keys)
        by_slot = {slot.name: _may_replace(one) & set(differing) for slot, one in wanted}
        explained = set().union(*by_slot.values()) if by_slot else set()
        wrong = sorted(set(differing) - explained)
        if not wrong and explained:
            wrong = self._differing_from_fresh(model, sorted(explained))
        if wrong:
            raise OtherModelError(
                f"the model beneath the adapters is not what was committed: {len(wrong)} of {len(keys)} tensors differ "
                f"({shown(wrong)})",
                object=wrong[0],
                hint="Was the adapter put on another base? Load the commit: repo.load(revision)",
            )
        if not explained:
            return {}
        direct = bind(model, keys, absent=frozenset(keys)).direct
        return {name: frozenset(direct[one] for one in found if one in direct) for name, found in by_slot.items()}

    def _differing_from_fresh(self, model: nn.Module, names: Sequence[str]) -> list[str]:
        from rblstore.live.binding import bind, same_bits

        if CONFIG not in composed_state(self._store, self._composition).files:
            return list(names)
        fresh = load_composition(self._store, self._composition, self._progress)
        one, other = (bind(found, names, absent=frozenset(names)) for found in (model, fresh))
        wrong = []
        for name in names:
            if name not in one.direct or name not in other.direct:
                wrong.append(name)
                continue
            live, stored = one.live(name), other.live(name)
            if not same_bits(stored.to(live.dtype), live.cpu()):
                wrong.append(name)
        return wrong


def _listed(names: Sequence[str]) -> str:
    return ", ".join(map(repr, names)) or "none"


def _may_replace(member: Member) -> set[str]:
    """Tensors beneath it that attaching an adapter overwrites: it brings them whole, or takes a part of them away."""
    assert member.config is not None, "only adapters are attached"
    behavior: Behavior = member.behavior
    return {
        effect.target
        for effect in behavior.effects
        if effect.on == "tensor" and (effect.action == "replaces" or member.config.mutates_base)
    }
