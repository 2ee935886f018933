"""Pictures of measured documents. Needs matplotlib, as nothing else here does: import this where it may be missing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
from figures import MB, median, spread
from matplotlib import pyplot as plt
from peer_tools import ADAPTER, BASE, FINE_TUNE, MERGED, STEPS

OURS, OTHERS = "#c2410c", "#64748b"
mpl.use("Agg")
# The same document gives the same picture, byte for byte.
mpl.rcParams.update({"svg.hashsalt": "rblstore", "font.size": 9, "axes.spines.top": False, "axes.spines.right": False})


def _save(figure: Any, out: Path, what: str) -> Path:
    path = out.with_name(f"{out.stem}-{what}.svg")
    figure.savefig(path, metadata={"Date": None}, bbox_inches="tight")
    plt.close(figure)
    return path


def _colour(peer: str) -> str:
    return OURS if peer.startswith("rblstore") else OTHERS


def plot_peers(document: Mapping[str, Any], out: Path) -> list[Path]:
    """Bars of every step's time and of the stores' sizes.

    Args:
        document: What ``peers.py`` measured.
        out: Its file; pictures go beside it.

    Returns:
        The pictures.
    """
    peers = list(document["peers"].items())
    if not peers:
        return []
    titles = [part["title"] for _, part in peers]
    steps = [step for step in STEPS if step != MERGED]
    figure, axes = plt.subplots(2, 4, figsize=(15, 1.6 + 0.5 * len(peers)), sharey=True)
    for axis, step in zip(axes.flat, steps, strict=True):
        for at, (name, part) in enumerate(peers):
            entry = part["steps"].get(step)
            found = None if entry is None or entry["failed"] else spread(entry["wall_s"])
            if found is None:
                axis.text(0, at, " n/a", va="center", color=OTHERS)
                continue
            error = [[found.median - found.least], [found.most - found.median]]
            axis.barh(at, found.median, color=_colour(name), xerr=error, ecolor="#0f172a", capsize=2)
        axis.set_title(step)
        axis.set_xlabel("seconds (median, least to most)")
        axis.set_yticks(range(len(titles)), titles)
    axes.flat[0].invert_yaxis()
    figure.tight_layout()
    return [_save(figure, out, "time"), _save(_sizes(document, peers), out, "size")]


def _sizes(document: Mapping[str, Any], peers: Sequence[tuple[str, Any]]) -> Any:
    figure, axis = plt.subplots(figsize=(9, 1 + 0.35 * len(peers)))
    shades = {BASE: 1.0, FINE_TUNE: 0.6, ADAPTER: 0.3}
    for at, (name, part) in enumerate(peers):
        reached = 0.0
        for tree, shade in shades.items():
            size = median(part["store_bytes"].get(tree))
            if size is not None:
                axis.barh(at, (size - reached) / MB, left=reached / MB, color=_colour(name), alpha=shade)
                reached = size
            else:
                axis.text(reached / MB, at, f" {tree}: n/a", va="center", fontsize=7, color="#0f172a")
    raw = 0.0
    for tree in shades:
        raw += document["inputs"].get(tree, {}).get("bytes", 0) / MB
        axis.axvline(raw, color="#0f172a", linestyle=":", linewidth=1)
    axis.set_yticks(range(len(peers)), [part["title"] for _, part in peers])
    axis.invert_yaxis()
    axis.set_xlabel("MB stored after base, + fine-tune, + adapter (paler each); dotted: the same, raw")
    figure.tight_layout()
    return figure


def plot_scale(document: Mapping[str, Any], out: Path) -> list[Path]:
    """Cost against size and against the number of behaviors, log-log, one line a tool."""
    pictures = []
    sizes = document["sizes"]
    if any(len(points) > 1 for points in sizes.values()):
        figure, axes = plt.subplots(1, 3, figsize=(15, 4.5))
        panels = (
            ("commit", "commit_s", 1.0),
            ("checkout or restore", "checkout_s", 1.0),
            ("peak memory", "peak_bytes", MB),
        )
        for axis, (title, member, unit) in zip(axes, panels, strict=True):
            for name, points in sizes.items():
                taken: Any = max if member == "peak_bytes" else median
                drawn = [(point["bytes"] / MB, taken(point[member]) / unit) for point in points if point[member]]
                if drawn:
                    wide = 2.2 if name == "rblstore" else 1.2
                    axis.plot(*zip(*drawn, strict=True), marker="o", linewidth=wide, label=document["titles"][name])
            axis.set(
                xscale="log",
                yscale="log",
                xlabel="checkpoint, MB",
                ylabel="MB" if unit == MB else "seconds",
                title=title,
            )
            axis.grid(visible=True, which="both", alpha=0.2)
        axes[0].legend()
        figure.tight_layout()
        pictures.append(_save(figure, out, "size"))
    behaviors = document.get("behaviors")
    if behaviors:
        figure, axis = plt.subplots(figsize=(7, 4.5))
        for what, member in (
            ("commit, in one process", "commit_s"),
            ("rbl log -n 20", "log_s"),
            ("rbl status", "status_s"),
        ):
            drawn = [(int(number), value) for number, value in behaviors[member].items() if value is not None]
            if drawn:
                axis.plot(*zip(*drawn, strict=True), marker="o", label=what)
        axis.set(xscale="log", yscale="log", xlabel="behaviors committed", ylabel="seconds")
        axis.grid(visible=True, which="both", alpha=0.2)
        axis.legend()
        figure.tight_layout()
        pictures.append(_save(figure, out, "behaviors"))
    return pictures


def plot_codecs(document: Mapping[str, Any], out: Path) -> list[Path]:
    """Ratio against speed, one panel a kind of content, one point a codec."""
    samples: dict[str, list[dict[str, Any]]] = {}
    for row in document["rows"]:
        samples.setdefault(row["sample"], []).append(row)
    if not samples:
        return []
    most = document["threads"][-1]
    codecs = list(dict.fromkeys(row["codec"] for row in document["rows"]))
    columns = min(3, len(samples))
    lines = -(-len(samples) // columns)
    figure, axes = plt.subplots(lines, columns, figsize=(5 * columns, 3.2 * lines), squeeze=False)
    for axis in axes.flat[len(samples) :]:
        axis.axis("off")
    for axis, (sample, rows) in zip(axes.flat, samples.items(), strict=False):
        for row in rows:
            speed = median(row["encode_mb_s"][str(most)])
            marker = "*" if row["codec"].startswith("rblstore") else "o"
            colour = mpl.colormaps["tab20"](codecs.index(row["codec"]) % 20)
            axis.plot(speed, row["ratio"], marker, color=colour, markersize=12 if marker == "*" else 7)
        top = 1.05 * max(row["ratio"] for row in rows)
        axis.set(xscale="log", title=sample, xlabel=f"encode, MB/s, {most} threads", ylabel="raw over stored")
        axis.set_ylim(min(1.0, *(row["ratio"] for row in rows)), top)
        axis.grid(visible=True, which="both", alpha=0.2)
    handles = [
        mpl.lines.Line2D(
            [], [], linestyle="", marker="*" if codec.startswith("rblstore") else "o", label=codec,
            color=mpl.colormaps["tab20"](at % 20), markersize=8,
        )
        for at, codec in enumerate(codecs)
    ]  # fmt: skip
    figure.tight_layout()
    figure.legend(handles=handles, loc="upper center", bbox_to_anchor=(0.5, 0.0), ncols=3)
    return [_save(figure, out, "speed")]
