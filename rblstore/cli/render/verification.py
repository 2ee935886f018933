"""Evidence, in text: verifications, and the revert that one belongs to."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from rblstore.cli.render.text import columns, environment_lines, first_line, number, short
from rblstore.cli.render.verdict import verdict_text

_MEANING = {
    "exact": "every output equal, bit for bit",
    "within_tolerance": "KL and JS both below the tolerance",
    "diverged": "KL or JS not below the tolerance",
}


def verification_lines(verification: Any) -> Iterator[str]:
    """One verification whole: verdict, figures, and each prompt.

    Args:
        verification: The document of a verification record.
    """
    verdict = verification["verdict"]
    tolerance = f" (tolerance {number(verification['tolerance'])})" if verdict != "exact" else ""
    yield f"verdict      {verdict_text(verdict)}: {_MEANING[verdict]}{tolerance}"
    yield f"bit-equal    {_yes(verification['bit_equal'])}"
    reason = f"  ({verification['reason']})" if verification.get("reason") else ""
    yield f"RF           {number(verification['rf'])}{reason}"
    yield f"KL           {_nats(verification['kl'])}"
    yield f"JS           {_nats(verification['js'])}"
    if verification.get("kl_adapted") is not None:
        yield f"before       KL {_nats(verification['kl_adapted'])}, JS {_nats(verification.get('js_adapted'))}"
    if verification.get("removed"):
        yield f"removed      {', '.join(verification['removed'])}"
    yield f"probe        {short(verification['probe'])}"
    yield f"baseline     {short(verification['baseline'])}"
    yield from environment_lines("environment  ", verification["environment"])
    yield ""
    yield from columns(
        (
            (prompt["id"], number(prompt["kl"]), number(prompt["js"]), _yes(prompt["bit_equal"]))
            for prompt in verification["prompts"]
        ),
        header=("prompt", "KL", "JS", "bit-equal"),
    )


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
