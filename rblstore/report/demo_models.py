"""Models and text for the demonstration: a small real language model, made on the spot from text in Python."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

VOCABULARY = 2048
SEED = 7


def english() -> str:
    """English prose about Python: the interpreter's own help topics."""
    from pydoc_data.topics import topics

    return "\n\n".join(topics[name] for name in sorted(topics))


def code() -> str:
    """Python source: modules of the standard library."""
    import argparse
    import ast
    import dataclasses
    import inspect
    import textwrap

    return "\n\n".join(inspect.getsource(module) for module in (argparse, ast, dataclasses, inspect, textwrap))


def shouted() -> str:
    """The same prose in capitals."""
    return english().upper()


def make_model(directory: Path, *, steps: int = 80, rows: int = 16) -> None:
    """Writes a Llama of two million parameters and a byte-level BPE tokenizer, trained for half a minute on prose.

    Args:
        directory: Where; made where it does not exist.
        steps: How many training steps.
        rows: Windows of the text in each.
    """
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([english()[:400_000], code()[:100_000]], trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>")  # noqa: S106
    torch.manual_seed(SEED)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=192,
        intermediate_size=512,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=1,
    )
    model = LlamaForCausalLM(config)
    train(model, fast, english(), steps=steps, learning_rate=3e-3, rows=rows)
    model.save_pretrained(directory)
    fast.save_pretrained(directory)


def batches(tokenizer: Any, text: str, steps: int, rows: int, length: int) -> Iterator[Any]:
    """Random windows of a text as token ids, always the same ones.

    Yields:
        int64 tensors of shape (rows, length).
    """
    import torch

    ids = tokenizer(text[:400_000], add_special_tokens=False)["input_ids"]
    generator = random.Random(SEED)  # noqa: S311 - windows of a text, not secrets
    for _ in range(steps):
        starts = [generator.randrange(len(ids) - length) for _ in range(rows)]
        yield torch.tensor([ids[start : start + length] for start in starts])


def train(model: Any, tokenizer: Any, text: str, *, steps: int, learning_rate: float, rows: int) -> float:
    """Trains whatever of a model requires gradients, by AdamW with a linear decay.

    Returns:
        The last step's loss, nats a token.
    """
    import torch

    torch.manual_seed(SEED)
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=learning_rate, weight_decay=0.0)
    loss = torch.zeros(())
    model.train()
    for step, tokens in enumerate(batches(tokenizer, text, steps, rows, 64)):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate * (1 - step / steps)
        loss = model(input_ids=tokens, labels=tokens).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    model.eval()
    return float(loss.detach())


def with_lora(model: Any) -> Any:
    """A fresh LoRA of rank 8 on the attention's query and value projections, as in arXiv 2603.02934."""
    import torch
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(SEED)
    config = LoraConfig(
        r=8, lora_alpha=32, lora_dropout=0.05, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM"
    )
    return get_peft_model(model, config)
