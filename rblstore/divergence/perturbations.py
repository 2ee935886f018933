"""What is done to tensors to see what they are for: elimination by magnitude, noise, and the perturbations of SVAR.

Random numbers come from torch's CPU generator, one for each tensor, seeded from (purpose, seed, tensor's name): so they
depend neither on the order of tensors, nor on the device or the number of threads. They are drawn in float32, in blocks
of 2^20 elements; the sum is taken in float32 (float64 where the tensor is) and rounded once to the tensor's own type.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Final, Literal

import torch

from rblstore.errors import UsageError

Kind = Literal["drop", "scale", "normal", "uniform"]
Region = Literal["all", "first", "middle", "last"]

KINDS: Final[tuple[Kind, ...]] = ("drop", "scale", "normal", "uniform")
REGIONS: Final[tuple[Region, ...]] = ("all", "first", "middle", "last")

_BLOCK: Final = 1 << 20
_LAYER: Final = re.compile(r"(?:^|\.)(\d+)(?:\.|$)")
# Of noise and factors: far above any weight, and far below what a record cannot hold.
_MOST: Final = 1e6
_MOST_SEED: Final = (1 << 53) - 1


class BadPerturbationError(UsageError):
    """A perturbation, or a parameter of one, that is out of range."""

    code: ClassVar[str] = "bad_perturbation"


def check_alpha(alpha: float) -> float:
    """The standard deviation of noise, where it is a number above 0, up to a million.

    Raises:
        BadPerturbationError: It is not.
    """
    if isinstance(alpha, bool) or not isinstance(alpha, (int, float)) or not 0 < alpha <= _MOST:
        raise BadPerturbationError(
            f"alpha is a number above 0, up to {_MOST:g}, not {alpha!r:.40}",
            object="alpha",
            hint="The paper's: 0.001 0.01 0.05.",
        )
    return float(alpha)


def check_epsilon(epsilon: float) -> float:
    """A fraction to eliminate, where it is a number from 0 to 1.

    Raises:
        BadPerturbationError: It is not.
    """
    if isinstance(epsilon, bool) or not isinstance(epsilon, (int, float)) or not 0 <= epsilon <= 1:
        raise BadPerturbationError(
            f"epsilon is a number from 0 to 1, not {epsilon!r:.40}", object="epsilon", hint="0 is nothing, 1 is all."
        )
    return float(epsilon)


def generator_for(purpose: str, seed: int, name: str) -> torch.Generator:
    """The random numbers of one tensor.

    Args:
        purpose: What they are for: a study's or a perturbation's name.
        seed: From 0 to 2^53 - 1.
        name: The tensor's.
    """
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed <= _MOST_SEED:
        raise BadPerturbationError(f"a seed is an integer from 0 to 2^53 - 1, not {seed!r:.40}", object="seed")
    digest = hashlib.sha256(f"{purpose}\n{seed}\n{name}".encode()).digest()
    # 63 bits: torch takes seeds as signed integers.
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)


def add_noise(tensors: Mapping[str, torch.Tensor], alpha: float, seed: int, *, purpose: str = "mutation") -> None:
    """Adds N(0, alpha^2) to every element of some tensors, in place.

    Args:
        tensors: Floating point, by name; each live tensor once.
        alpha: Standard deviation, above 0.
        seed: Of the noise.
        purpose: What the random numbers are for.

    Raises:
        BadPerturbationError: Alpha or seed out of range.
    """
    check_alpha(alpha)
    for name, tensor in tensors.items():
        drawing = generator_for(purpose, seed, name)
        _add(tensor, lambda count, drawing=drawing: torch.randn(count, generator=drawing).mul_(alpha))  # type: ignore[misc]


def add_uniform(tensors: Mapping[str, torch.Tensor], width: float, seed: int, *, purpose: str) -> None:
    """Adds uniform noise from -width to width to every element of some tensors, in place; see :func:`add_noise`."""
    for name, tensor in tensors.items():
        drawing = generator_for(purpose, seed, name)

        def draw(count: int, drawing: torch.Generator = drawing) -> torch.Tensor:
            return torch.rand(count, generator=drawing).mul_(2.0).sub_(1.0).mul_(width)

        _add(tensor, draw)


def _add(tensor: torch.Tensor, draw: Callable[[int], torch.Tensor]) -> None:
    """Adds numbers in the order of elements, a block at a time."""
    with torch.no_grad():
        for block in flat_blocks(tensor):
            wide = torch.float64 if block.dtype == torch.float64 else torch.float32
            block.copy_(block.to(wide) + draw(block.numel()).to(device=block.device, dtype=wide))


def flat_blocks(tensor: torch.Tensor) -> Iterator[torch.Tensor]:
    """Views of a contiguous tensor's elements in order, so many at a time that temporaries stay small.

    Raises:
        BadPerturbationError: The tensor is not contiguous, so that writing to a flat view would change a copy.
    """
    if not tensor.is_contiguous():
        raise BadPerturbationError("a tensor that is not contiguous is not perturbed")
    yield from tensor.detach().view(-1).split(_BLOCK) if tensor.numel() else ()


@dataclass(frozen=True)
class Perturbation:
    """One change of a behavior's tensors.

    Attributes:
        kind: ``drop`` (a fraction of the tensors, drawn at random, is set to zero), ``scale`` (all are multiplied),
            ``normal`` (noise of a standard deviation) or ``uniform`` (noise of a half-width).
        amount: The fraction, factor, deviation or half-width.
        region: Which layers: all, or the first, middle or last third of the model's.
    """

    kind: Kind
    amount: float
    region: Region = "all"

    def __str__(self) -> str:
        return f"{self.kind}:{self.amount:g}" + ("" if self.region == "all" else f"@{self.region}")

    @property
    def random(self) -> bool:
        """Whether a seed makes a difference."""
        return self.kind != "scale"


PAPER: Final = (
    Perturbation("drop", 0.25),
    Perturbation("scale", 0.9),
    Perturbation("normal", 0.01),
    Perturbation("uniform", 0.05, "middle"),
)
"""The four of arXiv 2603.02934."""

_LIMITS: Final[Mapping[Kind, tuple[str, Callable[[float], bool]]]] = {
    "drop": ("a fraction above 0 and up to 1", lambda amount: 0 < amount <= 1),
    "scale": (
        f"a factor other than 1, from {-_MOST:g} to {_MOST:g}",
        lambda amount: abs(amount) <= _MOST and amount != 1,
    ),
    "normal": (f"a standard deviation above 0, up to {_MOST:g}", lambda amount: 0 < amount <= _MOST),
    "uniform": (f"a half-width above 0, up to {_MOST:g}", lambda amount: 0 < amount <= _MOST),
}


def parse_perturbation(text: str) -> Perturbation:
    """Reads ``KIND:AMOUNT`` or ``KIND:AMOUNT@REGION``.

    Raises:
        BadPerturbationError: It is not of that form, or the amount is out of range.
    """
    kind, colon, rest = str(text).partition(":")
    number, at, region = rest.partition("@")
    if not colon or kind not in KINDS or (at and region not in REGIONS):
        raise BadPerturbationError(
            f"{text!r:.80} is no perturbation",
            object=str(text)[:80],
            hint=f"KIND:AMOUNT or KIND:AMOUNT@REGION; kinds: {', '.join(KINDS)}; regions: {', '.join(REGIONS)}.",
        )
    try:
        amount = float(number)
    except ValueError:
        amount = math.nan
    found = next(one for one in KINDS if one == kind)
    what, holds = _LIMITS[found]
    if not holds(amount):
        raise BadPerturbationError(f"{kind} takes {what}, not {number!r:.40}", object=str(text)[:80])
    return Perturbation(found, amount, next((one for one in REGIONS if one == region), "all"))


def in_region(names: Sequence[str], region: Region, layers: int) -> tuple[str, ...]:
    """Those tensors that lie in a region of a model, by the first number in their names.

    Args:
        names: Tensors' names.
        region: Which layers: first and last are a third of them each, rounded down, and the middle is the rest. Of a
            model of fewer than three layers every region is all of it.
        layers: How many layers the model has.
    """
    third = layers // 3
    bounds = {"first": range(third), "middle": range(third, layers - third), "last": range(layers - third, layers)}
    if region == "all" or not third:
        return tuple(names)
    return tuple(name for name in names if (layer := layer_of(name)) is not None and layer in bounds[region])


def layer_of(name: str) -> int | None:
    """The layer that a tensor's name puts it in: its first number; None where it has none."""
    match = _LAYER.search(name)
    return None if match is None else int(match.group(1))


