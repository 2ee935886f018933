"""Tiny real models, tokenizers and adapters of every kind, made in milliseconds from fixed seeds."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

VOCABULARY = 96
PROMPT = torch.tensor([[5, 17, 80, 3, 42, 11, 64, 29], [7, 7, 1, 90, 33, 2, 58, 13]])


def _randomized(model: torch.nn.Module, seed: int, dtype: torch.dtype) -> Any:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.02)
        # Parameters alone, as loading does it: tables that are computed, of rotations for one, stay in fp32.
        for parameter in model.parameters():
            parameter.data = parameter.data.to(dtype)
    return model.eval()


def llama(*, tied: bool = False, dtype: torch.dtype = torch.float32, seed: int = 0, layers: int = 2) -> Any:
    """A Llama causal language model of about 30,000 parameters."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        tie_word_embeddings=tied,
        attention_bias=True,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    )
    torch.manual_seed(seed)
    return _randomized(LlamaForCausalLM(config), seed, dtype)


def gpt2(*, dtype: torch.dtype = torch.float32, seed: int = 0) -> Any:
    """A GPT-2 causal language model, tied, its projections Conv1D (stored transposed)."""
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        vocab_size=VOCABULARY, n_positions=64, n_embd=32, n_layer=2, n_head=4, bos_token_id=1, eos_token_id=2
    )
    torch.manual_seed(seed)
    return _randomized(GPT2LMHeadModel(config), seed, dtype)


def bert(kind: str = "BertModel", *, dtype: torch.dtype = torch.float32, seed: int = 0, labels: int = 3) -> Any:
    """A BERT of one of transformers' classes: BertModel, BertForMaskedLM, BertForSequenceClassification."""
    import transformers

    config = transformers.BertConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=48,
        max_position_embeddings=64,
        num_labels=labels,
        pad_token_id=0,
    )
    torch.manual_seed(seed)
    return _randomized(getattr(transformers, kind)(config), seed, dtype)


def t5(*, dtype: torch.dtype = torch.float32, seed: int = 0) -> Any:
    """A T5 encoder and decoder."""
    from transformers import T5Config, T5ForConditionalGeneration

    config = T5Config(
        vocab_size=VOCABULARY, d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4, decoder_start_token_id=0
    )
    torch.manual_seed(seed)
    return _randomized(T5ForConditionalGeneration(config), seed, dtype)


def mixtral(*, dtype: torch.dtype = torch.float32, seed: int = 0) -> Any:
    """A Mixtral, whose experts are stored one by one and fused when loaded."""
    from transformers import MixtralConfig, MixtralForCausalLM

    config = MixtralConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=2,
        num_local_experts=4,
        num_experts_per_tok=2,
        max_position_embeddings=64,
    )
    torch.manual_seed(seed)
    return _randomized(MixtralForCausalLM(config), seed, dtype)


def save(model: Any, directory: Path) -> Path:
    """Writes a model as one safetensors file, and returns the directory."""
    model.save_pretrained(directory)
    return directory


def save_sharded(model: Any, directory: Path, shards: int) -> Path:
    """Writes a model as exactly that many safetensors files with an index, and returns the directory."""
    from safetensors.torch import load_file, save_file

    save(model, directory)
    single = directory / "model.safetensors"
    tensors = load_file(single)
    single.unlink()
    names, weight_map = sorted(tensors), {}
    for index in range(shards):
        part = names[index::shards]
        file = f"model-{index + 1:05d}-of-{shards:05d}.safetensors"
        save_file({name: tensors[name] for name in part}, directory / file, metadata={"format": "pt"})
        weight_map.update(dict.fromkeys(part, file))
    size = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    index_body = {"metadata": {"total_size": size}, "weight_map": weight_map}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index_body, indent=2))
    return directory


def save_tokenizer(directory: Path) -> Path:
    """Writes a word-level tokenizer of the tiny models' vocabulary, and returns the directory."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    words = ["<pad>", "<s>", "</s>", "<unk>"] + [f"w{index}" for index in range(4, VOCABULARY)]
    tokenizer = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    ).save_pretrained(directory)
    return directory


def _targets(model: Any) -> dict[str, Any]:
    """Attention and feed-forward module names by the model's type."""
    return {
        "llama": {"attention": ["q_proj", "v_proj"], "feed_forward": ["down_proj"], "key": "k_proj"},
        "gpt2": {"attention": ["c_attn"], "feed_forward": ["mlp.c_proj"], "key": "c_attn"},
        "bert": {"attention": ["query", "value"], "feed_forward": ["output.dense"], "key": "key"},
        "t5": {"attention": ["q", "v"], "feed_forward": ["wo"], "key": "k"},
        "mixtral": {"attention": ["q_proj", "v_proj"], "feed_forward": ["o_proj"], "key": "k_proj"},
    }[model.config.model_type]


def _embedding(model: Any) -> str:
    return {"llama": "embed_tokens", "gpt2": "wte", "bert": "word_embeddings", "t5": "shared"}[model.config.model_type]


def _head(model: Any) -> str:
    names = {"LlamaForCausalLM": "lm_head", "GPT2LMHeadModel": "ln_f", "BertForSequenceClassification": "classifier"}
    return names.get(type(model).__name__, "LayerNorm" if model.config.model_type == "bert" else "lm_head")


