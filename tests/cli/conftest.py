"""A repository with a short history, made once through the command line, and copied for every test that wants one."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from cli_story import Story, run

PROMPTS = ["w5 w17 w80 w3 w42", "w11 w64 w29", "w7 w7 w90"]


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Directories of a base, a fine-tune of it, two adapters, an adapter of another shape, and a file of prompts."""
    import tiny_models

    folder = tmp_path_factory.mktemp("models")
    base = tiny_models.llama()
    for name, model in (("base", base), ("tuned", tiny_models.llama(seed=7))):
        tiny_models.save(model, folder / name)
        tiny_models.save_tokenizer(folder / name)
    for seed, name in enumerate(("polite", "brief"), start=1):
        tiny_models.save_adapter(base, folder / name, seed=seed, base_model_name_or_path="base")
    tiny_models.save_adapter(tiny_models.gpt2(), folder / "foreign")
    (folder / "prompts.json").write_text(json.dumps(PROMPTS))
    return folder


@pytest.fixture(scope="session")
def _history(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    store = tmp_path_factory.mktemp("history") / "store"
    story = Story(store, models)
    assert run("init", store).exit_code == 0
    story.ok("commit", "-m", "base\n\nThe longer story.", "--identity", models / "base", "--license", "apache-2.0")
    story.ok("probe", "add", "three", "--prompts", models / "prompts.json")
    story.ok("baseline")
    story.ok("commit", "-m", "polite", "--behavior", f"polite={models / 'polite'}", "--author", "Ada")
    story.ok("commit", "-m", "brief", "--behavior", f"brief={models / 'brief'}", "--weight", "brief=0.5")
    story.ok("tag", "v1", "HEAD~1", "-m", "first")
    return store


@pytest.fixture
def story(_history: Path, models: Path, tmp_path: Path) -> Story:
    """base <- polite (v1) <- brief (HEAD -> main), a probe, and a baseline of base."""
    shutil.copytree(_history, tmp_path / "store")
    return Story(tmp_path / "store", models)