def layer_count(names: Sequence[str]) -> int:
    """How many layers tensors of a whole model are in."""
    return 1 + max((layer for name in names if (layer := layer_of(name)) is not None), default=-1)


def dropped(names: Sequence[str], fraction: float, seed: int) -> tuple[str, ...]:
    """The tensors that a ``drop`` sets to zero: a fraction of them, rounded, at least one; sorted.

    Args:
        names: All of them.
        fraction: Above 0, up to 1.
        seed: Of the draw.
    """
    ordered = sorted(names)
    count = min(len(ordered), max(1, round(fraction * len(ordered))))
    # Every tensor draws a number of its own, so adding one does not change which of the others go.
    drawn = {name: hashlib.sha256(f"drop\n{seed}\n{name}".encode()).digest() for name in ordered}
    return tuple(sorted(sorted(ordered, key=lambda name: drawn[name])[:count]))


def perturb(
    tensors: Mapping[str, torch.Tensor],
    perturbation: Perturbation,
    seed: int,
    ground: Mapping[str, torch.Tensor] | None = None,
) -> None:
    """Perturbs some tensors in place.

    Args:
        tensors: Floating point, contiguous, by name; each live tensor once.
        perturbation: What to do.
        seed: Of its random numbers.
        ground: What lies beneath, where the behavior is what differs from that: then ``drop`` puts whole tensors back
            to it, by reference, and ``scale`` scales the difference. A tensor without ground, or with one of another
            shape, is the behavior as it is. None where all of them are.
    """
    if perturbation.kind == "normal":
        add_noise(tensors, perturbation.amount, seed, purpose=str(perturbation))
    elif perturbation.kind == "uniform":
        add_uniform(tensors, perturbation.amount, seed, purpose=str(perturbation))
    else:
        gone = dropped(tuple(tensors), perturbation.amount, seed) if perturbation.kind == "drop" else ()
        factor = 0.0 if perturbation.kind == "drop" else perturbation.amount
        for name in gone or tensors:
            _scale(tensors[name], factor, None if ground is None or name not in ground else ground[name])


def _scale(tensor: torch.Tensor, factor: float, ground: torch.Tensor | None) -> None:
    if ground is None or ground.shape != tensor.shape:
        ground = None
    with torch.no_grad():
        if factor == 0.0:
            tensor.zero_() if ground is None else tensor.copy_(ground)
            return
        beneath = None if ground is None else flat_blocks(ground.to(tensor.device).contiguous())
        for block in flat_blocks(tensor):
            wide = torch.float64 if block.dtype == torch.float64 else torch.float32
            if beneath is None:
                block.copy_(block.to(wide) * factor)
            else:
                lies = next(beneath).to(wide)
                block.copy_(lies + (block.to(wide) - lies) * factor)
