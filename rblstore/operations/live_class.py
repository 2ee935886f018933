"""Which transformers class a live model has to be for a composition, and the change to it over the same body.

A fine-tune may bring a head of its own (another class), untie what its base ties, or change the configuration. Then
``live.model`` becomes another object. Its body's parameters are those of the model before, and its body's modules too
where the configurations differ in nothing that they compute by. Going back gives the first object back.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rblstore.checkpoints.composition_ground import LogicalState
from rblstore.objects import limits
from rblstore.objects.history_records import Composition
from rblstore.operations.live_measuring import most_common_dtype
from rblstore.operations.load import laid_out_behaviors
from rblstore.operations.scratch import scratch
from rblstore.operations.stored_models import CONFIG, composed_state
from rblstore.repository import Store

if TYPE_CHECKING:
    import torch
    from torch import nn


# Members of a configuration that say nothing about a model's class, or that its tensors decide.
_SAID_ELSEWHERE = frozenset({"_name_or_path", "transformers_version", "dtype", "torch_dtype", "vocab_size"})
# Members that the outer model reads and no module of its body.
_OF_THE_HEAD = _SAID_ELSEWHERE | {
    "architectures",
    "bos_token_id",
    "eos_token_id",
    "id2label",
    "label2id",
    "num_labels",
    "pad_token_id",
    "problem_type",
    "tie_word_embeddings",
    "use_cache",
}


_ANSWERS = 256


@dataclass(frozen=True)
class _Settings:
    """A composition's configuration, once transformers has filled its defaults in; None where it has none."""

    content: str | None
    members: Mapping[str, Any] | None

    def differ_in(self, other: _Settings, left_out: frozenset[str]) -> bool:
        if self.content == other.content:
            return False
        if self.members is None or other.members is None:
            return True
        return _without(self.members, left_out) != _without(other.members, left_out)


def _without(members: Mapping[str, Any], left_out: frozenset[str]) -> dict[str, Any]:
    return {
        key: _without(value, left_out) if isinstance(value, Mapping) else value
        for key, value in members.items()
        if key not in left_out
    }


