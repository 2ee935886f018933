"""Finding the stored tensor that a module's name means, where model classes differ in prefix or tie their weights."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property

from rblstore.objects.content_records import StoredTensor

# Parts of a model, not names of a model as a whole: an encoder's layer is never taken for a decoder's.
_PARTS = ("encoder", "decoder", "vision", "visual", "image", "audio", "speech", "tower")
_PREFIX_PARTS = 3
_ALIASES = {"weight": "gamma", "bias": "beta"}
_INPUTS = (
    "embed_tokens", "wte", "word_embeddings", "shared", "embed_in", "tok_embeddings", "word_embedding",
    "token_embedding",
)  # fmt: skip
_OUTPUTS = ("lm_head", "embed_out", "output_layer", "generator_lm_head", "predictions.decoder")


@dataclass(frozen=True)
class Prefix:
    """How a stored name differs from the name asked for: what was taken off its front, and what was put there."""

    removed: str = ""
    added: str = ""


@dataclass(frozen=True)
class Found:
    """A stored tensor's name, and how it differs from the one asked for."""

    name: str
    prefix: Prefix


def _is_model_prefix(parts: Iterable[str]) -> bool:
    return all(
        part and not any(character.isdigit() for character in part) and not any(word in part.lower() for word in _PARTS)
        for part in parts
    )


def is_embedding(module: str) -> bool:
    """Whether a module's name is one that input or output embeddings have."""
    return module.rsplit(".", 1)[-1] in _INPUTS or _is_output(module)


def _is_output(module: str) -> bool:
    return any(module == word or module.endswith("." + word) for word in _OUTPUTS)


class TensorNames:
    """The names of stored tensors, searchable by the names that a model class gives the same modules."""

    def __init__(self, beneath: Mapping[str, StoredTensor]) -> None:
        self._beneath = beneath
        self._tails: dict[str, list[str]] | None = None
        self._experts: dict[str, list[str]] | None = None

    def _by_tail(self, tail: str) -> Collection[str]:
        if self._tails is None:
            self._tails = {}
            for name in self._beneath:
                rest = name
                for _ in range(_PREFIX_PARTS):
                    _, _, rest = rest.partition(".")
                    if "." not in rest:
                        break
                    self._tails.setdefault(rest, []).append(name)
        return self._tails.get(tail, ())

    def candidates(self, name: str) -> list[Found]:
        """The stored tensors that a name can mean: the one of that name, else those that differ by a model prefix.

        More than one means that the name is ambiguous. A part of a model (an encoder) counts as ambiguity, never as a
        match.
        """
        if name in self._beneath:
            return [Found(name, Prefix())]
        module, _, parameter = name.rpartition(".")
        if parameter in _ALIASES and (alias := f"{module}.{_ALIASES[parameter]}") in self._beneath:
            return [Found(alias, Prefix())]
        parts = name.split(".")
        cuts = range(1, min(_PREFIX_PARTS, len(parts) - 2) + 1)
        removed = {".".join(parts[cut:]): ".".join(parts[:cut]) for cut in cuts}
        found = [Found(rest, Prefix(prefix, "")) for rest, prefix in removed.items() if rest in self._beneath]
        found += [Found(full, Prefix("", full[: -len(name) - 1])) for full in self._by_tail(name)]
        if not found:
            # Both at once: model.language_model.layers stored as language_model.model.layers.
            for rest, prefix in removed.items():
                found += [Found(full, Prefix(prefix, full[: -len(rest) - 1])) for full in self._by_tail(rest)]
                if found:
                    break
        if len(found) == 1 and not _is_model_prefix(
            part for side in (found[0].prefix.removed, found[0].prefix.added) if side for part in side.split(".")
        ):
            return []
        return found

    def tied(self, module: str) -> str | None:
        """The stored tensor that a tied module without one of its own shares, or None.

        transformers stores tied weights once, as a rule under the input embedding's name.
        """
        if _is_output(module):
            return self.input_embedding()
        if module.rsplit(".", 1)[-1] in _INPUTS:
            return self.input_embedding() or self._output
        return None

    def tied_bias(self, module: str) -> str | None:
        """The stored bias that a masked language model's decoder shares with the head around it, or None."""
        head, _, last = module.rpartition(".")
        return f"{head}.bias" if last == "decoder" and f"{head}.bias" in self._beneath else None

    @cached_property
    def _output(self) -> str | None:
        return next(
            (name for name in self._beneath if name.endswith(".weight") and _is_output(name.removesuffix(".weight"))),
            None,
        )

    def has_output(self) -> bool:
        """Whether an output layer is stored beside the input embedding, so that the two are not tied."""
        return self._output is not None

    def input_embedding(self) -> str | None:
        """The input embedding's name, by the names that it commonly has, or None."""
        return self._input

    @cached_property
    def _input(self) -> str | None:
        for word in _INPUTS:
            found = [
                name
                for name, tensor in self._beneath.items()
                if (name == f"{word}.weight" or name.endswith(f".{word}.weight"))
                and len(tensor.shape) == 2
                and not any(part in name.lower() for part in ("vision", "visual", "audio"))
            ]
            if found:
                return min(found, key=lambda name: (-self._beneath[name].shape[0], len(name), name))
        return None

    def experts(self, module: str) -> list[str]:
        """The stored tensors of a module whose experts are fused in memory and stored one by one, maybe elsewhere.

        A live Mixtral's ``model.layers.0.mlp.experts`` is stored as
        ``model.layers.0.block_sparse_moe.experts.<n>.w1.weight``.
        """
        parts = module.split(".")
        if parts[-1] != "experts":
            return []
        layer = next((at for at in reversed(range(len(parts))) if parts[at].isdigit()), None)
        if layer is None:
            return []
        if self._experts is None:
            self._experts = {}
            for name in sorted(name for name in self._beneath if ".experts." in name):
                before = name.split(".experts.", 1)[0].split(".")
                for at, part in enumerate(before):
                    if part.isdigit():
                        self._experts.setdefault(".".join(before[: at + 1]), []).append(name)
        return self._experts.get(".".join(parts[: layer + 1]), [])