def task_of(model: Any) -> str:
    """The PEFT task of a tiny model's class."""
    name = type(model).__name__
    if "SequenceClassification" in name:
        return "SEQ_CLS"
    if "ConditionalGeneration" in name:
        return "SEQ_2_SEQ_LM"
    return "CAUSAL_LM" if name.endswith(("CausalLM", "LMHeadModel")) else "FEATURE_EXTRACTION"


def _config(model: Any, kind: str) -> Any:
    import peft

    names = _targets(model)
    task = task_of(model)
    attention, fan = names["attention"], {"fan_in_fan_out": True} if model.config.model_type == "gpt2" else {}

    def lora(**options: Any) -> Any:
        return peft.LoraConfig(
            **{"r": 4, "lora_alpha": 8, "target_modules": attention, "task_type": task, **fan, **options}
        )

    makers: dict[str, Callable[[], Any]] = {
        "lora": lora,
        "rslora": lambda: lora(use_rslora=True, r=3),
        "dora": lambda: lora(use_dora=True),
        "modules_to_save": lambda: lora(modules_to_save=[_head(model)]),
        "bias_all": lambda: lora(bias="all"),
        "bias_lora_only": lambda: lora(bias="lora_only"),
        "rank_pattern": lambda: lora(rank_pattern={attention[0]: 2}, alpha_pattern={attention[0]: 5}),
        "lora_tokens": lambda: lora(trainable_token_indices={_embedding(model): [5, 17]}),
        "lora_embedding": lambda: lora(target_modules=[*attention, _embedding(model)]),
        "edited_base": lora,
        "pissa": lambda: lora(init_lora_weights="pissa"),
        "ia3": lambda: peft.IA3Config(
            target_modules=[*attention, *names["feed_forward"]],
            feedforward_modules=names["feed_forward"],
            task_type=task,
            **fan,
        ),
        "prompt_tuning": lambda: peft.PromptTuningConfig(num_virtual_tokens=3, task_type=task),
        "prefix_tuning": lambda: peft.PrefixTuningConfig(num_virtual_tokens=3, task_type=task),
        "loha": lambda: peft.LoHaConfig(r=2, alpha=4, target_modules=attention, task_type=task),
        "lokr": lambda: peft.LoKrConfig(r=2, alpha=4, target_modules=attention, task_type=task),
        "oft": lambda: peft.OFTConfig(oft_block_size=8, r=0, target_modules=attention, task_type=task, **fan),
        "vera": lambda: peft.VeraConfig(r=8, target_modules=attention, task_type=task, **fan),
        "trainable_tokens": lambda: peft.TrainableTokensConfig(
            token_indices=[5, 17], target_modules=[_embedding(model)], task_type=task
        ),
    }
    return makers[kind]()


KINDS = (
    "lora",
    "rslora",
    "dora",
    "modules_to_save",
    "bias_all",
    "bias_lora_only",
    "rank_pattern",
    "lora_tokens",
    "lora_embedding",
    "edited_base",
    "pissa",
    "ia3",
    "prompt_tuning",
    "prefix_tuning",
    "loha",
    "lokr",
    "oft",
    "vera",
    "trainable_tokens",
)


def save_adapter(model: Any, directory: Path, kind: str = "lora", *, seed: int = 1, **config: Any) -> Path:
    """Writes an adapter of one of :data:`KINDS` with random values for a model, and returns the directory.

    The model passed is left as it was: the adapter is made on a copy.
    """
    import copy
    import warnings

    import peft
    from safetensors.torch import load_file, save_file

    settings = _config(model, kind)
    for name, value in config.items():
        setattr(settings, name, value)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(seed)
        peft_model = peft.get_peft_model(copy.deepcopy(model), settings)
        peft_model.save_pretrained(directory, save_embedding_layers=kind == "lora_embedding")
    path = directory / "adapter_model.safetensors"
    tensors = load_file(path)
    generator = torch.Generator().manual_seed(seed)
    drawn: dict[bytes, torch.Tensor] = {}
    for name, tensor in sorted(tensors.items()):
        if tensor.is_floating_point() and "vera_A" not in name and "vera_B" not in name:
            noise = torch.randn(tensor.shape, generator=generator) * 0.1
            if tensor.unique().numel() > 1:
                # Copies of one tied tensor stay copies of each other; what starts from a constant does not.
                noise = drawn.setdefault(tensor.contiguous().view(torch.uint8).numpy().tobytes(), noise)
            tensors[name] = (tensor.float() + noise).to(tensor.dtype)
    if kind == "edited_base":
        edited = next(name for name, _ in peft_model.named_parameters() if name.endswith("base_layer.weight"))
        base = dict(peft_model.named_parameters())[edited].detach()
        noise = torch.randn(base.shape, generator=generator) * 0.1
        tensors[edited] = (base.float() + noise).to(base.dtype).contiguous()
    save_file(tensors, path, metadata={"format": "pt"})
    (directory / "README.md").unlink(missing_ok=True)
    return directory


@torch.no_grad()
def outputs(model: Any) -> torch.Tensor:
    """Logits or last hidden state of :data:`PROMPT`, from aligned memory: alignment decides the last bits."""
    from rblstore.divergence.alignment import aligned

    aligned(model)
    inputs: dict[str, Any] = {"input_ids": PROMPT, "attention_mask": torch.ones_like(PROMPT)}
    if getattr(model.config, "is_encoder_decoder", False):
        inputs["decoder_input_ids"] = PROMPT
    result = model(**inputs)
    found = result.logits if getattr(result, "logits", None) is not None else result.last_hidden_state
    return found.clone()
