"""An audit, in text."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

import click

from rblstore.cli.render.log import summary_text
from rblstore.cli.render.text import columns, number, plural, short, size, wrapped

_LEVELS = {"conflict": "red", "gap": "yellow", "obligation": "cyan", "note": None}
_SHOWN = 40


def audit_lines(audit: Any) -> Iterator[str]:
    """The parts, what is said of them, the findings, and who vouches.

    Args:
        audit: The document of an ``AuditResult``.
    """
    if audit["commit"] is not None:
        yield f"commit {short(audit['commit'])}, composition {short(audit['composition'])}"
    if audit["at"] is not None:
        yield f"as of {audit['at']}, after operation {short(audit['operation'])}"
    if audit["path"] is not None:
        yield from wrapped(f"of {audit['path']}", "")
    policy = "" if audit["data_reaches_weights"] else "; licences of data are taken not to reach weights"
    merged = "; merged into one checkpoint" if audit["merged"] else ""
    yield from wrapped(f"meant for: {', '.join(audit['use'])}{merged}{policy}", "")
    if audit["files"]:
        yield ""
        yield from _files(audit["files"])
    yield ""
    parts = [(part["role"], part["name"] or "-", short(part["id"]), _weight(part)) for part in audit["components"]]
    yield from columns([tuple(cell[:36] for cell in row) for row in parts], header=("role", "name", "id", "weight"))
    for part in audit["components"]:
        if part["role"] in ("identity", "behavior", "dataset"):
            yield from _said(part)
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


def finding_lines(findings: Any) -> Iterator[str]:
    """Findings, severest first, each with what to do, its rule and where that is written.

    Args:
        findings: A list of findings, sorted.
    """
    if not findings:
        yield "nothing is found"
        return
    yield f"found: {counted(findings)}"
    for finding in findings:
        yield ""
        yield from _finding(finding)


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
        for finding in effect[name]:
            yield ""
            yield from _finding(finding)


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


def _finding(finding: Any) -> Iterator[str]:
    first, *rest = wrapped(f"{finding['level']}: {finding['message']}", "    ")
    level = finding["level"]
    yield click.style(level, fg=_LEVELS[level], bold=True) + first[len(level) :]
    yield from rest
    if finding["reaches"] and level != "conflict":
        yield from wrapped(f"also binds: {', '.join(finding['reaches'])}", "      ", "    ")
    if finding["obligation"]:
        yield from wrapped(f"-> {finding['obligation']}", "       ", "    ")
    cited = ", ".join(
        finding["citation"][name] for name in ("document", "section", "version") if finding["citation"][name]
    )
    yield from wrapped(f"[{finding['rule']}] {cited}", "      ", "    ")


def _said(part: Any) -> Iterator[str]:
    """Licences, sources and data of one part."""
    said = part["said"]
    licenses = said["concluded"] or " | ".join(said["declared"]) or "none stated"
    yield ""
    label = f"{part['role']} {part['name'] or short(part['id'])}"
    yield from wrapped(f"{label}: {licenses}" + (" (concluded)" if said["concluded"] else ""), "  ")
    stated = [one for one in part["license"] if one not in said["declared"]]
    rows = (
        ("stated as", ", ".join(stated)),
        ("from", ", ".join(said["sources"])),
        ("revision", said["source_revision"] or ""),
        ("made for", ", ".join(said["base_models"])),
        ("trained on", ", ".join(_data(one) for one in said["datasets"])),
        (
            "files",
            f"{len(part['files'])} ({size(sum(file['size'] for file in part['files']))})" if part["files"] else "",
        ),
        ("vouched for", ", ".join(short(one) for one in part["verifications"])),
        ("removed", part["removed"] or ""),
    )
    for name, value in rows:
        if value:
            yield from wrapped(f"{name} {value}", "    ", "  ")


def _data(data: Any) -> str:
    return f"{data['name']} ({' | '.join(data['licenses']) or 'no licence stated'})"


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


def _weight(part: Any) -> str:
    return number(part["weight"]) if part["role"] == "behavior" else "-"
