"""One object of any kind, in text."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import click

from rblstore.cli.render.log import refs_text, summary_text
from rblstore.cli.render.study import study_body
from rblstore.cli.render.text import environment_lines, indent, number, plural, short, size
from rblstore.cli.render.verification import verification_lines

_SHOWN = 200


def show_lines(result: Any) -> Iterator[str]:
    """An object: its id, what it says, and what is said and proved about it.

    Args:
        result: The document of a ``ShowResult``.
    """
    kind, record = result["kind"], result["record"]
    yield click.style(f"{kind} {result['id']}", fg="yellow") + refs_text(result["refs"])
    if kind in ("commit", "tag"):
        yield from _dated(record, "parents" if kind == "commit" else "target")
    elif kind == "verification":
        yield from _pointers(record, ("commit", "composition", "adapted", "author", "time"))
        yield from verification_lines({**record, **(result["derived"] or {})})
    elif kind == "study":
        yield f"study        {record['study']}"
        yield from study_body({**record, **(result["derived"] or {})})
    elif kind == "training-state":
        yield from _pointers(record, ("commit", "step", "author", "time"))
        yield from environment_lines("environment  ", record["environment"])
    elif kind not in ("composition", "identity", "behavior"):
        yield from _members(record)
    if result["identity"] is not None:
        yield ""
        yield from _identity_lines(result["identity"])
    if result["behaviors"]:
        yield ""
    yield from behavior_lines(result["behaviors"])
    if kind in ("identity", "behavior", "training-state"):
        yield from _files(record["files"])
    for verification in result["verifications"]:
        yield f"verified {summary_text(verification)}"
    for state in result["states"]:
        yield f"training state {short(state['state'])}, step {state['step']}, {size(state['bytes'])}"
    for study in result["studies"]:
        yield f"studied {short(study['id'])}, {study['study']}, {plural(study['points'], 'point')}, {study['time']}"


def behaviors_of(result: Any) -> Any:
    """The part of a document that ``--only behaviors`` keeps."""
    return result["behaviors"]


def behavior_lines(behaviors: Any) -> Iterator[str]:
    """Behaviors with their form, effects and what is said about them, an empty line between two.

    Args:
        behaviors: Documents of ``BehaviorDetail``.
    """
    for index, behavior in enumerate(behaviors):
        if index:
            yield ""
        weight = "" if behavior["weight"] == 1 else f", weight {number(behavior['weight'])}"
        kind = f"{behavior['form']}{' ' + behavior['type'] if behavior['type'] else ''}"
        effects = "; ".join(
            f"{domain} {', '.join(f'{action} {count}' for action, count in sorted(behavior[domain].items()))}"
            for domain in ("tensors", "files")
            if behavior[domain]
        )
        yield f"behavior {click.style(behavior['name'] or short(behavior['behavior']), bold=True)} {_id_of(behavior)}"
        yield f"  {kind}, {size(behavior['bytes'])}{weight}"
        yield f"  effects: {effects or 'none'}"
        yield from _forgotten(behavior)
        yield from _claims(behavior["claims"])


def _id_of(behavior: Any) -> str:
    return short(behavior["behavior"]) if behavior["name"] else ""


def _identity_lines(identity: Any) -> Iterator[str]:
    dtypes = ", ".join(f"{count} {dtype}" for dtype, count in sorted(identity["dtypes"].items()))
    yield f"identity {short(identity['identity'])}"
    yield f"  {plural(identity['files'], 'file')}, {size(identity['bytes'])}"
    yield f"  {plural(identity['tensors'], 'tensor')} ({dtypes}), {identity['elements']:,} elements"
    yield from _forgotten(identity)
    yield from _claims(identity["claims"])


def _forgotten(part: Any) -> Iterator[str]:
    if part["forgotten"] is not None:
        stone = part["forgotten"]
        yield f"  removed on purpose by {stone['author']} at {stone['time']}: {stone['reason']}"


def _claims(claims: Any) -> Iterator[str]:
    for claim in claims:
        yield f"  {claim['key']}: {claim['value']}  ({claim['origin']})"


def _dated(record: Any, pointing: str) -> Iterator[str]:
    if pointing == "target":
        yield f"Tag:         {record['name']}"
        yield f"Target:      {record['target']}"
    else:
        yield f"Composition: {record['composition']}"
        for parent in record["parents"]:
            yield f"Parent:      {parent}"
    yield f"Author:      {record['author']}"
    yield f"Date:        {record['time']}"
    if record["message"]:
        yield ""
        yield from indent(record["message"])


def _pointers(record: Any, keys: tuple[str, ...]) -> Iterator[str]:
    for key in keys:
        if record[key] is not None:
            yield f"{key:12} {record[key]}"


def _members(record: Any) -> Iterator[str]:
    for key, value in record.items():
        if isinstance(value, list):
            yield f"{key} ({len(value)}):"
            for element in value[:_SHOWN]:
                yield f"  {_flat(element)}"
            if len(value) > _SHOWN:
                yield f"  ... and {len(value) - _SHOWN} more; --json names them all"
        else:
            yield f"{key}: {_flat(value)}"


def _flat(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_flat(member)}" for key, member in value.items())
    if isinstance(value, list):
        return f"[{', '.join(_flat(element) for element in value)}]"
    if isinstance(value, str):
        return value.replace("\n", "\\n").replace("\t", "\\t")  # one member, one line
    return "-" if value is None else str(value)


def _files(files: Any) -> Iterator[str]:
    yield ""
    for entry in files:
        yield f"  {short(entry['sha256'])}  {size(entry['size']):>10}  {entry['path']}"
