"""A plain PyTorch loop whose adapter is committed while it trains, resumed, and taken out again; offline, in seconds.

Run it as it stands:  python examples/training_loop.py [DIRECTORY]
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import torch

import rblstore

STEPS, ROWS, LENGTH, VOCABULARY = 30, 4, 16, 128


def make_base(directory: Path) -> Path:
    """A tiny language model with random weights."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=64,
    )
    LlamaForCausalLM(config).save_pretrained(directory)
    return directory


def adapted(base: Path):
    """The base under a new LoRA, an optimizer and a schedule: what a script makes each time that it is started."""
    import peft
    from transformers import AutoModelForCausalLM

    torch.manual_seed(1)
    lora = peft.LoraConfig(r=8, target_modules=["q_proj", "v_proj"], lora_dropout=0.1, task_type="CAUSAL_LM")
    model = peft.get_peft_model(AutoModelForCausalLM.from_pretrained(base), lora).train()
    optimizer = torch.optim.AdamW([one for one in model.parameters() if one.requires_grad], lr=3e-3)
    return model, optimizer, torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)


def train(run, model, optimizer, scheduler, until: int) -> None:
    """The loop; `run.steps` says how far it was."""
    for step in range(run.steps, until):
        starts = torch.randint(VOCABULARY, (ROWS, 1), generator=torch.Generator().manual_seed(step))
        batch = (starts + torch.arange(LENGTH)) % VOCABULARY  # it learns to count
        loss = model(input_ids=batch, labels=batch).loss
        loss.backward()
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
        run.step(loss=loss, tokens=batch.numel())  # every tenth is committed, behind the loop


def main(directory: Path) -> None:
    base = make_base(directory / "model")
    with rblstore.init(directory / "store") as repo:
        repo.commit("base", identity=base, license="apache-2.0")
        repo.add_probe("two", [{"id": "five", "tokens": [5, 6, 7, 8]}, {"id": "fifty", "tokens": [50, 51, 52]}])

        def training(model, optimizer, scheduler, **options):
            return repo.training(
                model,
                "counting",
                every=10,
                optimizer=optimizer,
                scheduler=scheduler,
                save_state=True,
                dataset="numbers in order",
                dataset_license="CC0-1.0",
                **options,
            )

        state = adapted(base)
        with training(*state) as run:
            train(run, *state, until=20)
        print("committed", ", ".join(one.message for one in run.commits))

        state = adapted(base)  # as after a crash: nothing of the first run is left but its commits
        with training(*state, resume="main", verify_at_end=True, probe="two") as run:
            print("going on after step", run.steps)
            train(run, *state, until=STEPS)
        print(f"the last commit is {run.commits[-1].message!r}, verified: {run.verification.verdict}")

        reverted = repo.revert(behavior="counting")
        print(f"taken out again: {reverted.verdict}, RF {reverted.verification.rf}")
        assert reverted.verification.bit_equal
        print("storage is whole:", repo.fsck(full=True).ok)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        Path(sys.argv[1]).mkdir(parents=True)
        main(Path(sys.argv[1]))
    else:
        with tempfile.TemporaryDirectory() as folder:
            main(Path(folder))
