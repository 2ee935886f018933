"""Training with transformers.Trainer: commits on the way, verified at the end; then reverted, and resumed exactly.

Offline, in under two minutes. Run it as it stands:  python examples/trainer_callback.py [DIRECTORY]
"""

from __future__ import annotations

import logging
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

import rblstore
from rblstore.integrations.transformers import RblCallback
from rblstore.report.demo_models import code, make_model, with_lora

STEPS, LENGTH = 30, 32


class Rows(torch.utils.data.Dataset):
    """Token ids of a text, in rows."""

    def __init__(self, tokens: torch.Tensor) -> None:
        self.rows = tokens[: len(tokens) // LENGTH * LENGTH].reshape(-1, LENGTH)[:128]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {"input_ids": self.rows[index], "labels": self.rows[index]}


def make_trainer(base: Path, directory: Path, callback: RblCallback) -> Any:
    """A Trainer of a new LoRA on the base, with shuffled data and a schedule."""
    from transformers import AutoModelForCausalLM, AutoTokenizer, Trainer, TrainingArguments

    tokens = AutoTokenizer.from_pretrained(base)(code()[:40_000], return_tensors="pt")["input_ids"][0]
    model = with_lora(AutoModelForCausalLM.from_pretrained(base))
    args = TrainingArguments(
        output_dir=str(directory / "trainer"),
        max_steps=STEPS,
        per_device_train_batch_size=8,
        learning_rate=3e-3,
        lr_scheduler_type="linear",
        logging_steps=10,
        save_strategy="no",
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
    )
    return Trainer(model=model, args=args, train_dataset=Rows(tokens), callbacks=[callback])


def main(directory: Path) -> None:
    logging.getLogger("transformers").setLevel(logging.ERROR)
    base = directory / "model"
    print("making a small language model ...")
    make_model(base)

    with rblstore.init(directory / "store") as repo:
        first = repo.commit("base", identity=base, license="apache-2.0")
        repo.add_probe("two", ["def read(self, path):", "An exception is raised when"])

        callback = RblCallback(
            repo, "code", every=10, save_state=True, probe="two", dataset="this Python", dataset_license="PSF-2.0"
        )
        trainer = make_trainer(base, directory, callback)
        trainer.train()
        for commit in callback.commits:
            print(f"committed {commit.commit.short}: {commit.message}, {commit.stored_bytes:,} bytes")
        print("the last one, loaded anew:", callback.verification.verdict)

        # Somebody trains on from the middle, on a branch of their own: a new process would do the same.
        middle = str(callback.commits[1].commit)
        repo.create_branch("again", middle)
        again = RblCallback(repo, "code", every=10, save_state=True, branch="again")
        resumed = make_trainer(base, directory, again)
        with again.resume_checkpoint(middle) as folder:
            resumed.train(resume_from_checkpoint=folder)
        one, other = trainer.model.state_dict(), resumed.model.state_dict()
        print(
            "resumed at step 20, the same weights in every bit:",
            all(torch.equal(one[name], other[name]) for name in one),
        )

        result = repo.revert(behavior="code")
        print(f"reverted: {result.verdict}, RF {result.verification.rf}, bit-equal {result.verification.bit_equal}")
        print("back at the base's composition:", repo.show().record["composition"] == first.composition)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        main(Path(sys.argv[1]))
    else:
        with tempfile.TemporaryDirectory() as scratch:
            main(Path(scratch))
