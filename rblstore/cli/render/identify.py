"""What loose files are and what they resemble, in text."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import click

from rblstore.checkpoints.checkout_layout import MANIFEST_FILE
from rblstore.cli.render.text import number, plural, short, size, wrapped

_COLOURS = {"exact": "green", "unknown": "red"}
_HOW = {
    "files": "the same file{s}",
    "tensors": "the same tensors in other files",
    "merged": "its merged checkout, computed anew",
}
_SHOWN = 5
_FILES = 20


def identify_lines(result: Any) -> Iterator[str]:
    """Each model with what it is and what it is like, then files that are neither.

    Args:
        result: The document of an ``IdentifyResult``.
    """
    blocks = [list(_model(result, model)) for model in result["models"]]
    blocks.append(list(_files(result)))
    for number_of_block, block in enumerate(block for block in blocks if block):
        if number_of_block:
            yield ""
        yield from block


def _model(result: Any, model: Any) -> Iterator[str]:
    verdict = model["verdict"]
    where = result["path"] if model["path"] == "." else model["path"]
    told = wrapped(f"{verdict} {where} ({plural(model['tensors'], 'tensor')}, {size(model['size'])})", "    ")
    yield click.style(verdict, fg=_COLOURS.get(verdict, "yellow"), bold=True) + told[0][len(verdict) :]
    yield from told[1:]
    for match in model["exact"][:_SHOWN]:
        yield from _exact(match)
    yield from _more(model["exact"])
    for like in model["resembling"][:_SHOWN]:
        yield from _like(model, like)
    yield from _more(model["resembling"])
    if verdict == "unknown":
        yield from wrapped(_nothing(model), "    ", "  ")
    if model["fits"]:
        labels = ", ".join(_label({"role": "identity", **one}) for one in model["fits"][:_SHOWN])
        labels += ", ..." if len(model["fits"]) > _SHOWN else ""
        yield from wrapped(f"would fit {labels}: what it changes is there, in its shapes", "    ", "  ")
    if model["base_named"] is not None:
        yield from wrapped(f"its settings say that it was made for {model['base_named']}", "    ", "  ")


def _nothing(model: Any) -> str:
    if not model["candidates"]:
        return "the repository holds no model to compare it with"
    stored, fitting = plural(model["candidates"], "stored model"), model["fitting"]
    if not fitting:
        return f"its tensors have the names and shapes of none of {stored}"
    have = "has" if fitting == 1 else "have"
    likest = f"; of the {model['compared']} likest of them," if fitting > model["compared"] else ", and"
    return f"of {stored}, {fitting} {have} its names and shapes{likest} none is found to be like it"


def _label(match: Any) -> str:
    return " ".join(part for part in (match["role"], match["name"], short(match["id"])) if part)


def _exact(match: Any) -> Iterator[str]:
    how = _HOW[match["how"]].format(s="" if match["whole"] else "s")
    part = "" if match["whole"] else "a part of "
    lacking = "" if match["whole"] else f", {match['lacking']} of its tensors lacking"
    renamed = f", {match['renamed']} under other names" if match["renamed"] else ""
    yield from wrapped(f"is {part}{_label(match)}: {how}{renamed}{lacking}", "    ", "  ")
    if match["differing"]:
        names = ", ".join(match["differing"][:_SHOWN]) + (", ..." if len(match["differing"]) > _SHOWN else "")
        yield from wrapped(f"but beside it, with other bytes than it has: {names}", "      ", "    ")
    yield from wrapped(_commits(match["commits"], "in"), "      ", "    ")


def _like(model: Any, like: Any) -> Iterator[str]:
    words = {
        "cast": f"cast from {'/'.join(like['from_dtypes'])} to {'/'.join(like['to_dtypes'])}",
        "merged": "plus a low-rank difference",
        "relative": "changed" if any(like[key] for key in ("cast", "close", "unlike")) else "in part",
        "parts": "in a few tensors, which proves nothing",
    }
    yield from wrapped(f"like {_label(like)}, {words[like['kind']]}", "    ", "  ")
    counts = [f"{like['equal']} of {plural(model['tensors'], 'tensor')} equal ({_percent(like['equal_bytes'], model)})"]
    names = (("cast", "cast"), ("close", "close"), ("unlike", "unlike"), ("other", "not compared"), ("added", "added"))
    counts += [f"{like[key]} {word}" for key, word in (*names, ("lacking", "lacking")) if like[key]]
    yield from wrapped(", ".join(counts), "      ", "    ")
    if like["correlation"] is not None:
        bits = "" if like["bits_apart"] is None else f", {like['bits_apart']:.2g} bits of an element apart"
        yield f"    what differs correlates by {like['correlation']:.6f}{bits}"
    if like["difference"] is not None:
        yield from _thin(like["difference"])
    yield from wrapped(_commits(like["commits"], "in"), "      ", "    ")


def _thin(thin: Any) -> Iterator[str]:
    yield from wrapped(
        f"difference of rank {thin['rank']} in {plural(thin['tensors'], 'matrix', 'matrices')} "
        f"({thin['sampled']} looked at), which holds {thin['energy']:.0%} of it; rounding is the rest",
        "      ",
        "    ",
    )
    for one in thin["behaviors"]:
        label = _label({"role": "behavior", **one})
        yield from wrapped(
            f"- {label}, weight {number(one['weight'])}, cosine {number(one['cosine'])}", "        ", "      "
        )
    if not thin["behaviors"]:
        yield "      of no behavior stored here"
        return
    yield f"      explained by {'it' if len(thin['behaviors']) == 1 else 'them'}: {thin['explained']:.0%}"
    if thin["commits"]["count"]:
        yield from wrapped(f"composed {_commits(thin['commits'], 'in')}", "        ", "      ")


def _percent(part: int, model: Any) -> str:
    return f"{part / model['size']:.1%} of the bytes" if model["size"] else "no bytes"


def _commits(commits: Any, word: str) -> str:
    if not commits["count"]:
        return "no branch or tag leads to a commit with it"
    if commits["count"] == 1:
        return f"{word} commit {short(commits['first'])}"
    newest = short(commits["newest"][0])
    return f"{word} {commits['count']} commits, the first {short(commits['first'])}, the newest {newest}"


def _more(several: Any) -> Iterator[str]:
    if len(several) > _SHOWN:
        yield f"  and {len(several) - _SHOWN} more: --json names all"


def _files(result: Any) -> Iterator[str]:
    """Files beside the models; those of a model are told of there."""
    known = [file for file in result["files"] if file["holders"]]
    others = [file for file in result["files"] if not file["holders"] and not _is_weights(result, file)]
    if len(result["files"]) > 1:
        yield f"{len(known)} of {plural(len(result['files']), 'file')} stored byte for byte"
    for file in others[:_FILES]:
        what = "a checkout's own list" if file["path"].split("/")[-1] == MANIFEST_FILE else "unknown"
        yield from wrapped(f"{file['path']} sha256:{file['sha256'][:12]} {size(file['size'])}: {what}", "    ", "  ")
    if len(others) > _FILES:
        yield f"  and {len(others) - _FILES} more: --json names all"
    for entry in result["unread"][:_FILES]:
        yield from wrapped(f"{entry['path']}: not looked at, {entry['reason']}", "    ", "  ")
    if len(result["unread"]) > _FILES:
        yield f"  and {len(result['unread']) - _FILES} more: --json names all"
    if not result["models"] and len(result["files"]) == 1:
        for file in known:
            holders = ", ".join(short(one) for one in file["holders"][:_SHOWN])
            yield from wrapped(f"{file['path']}: a file of {holders}", "  ")
    if not result["files"]:
        yield from wrapped(f"{result['path']}: no files", "  ")
    if result["commits"]["count"]:
        yield from wrapped(f"all together: the weights {_commits(result['commits'], 'of')}", "  ")


def _is_weights(result: Any, file: Any) -> bool:
    return any(file["path"] in model["files"] for model in result["models"])
