"""What ``live.py`` measures on: a checkpoint, two adapters with values, and a repository that holds them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

TARGETS = ("q_proj", "v_proj")
ADAPTERS = ("a", "b")
RANK = 8


@dataclass(frozen=True)
class Subject:
    """One model with everything that is measured on it.

    Attributes:
        name: How tables call it.
        base: The checkpoint's directory.
        adapters: Directories of two LoRA adapters of its q_proj and v_proj, by name.
        repository: A repository with the commits below.
        commits: Commit ids: ``base`` alone, and with each adapter.
    """

    name: str
    base: Path
    adapters: Mapping[str, Path]
    repository: Path
    commits: Mapping[str, str]


def tensors_of(model: Any) -> dict[str, Any]:
    """The plain model's tensors by name, whatever is around it; tied ones under each name."""
    from rblstore.checkpoints.plain_view import plain_tensors

    return plain_tensors(model)


def touched_names(model: Any) -> list[str]:
    """The weights that the adapters change."""
    return [name for name in tensors_of(model) if name.endswith(tuple(f".{target}.weight" for target in TARGETS))]


def load(directory: Path, dtype: str = "bfloat16") -> Any:
    """A checkpoint as transformers loads it, in evaluation mode."""
    import torch
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(directory, dtype=getattr(torch, dtype)).eval()


def write_random_model(directory: Path, size: float) -> Path:
    """Writes a Llama of about that many bytes in bf16 with seeded normal weights.

    Args:
        directory: Made.
        size: Bytes.
    """
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    def config(layers: int, width: int) -> LlamaConfig:
        return LlamaConfig(
            vocab_size=32_000, hidden_size=width, intermediate_size=width * 11 // 4 // 64 * 64,
            num_hidden_layers=layers, num_attention_heads=max(1, width // 64),
            num_key_value_heads=max(1, width // 256), tie_word_embeddings=True,
        )  # fmt: skip

    def parameters(layers: int, width: int) -> int:
        with torch.device("meta"):
            model = LlamaForCausalLM(config(layers, width))
        return sum(one.numel() for one in model.parameters())

    width = next((one for one in (1536, 512, 256, 128) if 2 * parameters(2, one) <= size), 64)
    one, two = parameters(1, width), parameters(2, width)
    layers = max(1, round((size / 2 - one) / (two - one)) + 1)
    torch.manual_seed(0)
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        LlamaForCausalLM(config(layers, width)).save_pretrained(directory)
    finally:
        torch.set_default_dtype(before)
    return directory


def write_adapter(base: Path, directory: Path, seed: int) -> Path:
    """Writes a LoRA adapter of which both factors have values; returns its directory."""
    import peft
    import torch

    torch.manual_seed(seed)
    config = peft.LoraConfig(
        r=RANK, lora_alpha=2 * RANK, target_modules=list(TARGETS), task_type="CAUSAL_LM", init_lora_weights=False
    )
    model = peft.get_peft_model(load(base), config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.normal_(0.0, 0.02)
    model.save_pretrained(directory)
    return directory


def prepare(name: str, base: Path, folder: Path) -> Subject:
    """Makes the adapters of a checkpoint, and a repository of all three.

    Args:
        name: How tables call it.
        base: The checkpoint.
        folder: Where adapters and repository are made.
    """
    import rblstore

    adapters = {one: write_adapter(base, folder / f"{name}-{one}", seed) for seed, one in enumerate(ADAPTERS, start=1)}
    repository = folder / f"{name}-store"
    with rblstore.init(repository) as repo:
        commits = {"base": repo.commit("base", identity=base, license="apache-2.0").commit}
        for one in ADAPTERS:
            others = [other for other in ADAPTERS if other != one and other in commits]
            commits[one] = repo.commit(one, behaviors={one: adapters[one]}, remove=others).commit
    return Subject(name, base, adapters, repository, {one: str(commit) for one, commit in commits.items()})
