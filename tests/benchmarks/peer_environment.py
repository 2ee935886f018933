"""What the tools that are compared run under, so that none meets another's settings or an earlier run's caches."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from measuring import SOURCE

# Two of the tools are Python as well and must not meet the packages of this process.
UNSET = ("PYTHONPATH", "PYTHONHOME", "PYTHONDONTWRITEBYTECODE", "XDG_CACHE_HOME", "XDG_CONFIG_HOME", "XDG_DATA_HOME")


def variables_of(work: Path, path: Sequence[Path]) -> dict[str, str]:
    """What every tool runs under: this user's environment, with a home of its own that keeps settings and caches.

    Args:
        work: Where that home is made, and a program ``rbl`` where none is on the path.
        path: Folders to look for programs in first.
    """
    home, programs = work / "home", work / "bin"
    home.mkdir(parents=True)
    programs.mkdir()
    variables = {name: value for name, value in os.environ.items() if name not in UNSET}
    variables |= {"HOME": str(home), "RESTIC_PASSWORD": "benchmark", "DVC_SITE_CACHE_DIR": str(work / "dvc")}
    variables |= {"HF_HUB_OFFLINE": "1", "DVC_NO_ANALYTICS": "true", "RBL_AUTHOR": "benchmark"}
    for who in ("AUTHOR", "COMMITTER"):
        variables |= {f"GIT_{who}_NAME": "benchmark", f"GIT_{who}_EMAIL": "benchmark@example.org"}
    folders = [*(str(folder.resolve()) for folder in path), variables.get("PATH", os.defpath)]
    variables["PATH"] = os.pathsep.join(folders)
    if shutil.which("rbl", path=variables["PATH"]) is None:
        # The source tree beside this script, run as a module; compiled modules are kept, as an installation keeps them.
        wrapper = programs / "rbl"
        wrapper.write_text(
            f'#!/bin/sh\nPYTHONPATH="{SOURCE}" PYTHONPYCACHEPREFIX="{work / "compiled"}" '
            f'exec "{sys.executable}" -m rblstore "$@"\n'
        )
        wrapper.chmod(0o755)
        variables["PATH"] = os.pathsep.join((str(programs), variables["PATH"]))
        print("no rbl on PATH: the source tree is measured", file=sys.stderr)
    return variables
