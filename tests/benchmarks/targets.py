"""What rblstore sets out to reach, as ratios inside one run, and whether a run's document reaches it. No I/O."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from figures import MB, digits, markdown_table, median, ratio
from peer_tools import ADAPTER, BASE, FINE_TUNE, TOUCHED, UNTOUCHED, commit_of, restore_of

Document = Mapping[str, Any]
OURS, NONE, LINKED, BORG = "rblstore", "rblstore-none", "dvc-hardlink", "borg-none"
PEAK_BYTES = 256 * MB
LOAD_PEAK_BYTES = 128 * MB
SLOPE = 0.05


@dataclass(frozen=True)
class Target:
    """One figure to reach.

    Attributes:
        what: What is measured.
        against: What it is divided by, or its unit.
        limit: The most that is allowed.
        figure: Finds it in a run's document; None where it was not measured.
    """

    what: str
    against: str
    limit: float
    figure: Callable[[Document], float | None]


@dataclass(frozen=True)
class Verdict:
    """A target and what was measured; ``met`` is None where nothing was."""

    what: str
    against: str
    limit: float
    measured: float | None
    met: bool | None

    def as_json(self) -> dict[str, Any]:
        """The verdict as a member of the document."""
        measured = None if self.measured is None else round(self.measured, 4)
        return {
            "what": self.what, "against": self.against, "at_most": self.limit, "measured": measured, "met": self.met
        }  # fmt: skip


def wall(document: Document, peer: str, step: str) -> float | None:
    """The median wall time of a step in seconds, or None where it was not measured or failed in any round."""
    taken = document["peers"].get(peer, {}).get("steps", {}).get(step)
    return None if taken is None or taken.get("failed") else median(taken["wall_s"])


def stored(document: Document, peer: str, after: str) -> float | None:
    """The median bytes of a store after something was committed, or None."""
    return median(document["peers"].get(peer, {}).get("store_bytes", {}).get(after))


def added(document: Document, peer: str, after: str, before: str) -> float | None:
    """By how many bytes a store grew between two weighings, or None."""
    last, first = stored(document, peer, after), stored(document, peer, before)
    return None if last is None or first is None else last - first


def highest_peak(document: Document, peer: str) -> float | None:
    """Bytes of the largest resident set over every step and round of a tool, or None."""
    steps = document["peers"].get(peer, {}).get("steps", {}).values()
    return max((peak for step in steps for peak in step["peak_bytes"]), default=None)


def _against(step: str, peer: str, *, ours: str = OURS) -> Callable[[Document], float | None]:
    return lambda document: ratio(wall(document, ours, step), wall(document, peer, step))


def _raw(document: Document, tree: str) -> float | None:
    found = document["inputs"].get(tree)
    return None if found is None else found["bytes"]


def _load(document: Document, way: str, member: str) -> float | None:
    return median(one[member] for one in document.get("load", {}).get(way, ()))


def _load_over_model(document: Document) -> float | None:
    runs = document.get("load", {}).get("repo.load", ())
    return max((one["peak_bytes"] - one["imported_bytes"] - one["model_bytes"] for one in runs), default=None)


TARGETS: Sequence[Target] = (
    Target("commit base", "x DVC with hard links", 0.95, _against(commit_of(BASE), LINKED)),
    Target("commit base, compression none", "x DVC with hard links", 0.7, _against(commit_of(BASE), LINKED, ours=NONE)),
    Target(
        "store after base", "x raw", 0.67, lambda document: ratio(stored(document, OURS, BASE), _raw(document, BASE))
    ),
    Target("commit fine-tune", "x DVC with hard links", 1.2, _against(commit_of(FINE_TUNE), LINKED)),
    Target(
        "added by the fine-tune", "x raw", 0.21,
        lambda document: ratio(added(document, OURS, FINE_TUNE, BASE), _raw(document, FINE_TUNE)),
    ),
    Target("commit adapter", "x DVC with hard links", 0.8, _against(commit_of(ADAPTER), LINKED)),
    Target("re-commit, untouched", "x DVC with hard links", 0.8, _against(UNTOUCHED, LINKED)),
    Target("re-commit, touched", "x borg, none", 0.9, _against(TOUCHED, BORG)),
    Target("checkout base, verified", "x DVC with hard links", 0.8, _against(restore_of(BASE), LINKED)),
    Target(
        "checkout fine-tune", "x checkout base", 1.3,
        lambda document: ratio(wall(document, OURS, restore_of(FINE_TUNE)), wall(document, OURS, restore_of(BASE))),
    ),
    Target(
        "repo.load, verified", "x from_pretrained and every page read", 1.0,
        lambda document: ratio(_load(document, "repo.load", "total_s"), _load(document, "from_pretrained", "total_s")),
    ),
    Target(
        "peak memory of commit and checkout, merged too", "x 256 MB", 1.0,
        lambda document: ratio(highest_peak(document, OURS), PEAK_BYTES),
    ),
    Target(
        "peak memory of repo.load over the imports, less the model", "x 128 MB", 1.0,
        lambda document: ratio(_load_over_model(document), LOAD_PEAK_BYTES),
    ),
)  # fmt: skip


def _between(document: Document, operation: str) -> float | None:
    """How far from 1 the exponent of an operation's growth is, or None."""
    found = document.get("exponents", {}).get(OURS, {}).get(operation, {}).get("above_fixed_cost")
    return None if found is None else abs(found - 1.0)


def _scale_peak(document: Document) -> float | None:
    peaks = [peak for point in document["sizes"].get(OURS, ()) for peak in point["peak_bytes"]]
    return ratio(max(peaks, default=None), PEAK_BYTES)


SCALE_TARGETS: Sequence[Target] = (
    Target("exponent of commit", "away from 1", SLOPE, lambda document: _between(document, "commit")),
    Target("exponent of checkout", "away from 1", SLOPE, lambda document: _between(document, "checkout")),
    Target("peak memory at any size", "x 256 MB", 1.0, _scale_peak),
    Target(
        "committing the 10,000th behavior", "x the 10th", 1.2,
        lambda document: ratio(
            document.get("behaviors", {}).get("commit_s", {}).get("10000"),
            document.get("behaviors", {}).get("commit_s", {}).get("10"),
        ),
    ),
)  # fmt: skip


def verdicts(document: Document, targets: Sequence[Target] = TARGETS) -> list[Verdict]:
    """Every target with what the document says of it."""
    found = []
    for target in targets:
        measured = target.figure(document)
        met = None if measured is None else measured <= target.limit
        found.append(Verdict(target.what, target.against, target.limit, measured, met))
    return found


def verdict_table(found: Sequence[Verdict]) -> str:
    """The verdicts as a table in Markdown."""
    words = {True: "met", False: "**missed**", None: "not measured"}
    rows = [
        (one.what, f"{one.limit:g} {one.against}", digits(one.measured, 3), words[one.met]) for one in found
    ]  # fmt: skip
    return markdown_table(("target", "at most", "measured", ""), rows)
