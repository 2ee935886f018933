"""The example of licence audits runs as it stands."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest


@pytest.mark.slow
def test_the_example_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    example = runpy.run_path(str(Path(__file__).parents[2] / "examples" / "licence_audit.py"))
    example["main"](tmp_path)
    printed = capsys.readouterr().out
    assert "[noncommercial.data]" in printed
    assert "[gemma.notice] Gemma Terms of Use, Section 3.1" in printed
    assert "behavior poet entered with 'commit: poet', left with" in printed
