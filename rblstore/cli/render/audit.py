"""An audit, in text."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

import click

from rblstore.cli.render.log import summary_text
from rblstore.cli.render.text import number, plural, short, size, wrapped

_LEVELS = {"conflict": "red", "gap": "yellow", "obligation": "cyan", "note": None}
_SHOWN = 40
_DATA_SHOWN = 3


def audit_lines(audit: Any) -> Iterator[str]:
    """What was audited and what is found in numbers, the parts, the findings, who vouches, and what to do first.

    Args:
        audit: The document of an ``AuditResult``.
    """
    if audit["commit"] is not None:
        yield f"commit {short(audit['commit'])}, composition {short(audit['composition'])}"
    if audit["at"] is not None:
        yield f"as of {audit['at']}, after operation {short(audit['operation'])}"
        yield from wrapped(_since(audit["since"]), "  ")
    if audit["path"] is not None:
        yield from wrapped(f"of {audit['path']}", "")
    policy = "" if audit["data_reaches_weights"] else "; licences of data are taken not to reach weights"
    merged = "; merged into one checkpoint" if audit["merged"] else ""
    yield from wrapped(f"meant for: {', '.join(audit['use'])}{merged}{policy}", "")
    yield _found(audit["findings"])
    if audit["files"]:
        yield ""
        yield from _files(audit["files"])
    if audit["components"]:
        yield ""
    unstated = [part for part in audit["components"] if part["role"] == "dataset" and not part["said"]["declared"]]
    several = unstated if len(unstated) > _DATA_SHOWN else []
    for part in audit["components"]:
        if part not in several:
            yield from _part(part)
    if several:
        names = ", ".join(part["name"] for part in several)
        yield from wrapped(f"{len(several)} data sets of which no licence is stated: {names}", "    ")
    if audit["findings"]:
        yield ""
        yield from finding_lines(audit["findings"])
    yield ""
    if audit["commit"] is not None and not audit["verifications"]:
        yield "no verification of this commit is recorded"
    for verification in audit["verifications"]:
        yield f"verified: {summary_text(verification)}"
    for signature in audit["signatures"]:
        who = signature["identity"] or f"key {short(signature['key'])}"
        yield from wrapped(f"signature over {short(signature['subject'])}: {who} (not checked here)", "  ")
    rules = ", ".join(f"{one['name']} {one['version']}" for one in audit["rules"])
    yield from wrapped(f"rules: {rules}. What was stated, not legal advice.", "  ")
    yield from _next(audit)


def finding_lines(findings: Any) -> Iterator[str]:
    """Findings, severest first, each with what to do, its rule and where that is written; those alike together.

    Args:
        findings: A list of findings, sorted.
    """
    alike: dict[tuple[str, ...], list[Any]] = {}
    for one in findings:
        alike.setdefault((one["level"], one["rule"], one["obligation"], *one["citation"].values()), []).append(one)
    for place, several in enumerate(alike.values()):
        if place:
            yield ""
        yield from _alike(several)


def effect_lines(effect: Any) -> Iterator[str]:
    """All that one commit's audit has and another's has not.

    Args:
        effect: The document of a ``LicenseEffect``.
    """
    yield click.style(f"{short(effect['before'])}..{short(effect['after'])}", bold=True)
    if not (effect["added"] or effect["removed"]):
        yield "no difference in what is found about terms"
    for name in ("removed", "added"):
        if effect[name]:
            yield ""
            yield f"{name}: {counted(effect[name])}"
            yield ""
            yield from finding_lines(effect[name])


def short_effect_lines(effect: Any) -> Iterator[str]:
    """The licence effect of what was just done: counts, and what is in conflict.

    Args:
        effect: The document of a ``LicenseEffect``, or None where there is nothing to say.
    """
    if effect is None or not (effect["added"] or effect["removed"]):
        return
    yield ""
    changes = [
        f"{verb} {counted(effect[name])}" for name, verb in (("removed", "removes"), ("added", "adds")) if effect[name]
    ]
    yield from wrapped(f"licence effect: {'; '.join(changes)}", "  ")
    weighty = [
        (mark, finding)
        for name, mark in (("removed", "-"), ("added", "+"))
        for finding in effect[name]
        if finding["level"] == "conflict"
    ]
    for mark, finding in weighty[:6]:
        yield from wrapped(f"{mark} {finding['level']}: {finding['message']}", "    ", "  ")
    if len(weighty) > 6:
        yield f"  and {len(weighty) - 6} more"
    everything = f"diff --licenses {short(effect['before'])} {short(effect['after'])}" if effect["before"] else "audit"
    yield f"  all of it: rbl {everything}"


def history_lines(history: Any) -> Iterator[str]:
    """When parts entered a ref and left it.

    Args:
        history: The document of an ``AuditHistory``.
    """
    yield history["ref"]
    for stay in history["components"]:
        yield ""
        weight = f", weight {number(stay['weight'])}" if stay["weight"] != 1 else ""
        yield from wrapped(f"{stay['role']} {stay['name']} {short(stay['id'])}{weight}".replace("  ", " "), "  ")
        for word in ("entered", "left"):
            event = stay[word]
            if event is None:
                yield "  is there still"
                continue
            what = f"{word} {event['time']} with {short(event['commit'])}, by {event['author']}"
            yield from wrapped(f"{what}: {event['description']} (operation {short(event['operation'])})", "    ", "  ")
    for commit in history["lost"]:
        yield ""
        yield f"commit {short(commit)} is not stored any more: what it held is not known"


def counted(findings: Any) -> str:
    """How many of each level, severest first: ``1 conflict, 2 gaps``."""
    levels = Counter(finding["level"] for finding in findings)
    return ", ".join(plural(levels[level], level) for level in _LEVELS if levels[level])


def _found(findings: Any) -> str:
    return f"found: {counted(findings)}" if findings else "nothing is found"


def _since(since: Any) -> str:
    made = [plural(since[name], name.removesuffix("s")) for name in since if since[name]]
    return f"since then: {', '.join(made)}, left out here" if made else "since then: nothing was stated or proved"


def _next(audit: Any) -> Iterator[str]:
    """Where to begin: what a part is said to be can be corrected, and a behavior can be taken out."""
    worst = audit["findings"][0]["level"] if audit["findings"] else "note"
    if worst == "note" or audit["commit"] is None:
        return
    first = [one for one in audit["findings"] if one["level"] == worst]
    names = {one["subject"].removeprefix("behavior ") for one in first if one["subject"].startswith("behavior ")}
    name, it = (names.pop(), "it") if len(names) == 1 else ("NAME", "a behavior")
    what = {
        "conflict": f"settle the conflicts. 'rbl state {name}' states what holds, 'rbl revert --behavior {name}' takes"
        f" {it} out; then audit again",
        "gap": "close the gaps, each says how; then see to the obligations",
        "obligation": "see to the obligations; nothing graver is found",
    }
    yield from wrapped(f"next: {what[worst]}", "  ")


def _alike(findings: Any) -> Iterator[str]:
    """Findings of one rule that ask for the same."""
    for finding in findings:
        first, *rest = wrapped(f"{finding['level']}: {finding['message']}", "    ")
        level = finding["level"]
        yield click.style(level, fg=_LEVELS[level], bold=True) + first[len(level) :]
        yield from rest
        if finding["reaches"] and level != "conflict":
            yield from wrapped(f"also binds: {', '.join(finding['reaches'])}", "      ", "    ")
    one = findings[0]
    if one["obligation"]:
        yield from wrapped(f"-> {one['obligation']}", "       ", "    ")
    cited = ", ".join(one["citation"][name] for name in ("document", "section", "version") if one["citation"][name])
    yield from wrapped(f"[{one['rule']}] {cited}", "      ", "    ")


def _part(part: Any) -> Iterator[str]:
    """One part: what it is, and what is said of it."""
    said = part["said"]
    licenses = f"{said['concluded']} (concluded)" if said["concluded"] else " | ".join(said["declared"])
    licenses = licenses or "none stated"
    if part["role"] == "dataset":
        name = f"{part['name']}@{said['source_revision']}" if said["source_revision"] else part["name"]
        yield from wrapped(f"dataset {name}: {licenses}", "    ")
        return
    files = f"{plural(len(part['files']), 'file')} ({size(sum(file['size'] for file in part['files']))})"
    if part["role"] == "tokenizer":
        yield from wrapped(f"tokenizer of {', '.join(part['of'])}, {files}", "    ")
        return
    weight = f", weight {number(part['weight'])}" if part["weight"] != 1 else ""
    named = " ".join(filter(None, (part["role"], part["name"], short(part["id"]))))
    yield from wrapped(f"{named}{weight}, {files}", "    ")
    known = {one.lower() for one in said["declared"]}
    stated = ", ".join(one for one in part["license"] if one.lower() not in known)
    rows = (
        ("licence", f"{licenses} (stated as {stated})" if stated else licenses),
        ("from", "@".join(filter(None, (", ".join(said["sources"]), said["source_revision"])))),
        ("made for", ", ".join(said["base_models"])),
        ("trained on", ", ".join(one["name"] for one in said["datasets"])),
        ("vouched for", ", ".join(short(one) for one in part["verifications"])),
        ("removed", part["removed"] or ""),
    )
    for name, value in rows:
        if value:
            yield from wrapped(value, " " * 15, f"  {name:<13}")


def _files(files: Any) -> Iterator[str]:
    for file in files[:_SHOWN]:
        where = f"{', '.join(file['parts'])}, in {', '.join(short(one) for one in file['commits'][:3]) or 'no commit'}"
        yield from wrapped(
            f"{file['path']} sha256:{file['sha256'][:12]} {size(file['size'])}: "
            + (where if file["parts"] else "unknown"),
            "    ",
        )
    if len(files) > _SHOWN:
        yield f"and {len(files) - _SHOWN} more files"
