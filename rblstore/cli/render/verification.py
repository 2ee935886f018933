"""Evidence, in text: verifications, and the revert that one belongs to."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from rblstore.cli.render.text import columns, environment_lines, first_line, number, plural, short
from rblstore.cli.render.verdict import verdict_text

_MEANING = {
    ("exact", "bits"): "every output equal, bit for bit",
    ("within_tolerance", "upper_95"): "the 95 % intervals of KL and JS both end below the tolerance",
    ("within_tolerance", "mean"): "the means of KL and JS are both below the tolerance",
    ("diverged", "upper_95"): "the 95 % interval of KL or JS does not end below the tolerance",
    ("diverged", "mean"): "the mean of KL or JS is not below the tolerance",
    ("diverged", "bits"): "the outputs differ, and no finite KL and JS say that it is by little",
}
_NAMED = 8
_SHOWN = {"relative_l2": "relative L2", "cosine": "cosine"}


def verification_lines(verification: Any) -> Iterator[str]:
    """One verification whole: verdict, figures with their intervals, and each prompt.

    Args:
        verification: The document of a verification, with what follows from it.
    """
    verdict, intervals = verification["verdict"], verification["intervals"]
    tolerance = f" (tolerance {number(verification['tolerance'])})" if verdict != "exact" else ""
    meaning = _MEANING[verdict, verification["decided_by"]]
    yield f"verdict      {verdict_text(verdict)}: {meaning}{tolerance}"
    yield f"bit-equal    {_yes(verification['bit_equal'])}"
    reason = f"  ({verification['reason']})" if verification.get("reason") else ""
    yield f"RF           {number(verification['rf'])}{_interval(intervals, 'rf')}{reason}"
    yield f"KL           {_nats(verification['kl'])}{_interval(intervals, 'kl')}"
    yield f"JS           {_nats(verification['js'])}{_interval(intervals, 'js')}"
    for name, words in _SHOWN.items():
        if name in intervals:
            yield f"{words:<13}{number(intervals[name]['mean'])}{_interval(intervals, name)}"
    before = [f"{words} {_before(verification, intervals, name)}" for name, words in (("kl", "KL"), ("js", "JS"))]
    if verification.get("kl_adapted") is not None:
        yield f"before       {before[0]}"
        yield f"             {before[1]}"
    if not verification["bit_equal"]:
        yield _local_line(verification["local"], len(verification["prompts"]))
    if verification.get("removed"):
        yield f"removed      {', '.join(verification['removed'])}"
    yield f"probe        {short(verification['probe'])}"
    yield f"baseline     {short(verification['baseline'])}"
    yield from environment_lines("environment  ", verification["environment"])
    yield ""
    yield from _prompt_lines(verification)


def _prompt_lines(verification: Any) -> list[str]:
    further = [name for name in _SHOWN if any(name in prompt.get("values", {}) for prompt in verification["prompts"])]
    flagged = set(verification["local"]["flagged"])
    return columns(
        (
            (
                prompt["id"],
                *([] if further else [number(prompt["kl"]), number(prompt["js"])]),
                *(number(prompt.get("values", {}).get(name)) for name in further),
                _yes(prompt["bit_equal"]),
                "above the threshold" if prompt["id"] in flagged and not further else "",
            )
            for prompt in verification["prompts"]
        ),
        header=("prompt", *([] if further else ["KL", "JS"]), *(_SHOWN[name] for name in further), "bit-equal", ""),
    )


def _local_line(local: Any, prompts: int) -> str:
    flagged = local["flagged"]
    if not flagged:
        return f"local        no prompt's KL is above {number(local['threshold'])}"
    named = ", ".join(flagged[:_NAMED]) + (", ..." if len(flagged) > _NAMED else "")
    return f"local        {len(flagged)} of {plural(prompts, 'prompt')} above {number(local['threshold'])}: {named}"


def _before(verification: Any, intervals: Any, name: str) -> str:
    return f"{_nats(verification.get(f'{name}_adapted'))}{_interval(intervals, f'{name}_adapted')}"


def _interval(intervals: Any, name: str) -> str:
    """A short interval; nothing where equal numbers or a single one leave none."""
    found = intervals.get(name)
    if found is None or found["low"] == found["high"]:
        return ""
    return f" [{number(found['low'])}, {number(found['high'])}]"


def verified_lines(result: Any) -> Iterator[str]:
    """What ``rbl verify`` found.

    Args:
        result: The document of a ``VerificationResult``.
    """
    yield f"evidence     {short(result['verification'])}"
    for key, (here, there) in sorted(result["drift"].items()):
        yield f"drift        {key}: {here} here, {there} in the baseline"
    yield from verification_lines(result)


def revert_lines(result: Any) -> Iterator[str]:
    """A revert that was made, and its proof.

    Args:
        result: The document of a ``RevertResult``.
    """
    yield f"[{result['branch']} {short(result['commit'])}] {first_line(result['message'])}"
    if result["removed"]:
        yield f"  taken out    {', '.join(result['removed'])}"
    if result["restored"]:
        yield f"  put back     {', '.join(result['restored'])}"
    same = result["same_composition_as"]
    yield f"  composition  {short(result['composition'])}" + (f", that of commit {short(same)}" if same else "")
    yield ""
    if result["verification"] is None:
        yield f"verdict      {verdict_text(result['verdict'])}: no outputs were measured"
        return
    yield f"evidence     {short(result['verification'])}"
    yield from verification_lines(result)


def _nats(value: float | None) -> str:
    return "-" if value is None else f"{number(value)} nats"


def _yes(value: bool) -> str:
    return "yes" if value else "no"
