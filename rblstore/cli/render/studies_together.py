"""Studies of several behaviors, in text: matrices of pairs, who moved what, and two probes side by side."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

from rblstore.cli.render.text import columns, number


def interference_lines(document: Any) -> Iterator[str]:
    """What behaviors do to one another's effects.

    Args:
        document: Of a ``StudyResult`` of ``interference``.
    """
    pairs = document["figures"]["pairs"]
    yield "effect alone (of one that stands on others: on top of them)"
    yield from columns(_alone(document), header=("behavior", "KL", "JS", "bit-equal"))
    yield ""
    yield "how much of it is kept beside another one (1: all of it, 0: nothing)"
    names = list(dict.fromkeys(row["given"] for row in pairs))
    names.sort(key=document["parameters"]["behaviors"].index)
    kept = {(row["behavior"], row["given"]): row["kept"] for row in pairs}
    yield from columns(
        ((name, *("" if name == other else number(kept.get((name, other))) for other in names)) for name in names),
        header=("", *(f"beside {name}" for name in names)),
    )
    yield ""
    yield from columns(
        (
            (
                row["behavior"],
                row["given"],
                number(row["kept"]),
                _ends(row["kept_interval"]),
                number(row["shift_cosine"]),
                number(row["shift_ratio"]),
                number(row["kl_ratio"]),
                _same(row["removed_bit_equal"], row["removed_kl"]),
                _same(row["order_bit_equal"], row["order_kl"]),
            )
            for row in pairs
        ),
        header=(
            "behavior", "beside", "kept", "interval", "direction", "length", "KL ratio", "other taken out",
            "other order",
        ),
    )  # fmt: skip
    if document["parameters"]["subspaces"]:
        yield ""
        yield "overlap of subspaces (mean cos^2; by chance)"
        order = {name: place for place, name in enumerate(names)}
        yield from columns(
            (
                (
                    row["behavior"],
                    row["given"],
                    number(row["tensors"]),
                    number(row["delta_cosine"]),
                    _against(row["output_overlap"], row["output_chance"]),
                    _against(row["input_overlap"], row["input_chance"]),
                )
                for row in pairs
                if order[row["behavior"]] > order[row["given"]]
            ),
            header=("behavior", "and", "tensors of both", "cosine", "output side", "input side"),
        )
    yield from _reasons(document)


def _alone(document: Any) -> Iterator[tuple[str, ...]]:
    for row in _rows(document, "alone"):
        measures = row["measures"]
        kl, js = measures.get("kl") or measures.get("relative_l2"), measures.get("js")
        yield row["condition"]["behavior"], _interval(kl), _interval(js), _yes(row["bit_equal"])


def attribution_lines(document: Any) -> Iterator[str]:
    """Which behavior moved which prompt.

    Args:
        document: Of a ``StudyResult`` of ``attribution``.
    """
    found = document["figures"]
    measure = found["measure"]
    label = "KL" if measure == "kl" else "relative L2"
    yield f"the whole against itself without one behavior ({label})"
    yield from columns(
        (
            (
                row["behavior"],
                number(row[measure]),
                number(row[f"{measure}_reverse"]),
                number(row[f"{measure}_share"]),
                "-" if row["moved_most"] is None else str(row["moved_most"]),
            )
            for row in found["behaviors"]
        ),
        header=("without", f"{label}(whole || without)", f"{label}(without || whole)", "share", "prompts moved most"),
    )
    yield ""
    whole = f"whole against none of them {number(found['whole'])}"
    if found["additivity"] is None:
        yield f"{whole}; what the parts add up to is not known"
    else:
        yield f"sum of the parts {number(found['parts'])}, {whole}: the parts are {number(found['additivity'])} of it"
    shares = {
        point["condition"]["behavior"]: {one["id"]: one["values"].get(f"{measure}_share") for one in point["prompts"]}
        for point in document["points"]
        if point["condition"].get("part") == "share"
    }
    if found["moved_most"]:
        yield ""
        yield "share of each behavior in what was moved"
        yield from columns(
            (
                (prompt, *(number(share.get(prompt)) for share in shares.values()), most or "-")
                for prompt, most in found["moved_most"].items()
            ),
            header=("prompt", *shares, "most"),
        )
    yield from _reasons(document)


def shift_lines(document: Any) -> Iterator[str]:
    """The same proof on two probes.

    Args:
        document: Of a ``StudyResult`` of ``shift``.
    """
    found, parameters = document["figures"], document["parameters"]
    yield f"taken out    {', '.join(parameters['behaviors'])}"
    yield from columns(
        (
            (
                row["part"],
                {"kl": "KL", "js": "JS", "rf": "RF"}.get(row["measure"], row["measure"]),
                _interval(row["probe"]),
                _interval(row["held_out"]),
                _interval(row["difference"]),
            )
            for row in found["measures"]
        ),
        header=("model", "", parameters["probe"], f"{parameters['held_out']} (held out)", "difference"),
    )
    yield ""
    flagged = {row["condition"]["role"]: row["measures"]["ils_flagged"] for row in _rows(document, "recovered")}
    for role, name in (("probe", parameters["probe"]), ("held_out", parameters["held_out"])):
        above = flagged.get(role)
        yield (
            f"{name}: recovered bit-equal {_yes(found['bit_equal'][role])}, prompts above ILS "
            f"{number(parameters['tolerance'])}: {'-' if above is None else number(above['mean'])}"
        )
    yield from _reasons(document)


def _rows(document: Any, part: str) -> list[Any]:
    return [row for row in document["summary"] if row["condition"].get("part") == part]


def _reasons(document: Any) -> Iterator[str]:
    """Why there is no number, once for each reason; those of single tensors are in the document."""
    found: dict[str, str] = {}
    for row in document["summary"]:
        if row["reason"] is not None and row["condition"].get("tensor") is None:
            named = ", ".join(str(value) for value in row["condition"].values() if value is not None)
            found.setdefault(row["reason"], named)
    if found:
        yield ""
    for reason, named in found.items():
        yield f"{named}: {reason}"


def _interval(found: Any) -> str:
    if found is None:
        return "-"
    if "low" not in found or found["low"] == found["high"]:
        return number(found["mean"])
    return f"{number(found['mean'])} {_ends(found)}"


def _ends(found: Any) -> str:
    return "-" if found is None else f"[{number(found['low'])}, {number(found['high'])}]"


def _against(overlap: float | None, chance: float | None) -> str:
    return "-" if overlap is None else f"{number(overlap)} ({number(chance)})"


def _same(equal: bool | None, kl: float | None) -> str:
    if equal is None:
        return "-"
    return "bit-equal" if equal else f"KL {number(kl)}"


def _yes(value: bool | None) -> str:
    return "-" if value is None else "yes" if value else "no"


TOGETHER: Final[Mapping[str, Callable[[Any], Iterator[str]]]] = {
    "attribution": attribution_lines,
    "interference": interference_lines,
    "shift": shift_lines,
}
"""By the study's name."""
