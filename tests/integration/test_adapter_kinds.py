"""Every kind of adapter that peft saves, on every sort of model.

In, out byte for byte, loaded to peft's own bits, and reverted exactly.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import peft
import pytest
import tiny_models
import torch
from tiny_checkpoints import checked_out, digests

import rblstore
from rblstore.checkpoints.quiet import quiet

MODELS: dict[str, Callable[[], Any]] = {
    "llama": tiny_models.llama,
    "llama_tied_bf16": lambda: tiny_models.llama(tied=True, dtype=torch.bfloat16),
    "gpt2": tiny_models.gpt2,
    "bert": tiny_models.bert,
    "bert_classifier": lambda: tiny_models.bert("BertForSequenceClassification"),
    "bert_masked": lambda: tiny_models.bert("BertForMaskedLM"),
}
# PEFT has no LoHa, LoKr or OFT for the Conv1D layers of GPT-2.
IMPOSSIBLE = {("gpt2", kind) for kind in ("loha", "lokr", "oft")}
PROMPTS = [{"id": f"p{at}", "tokens": row.tolist()} for at, row in enumerate(tiny_models.PROMPT)]


@dataclass(frozen=True)
class Bench:
    """A repository whose main branch holds a base, with its baseline recorded."""

    repo: Any
    model: Any
    base: Path


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Any:
    made: dict[str, Bench] = {}

    def make(name: str) -> Bench:
        if name not in made:
            folder = tmp_path_factory.mktemp(name)
            model = MODELS[name]()
            base = tiny_models.save(model, folder / "base")
            repo = rblstore.init(folder / "store")
            repo.commit("base", identity=base)
            repo.add_probe("two", PROMPTS)
            repo.baseline()
            made[name] = Bench(repo, model, base)
        return made[name]

    yield make
    for one in made.values():
        one.repo.close()


def as_peft(bench: Bench, adapter: Path) -> Any:
    """The adapter on the base as peft itself loads it."""
    with quiet():
        base = type(bench.model).from_pretrained(bench.base, dtype="auto")
        return peft.PeftModel.from_pretrained(base, str(adapter), autocast_adapter_dtype=True).eval()


@pytest.mark.parametrize(
    ("name", "kind"), [(name, kind) for name in MODELS for kind in tiny_models.KINDS if (name, kind) not in IMPOSSIBLE]
)
def test_it_round_trips_loads_as_peft_does_and_reverts_exactly(
    name: str, kind: str, bench: Callable[[str], Bench], tmp_path: Path
) -> None:
    its = bench(name)
    repo = its.repo
    adapter = tiny_models.save_adapter(its.model, tmp_path / "adapter", kind)
    repo.switch(kind, create=True, start="main")
    repo.commit(kind, behaviors={"polite": adapter})

    repo.checkout("HEAD", tmp_path / "out")
    expected = digests(its.base) | {f"behaviors/polite/{path}": digest for path, digest in digests(adapter).items()}
    assert checked_out(tmp_path / "out") == expected

    reference = tiny_models.outputs(as_peft(its, adapter))
    loaded = repo.load("HEAD")
    assert torch.equal(tiny_models.outputs(loaded), reference)
    assert torch.equal(tiny_models.outputs(rblstore.load_checkout(tmp_path / "out")), reference)
    assert not torch.equal(tiny_models.outputs(repo.load("main")), reference)

    result = repo.revert(behavior="polite", require_verified=True)
    evidence = result.verification
    assert (result.verdict, evidence.verdict, evidence.bit_equal) == ("exact", "exact", True)
    assert [prompt.bit_equal for prompt in evidence.prompts] == [True, True]
    assert (evidence.removed, evidence.commit) == (("polite",), result.commit)
    assert result.same_composition_as == repo.resolve("main")
    assert len(repo.baselines()) == 1  # the base's own was found
    if name == "bert":
        assert (evidence.rf, evidence.kl, evidence.kl_adapted) == (None, None, None)
        assert "embedding" in evidence.reason or "distribution" in evidence.reason
    else:
        assert (evidence.rf, evidence.kl, evidence.js, evidence.reason) == (1.0, 0.0, 0.0, None)
        assert evidence.kl_adapted > 0
        assert evidence.js_adapted > 0
