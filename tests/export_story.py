"""A repository whose statements and evidence are written by hand: no model runs, and every number is known."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import tiny_checkpoints

import rblstore
from rblstore.objects.evidence_records import (
    Baseline,
    Claim,
    Probe,
    Prompt,
    PromptDivergence,
    PromptOutput,
    Statement,
    Verification,
)
from rblstore.objects.history_records import Commit, Composition
from rblstore.objects.ids import CommitId, ProbeId, RecordId
from rblstore.objects.study_records import PromptMeasures, Study, StudyPoint

TIME = "2030-01-01T00:00:00.250Z"
HOSTILE = "evil\n---\nlicense: mit\n---\n<script>alert(1)</script> [a](javascript:alert(2)) `x` | y \u202e ![](http://x.y/p.png)"


@dataclass
class Told:
    """The repository and the ids of what was put into it by hand."""

    repo: rblstore.Repository
    base: CommitId
    head: CommitId
    parts: dict[str, RecordId]
    verification: RecordId
    study: RecordId
    probe: RecordId

    @property
    def store(self) -> Any:
        """The kernel beneath it."""
        return self.repo._store

    def add(self, *records: Any) -> list[RecordId]:
        """Stores records."""
        with self.store.transaction("Ada") as transaction:
            return [transaction.add_record(record) for record in records]

    def say(self, part: str, time: str = "2029-01-01T00:00:00Z", **claims: str | list[str]) -> None:
        """Says something about a part; double underscores are dots."""
        found = [
            Claim(key.replace("__", "."), value, "command line")
            for key, values in claims.items()
            for value in ([values] if isinstance(values, str) else values)
        ]
        self.add(Statement(self.parts[part], tuple(sorted(found)), "Ada", time))


def tell(folder: Path) -> Told:
    """base (config of a causal model) <- polite (an adapter) and tuned (an overlay), with evidence about the latter.

    Args:
        folder: Where; empty.
    """
    base = tiny_checkpoints.write_base(folder / "base")
    (base / "config.json").write_text('{"model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": 8}')
    adapter = tiny_checkpoints.write_adapter(folder / "polite")
    norm = tiny_checkpoints.values(tiny_checkpoints.WIDTH, seed=77)
    tuned = tiny_checkpoints.write_base(folder / "tuned", model__norm__weight=norm)
    (tuned / "config.json").write_text((base / "config.json").read_text())
    repo = rblstore.init(folder / "store")
    first = repo.commit("base", identity=base, author="Ada").commit
    second = repo.commit("both", behaviors={"tuned": tuned, "polite": adapter}, author="Ada").commit
    store: Any = repo._store
    composition = store.record(store.record(second, Commit).composition, Composition)
    parts = {"identity": composition.identity, **{slot.name: slot.behavior for slot in composition.slots}}
    told = Told(repo, first, second, parts, second, second, second)
    _measure(told, store.record(first, Commit).composition, store.record(second, Commit).composition)
    return told


def _measure(told: Told, before: Any, after: Any) -> None:
    with told.store.transaction("Ada") as transaction:
        output = transaction.add_content([b"\x00" * 32]).content
        probe = ProbeId(
            transaction.add_record(
                Probe((Prompt("one", (1, 2), None), Prompt("two", (3,), None)), ((0, 1),), "last", None)
            )
        )
        outputs = tuple(PromptOutput(name, (1, 8), output) for name in ("one", "two"))
        baseline = transaction.add_record(
            Baseline(before, probe, {"device": "cpu"}, "logits", "F32", outputs, "Ada", TIME)
        )
        prompts = (
            PromptDivergence("one", 0.25, 0.125, False, {"kl_adapted": 0.5, "js_adapted": 0.25}),
            PromptDivergence("two", 0.75, 0.375, False, {"kl_adapted": 1.5, "js_adapted": 0.75}),
        )
        record = Verification(
            commit=told.head, composition=after, adapted=before, removed=("brief",), probe=probe,
            baseline=baseline,  # type: ignore[arg-type]
            environment={"device": "cpu"}, verdict="within_tolerance", tolerance=1.0, bit_equal=False, kl=0.5, js=0.25,
            rf=0.5, kl_adapted=1.0, js_adapted=0.5, reason=None, prompts=prompts, author="Ada", time=TIME,
        )  # fmt: skip
        told.probe, told.verification = probe, transaction.add_record(record)
        # About the parent alone, and about another commit first: neither is about HEAD.
        transaction.add_record(replace(record, commit=told.base, kl=9.0))
        points = tuple(
            StudyPoint({"perturbation": name}, None, False, {}, None, (PromptMeasures("one", {"kl": kl}),))
            for name, kl in (("drop:0.25", 0.5), ("noise:0.1", 1.5))
        )
        study = Study(
            "svar", (told.head,), (probe,), {"behavior": "polite", "form": "adapters"}, {"device": "cpu"}, points,
            "Ada", TIME,
        )  # fmt: skip
        told.study = transaction.add_record(study)
        transaction.add_record(replace(study, commits=(told.base, told.head), author="Bob"))


def speak(told: Told) -> None:
    """Statements: Gemma's terms, an adapter on non-commercial data, and nothing about the overlay."""
    told.say(
        "identity", license="gemma", source="google/gemma-3-270m", source_revision="ab" * 20, meta__flops="3e18",
        meta__modality="text in, text out",
    )  # fmt: skip
    told.say(
        "polite", license=["apache-2.0", "mit"], license_concluded="Apache-2.0", dataset=["org/chats@v2", "letters"],
        dataset_license="org/chats=cc-by-nc-4.0", meta__steps="300", meta__flops="2e18", meta__energy_kwh="1.5",
        source="https://example.org/polite.zip",
    )  # fmt: skip
