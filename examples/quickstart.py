"""The whole story through the API, offline, in under two minutes: commit, compose, revert, prove.

Run it as it stands:  python examples/quickstart.py [DIRECTORY]
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import rblstore
from rblstore.report.demo_models import code, make_model, shouted, train, with_lora

PROMPTS = ["The value of the expression is", "def read(self, path):", "An exception is raised when"]


def trained_adapter(base: Path, text: str):
    """A LoRA on the base, trained for a few seconds."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = with_lora(AutoModelForCausalLM.from_pretrained(base))
    train(model, AutoTokenizer.from_pretrained(base), text, steps=20, learning_rate=3e-3, rows=8)
    return model


def main(directory: Path) -> None:
    base = directory / "model"
    print("making a small language model ...")
    make_model(base)

    with rblstore.init(directory / "store") as repo:
        repo.commit("base", identity=base, license="apache-2.0")
        for name, text in {"code": code(), "shout": shouted()}.items():
            result = repo.commit(f"add {name}", behaviors={name: trained_adapter(base, text)})
            print(f"committed {name} as {result.commit.short}, {result.stored_bytes:,} bytes")

        repo.add_probe("three", PROMPTS)
        result = repo.revert(behavior="code")
        evidence = result.verification
        print(f"reverted code: {result.verdict}, RF {evidence.rf}, KL {evidence.kl}, JS {evidence.js}")
        assert evidence.bit_equal

        model = repo.load("HEAD")
        print("HEAD has", ", ".join(slot.name for slot in repo.status().slots), "on", type(model).__name__)
        repo.checkout("HEAD~1", directory / "before")
        rblstore.load_checkout(directory / "before")

        for entry in repo.log():
            verdicts = ", ".join(verification.verdict for verification in entry.verifications)
            print(entry.commit.short, entry.message.split("\n")[0], verdicts and f"[{verdicts}]")
        print("storage is whole:", repo.fsck(full=True).ok)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        Path(sys.argv[1]).mkdir(parents=True)
        main(Path(sys.argv[1]))
    else:
        with tempfile.TemporaryDirectory() as folder:
            main(Path(folder))
