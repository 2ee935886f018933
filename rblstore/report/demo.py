"""``rbl demo``: the whole story in two minutes, offline: commit behaviors, revert one and prove it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import rblstore
from rblstore.errors import ConflictError, UsageError
from rblstore.operations.result import Result

PROMPTS = (
    "The value of the expression is",
    "A function definition defines",
    "If the object is not callable,",
    "def read(self, path):",
    "The import statement combines two operations; it",
    "An exception is raised when",
)


class DemoDirectoryError(ConflictError):
    """The directory for the demonstration has something in it."""

    code = "target_not_empty"


@dataclass(frozen=True)
class Recovery(Result):
    """How far a model came back.

    Attributes:
        name: What was taken out, and how.
        kl_adapted: KL(base || adapted), nats.
        js_adapted: The same with JS.
        kl: KL(base || recovered), nats.
        js: The same with JS.
        rf: Recovery fidelity, 1 - kl / kl_adapted.
        bit_equal: Whether every output is the same, bit for bit.
    """

    name: str
    kl_adapted: float | None
    js_adapted: float | None
    kl: float | None
    js: float | None
    rf: float | None
    bit_equal: bool


@dataclass(frozen=True)
class DemoResult(Result):
    """What the demonstration did.

    Attributes:
        directory: Holds the repository and the model.
        commits: (id, subject), newest first.
        reverted: The behavior's recovery, proved by the store.
        reset: The fine-tune's recovery, by training it back on the first text.
        try_next: Commands to explore with.
    """

    directory: Path
    commits: tuple[tuple[str, str], ...]
    reverted: Recovery
    reset: Recovery
    try_next: tuple[str, ...]


def run_demo(directory: Path, model: Path | None, say: Callable[[str], None]) -> DemoResult:
    """Makes a repository with a base and two behaviors, reverts one, and compares with a fine-tune that is "reset".

    Args:
        directory: A directory that does not exist or is empty; it is left behind to explore.
        model: A causal language model with a tokenizer, or None for a small one that is made on the spot.
        say: Is told each step, one line at a time.

    Raises:
        DemoDirectoryError: The directory has something in it.
        UsageError: The model is not a directory.
    """
    if model is not None and not (model / "config.json").is_file():
        raise UsageError(f"{model} holds no model", object=str(model), hint="Give a directory with config.json.")
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise DemoDirectoryError(
            f"{directory} is not empty", object=str(directory), hint="Name another: rbl demo --dir DIR"
        )
    directory.mkdir(parents=True, exist_ok=True)
    from rblstore.checkpoints.quiet import quiet

    with quiet():
        return _Demo(directory, model, say).run()


class _Demo:
    def __init__(self, directory: Path, model: Path | None, say: Callable[[str], None]) -> None:
        self._directory = directory
        self._say = say
        self._given = model
        self._base = model or directory / "model"
        # A real model takes longer a step and needs fewer of them to show the effect.
        self._steps, self._rows = (30, 8) if model is None else (4, 2)

    def run(self) -> DemoResult:
        from rblstore.report.demo_models import code, make_model, shouted

        if self._given is None:
            self._say("Making a language model of two million parameters, trained on Python's help texts ...")
            make_model(self._base)
        with rblstore.init(self._directory) as repo:
            repo.commit(
                "base", identity=self._base, license="apache-2.0" if self._given is None else None, author="demo"
            )
            self._say("Committed the base as an identity. Training two LoRA behaviors on it ...")
            for name, text in (("code", code()), ("shout", shouted())):
                repo.commit(f"behavior: {name}", behaviors={name: self._lora(text)}, author="demo")
                self._say(f"  committed the behavior '{name}'")
            repo.add_probe("demo", list(PROMPTS), default=True, author="demo")
            self._say(
                "Reverting 'code': measure, take it out of the live model, measure again, compare with a fresh one ..."
            )
            result = repo.revert(behavior="code", author="demo")
            evidence = result.verification
            assert evidence is not None, "there is a probe"
            reverted = Recovery(
                "behavior, reverted by rbl",
                evidence.kl_adapted,
                evidence.js_adapted,
                evidence.kl,
                evidence.js,
                evidence.rf,
                evidence.bit_equal,
            )
            self._say("For comparison, outside the store: a full fine-tune, 'reset' by training it back ...")
            reset = self._reset(code())
            commits = tuple((entry.commit.short, entry.message.split("\n")[0]) for entry in repo.log())
        return DemoResult(
            self._directory,
            commits,
            reverted,
            reset,
            (
                f"cd {self._directory}",
                "rbl log --graph",
                "rbl show HEAD",
                "rbl diff HEAD~1 HEAD",
                "rbl audit",
                "rbl checkout HEAD~1 out",
                "rbl undo",
            ),
        )

    def _load(self) -> tuple[Any, Any]:
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer

        model = AutoModelForCausalLM.from_pretrained(self._base, dtype=torch.float32, local_files_only=True)
        return model, AutoTokenizer.from_pretrained(self._base, local_files_only=True)

    def _lora(self, text: str) -> Any:
        from rblstore.report.demo_models import train, with_lora

        model, tokenizer = self._load()
        adapted = with_lora(model)
        train(adapted, tokenizer, text, steps=self._steps, learning_rate=3e-3, rows=self._rows)
        return adapted

    def _reset(self, text: str) -> Recovery:
        """A fine-tune without a store: there is nothing to go back to, so it is trained on the first text again."""
        from rblstore.divergence.alignment import aligned
        from rblstore.divergence.compare import compare_measurements
        from rblstore.divergence.measure import measure
        from rblstore.divergence.probe_file import RawPrompt
        from rblstore.divergence.probes import make_probe
        from rblstore.divergence.verdict import recovery
        from rblstore.report.demo_models import english, train

        model, tokenizer = self._load()
        prompts = [RawPrompt(f"p{number:02d}", text=prompt) for number, prompt in enumerate(PROMPTS)]
        probe = make_probe(prompts, lambda prompt: list(tokenizer(prompt)["input_ids"]), None)
        base = list(measure(aligned(model), probe))
        rate = 5e-4 if self._given is None else 1e-4
        train(model, tokenizer, text, steps=self._steps, learning_rate=rate, rows=self._rows)
        adapted = compare_measurements(base, measure(model, probe))
        train(model, tokenizer, english(), steps=self._steps, learning_rate=rate, rows=self._rows)
        recovered = compare_measurements(base, measure(model, probe))
        rf, _ = recovery(recovered.kl, adapted.kl)
        return Recovery(
            "fine-tune, trained back",
            adapted.kl,
            adapted.js,
            recovered.kl,
            recovered.js,
            rf,
            recovered.bit_equal,
        )
