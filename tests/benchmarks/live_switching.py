"""Taking behaviors out of a live model and switching them: rblstore, peft, a plain copy, loading anew; in rounds."""

from __future__ import annotations

import contextlib
import gc
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from live_models import Subject, load, tensors_of, touched_names

Action = Callable[[], object]

COPY = "copy of the touched tensors"
RELOAD = "from_pretrained and first forward"
WARM = "warm forward"
SET_ADAPTER = "peft set_adapter"
SWITCH = "switch, held apart"
DETACH = "detach, held apart"
ATTACH = "attach, held apart"
CACHED = ", cached"
STORED = ", from the store"
MERGED_DETACH, MERGED_ATTACH, MERGED_SWITCH = "detach, merged", "attach, merged", "switch, merged"
MERGE, UNMERGE = "merge", "unmerge"


@dataclass(frozen=True)
class Timed:
    """What is timed, and what is done outside the clock before it.

    Attributes:
        name: How tables call it.
        work: What is timed.
        before: What makes it possible, and is not.
    """

    name: str
    work: Action
    before: Action = lambda: None


def seconds(work: Action) -> float:
    """Of one call."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def forward(model: Any) -> None:
    """Sixteen tokens through a model."""
    import torch

    with torch.inference_mode():
        model(input_ids=torch.arange(1, 17).unsqueeze(0))


class Peft:
    """A model with both adapters, put together anew where an action took it apart.

    Args:
        subject: What is measured.
    """

    def __init__(self, subject: Subject) -> None:
        self._subject = subject
        self.model: Any = None
        self.whole()

    def whole(self) -> None:
        """Makes sure that both adapters are attached, ``a`` active and nothing merged."""
        from peft import PeftModel

        if self._layers("a") and self._layers("b"):
            if any(layer.merged for layer in self._layers("a")):
                self.model.unmerge_adapter()
        else:
            base = load(self._subject.base) if self.model is None else self.model.unload()
            vars(base).pop("peft_config", None)
            self.model = PeftModel.from_pretrained(base, self._subject.adapters["a"], adapter_name="a")
            self.model.load_adapter(self._subject.adapters["b"], adapter_name="b")
        self.model.set_adapter("a")
        self.model.eval()
        # What does nothing takes no time: unload leaves peft_config as it was, and everything after it would be free.
        if not all(layer.active_adapters == ["a"] and not layer.merged for layer in self._layers("b")):
            raise SystemExit("peft's model is not what its actions are timed on")

    def _layers(self, adapter: str) -> list[Any]:
        """The layers that hold an adapter; none before there is a model, or where it was taken off."""
        from peft.tuners.lora import LoraLayer

        modules = () if self.model is None else self.model.modules()
        return [module for module in modules if isinstance(module, LoraLayer) and adapter in module.lora_A]

    def merged(self) -> None:
        """As :meth:`whole`, ``a`` merged."""
        self.whole()
        self.model.merge_adapter(["a"])
        if not all(layer.merged for layer in self._layers("a")):
            raise SystemExit("peft merged nothing")

    def actions(self) -> Iterator[Timed]:
        """What peft has."""
        yield Timed(SET_ADAPTER, lambda: self.model.set_adapter("b"), self.whole)
        yield Timed("peft delete_adapter", lambda: self.model.delete_adapter("b"), self.whole)
        yield Timed("peft unload", lambda: self.model.unload(), self.whole)
        yield Timed("peft merge_adapter", lambda: self.model.merge_adapter(["a"]), self.whole)
        yield Timed("peft unmerge_adapter", lambda: self.model.unmerge_adapter(), self.merged)


class Ours:
    """One live model of a repository, in one form.

    Args:
        repo: The repository.
        subject: What is measured.
        form: ``adapters`` or ``merged``.
        cached: Whether tensors that behaviors touch may be kept.
    """

    def __init__(self, repo: Any, subject: Subject, form: str, *, cached: bool) -> None:
        self.commits = subject.commits
        self._form = form
        self._how = "" if form == "adapters" else CACHED if cached else STORED
        self.live = repo.attach(
            repo.load(subject.commits["base"]), subject.commits["base"], cache_bytes=None if cached else 0
        )
        for one in ("a", "b", "base"):
            self.at(one)()

    def at(self, commit: str, form: str | None = None) -> Action:
        """What makes the model that commit's, in that form."""
        return lambda: self.live.switch(self.commits[commit], form=form or self._form)

    def actions(self) -> Iterator[Timed]:
        """What a live model has, where its behaviors are held as they are in this one."""
        if self._form == "adapters":
            yield Timed(SWITCH, self.at("b"), self._from_b_to_a)
            yield Timed(DETACH, lambda: self.live.detach("a"), self.at("a"))
            yield Timed(ATTACH, self._attach, self.at("base"))
            return
        yield Timed(MERGED_SWITCH + self._how, self.at("b"), self.at("a"))
        yield Timed(MERGED_DETACH + self._how, lambda: self.live.detach("a"), self.at("a"))
        yield Timed(MERGED_ATTACH + self._how, self._attach, self.at("base"))
        yield Timed(MERGE + self._how, self.live.merge, self.at("a", "adapters"))
        yield Timed(UNMERGE + self._how, self.live.unmerge, self.at("a", "merged"))

    def _from_b_to_a(self) -> None:
        # As before set_adapter, which Peft.whole calls for "a": a switch that was just made, and not one that is none.
        self.at("b")()
        self.at("a")()

    def _attach(self) -> None:
        self.live.attach("a", self.commits["a"], allow_no_effect=True)


