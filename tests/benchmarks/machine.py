"""What the figures were measured on: processor, memory, file system, kernel and the version of every tool."""

from __future__ import annotations

import os
import platform
import re
import subprocess
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path

PACKAGES = ("rblstore", "torch", "transformers", "peft", "safetensors", "numpy", "zstandard", "xxhash", "sqlalchemy")


def _field(file: str, name: str) -> str | None:
    """The value behind the first ``name:`` of a file such as ``/proc/cpuinfo``, or None."""
    try:
        found = re.search(rf"^{re.escape(name)}\s*:\s*(.+)$", Path(file).read_text(), re.MULTILINE)
    except OSError:
        return None
    return None if found is None else found.group(1).strip()


def file_system(folder: Path) -> str:
    """The type of the file system that a folder lies on, or ``unknown``."""
    try:
        lines = Path("/proc/self/mounts").read_text().splitlines()
    except OSError:
        return "unknown"
    where, kind = Path("/"), "unknown"
    for line in lines:
        point, found = line.split()[1:3]
        mounted = Path(point.replace("\\040", " "))
        if folder.resolve().is_relative_to(mounted) and len(mounted.parts) >= len(where.parts):
            where, kind = mounted, found
    return kind


def machine(folder: Path) -> dict[str, object]:
    """The machine, as far as it says.

    Args:
        folder: Where the work is done; its file system is named.
    """
    memory = _field("/proc/meminfo", "MemTotal")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "processor": _field("/proc/cpuinfo", "model name") or platform.processor() or platform.machine(),
        "cores": cores,
        "memory_bytes": None if memory is None else int(memory.split()[0]) * 1024,
        "file_system": file_system(folder),
        "kernel": f"{platform.system()} {platform.release()}",
        "load_average": [round(value, 2) for value in os.getloadavg()],
    }


def package_versions(packages: Sequence[str] = PACKAGES) -> dict[str, str]:
    """Versions of Python and of those packages that are installed."""
    found = {"python": platform.python_version()}
    for package in packages:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def tool_version(command: Sequence[str], variables: Mapping[str, str]) -> str:
    """The first line of what a tool says of its version, or ``unknown``."""
    try:
        said = subprocess.run(command, env=dict(variables), capture_output=True, text=True, timeout=60, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return "unknown"
    lines = (said.stdout or said.stderr).strip().splitlines()
    return lines[0] if lines else "unknown"
