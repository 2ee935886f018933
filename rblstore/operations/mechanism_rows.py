"""One model adapted in each of the ways that are compared, and got back in each of the ways that apply.

Weight-based adaptation writes over the identity's tensors, in memory alone; between two points every tensor is put back
from the store. A reset is given what somebody without a snapshot has, and never what is stored: the one condition that
reads the store is called so (``store``).
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, BinaryIO, Final, Protocol, cast

from rblstore.divergence.locality import locality
from rblstore.divergence.recipes import Recipe
from rblstore.errors import UsageError
from rblstore.objects.history_records import Composition, Slot
from rblstore.objects.study_records import Scalar, StudyPoint
from rblstore.operations.scratch import scratch
from rblstore.operations.study_points import check_bounds, with_recovery

if TYPE_CHECKING:
    import torch

    from rblstore.operations.study_model import StudyModel

MECHANISMS: Final = ("unstructured", "structured", "reversible", "overlay")
"""Noise on every weight; a few steps on the last layers; an adapter held apart; a full fine-tune kept as an overlay."""

RESETS: Final = ("pull_back", "eight_bit", "estimated_delta", "distillation", "store")
"""What is tried where weights were written over; the last one restores from the store."""

FRESH_RECIPE: Final = Recipe(steps=10, learning_rate=1e-3, weight_decay=0.0)
"""How the adapter that is made on the spot is trained."""

OTHER_SEED: Final = 1_000_003
"""What is added to a seed where the same adaptation is done again with another one."""


class Points(Protocol):
    """Where points go; a study run is one."""

    def point(self, condition: dict[str, Scalar], seed: int | None, make: Callable[[], StudyPoint]) -> StudyPoint:
        """The point of a condition and a seed, made where it is not there yet."""


@dataclass(frozen=True)
class Training:
    """What is trained on.

    Attributes:
        sequences: Token ids.
        target: The identity's recorded logits for a sequence, read from the store, by its place.
    """

    sequences: Sequence[Sequence[int]]
    target: Callable[[int], torch.Tensor]


@dataclass(frozen=True)
class MechanismSettings:
    """What is done to a model.

    Attributes:
        alpha: Standard deviation of the noise on each weight.
        recipe: Of structured fine-tuning, and of distillation.
        mechanisms: Of :data:`MECHANISMS`, in this order.
        resets: Of :data:`RESETS`, in this order.
        seeds: Of random numbers.
        threshold: ILS (nats) above which a prompt is flagged.
    """

    alpha: float
    recipe: Recipe
    mechanisms: tuple[str, ...]
    resets: tuple[str, ...]
    seeds: tuple[int, ...]
    threshold: float


def chosen(what: str, given: Sequence[str] | None, known: Sequence[str]) -> tuple[str, ...]:
    """Those that were asked for, in the order of the known ones; all of them where nothing was.

    Raises:
        UsageError: An unknown name, or none.
    """
    if given is None:
        return tuple(known)
    names = [given] if isinstance(given, str) else list(given)
    for name in names:
        if name not in known:
            raise UsageError(f"{name!r:.60} is no {what}", object=str(name)[:60], hint=f"Known: {', '.join(known)}.")
    if not names:
        raise UsageError(f"no {what} is named", hint=f"Known: {', '.join(known)}.")
    return tuple(name for name in known if name in names)


def check_trainable(model: StudyModel, settings: MechanismSettings, slots: Mapping[str, Sequence[Slot]]) -> None:
    """Refuses a model that cannot be trained, before minutes are spent, where what was asked for trains it.

    Args:
        model: The loaded one.
        settings: What is done.
        slots: As for :meth:`MechanismRows.measure`.

    Raises:
        UntrainableModelError: It cannot.
    """
    from rblstore.divergence.adaptations import check_distillable, task_of

    made = "reversible" in settings.mechanisms and not slots.get("adapter")
    if made or "structured" in settings.mechanisms:
        task_of(model.live.plain)
    if "distillation" in settings.resets and set(settings.mechanisms) != {"reversible"}:
        check_distillable(model.live.plain, model.probe.prompts[0].tokens)


class MechanismRows:
    """The points of one identity.

    Args:
        model: Around the one model in memory.
        run: Where points go.
        settings: What is done.
        base: The identity alone, which everything is compared with.
        training: What is trained on.
        condition: What every condition says besides.
        values: What every point says besides.
    """

    def __init__(
        self,
        model: StudyModel,
        run: Points,
        settings: MechanismSettings,
        base: Composition,
        training: Training,
        *,
        condition: Mapping[str, Scalar] | None = None,
        values: Mapping[str, float | None] | None = None,
    ) -> None:
        self._model = model
        self._run = run
        self._settings = settings
        self._base = base
        self._training = training
        self._condition = dict(condition or {})
        self._values = dict(values or {})
        self._reference = model.reference(base)

    @staticmethod
    def count(settings: MechanismSettings, slots: Mapping[str, Sequence[Slot]]) -> int:
        """How many points there will be."""
        weights = [name for name in ("unstructured", "structured") if name in settings.mechanisms]
        rows = len(weights) * (1 + len(settings.resets))
        if "reversible" in settings.mechanisms:
            rows += 2 * max(1, len(slots.get("adapter", ())))
        if "overlay" in settings.mechanisms:
            rows += len(slots.get("overlay", ())) * (1 + len(_overlay_resets(settings)))
        return rows * len(settings.seeds)

    def measure(self, slots: Mapping[str, Sequence[Slot]]) -> None:
        """Every point, in order.

        Args:
            slots: The composition's behaviors that stand on the identity alone: ``adapter`` and ``overlay``.

        Raises:
            UntrainableModelError: The model cannot be trained.
            NanOutputError: An adapted model gives no distributions; names the prompt.
        """
        for seed in self._settings.seeds:
            if "unstructured" in self._settings.mechanisms:
                self._unstructured(seed)
            if "structured" in self._settings.mechanisms:
                self._structured(seed)
            if "reversible" in self._settings.mechanisms:
                for slot in slots.get("adapter", ()):
                    self._stored("reversible", slot, seed, ("unload",))
                if not slots.get("adapter"):
                    self._fresh(seed)
            if "overlay" in self._settings.mechanisms:
                for slot in slots.get("overlay", ()):
                    self._stored("overlay", slot, seed, _overlay_resets(self._settings))

    def _unstructured(self, seed: int) -> None:
        from rblstore.divergence.perturbations import add_noise
        from rblstore.divergence.resets import subtract_estimate

        alpha = self._settings.alpha
        tensors = self._model.identity_tensors()

        def again() -> None:
            # A tensor at a time: a copy of all of them would be a second model.
            for place, (name, tensor) in enumerate(sorted(tensors.items())):
                one = {name: tensor}
                drawn = seed + OTHER_SEED + place
                subtract_estimate(one, lambda one=one, drawn=drawn: add_noise(one, alpha, drawn))  # type: ignore[misc]

        def adapt() -> None:
            add_noise(tensors, alpha, seed)

        self._written("unstructured", None, tensors, adapt, again, alpha, seed)

    def _structured(self, seed: int) -> None:
        from rblstore.divergence.adaptations import fine_tune, last_layers
        from rblstore.divergence.resets import subtract_estimate

        recipe, plain = self._settings.recipe, self._model.live.plain
        parameters = last_layers(plain, recipe.layers)
        tensors = {name: parameter.detach() for name, parameter in parameters.items()}

        kept: dict[str, torch.Tensor] = {}

        def tune(drawn: int) -> None:
            fine_tune(plain, parameters, self._training.sequences, recipe, drawn)

        def adapt() -> None:
            if not kept:
                tune(seed)
                kept.update((name, tensor.clone()) for name, tensor in tensors.items())
            for name, tensor in tensors.items():
                tensor.copy_(kept[name])

        # No AdamW step moves a weight by much more than the learning rate: this is the most that it can have moved.
        size = recipe.steps * recipe.learning_rate
        self._written(
            "structured",
            None,
            tensors,
            adapt,
            lambda: subtract_estimate(tensors, lambda: tune(seed + OTHER_SEED)),
            size,
            seed,
        )

    def _written(
        self,
        mechanism: str,
        behavior: str | None,
        tensors: Mapping[str, torch.Tensor],
        adapt: Callable[[], None],
        again: Callable[[], None],
        size: float,
        seed: int,
    ) -> None:
        """The points of an adaptation that writes over the identity's tensors."""

        def adapted() -> None:
            self._model.restore()
            adapt()

        before = self._point(mechanism, behavior, "none", seed, adapted)
        for reset in self._settings.resets:
            self._point(
                mechanism,
                behavior,
                reset,
                seed,
                lambda reset=reset: self._reset(reset, tensors, adapted, again, size, seed),  # type: ignore[misc]
                before,
            )

    def _reset(
        self,
        reset: str,
        tensors: Mapping[str, torch.Tensor],
        adapted: Callable[[], None],
        again: Callable[[], None] | None,
        size: float,
        seed: int,
    ) -> None:
        from rblstore.divergence.adaptations import distil, last_layers
        from rblstore.divergence.resets import EightBitCopy, pull_back

        if reset == "eight_bit":
            self._model.restore()
            with self._file() as file:
                copy = EightBitCopy(file)
                copy.keep(tensors)
                adapted()
                copy.put(tensors)
            return
        adapted()
        if reset == "pull_back":
            pull_back(tensors, size)
        elif reset == "estimated_delta" and again is not None:
            again()
        elif reset == "distillation":
            recipe, plain = self._settings.recipe, self._model.live.plain
            distil(
                plain, last_layers(plain, recipe.layers), self._training.sequences, self._training.target, recipe, seed
            )
        elif reset == "store":
            self._model.restore()

    def _fresh(self, seed: int) -> None:
        from rblstore.divergence.adaptations import fine_tune
        from rblstore.live.fresh_adapter import fresh_adapter

        @contextmanager
        def trained() -> Iterator[None]:
            self._model.restore()
            with fresh_adapter(self._model.live.plain, seed) as wrapped:
                own = {name: one for name, one in wrapped.named_parameters() if one.requires_grad}
                fine_tune(wrapped, own, self._training.sequences, FRESH_RECIPE, seed)
                yield

        def unloaded() -> None:
            with trained():
                pass

        def adapted() -> StudyPoint:
            with trained():
                return self._measured("reversible", None, "none", seed, None)

        condition = self._named("reversible", None, "none")
        before = self._run.point(condition, seed, adapted)
        self._point("reversible", None, "unload", seed, unloaded, before)

    def _stored(self, mechanism: str, slot: Slot, seed: int, resets: Sequence[str]) -> None:
        """The points of a behavior that is kept apart from the identity, as a record of its own."""
        together = Composition(self._base.identity, (slot,))

        def adapted() -> None:
            self._model.restore()
            self._model.become(together)

        def back(reset: str) -> None:
            if reset in ("unload", "store"):
                adapted()
                self._model.become(self._base)
                return
            adapted()
            written = self._model.behavior_tensors(slot).keys()
            self._model.become(self._base)
            tensors = {name: tensor for name, tensor in self._model.identity_tensors().items() if name in written}
            self._reset(reset, tensors, adapted, None, 0.0, seed)

        before = self._point(mechanism, slot.name, "none", seed, adapted)
        for reset in resets:
            self._point(mechanism, slot.name, reset, seed, lambda reset=reset: back(reset), before)  # type: ignore[misc]
        self._model.restore()
        self._model.become(self._base)

    def _point(
        self,
        mechanism: str,
        behavior: str | None,
        reset: str,
        seed: int,
        make: Callable[[], None],
        adapted: StudyPoint | None = None,
    ) -> StudyPoint:
        def measured() -> StudyPoint:
            make()
            return self._measured(mechanism, behavior, reset, seed, adapted)

        return self._run.point(self._named(mechanism, behavior, reset), seed, measured)

    def _named(self, mechanism: str, behavior: str | None, reset: str) -> dict[str, Scalar]:
        named: dict[str, Scalar] = {} if behavior is None else {"behavior": behavior}
        return {**self._condition, "mechanism": mechanism, **named, "reset": reset}

    def _measured(
        self, mechanism: str, behavior: str | None, reset: str, seed: int, adapted: StudyPoint | None
    ) -> StudyPoint:
        point = check_bounds(self._model.measured(self._reference, self._named(mechanism, behavior, reset), seed))
        point = with_recovery(point, point if adapted is None else adapted)
        found = locality(
            [(prompt.id, prompt.values.get("kl"), bool(point.bit_equal)) for prompt in point.prompts],
            self._settings.threshold,
        )
        values = {"ils_max": found.largest, "ils_flagged": float(len(found.flagged))}
        return replace(point, values={**self._values, **point.values, **values})

    @contextmanager
    def _file(self) -> Iterator[BinaryIO]:
        with scratch(self._model.store, "study") as folder, tempfile.TemporaryFile(dir=folder) as file:
            yield cast("BinaryIO", file)


def _overlay_resets(settings: MechanismSettings) -> tuple[str, ...]:
    """How an overlay was made, and how far it moved weights, nobody knows who only has the tensors."""
    return tuple(reset for reset in settings.resets if reset in ("eight_bit", "distillation", "store"))