class LiveClasses:
    """The outer models that a live model has been, so that going back gives the first object back.

    Args:
        store: The repository.
        plain: The plain model that was bound.
        composition: What it is.
    """

    def __init__(self, store: Store, plain: nn.Module, composition: Composition) -> None:
        self._store = store
        self._first = plain
        # What each model was made by, and whether it will do for a composition: a switch must not read either again.
        self._made: list[tuple[nn.Module, Composition]] = [(plain, composition)]
        self._answers: dict[tuple[int, Composition], bool] = {}

    def fitting(self, plain: nn.Module, before: Composition, target: Composition) -> nn.Module:
        """The plain model that a composition needs: the one given where it will do, else another over the same body.

        Only objects are made and put together here. Tensors of the body keep the values that they have, whatever the
        target says, and the model that was given stays whole, so that going back to it undoes this.

        Args:
            plain: The live model, with nothing attached.
            before: The composition that it is.
            target: The composition that it is to be.

        Returns:
            ``plain`` itself, the model that was bound first, or a new one whose head holds the stored values; its
            other tensors have to be compared with what is stored.

        Raises:
            UnloadableModelError: No class of transformers' own fits.
            LoadMismatchError: The stored tensors are not those of the class that the configuration names.
        """
        if self.will_do(plain, target):
            return plain
        into: Any = self._first
        if into is plain or not self.will_do(into, target):
            into = self._load(plain, before, target)
            self._made = [self._made[0], (into, target)]
            self._answers.clear()
        from rblstore.live.shells import share_modules, share_parameters

        modules = not self._settings_of(plain).differ_in(self._settings_of(into), _OF_THE_HEAD)
        joined: nn.Module = share_modules(plain, into) if modules else share_parameters(plain, into)
        return joined.train(plain.training)

    def will_do(self, plain: nn.Module, target: Composition) -> bool:
        """Whether a plain model is one that a composition can be written into, its class and settings being right."""
        key = id(plain), target
        if key not in self._answers:
            if len(self._answers) >= _ANSWERS:
                self._answers.clear()
            self._answers[key] = self._fits(plain, target)
        return self._answers[key]

    def configured_as_another(self, plain: nn.Module, composition: Composition, other: Composition) -> tuple[str, ...]:
        """Members of its configuration in which a plain model is what one composition says, and not what another says.

        Its tensors may be those of both: a fine-tune may change nothing but what is computed with them.

        Args:
            plain: The plain model, of which nothing is known but its tensors.
            composition: What it is said to be.
            other: What it may be in its place.
        """
        config: Any = getattr(plain, "config", None)
        one, another = (self._settings(composed_state(self._store, each)).members for each in (composition, other))
        if one is None or another is None or not hasattr(config, "to_json_string"):
            return ()
        live = json.loads(config.to_json_string(use_diff=False))
        said, instead, now = (_without(members, _OF_THE_HEAD) for members in (one, another, live))
        return tuple(
            sorted(
                key
                for key in {*said, *instead}
                if said.get(key) != instead.get(key) and now.get(key) == instead.get(key)
            )
        )

    def _fits(self, plain: nn.Module, target: Composition) -> bool:
        from transformers import PreTrainedModel

        from rblstore.checkpoints.loading import AttachSpec, model_form
        from rblstore.live.shells import ties_fit, unfilled

        new = composed_state(self._store, target)
        if not isinstance(plain, PreTrainedModel) or CONFIG not in new.files:
            return True  # its class is nobody's to choose: what has no place in it is an error that names the tensor
        with laid_out_behaviors(self._store, target) as (directory, slots):
            form = model_form(directory, [AttachSpec(*slot) for slot in slots])
        if not form.fits(plain):
            return False
        if form.switched:
            return True
        contents = {name: str(tensor.content) for name, tensor in new.tensors.items()}
        if self._settings_of(plain).differ_in(self._settings(new), _SAID_ELSEWHERE):
            return False
        # What was bound with a parameter that no checkpoint has goes on with it.
        made = composed_state(self._store, self._made_by(plain)).tensors
        return ties_fit(plain, contents, empty=unfilled(plain, made.keys()))

    def _settings_of(self, plain: nn.Module) -> _Settings:
        return self._settings(composed_state(self._store, self._made_by(plain)))

    def _made_by(self, plain: nn.Module) -> Composition:
        made: Composition = next(composition for model, composition in reversed(self._made) if model is plain)
        return made

    def _settings(self, state: LogicalState) -> _Settings:
        content = state.files.get(CONFIG)
        if content is None:
            return _Settings(None, None)
        from rblstore.checkpoints.saving_overlay import config_members

        with scratch(self._store, "config") as folder:
            (folder / CONFIG).write_bytes(self._store.content_bytes(content, limits.RECORD_BYTES))
            return _Settings(content, config_members(folder))

    def _load(self, plain: nn.Module, before: Composition, target: Composition) -> nn.Module:
        """A model of the target's class: what the body holds already is given to it, the rest is read."""
        from rblstore.checkpoints.loading import AttachSpec, load_plain, model_form
        from rblstore.divergence.alignment import aligned
        from rblstore.live.binding import bind
        from rblstore.live.shells import body_tensors
        from rblstore.operations.tensor_reading import tensor_reader

        old, new = composed_state(self._store, before), composed_state(self._store, target)
        body = body_tensors(plain)
        direct = bind(plain, new.tensors, absent=frozenset(new.tensors)).direct
        read = tensor_reader(self._store, new.tensors)

        def tensors() -> dict[str, torch.Tensor]:
            found = {}
            for name, stored in new.tensors.items():
                live = body.get(direct.get(name, ""))
                # What differs is read although it will be written: whether two tensors are tied is decided by values.
                same = live is not None and old.tensors.get(name) == stored and tuple(live.shape) == stored.shape
                value = live.detach() if live is not None and same else read(name)
                if value is not None:
                    found[name] = value
            return found

        parameter = next(iter(plain.parameters()))
        attention = getattr(getattr(plain, "config", None), "_attn_implementation", None)
        with laid_out_behaviors(self._store, target) as (directory, slots):
            made = load_plain(
                directory,
                model_form(directory, [AttachSpec(*slot) for slot in slots]),
                tensors,
                dtype=most_common_dtype(plain),
                device=str(parameter.device),
                attn_implementation=attention if isinstance(attention, str) else None,
            )
        model: nn.Module = aligned(made)
        return model
