"""How large a vocabulary and how long a prompt a loaded model reads."""

from __future__ import annotations

import torch


def vocabulary_of(model: torch.nn.Module) -> int | None:
    """Rows of the model's input embedding: token ids are below it. None where it has none that is known."""
    weight = getattr(embedding_of(model), "weight", None)
    return int(weight.shape[0]) if isinstance(weight, torch.Tensor) and weight.ndim == 2 else None


def embedding_of(model: torch.nn.Module, *, output: bool = False) -> torch.nn.Module | None:
    """The module that reads token ids, or with ``output`` the one that gives logits; None where none is known."""
    try:
        found: torch.nn.Module | None = getattr(model, "get_output_embeddings" if output else "get_input_embeddings")()
    except (AttributeError, NotImplementedError):
        return None
    return found


def context_of(model: torch.nn.Module) -> int | None:
    """Most tokens that the model's config says it reads, or None where it names no such bound."""
    config = getattr(model, "config", None)
    narrow = getattr(config, "get_text_config", None)
    text_config = narrow() if callable(narrow) else config
    bound = getattr(text_config, "max_position_embeddings", None)
    return bound if type(bound) is int and bound > 0 else None
