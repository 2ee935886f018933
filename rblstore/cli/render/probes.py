"""Probes and baselines, in text."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from rblstore.cli.render.text import columns, environment_lines, plural, short, size


def added_lines(probe: Any) -> Iterator[str]:
    """A probe that was recorded.

    Args:
        probe: The document of a ``ProbeInfo``.
    """
    default = ", the default" if probe["default"] else ""
    yield f"probe {probe['name']} is {short(probe['probe'])}{default}"
    yield f"  prompts    {probe['prompts']}, {plural(probe['tokens'], 'token')}"
    yield f"  measured   {plural(probe['measured_positions'], 'position')}"
    if probe["batches"] < probe["prompts"]:
        yield f"  batches    {probe['batches']}, padded"
    if probe["baseline_bytes"] is not None:
        yield f"  a baseline takes {size(probe['baseline_bytes'])}"


def probe_lines(probes: Any) -> Iterator[str]:
    """Every probe, the default one marked.

    Args:
        probes: Documents of ``ProbeInfo``.
    """
    rows = columns(
        (
            probe["name"],
            short(probe["probe"]),
            plural(probe["prompts"], "prompt"),
            f"positions {probe['positions']}",
        )
        for probe in probes
    )
    for probe, row in zip(probes, rows, strict=True):
        yield f"{'*' if probe['default'] else ' '} {row}"


def baseline_lines(result: Any) -> Iterator[str]:
    """A baseline that was recorded.

    Args:
        result: The document of a ``BaselineResult``.
    """
    known = " (recorded before)" if result["reused"] else ""
    yield f"baseline {short(result['baseline'])} of composition {short(result['composition'])}{known}"
    yield f"  probe        {result['probe_name'] or '-'} ({short(result['probe'])})"
    yield f"  outputs      {plural(result['prompts'], 'prompt')}, {size(result['bytes'])}"
    yield from environment_lines("  environment  ", result["environment"])


def baselines_lines(baselines: Any) -> Iterator[str]:
    """Every baseline.

    Args:
        baselines: Documents of ``BaselineResult``.
    """
    yield from columns(
        (
            (
                short(one["baseline"]),
                short(one["composition"]),
                one["probe_name"] or short(one["probe"]),
                plural(one["prompts"], "prompt"),
                size(one["bytes"]),
            )
            for one in baselines
        ),
        header=("baseline", "composition", "probe", "prompts", "outputs"),
    )
