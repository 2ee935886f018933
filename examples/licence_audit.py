"""What is in this model, on whose terms: audit, revert, audit again, through the API, offline.

Run it as it stands:  python examples/licence_audit.py [DIRECTORY]
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import rblstore
from rblstore.operations.audit import AuditResult
from rblstore.report.demo_models import code, make_model, shouted, train, with_lora

BOTH = "cc-by-4.0 AND LicenseRef-scancode-gemma-tou-2024-04-01"


def trained_adapter(base: Path, text: str):
    """A LoRA on the base, trained for a moment."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = with_lora(AutoModelForCausalLM.from_pretrained(base))
    train(model, AutoTokenizer.from_pretrained(base), text, steps=2, learning_rate=3e-3, rows=2)
    return model


def commit_all(repo: rblstore.Repository, base: Path) -> None:
    """A base under Gemma's terms, and adapters under three licences, one trained on non-commercial data."""
    repo.commit("base", identity=base, license="gemma", source="our small model")
    terse, support, poet = (trained_adapter(base, text) for text in (code(), shouted(), code().lower()))
    repo.commit("terse", behaviors={"terse": terse}, license="gemma", source="run 11")
    repo.commit(
        "support",
        behaviors={"support": support},
        license=BOTH,
        source="run 12",
        datasets={"org/tickets@v3": "cc-by-4.0"},
    )
    repo.commit(
        "poet",
        behaviors={"poet": poet},
        license="apache-2.0",
        source="a contractor",
        datasets={"org/verse@2024": "cc-by-nc-4.0"},
    )


def show(audit: AuditResult) -> None:
    """The findings of an audit, each with its rule and where that is written."""
    for finding in audit.findings:
        print(f"  {finding.level}: {finding.message}\n      [{finding.rule}] {finding.citation.text}")


def audit_and_revert(repo: rblstore.Repository) -> None:
    """Before the model is given away: what stands against it, and what is left once that is taken out."""
    before = repo.audit(use=["distribute"])
    print("what distributing it asks:")
    show(before)
    conflicts = {finding.rule for finding in before.at_least("conflict")}
    assert conflicts == {"noncommercial.data", "gemma.relicensed"}

    repo.revert(behavior="poet")
    effect = repo.license_effect()
    print("the revert took out", ", ".join(sorted({finding.rule for finding in effect.removed})))
    after = repo.audit(use=["distribute"])
    assert not after.at_least("conflict")
    assert {finding.rule for finding in after.findings} >= {"gemma.notice", "gemma.terms-passed-on", "gemma.use-policy"}

    for stay in repo.audit_history().components:
        left = "is there still" if stay.left is None else f"left with {stay.left.description!r}"
        print(f"{stay.role} {stay.name} entered with {stay.entered.description!r}, {left}")


def write_documents(repo: rblstore.Repository, directory: Path) -> None:
    """The same for others' tools. The first three want: pip install 'rblstore[provenance]'."""
    names = {
        "cyclonedx": "bom.json",
        "spdx3": "spdx.json",
        "in-toto": "revert.json",
        "model-card": "README.md",
        "annex-xi": "annex-xi.md",
    }
    for format, name in names.items():
        (directory / name).write_bytes(repo.export(format=format).data)
    predicate = repo.export(format="in-toto").document["predicate"]
    assert (predicate["removed"], predicate["verdict"]) == (["poet"], "exact")
    assert "org/verse" not in (directory / "bom.json").read_text()
    print("wrote", ", ".join(names.values()))


def main(directory: Path) -> None:
    base = directory / "model"
    print("making a small language model ...")
    make_model(base, steps=4, rows=4)
    with rblstore.init(directory / "store") as repo:
        commit_all(repo, base)
        repo.add_probe("three", ["The value is", "def read(self):", "An exception"], default=True)
        audit_and_revert(repo)
        write_documents(repo, directory)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        Path(sys.argv[1]).mkdir(parents=True)
        main(Path(sys.argv[1]))
    else:
        with tempfile.TemporaryDirectory() as folder:
            main(Path(folder))
