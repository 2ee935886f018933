"""Tiny real models and adapters for the adapter tests, made on the fly, and their tensors as records know them."""

from __future__ import annotations

import hashlib
import json
import math
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from rblstore.checkpoints.adapter_config import AdapterConfig, parse_adapter_config
from rblstore.checkpoints.adapter_effects import adapter_effects
from rblstore.objects.content_records import Behavior, StoredTensor
from rblstore.objects.ids import ContentId

warnings.simplefilter("ignore")
transformers.logging.set_verbosity_error()
torch.set_num_threads(1)

TOKENS = torch.arange(8)[None]
BOTH = ["q_proj", "down_proj"]


def stored(path: Path) -> dict[str, StoredTensor]:
    """The tensors of a safetensors file, read without rblstore's own parser."""
    raw = path.read_bytes()
    length = int.from_bytes(raw[:8], "little")
    found = {}
    for name, entry in json.loads(raw[8 : 8 + length]).items():
        if name == "__metadata__":
            continue
        begin, end = entry["data_offsets"]
        digest = hashlib.sha256(raw[8 + length + begin : 8 + length + end]).hexdigest()
        found[name] = StoredTensor(entry["dtype"], tuple(entry["shape"]), ContentId(digest))
    return found


def content(text: str) -> ContentId:
    return ContentId(hashlib.sha256(text.encode()).hexdigest())


def llama(*, tied: bool = False, layers: int = 1) -> nn.Module:
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=layers, num_attention_heads=4,
        num_key_value_heads=2, tie_word_embeddings=tied, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    return transformers.LlamaForCausalLM(config)


def tied_llama() -> nn.Module:
    return llama(tied=True)


def _bert_config() -> Any:
    return transformers.BertConfig(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=4, num_labels=2
    )


def bert() -> nn.Module:
    torch.manual_seed(0)
    return transformers.BertForSequenceClassification(_bert_config())


def bert_encoder() -> nn.Module:
    torch.manual_seed(0)
    return transformers.BertModel(_bert_config())


def gpt2() -> nn.Module:
    torch.manual_seed(0)
    config = transformers.GPT2Config(vocab_size=64, n_embd=32, n_layer=1, n_head=4, bos_token_id=1, eos_token_id=2)
    return transformers.GPT2LMHeadModel(config)


def mixtral() -> nn.Module:
    torch.manual_seed(0)
    config = transformers.MixtralConfig(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=4,
        num_key_value_heads=2, num_local_experts=2,
    )  # fmt: skip
    return transformers.MixtralForCausalLM(config)


class Adapter:
    """One saved adapter."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.file = directory / "adapter_model.safetensors"

    @property
    def config(self) -> AdapterConfig:
        return parse_adapter_config((self.directory / "adapter_config.json").read_bytes())

    @property
    def tensors(self) -> dict[str, StoredTensor]:
        return stored(self.file)

    def edit(self, change: Callable[[dict[str, torch.Tensor]], None]) -> Adapter:
        tensors = load_file(self.file)
        change(tensors)
        save_file(tensors, self.file)
        return self


class Zoo:
    """Makes bases and adapters under one folder, each once."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._bases: dict[str, dict[str, StoredTensor]] = {}
        self._made: dict[str, Adapter] = {}

    def base(self, make: Callable[[], nn.Module]) -> dict[str, StoredTensor]:
        if make.__name__ not in self._bases:
            path = self.folder / "bases" / make.__name__
            make().save_pretrained(path)
            self._bases[make.__name__] = stored(path / "model.safetensors")
        return self._bases[make.__name__]

    def base_file(self, make: Callable[[], nn.Module]) -> Path:
        self.base(make)
        return self.folder / "bases" / make.__name__ / "model.safetensors"

    def make(self, make: Callable[[], nn.Module], config: Any, *, seed: int = 1, **save: Any) -> Adapter:
        """An adapter with random trained values, saved as peft saves it; the same arguments give the same directory."""
        from peft import get_peft_model

        said = json.dumps({**config.to_dict(), **save}, default=repr, sort_keys=True)
        key = f"{make.__name__}-{seed}-{said}"
        if key in self._made:
            return self._made[key]
        model = get_peft_model(make(), config)
        generator = torch.Generator().manual_seed(seed)
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.data += torch.randn(parameter.shape, generator=generator).to(parameter.dtype) * 0.05
        directory = self.folder / f"adapter-{len(self._made)}"
        model.save_pretrained(directory, **save)
        self._made[key] = Adapter(directory)
        return self._made[key]

    def bind(self, make: Callable[[], nn.Module], adapter: Adapter) -> Behavior:
        effects, ground = adapter_effects(adapter.config, adapter.tensors, self.base(make), {})
        return Behavior("adapter", (), effects, ground)


def attach(make: Callable[[], nn.Module], adapters: list[Adapter], names: list[str] | None = None) -> nn.Module:
    """peft's own loader: the first by from_pretrained, the others by load_adapter, then all active."""
    from peft import PeftModel

    names = names or [f"slot{at}" for at in range(len(adapters))]
    model = PeftModel.from_pretrained(make(), str(adapters[0].directory), adapter_name=names[0])
    for name, adapter in zip(names[1:], adapters[1:], strict=True):
        model.load_adapter(str(adapter.directory), name)
    if len(adapters) > 1:
        model.base_model.set_adapter(names)
    return model.eval()


def logits(model: nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(input_ids=TOKENS).logits


def difference(one: torch.Tensor, other: torch.Tensor) -> float:
    return float((one - other).abs().max())


def shapes(path: Path) -> dict[str, list[int]]:
    with safe_open(path, "pt") as file:
        return {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118


def is_close(value: float, wanted: float) -> bool:
    return math.isclose(value, wanted, rel_tol=1e-6, abs_tol=1e-9)
