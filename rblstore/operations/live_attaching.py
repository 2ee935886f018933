"""``attach``: binds a model in memory to a commit."""

from __future__ import annotations

from typing import Any, Final

from rblstore.errors import UsageError
from rblstore.operations.live_compositions import Compositions
from rblstore.operations.live_form import LiveForm, check_form
from rblstore.operations.live_model import LiveModel, out_of_inference_mode
from rblstore.operations.progress import Progress
from rblstore.repository import Store

CACHE_BYTES: Final = 512 << 20
"""Memory for tensors that behaviors touch and for adapters that were taken off, unless the caller says otherwise."""


def attach_model(
    store: Store,
    model: Any,
    revision: str = "HEAD",
    *,
    form: LiveForm | None = None,
    cache_bytes: int = CACHE_BYTES,
    probe: str | None = None,
    author: str = "unknown",
    allow_no_effect: bool = False,
    progress: Progress | None = None,
) -> LiveModel:
    """Binds a model in memory to a commit.

    Args:
        store: The repository.
        model: The commit's model: with its behaviors attached by rblstore's load or by peft, or merged; or what lies
            beneath them, which they are then put on.
        revision: The commit.
        form: ``adapters`` or ``merged``; None for what the model has, ``adapters`` where behaviors are put on.
        cache_bytes: Memory for tensors that behaviors touch and for adapters that were taken off.
        probe: Name or id of the probe that attaching and verifying measure.
        author: Who is named in what is recorded.
        allow_no_effect: Whether behaviors that are put on may change no output on the probe.
        progress: Is told bytes read.

    Raises:
        ConflictError: The model is not the commit's: says what differs.
        UnbindableError: Quantized, sharded, offloaded or without values (meta).
        UnknownRevisionError: No commit of that name.
    """
    from rblstore.operations.live_binding import bind_model

    wanted = None if form is None else check_form(form)
    if isinstance(cache_bytes, bool) or not isinstance(cache_bytes, int) or cache_bytes < 0:
        raise UsageError(f"'cache_bytes' is a whole number from 0, not {cache_bytes!r:.40}", object="cache_bytes")
    compositions = Compositions(store)
    commit, composition = compositions.at(revision)
    compositions.checked(composition)
    with out_of_inference_mode():
        state = bind_model(
            store,
            model,
            composition,
            compositions,
            form=wanted,
            cache_bytes=cache_bytes,
            probe=probe,
            allow_no_effect=allow_no_effect,
            progress=progress,
        )
    live = LiveModel(store, state, commit, author=author, probe=probe, progress=progress)
    state.register(live)
    return live
