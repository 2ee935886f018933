"""docs/python.md is a story that runs: its blocks, in order, on tiny models."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import tiny_models

import rblstore

PAGE = Path(__file__).parents[2] / "docs" / "python.md"
BLOCKS = [(match[1], page[: match.start()].count("\n") + 1) for page in [PAGE.read_text("utf-8")]
          for match in re.finditer(r"^```python\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)]  # fmt: skip


def test_the_tour_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    base = tiny_models.llama()
    tiny_models.save(base, tmp_path / "model")
    tiny_models.save_tokenizer(tmp_path / "model")
    for seed, name in enumerate(("polite", "brief"), start=1):
        tiny_models.save_adapter(base, tmp_path / name, seed=seed)
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {"__name__": "__tour__"}
    for text, line in BLOCKS:
        # Lines as on the page, so that a traceback names the one that is wrong there.
        exec(compile("\n" * line + text, str(PAGE), "exec"), names)
    printed = capsys.readouterr().out
    assert "exact\nTrue 1.0 0.0 0.0" in printed
    assert "PeftModel" in printed
    assert "no branch, tag or commit is called 'nowhere'\nunknown_revision nowhere" in printed
    assert "[('polite', 'removed')]" in printed
    assert "\ndiverged 0.0" in printed
    assert ": 100%" in printed
    with rblstore.open(tmp_path / "store") as repo:
        assert [slot.name for slot in repo.status().slots] == ["polite", "brief"]  # the revert was undone
        assert repo.fsck(full=True).ok


def test_every_method_of_the_tour_and_every_family_of_errors_is_public() -> None:
    page = PAGE.read_text("utf-8")
    for name in set(re.findall(r"\brepo\.([a-z_]+)\(", page)):
        assert hasattr(rblstore.Repository, name), name
    for name in set(re.findall(r"\b([A-Z][A-Za-z]+Error)\b", page)):
        assert name in rblstore.__all__, name
