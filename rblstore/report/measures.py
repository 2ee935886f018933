"""What is measured, in words: labels and units, and the conditions that a study put a model into."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from rblstore.objects.study_records import Scalar
from rblstore.report.safe_text import figure_text, one_line

LN2: Final = 0.6931471805599453


@dataclass(frozen=True)
class Measure:
    """One quantity.

    Attributes:
        label: Its short name.
        unit: What it is counted in, or what its ends mean; "" for none.
        logarithmic: Whether its axis is logarithmic.
        meaning: One line for readers who do not know it.
    """

    label: str
    unit: str
    logarithmic: bool
    meaning: str


MEASURES: Final[Mapping[str, Measure]] = {
    "kl": Measure("KL", "nats", True, "KL(reference ‖ measured): how far the outputs are from the reference's"),
    "kl_reverse": Measure("reverse KL", "nats", True, "KL(measured ‖ reference)"),
    "js": Measure("JS", "nats", True, "Jensen–Shannon divergence; at most ln 2"),
    "tv": Measure("total variation", "0 to 1", False, "half the sum of the differences of probabilities"),
    "top1_agreement": Measure("top-1 agreement", "0 to 1", False, "how often the likeliest token is the same"),
    "top5_agreement": Measure("top-5 agreement", "0 to 1", False, "the part of the five likeliest tokens in common"),
    "entropy": Measure("entropy", "nats", False, "Shannon entropy of the next-token distribution"),
    "relative_l2": Measure("relative L2", "of the reference's norm", True, "distance of embeddings"),
    "cosine": Measure("cosine", "−1 to 1", False, "of embeddings, or of shifts"),
    "rf": Measure("RF", "1: recovered, 0: nothing", False, "recovery fidelity, 1 − KL after / KL before"),
    "kl_adapted": Measure("KL before", "nats", True, "KL of the adapted model"),
    "js_adapted": Measure("JS before", "nats", True, "JS of the adapted model"),
    "svar": Measure("SVAR", "nats", True, "mean KL over perturbations"),
    "kept": Measure("effect kept", "1: all, 0: none", False, "how much of a behavior's effect is left beside another"),
    "kept_pooled": Measure(
        "effect kept, pooled", "1: all, 0: none", False, "how much of a behavior's effect is left beside another"
    ),
    "ratio": Measure("length of the shift", "beside / alone", False, "whether it still moves as far"),
    "output_overlap": Measure(
        "overlap of output subspaces", "0 to 1", False, "mean squared cosine of principal angles"
    ),
    "input_overlap": Measure("overlap of input subspaces", "0 to 1", False, "mean squared cosine of principal angles"),
    "delta_cosine": Measure("cosine of the deltas", "−1 to 1", False, "what the behaviors add, as vectors"),
    "overlap": Measure("subspace overlap", "0 to 1", False, "mean squared cosine of principal angles"),
    "angle": Measure("principal angle", "degrees", False, "between the subspaces of two behaviors"),
}


_TITLES: Final[Mapping[str, str]] = {
    "elimination": "Elimination: what is left when a part of the behavior is put to nothing",
    "mutation": "Weight mutation: noise in every layer, and no snapshot",
    "svar": "SVAR: how far small perturbations of the behavior move the outputs",
    "mechanisms": "Mechanisms: what each way back recovers",
    "entropy": "Entropy of the outputs over repeated runs",
    "scale": "Scale: recovery across identities",
    "interference": "Interference: how much of a behavior's effect is left beside another",
    "attribution": "Attribution: which behavior moved which prompt",
    "shift": "Shift: the same measurement on other prompts",
}


def study_title(study: str) -> str:
    """What a study is about, by its name; one that is not known goes by its name."""
    return _TITLES.get(study) or f"Study: {study.replace('_', ' ')}"


def measure(name: str) -> Measure:
    """A quantity by its name; one that is not known goes by its name."""
    return MEASURES.get(name) or Measure(name.replace("_", " ")[:40], "", False, "")


def axis_label(names: Iterable[str]) -> str:
    """The label of an axis that several quantities share: their names and the units that they have."""
    found = [measure(name) for name in names]
    units = list(dict.fromkeys(one.unit for one in found if one.unit))
    labels = " and ".join(dict.fromkeys(one.label for one in found))
    return f"{labels} ({'; '.join(units)})" if units else labels


_OUR_WORDS: Final = ("mechanism", "part", "perturbation", "recovery", "reset", "role")
"""Members of conditions whose values are names of ours, and not somebody else's."""


def varying(conditions: Sequence[Mapping[str, Scalar]]) -> list[str]:
    """The members of conditions that are not the same in all of them, in the order in which they come."""
    names = dict.fromkeys(name for condition in conditions for name in condition)
    return [name for name in names if len({repr(condition.get(name)) for condition in conditions}) > 1]


def scalar_text(value: Scalar, longest: int = 28) -> str:
    """One member of a condition as a label."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, str):
        return one_line(value, longest) or "“”"
    return figure_text(float(value))


def condition_labels(conditions: Sequence[Mapping[str, Scalar]], longest: int = 28) -> list[str]:
    """A label for each condition: what varies among them; all of it where there is only one."""
    names = varying(conditions) or list(dict.fromkeys(name for condition in conditions for name in condition))
    labels = []
    for condition in conditions:
        if isinstance(condition.get("part"), str):
            labels.append(_part_label(condition, longest))
            continue
        parts = []
        for name in names:
            if name not in condition:
                continue
            value = condition[name]
            parts.append(_member(name, value, longest))
        labels.append(" · ".join(parts) or "as it is")
    return labels


def _member(name: str, value: Scalar, longest: int) -> str:
    """One member of a condition: words speak for themselves, a number or a yes does not."""
    text = scalar_text(value, longest)
    if not isinstance(value, str):
        return f"{name.replace('_', ' ')} {text}"
    return text.replace("_", " ") if name in _OUR_WORDS else text


def _part_label(condition: Mapping[str, Scalar], longest: int) -> str:
    """A condition of a study of several parts: ``given: polite beside terse``."""
    said = " beside ".join(
        scalar_text(condition[name], longest) for name in ("behavior", "given") if condition.get(name) is not None
    )
    tensor = condition.get("tensor")
    known = ("part", "behavior", "given", "tensor")
    rest = [_member(name, value, longest) for name, value in condition.items() if name not in known]
    parts = [said, *([scalar_text(tensor, longest)] if tensor is not None else []), *rest]
    words = " · ".join(part for part in parts if part)
    return f"{scalar_text(condition['part'], longest)}: {words}" if words else scalar_text(condition["part"], longest)
