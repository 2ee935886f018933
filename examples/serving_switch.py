"""One process, one model in memory, three behaviors switched between requests, each proved; offline, in a minute.

Run it as it stands:  python examples/serving_switch.py [DIRECTORY]
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

import rblstore
from rblstore.report.demo_models import code, english, make_model, shouted, train, with_lora

PROMPTS = ["The value of the expression is", "def read(self, path):", "An exception is raised when"]
REQUESTS = [
    ("main", "The import statement"),
    ("code", "def read(self, path):"),
    ("shout", "An exception is raised"),
    ("terse", "The value of"),
    ("code", "class Store:"),
    ("main", "If the object"),
    ("terse", "An exception is raised"),
    ("shout", "The value of"),
]


def prepare(directory: Path) -> rblstore.Repository:
    """A repository with a base, two LoRA behaviors and a full fine-tune, each on a branch of its own."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    base = directory / "model"
    make_model(base, steps=40, rows=8)
    tokenizer = AutoTokenizer.from_pretrained(base)
    repo = rblstore.init(directory / "store")
    repo.commit("plain", identity=base, license="apache-2.0")
    repo.add_probe("three", PROMPTS)
    for name, text in {"code": code(), "shout": shouted(), "terse": english()[:20_000]}.items():
        model = AutoModelForCausalLM.from_pretrained(base)
        if name != "terse":  # the third one is a full fine-tune: every weight of the model is another
            model = with_lora(model)
        train(model, tokenizer, text, steps=10, learning_rate=3e-3 if name != "terse" else 5e-4, rows=4)
        repo.create_branch(name)
        repo.commit(name, behaviors={name: model}, branch=name)
    return repo


def main(directory: Path) -> None:
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    print("making a small language model and three behaviors ...")
    with prepare(directory) as repo:
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(directory / "model")
        with repo.attach(repo.load("main"), "main") as live:
            for name in ("code", "shout", "terse"):  # the first time, a behavior is shown to change outputs
                live.switch(name)
            print(f"{'request':26} {'behavior':9} {'switch':>9}  {'verdict':8} {'tensors':>7}  answer")
            for behavior, text in REQUESTS:
                begun = time.perf_counter()
                live.switch(behavior)
                seconds = time.perf_counter() - begun
                asked = tokenizer(text, return_tensors="pt")
                tokens = live.model.generate(**asked, max_new_tokens=8, do_sample=False, pad_token_id=1)
                answer = tokenizer.decode(tokens[0, asked["input_ids"].shape[1] :]).replace("\n", " ")
                proof = live.verify()  # every weight against the store, the outputs against a fresh load's
                print(
                    f"{text:26} {behavior:9} {seconds * 1000:6.1f} ms  {proof.verdict:8} {proof.weights:7}  {answer!r}"
                )
                assert proof.verdict == "exact"
            live.switch("code")
            live_weights = sum(one.numel() for one in live.plain.parameters())
            repo.switch("code")
            evidence = live.revert("code").verification
            print(f"\nreverted code on the live model of {live_weights:,} weights: RF {evidence.rf}, KL {evidence.kl}")
            print("residue:", live.residue() or "none")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        Path(sys.argv[1]).mkdir(parents=True)
        main(Path(sys.argv[1]))
    else:
        with tempfile.TemporaryDirectory() as folder:
            main(Path(folder))