def reference_actions(subject: Subject, model: Any) -> Iterator[Timed]:
    """A plain copy of what the adapters touch, and loading the model anew."""
    import torch

    with torch.no_grad():
        kept = [(one, one.clone()) for name, one in tensors_of(model).items() if name in set(touched_names(model))]

    def copy() -> None:
        with torch.no_grad():
            for here, there in kept:
                here.copy_(there)

    yield Timed(COPY, copy)
    yield Timed(RELOAD, lambda: forward(load(subject.base)), gc.collect)
    yield Timed(WARM, lambda: forward(model), lambda: forward(model))


def same_bits(model: Any, fresh: Any) -> bool:
    """Whether every tensor of a live model has the bits of a fresh one."""
    from rblstore.live.binding import same_bits as same

    here, there = tensors_of(model), tensors_of(fresh)
    return here.keys() == there.keys() and all(same(here[name], there[name]) for name in there)


def measure(subject: Subject, rounds: int) -> dict[str, Any]:
    """Seconds of every action in every round but a first one, and whether the weights are the checkpoint's after all.

    Args:
        subject: On what.
        rounds: How many count.
    """
    import rblstore
    from rblstore.operations.live_attaching import CACHE_BYTES
    from rblstore.operations.live_switch import parked_share

    with rblstore.open(subject.repository) as repo, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        base = load(subject.base)
        size = sum(one.numel() * one.element_size() for one in base.parameters())
        tensors = tensors_of(base)
        touched = sum(tensors[name].numel() * tensors[name].element_size() for name in touched_names(base))
        ours = [Ours(repo, subject, "adapters", cached=True)]
        ours += [Ours(repo, subject, "merged", cached=cached) for cached in (True, False)]
        actions = [*(action for one in ours for action in one.actions())]
        actions += [*Peft(subject).actions(), *reference_actions(subject, base)]
        taken: dict[str, list[float]] = {action.name: [] for action in actions}
        for number in range(rounds + 1):
            turn = number % len(actions)
            for action in actions[turn:] + actions[:turn]:
                action.before()
                took = seconds(action.work)
                if number:
                    taken[action.name].append(round(took, 6))
        exact = True
        for one in ours:
            one.at("base")()
            exact = exact and same_bits(one.live.model, base)
            with contextlib.suppress(rblstore.RblError):
                one.live.close()
    return {
        "bytes": size, "touched_bytes": touched, "cache_bytes": CACHE_BYTES - parked_share(CACHE_BYTES),
        "seconds": taken, "bit_equal_afterwards": exact,
    }  # fmt: skip
