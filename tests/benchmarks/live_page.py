"""The page of a run of ``live.py``, in Markdown, and its targets, from its document. No I/O."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from figures import MB, digits, markdown_table, median, ratio, spread
from live_switching import (
    CACHED,
    COPY,
    MERGED_DETACH,
    RELOAD,
    SET_ADAPTER,
    STORED,
    SWITCH,
    WARM,
)
from live_training import AGAIN, CALLBACK, GUARD, PLAIN
from measuring import MIB
from targets import Document, Target, verdict_table, verdicts

# Overheads are stated for a check or commit every so many steps, however many lay between those that were timed.
STATED = 10


def action(document: Document, subject: str, name: str) -> float | None:
    """Median seconds of an action, or None."""
    return median(document["subjects"].get(subject, {}).get("seconds", {}).get(name, ()))


def reloading(document: Document, subject: str) -> float | None:
    """Median seconds of loading a model anew: with the first forward, less a warm one."""
    whole, warm = action(document, subject, RELOAD), action(document, subject, WARM)
    return None if whole is None or warm is None else whole - warm


def overhead(document: Document, kind: str) -> float | None:
    """What a check or commit every ten steps adds to them, over what they take: the median over all that were timed."""
    return median(added_by_window(document, kind))


def added_by_window(document: Document, kind: str) -> list[float]:
    """:func:`overhead` of each check or commit; empty where not measured.

    A machine's pace wanders by more than what is looked for. So steps are compared with their neighbours: the step that
    ends with a check and those in which its work goes on behind the loop, half of all up to the next, with the other
    half. Means of both: some steps take far longer, and a median of one half alone would call that an overhead.
    """
    training = document.get("training")
    if not training or kind not in training["loops"]:
        return []
    every: int = training["every"]
    half = every // 2
    found = []
    for loop in training["loops"][kind]:
        steps = loop["steps_s"]
        for start in range(every - 1, len(steps) - every + 1, every):
            window = steps[start : start + every]
            quiet = fmean(window[half:])
            found.append((sum(window[:half]) - half * quiet) / (STATED * quiet))
    return found


def noise(document: Document) -> float | None:
    """What nothing adds: the distance from zero of the loops without rblstore."""
    found = [overhead(document, kind) for kind in (PLAIN, AGAIN)]
    return max((abs(one) for one in found if one is not None), default=None)


def told(document: Document, kind: str, limit: float) -> float | None:
    """:func:`overhead`, or None where the machine was too busy to tell it from nothing: noise above the limit."""
    floor = noise(document)
    return None if floor is None or floor > limit else overhead(document, kind)


def left_by(document: Document, tool: str) -> float | None:
    """Bits changed by the most cycles in bf16, everywhere; None where not measured."""
    rows = [row for row in document.get("cycles", ()) if row["tool"] == tool and row["dtype"] == "bfloat16"]
    return float(rows[-1]["bits"] + rows[-1]["elsewhere"]) if rows else None


def live_targets(document: Document) -> Sequence[Target]:
    """What a run sets out to reach, on its first subject."""
    subject = next(iter(document["subjects"]), "")

    def times(name: str, against: str) -> Any:
        return lambda document: ratio(action(document, subject, name), action(document, subject, against))

    return (
        Target("take out a merged behavior, cached", "x a copy of what it touches", 2.0,
               times(MERGED_DETACH + CACHED, COPY)),
        Target("take out a merged behavior, from the store", "x loading anew", 0.25,
               lambda document: ratio(action(document, subject, MERGED_DETACH + STORED), reloading(document, subject))),
        Target("switch, held apart", "x peft set_adapter", 1.0, times(SWITCH, SET_ADAPTER)),
        Target("bits changed by merging and unmerging", "", 0.0, lambda document: left_by(document, "rblstore")),
        Target("guard every 10 steps", "of the steps", 0.02, lambda document: told(document, GUARD, 0.02)),
        Target("RblCallback every 10 steps", "of the steps", 0.03, lambda document: told(document, CALLBACK, 0.03)),
    )  # fmt: skip


def cache_note(found: Mapping[str, Any]) -> list[str]:
    """What the bounded cache is too small for, on a subject of which that is so."""
    # Values of the base, of a and of b: they take turns.
    wanted, room = 3 * found["touched_bytes"], found.get("cache_bytes")
    if room is None or wanted <= room:
        return []
    return [
        (
            f"*Cached* is with the default bound, which leaves {digits(room / MB, 0)} MB for values. The base's, `a`'s "
            f"and `b`'s take {digits(wanted / MB, 0)} MB here, so that they push each other out and much comes from "
            "the store or is summed anew. With a larger `cache_bytes` it costs a copy, as where the default suffices."
        )
    ]


def action_table(document: Document, subject: str) -> str:
    """Milliseconds of every action and what they are to a copy and to loading anew, a line an action."""
    rows = []
    copy, anew = action(document, subject, COPY), reloading(document, subject)
    for name, taken in document["subjects"][subject]["seconds"].items():
        found = spread(taken)
        if found is not None:
            times = f"{digits(found.median * 1e3)} ({digits(found.least * 1e3)} to {digits(found.most * 1e3)})"
            rows.append((name, times, digits(ratio(found.median, copy)), digits(ratio(found.median, anew), 3)))
    return markdown_table(("", "ms", "x copy", "x loading anew"), rows)


def cycle_table(document: Document) -> str:
    """Residual error by element type and number of cycles, both tools."""
    rows = [
        (
            f"{row['tool']}, {row['dtype']}", f"{row['cycles']:,}", f"{row['bits']:,}",
            f"{row['elements'] / row['of_elements']:.1%}", digits(row["max_abs"]), digits(row["mean_abs"]),
            digits(row["relative"]), f"{row['elsewhere']:,}",
        )
        for row in sorted(document["cycles"], key=lambda row: (row["dtype"], row["cycles"], row["tool"]))
    ]  # fmt: skip
    header = ("", "cycles", "bits changed", "elements", "largest", "mean", "mean, x mean weight", "bits elsewhere")
    return markdown_table(header, rows)


def training_table(document: Document) -> str:
    """What each kind of loop takes and adds, a line a kind."""
    rows = []
    for kind, taken in document["training"]["loops"].items():
        middle = {name: median(one[name] for one in taken) for name in ("enter_s", "leave_s", "cpu_s")}
        step = median(step for one in taken for step in one["steps_s"])
        inside = median(one["inside_s"] for one in taken if "inside_s" in one)
        added = overhead(document, kind)
        rows.append((
            kind, digits(step, 3), *(digits(middle[name], 3) for name in ("enter_s", "leave_s", "cpu_s")),
            digits(inside, 3), "" if added is None else f"{added:+.1%}",
        ))  # fmt: skip
    header = (
        "seconds",
        "a step",
        "to enter",
        "to leave",
        "CPU, all",
        "in our calls, all steps",
        f"added to {STATED} steps",
    )
    return markdown_table(header, rows)


def page(document: Mapping[str, Any]) -> str:
    """The page of a run, in Markdown."""
    on = document["machine"]
    memory = "?" if on["memory_bytes"] is None else digits(on["memory_bytes"] / MIB / 1024, 0)
    parts = [
        "# Live models",
        f"Written by `tests/benchmarks/live.py`; raw figures are in `{document['name']}.json`.",
        (
            f"{on['processor']}, {on['cores']} cores, {memory} GiB, {on['kernel']}, {document['threads']} threads of "
            f"torch. Medians of {document['rounds']} rounds (least to most); actions take turns. Load average at the "
            f"start: {on['load_average'][0]}."
        ),
        ", ".join(f"{name} {version}" for name, version in document["versions"].items()) + ".",
        "## Targets",
        verdict_table(verdicts(document, live_targets(document))),
    ]
    for name, found in document["subjects"].items():
        exact = "equal a fresh checkpoint bit for bit" if found["bit_equal_afterwards"] else "**differ**"
        parts += [
            f"## Switching: {name}",
            (
                f"{digits(found['bytes'] / MB, 0)} MB of weights, of which LoRA adapters `a` and `b` touch "
                f"{digits(found['touched_bytes'] / MB, 1)} MB (q_proj and v_proj). *Detach* and *attach* are of `a`, "
                "*switch* is from `a` to `b`. *Loading anew* is `from_pretrained` and the first forward less a warm "
                f"forward: {digits(reloading(document, name))} s. Afterwards all of our models' weights {exact}."
            ),
            *cache_note(found),
            action_table(document, name),
        ]
    if document.get("cycles"):
        parts += [
            "## What is left after merging and unmerging",
            (
                "Adapters `a` and `b` in turn, on the first model. A cycle of peft's is `set_adapter`, `merge_adapter` "
                "and `unmerge_adapter`; one of ours is a switch to the merged form and one back to the base. Over the "
                "weights that the adapters touch; the last column is over all others."
            ),
            cycle_table(document),
        ]
    if document.get("training"):
        training = document["training"]
        floor = noise(document)
        alone = ", ".join(f"{name} {digits(median(taken), 4)} s" for name, taken in training["check_s"].items())
        parts += [
            "## Training",
            (
                f"LoRA on the first model, {training['tokens']} tokens a step, {training['steps']} steps a loop; the "
                f"guard checks and runs commit every {training['every']} steps. *Added* is what the step that ends "
                "with a check or commit, and those after it, take longer than the later ones before the next, over the "
                f"time of {STATED} steps (medians over all checks); entering compares the model with the commit, "
                "leaving checks in full and makes the last commit. Loops without any of it differ from zero by "
                f"{'n/a' if floor is None else f'{floor:.1%}'}: what is below that says nothing. "
                f"A check of the guard by itself: {alone}."
            ),
            training_table(document),
        ]
        if CALLBACK not in training["loops"]:
            parts.append("The callback was not measured.")
    return "\n\n".join(parts) + "\n"
