"""What a training run says about its commits: how it is set, what is known at a step, as a message and as claims."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Final, Literal

from rblstore.configuration import Compression, check_compression
from rblstore.errors import UsageError
from rblstore.objects.evidence_records import Claim
from rblstore.objects.paths import check_name, check_ref_name
from rblstore.operations.told import Told

ORIGIN: Final = "training run"
"""Where claims come from that the run made itself; what whoever trains said is from ``api``."""

OnBusy = Literal["block", "skip"]


class BadTrainingError(UsageError):
    """A training run was asked for with settings that it does not have, or told something that is no number."""

    code: ClassVar[str] = "bad_training"


@dataclass(frozen=True)
class TrainingOptions:
    """How a training run is set; see :meth:`rblstore.Repository.training`.

    Attributes:
        compression: How commits are stored; None for an adapter as it is, and for anything else as the settings say.
        capture: Takes the state that is stored with each commit, in place of ``optimizer`` and ``scheduler``; what it
            gives is copied before the loop goes on.
        done: Steps done before the run starts, where it is the loop that resumed.
        version: Of rblstore.
    """

    behavior: str
    author: str
    every: int = 100
    branch: str | None = None
    probe: str | None = None
    verify_at_end: bool = False
    guard: bool | Literal["record"] = True
    guard_every: int = 10
    on_busy: OnBusy = "block"
    message: str | None = None
    meta: Mapping[str, str] = field(default_factory=dict)
    dataset: str | None = None
    dataset_license: str | None = None
    license: str | None = None
    optimizer: Any = None
    scheduler: Any = None
    save_state: bool = False
    seed: int | None = None
    resume: str | None = None
    compression: Compression | None = None
    capture: Callable[[], Any] | None = None
    done: int = 0
    version: str | None = None

    def __post_init__(self) -> None:
        check_name(self.behavior, "behavior")
        if self.branch is not None:
            check_ref_name(self.branch, "branch")
        for name, value in (("every", self.every), ("guard_every", self.guard_every)):
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise BadTrainingError(f"{name!r} is a whole number from 1, not {value!r}", object=name)
        if self.on_busy not in ("block", "skip"):
            raise BadTrainingError(f"'on_busy' is 'block' or 'skip', not {self.on_busy!r}", object="on_busy")
        if self.guard not in (True, False, "record"):
            raise BadTrainingError(f"'guard' is True, False or 'record', not {self.guard!r}", object="guard")
        if self.compression is not None:
            check_compression(self.compression)
        if self.seed is not None and (isinstance(self.seed, bool) or not isinstance(self.seed, int)):
            raise BadTrainingError(f"'seed' is a whole number, not {self.seed!r}", object="seed")
        if self.dataset_license is not None and self.dataset is None:
            raise BadTrainingError(
                "a dataset's licence is given, and no dataset", object="dataset_license", hint="Say which: dataset=..."
            )
        self.said()

    def said(self) -> tuple[Claim, ...]:
        """What whoever trains says about the behavior.

        Raises:
            UsageError: An empty key or value, or a licence that nobody knows.
        """
        if self.dataset_license is not None and not self.dataset_license.strip():
            raise BadTrainingError("the dataset's licence is empty", object="dataset_license")
        datasets = {} if self.dataset is None else {self.dataset: self.dataset_license}
        return Told(license=self.license, datasets=datasets, meta=self.meta).claims("api")


@dataclass
class Progressed:
    """How far a run is, at the latest step.

    Attributes:
        step: Steps done, those before a resume included.
        loss: As it was given last; a tensor is read where it is needed, since reading one waits for an accelerator.
        learning_rate: Likewise.
        tokens: Tokens seen, those before a resume included; None where nobody counts them.
    """

    step: int = 0
    loss: Any = None
    learning_rate: Any = None
    tokens: int | None = None

    def advance(self, step: int | None, loss: Any, learning_rate: Any, tokens: int | None) -> None:
        """Counts a step.

        Raises:
            BadTrainingError: A step that is not after the last one, or tokens that cannot be counted.
        """
        if step is not None and (isinstance(step, bool) or not isinstance(step, int) or step <= self.step):
            raise BadTrainingError(f"after step {self.step} comes a greater one, not {step!r}", object="step")
        if tokens is not None:
            tokens = _count(tokens)
        for what, value in (("loss", loss), ("learning_rate", learning_rate)):
            if not hasattr(value, "detach"):  # reading a tensor waits for an accelerator
                _number(value, what)
        self.step = self.step + 1 if step is None else step
        self.loss = loss.detach() if hasattr(loss, "detach") else loss
        self.learning_rate = learning_rate
        if tokens is not None:
            self.tokens = (self.tokens or 0) + tokens

    def facts(self, optimizer: Any) -> Facts:
        """What is known now, as numbers."""
        rate = self.learning_rate
        if rate is None and getattr(optimizer, "param_groups", None):
            rate = optimizer.param_groups[0].get("lr")
        return Facts(self.step, _number(self.loss, "loss"), _number(rate, "learning_rate"), self.tokens)


@dataclass(frozen=True)
class Facts:
    """What was known when a snapshot was taken.

    Attributes:
        step: Steps done.
        loss: Of the latest step, or None.
        learning_rate: Likewise.
        tokens: Tokens seen, or None.
    """

    step: int
    loss: float | None
    learning_rate: float | None
    tokens: int | None

    def message(self, subject: str) -> str:
        """A commit's message: ``polite: step 300, loss 1.234``."""
        loss = "" if self.loss is None else f", loss {self.loss:.4g}"
        return f"{subject}: step {self.step}{loss}"

    def claims(self) -> list[tuple[str, str]]:
        """Key and value of what is known, exactly as it was measured."""
        found = [("meta.step", str(self.step))]
        for key in ("loss", "learning_rate", "tokens"):
            value = getattr(self, key)
            if value is not None:
                found.append((f"meta.{key}", repr(value)))
        return found


def library_claims(version: str | None) -> list[tuple[str, str]]:
    """Which versions train, rblstore's among them where it is known."""
    import peft
    import torch
    import transformers

    modules: Sequence[Any] = (torch, transformers, peft)
    found = [(f"meta.{module.__name__}", str(module.__version__)) for module in modules]
    return found if version is None else [*found, ("meta.rblstore", version)]


def _count(tokens: Any) -> int:
    count = tokens.item() if hasattr(tokens, "item") else tokens
    if (
        isinstance(count, bool)
        or not isinstance(count, (int, float))
        or not 0 <= count < math.inf
        or count != int(count)
    ):
        raise BadTrainingError(f"a number of tokens is a whole number, not {tokens!r}", object="tokens")
    return int(count)


def _number(value: Any, what: str) -> float | None:
    """A number that was given, or None; NaN and infinity are numbers here, and worth recording."""
    if value is None:
        return None
    try:
        return float(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise BadTrainingError(f"the {what} {str(value)[:80]!r} is not a number", object=what) from error
