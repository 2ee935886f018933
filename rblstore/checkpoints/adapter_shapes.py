"""Whether an adapter's tensors fit the weight that they change, by shape alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod

from rblstore.objects.content_records import StoredTensor

# Pairs whose product has the weight's shape: (rank, in) and (out, rank).
_PAIRS = (
    ("lora_A.weight", "lora_B.weight"),
    ("lora_A", "lora_B"),
    ("hira_A", "hira_B"),
    ("delora_A", "delora_B"),
    ("hada_w1_b", "hada_w1_a"),
    ("hada_w2_b", "hada_w2_a"),
)
# Embeddings keep the pair the other way round: (rank, rows) and (columns, rank) of a weight (rows, columns).
_EMBEDDING_PAIRS = (("lora_embedding_A", "lora_embedding_B"), ("hira_embedding_A", "hira_embedding_B"))
_OUT_VECTORS = ("vera_lambda_b", "pvera_lambda_b")


class Misfit(Exception):  # noqa: N818 - an answer for the caller, who names the tensors; it never leaves the room
    """A tensor of the adapter does not fit the weight."""

    def __init__(self, parameter: str) -> None:
        super().__init__(parameter)
        self.parameter = parameter


def pair_is_swapped(first: Sequence[int], second: Sequence[int], weight: Sequence[int]) -> bool | None:
    """How a pair (rank, in) and (out, rank) lies on a weight.

    Args:
        first: Shape of A; (rank, in), or (rank, in, *kernel) for a convolution.
        second: Shape of B; (out, rank), or (out, rank, 1, ...).
        weight: Shape of the weight: (out, in), (out, in, *kernel), or (in, out) as Conv1D keeps it.

    Returns:
        False for (out, in), True for (in, out), None where a square weight leaves both open.

    Raises:
        Misfit: Neither fits; names ``A`` or ``B``.
    """
    if len(first) < 2 or len(second) < 2 or len(weight) < 2 or prod(second[2:]) != 1:
        raise Misfit("A" if len(first) < 2 else "B")
    if len(weight) > 2:
        # A grouped convolution keeps a weight of in / groups channels, and B of rank / groups.
        fits = second[0] == weight[0] and tuple(first[2:]) == tuple(weight[2:])
        if not fits or not weight[1] or not second[1] or first[1] % weight[1] or first[0] % second[1]:
            raise Misfit("A" if second[0] == weight[0] else "B")
        return False
    if first[0] != second[1]:
        raise Misfit("B")
    straight = second[0] == weight[0] and tuple(first[1:]) == tuple(weight[1:])
    swapped = len(weight) == 2 and len(first) == 2 and (first[1], second[0]) == (weight[0], weight[1])
    if straight and swapped:
        return None
    if not straight and not swapped:
        raise Misfit("A" if second[0] in (weight[0], weight[-1]) else "B")
    return swapped


def check_fits(parameters: Mapping[str, StoredTensor], weight: Sequence[int]) -> None:
    """Refuses an update whose tensors cannot belong to a weight of this shape.

    Kinds whose parameters do not follow from the weight's shape alone (FourierFT, VB-LoRA, OFT ...) pass.

    Args:
        parameters: The module's tensors by parameter (``lora_A.weight``).
        weight: The weight's shape.

    Raises:
        Misfit: One does not fit; names the parameter.
    """
    for first, second in _PAIRS:
        if first not in parameters and second not in parameters:
            continue
        if first not in parameters or second not in parameters:
            raise Misfit(first if first in parameters else second)
        if "hada" in first and len(weight) != 2:
            continue
        try:
            pair_is_swapped(parameters[first].shape, parameters[second].shape, weight)
        except Misfit as error:
            raise Misfit(first if error.parameter == "A" else second) from None
    for first, second in _EMBEDDING_PAIRS:
        if first not in parameters and second not in parameters:
            continue
        if first not in parameters or second not in parameters:
            raise Misfit(first if first in parameters else second)
        rows, columns = parameters[first].shape, parameters[second].shape
        if len(weight) != 2 or len(rows) != 2 or len(columns) != 2 or rows[0] != columns[1] or rows[1] != weight[0]:
            raise Misfit(first)
        if columns[0] != weight[1]:
            raise Misfit(second)
    _check_vectors(parameters, weight)


def _check_vectors(parameters: Mapping[str, StoredTensor], weight: Sequence[int]) -> None:
    ends = tuple(weight[:2])
    for parameter, tensor in parameters.items():
        name = parameter.split(".", 1)[0]
        shape = tensor.shape
        fits = True
        if name == "ia3_l":
            # (out, 1), or (1, in) for what peft calls a feed-forward module; convolutions have ones after it.
            fits = prod(shape) in ends and max(shape, default=0) == prod(shape)
        elif name in _OUT_VECTORS:
            fits = len(shape) == 1 and shape[0] in ends
        elif name in ("lora_magnitude_vector", "beft_bias"):
            fits = prod(shape) in ends
        elif name == "trainable_tokens_delta":
            fits = len(weight) == 2 and tuple(shape[1:]) == (weight[1],)
        if not fits:
            raise Misfit(parameter)
