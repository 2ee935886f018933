"""Making a probe from prompts, what a baseline under it takes, and whether it fits a model. No torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from rblstore.divergence.probe_file import PROMPT_TOKENS, PROMPTS, TOKEN_MAXIMUM, BadProbeError, RawPrompt
from rblstore.errors import ConflictError, InputError, UsageError
from rblstore.objects.evidence_records import Positions, Probe, Prompt
from rblstore.objects.ids import ContentId

__all__ = [
    "BadBatchError",
    "BadProbeError",
    "ProbeMismatchError",
    "baseline_bytes",
    "check_batch",
    "check_probe_fits",
    "make_probe",
]


class ProbeMismatchError(ConflictError):
    """A probe's tokens mean nothing to the model: another tokenizer, a smaller vocabulary, a shorter context."""

    code = "probe_mismatch"


class BadBatchError(UsageError):
    """The number of prompts of one forward pass is not a number from 1 on."""

    code = "bad_batch"


def check_batch(batch: int) -> None:
    """Refuses a number of prompts that no forward pass has.

    Raises:
        BadBatchError: It is not an integer from 1 to the most prompts of a probe.
    """
    if type(batch) is not int or not 1 <= batch <= PROMPTS:
        raise BadBatchError(f"a batch of {batch} prompts is not one of 1 to {PROMPTS}", object=str(batch))


def make_probe(
    prompts: Sequence[RawPrompt],
    encode: Callable[[str], Sequence[int]] | None,
    tokenizer: ContentId | None,
    positions: Positions = "all",
    batch: int = 1,
) -> Probe:
    """A probe over these prompts. Each is a forward pass of its own unless asked for otherwise: padding changes bits.

    Args:
        prompts: At least one; ids unique.
        encode: Text to token ids, special tokens included; None where there is no tokenizer.
        tokenizer: Digest of the tokenizer's files; kept only where a prompt was tokenized.
        positions: ``all``, or ``last`` (the last token of each prompt).
        batch: Most prompts of one forward pass. Prompts that follow one another share one, padded to the longest.

    Raises:
        BadBatchError: The batch is not a number of prompts.
        BadProbeError: No prompts, a repeated id, text without a tokenizer, a prompt of no tokens, or more than a record
            may hold; the message names the prompt.
    """
    if not prompts:
        raise BadProbeError("a probe needs at least one prompt")
    made = tuple(Prompt(prompt.id, _tokens(prompt, encode), prompt.text) for prompt in prompts)
    if (total := sum(len(prompt.tokens) for prompt in made)) > PROMPT_TOKENS:
        raise BadProbeError(f"the probe has {total} tokens, more than the {PROMPT_TOKENS} allowed")
    check_batch(batch)
    plan = tuple(tuple(range(start, min(start + batch, len(made)))) for start in range(0, len(made), batch))
    tokenized = any(prompt.tokens is None for prompt in prompts)
    probe = Probe(made, plan, positions, tokenizer if tokenized else None)
    try:
        # What could not be read back must not be written.
        Probe.parse(probe.encode())
    except InputError as error:
        raise BadProbeError(error.message, object=error.object, hint=error.hint) from error
    return probe


def _tokens(prompt: RawPrompt, encode: Callable[[str], Sequence[int]] | None) -> tuple[int, ...]:
    if prompt.tokens is not None:
        tokens = prompt.tokens
    elif prompt.text is None:
        raise BadProbeError(f"prompt {prompt.id!r} has neither text nor tokens", object=prompt.id)
    elif encode is None:
        raise BadProbeError(
            f"prompt {prompt.id!r} is text, and there is no tokenizer to encode it",
            object=prompt.id,
            hint="Give token ids, or an identity that has a tokenizer.",
        )
    else:
        tokens = tuple(int(token) for token in encode(prompt.text))
    if not tokens:
        raise BadProbeError(f"prompt {prompt.id!r} has no tokens", object=prompt.id)
    for token in tokens:
        if not 0 <= token <= TOKEN_MAXIMUM:
            raise BadProbeError(f"prompt {prompt.id!r} has the token {token}, which is out of range", object=prompt.id)
    return tokens


def baseline_bytes(probe: Probe, vocabulary: int, element_bytes: int) -> int:
    """The bytes that a baseline's values take under a probe, for a model with an output at each position.

    Args:
        probe: Its positions count.
        vocabulary: Width of the output.
        element_bytes: Bytes of one value in the model's output dtype.
    """
    return probe.measured_positions() * vocabulary * element_bytes


def check_probe_fits(
    probe: Probe,
    *,
    tokenizer: ContentId | None,
    vocabulary: int | None,
    context: int | None,
    probe_name: str,
) -> None:
    """Refuses a probe whose tokens another model than this was meant to read.

    Args:
        probe: The probe.
        tokenizer: Digest of the model's tokenizer files, or None where it has none or that is not known.
        vocabulary: Number of rows of the input embedding, or None where not known.
        context: Most tokens that the model can read, or None where there is no such bound.
        probe_name: How messages call the probe.

    Raises:
        ProbeMismatchError: Another tokenizer, a token id beyond the vocabulary, or a prompt too long.
    """
    if probe.tokenizer is not None and tokenizer is not None and probe.tokenizer != tokenizer:
        raise ProbeMismatchError(
            f"probe {probe_name!r} was made with tokenizer {probe.tokenizer.short}, the model has {tokenizer.short}",
            object=probe_name,
            hint="Add a probe from the same prompts for this tokenizer.",
        )
    for prompt in probe.prompts:
        if vocabulary is not None and max(prompt.tokens) >= vocabulary:
            raise ProbeMismatchError(
                f"probe {probe_name!r}, prompt {prompt.id!r}: token {max(prompt.tokens)} lies beyond the model's "
                f"vocabulary of {vocabulary}",
                object=prompt.id,
                hint="Add a probe made with this model's tokenizer.",
            )
        if context is not None and len(prompt.tokens) > context:
            raise ProbeMismatchError(
                f"probe {probe_name!r}, prompt {prompt.id!r}: {len(prompt.tokens)} tokens, and the model reads at most "
                f"{context}",
                object=prompt.id,
                hint="Shorten the prompt in a probe of its own.",
            )
