"""Refusing pickled weights, with the command that turns them into safetensors."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from rblstore.errors import InputError

_BESIDE_WEIGHTS = re.compile(r"(training_args|optimizer|scheduler|scaler|rng_state|random_states).*")


class PickleOnlyError(InputError):
    """The only weights are pickles, which are programs; rblstore does not run them."""

    code = "pickle_refused"


def conversion_hint(directory: Path, pickles: Sequence[str]) -> str:
    """A command that converts a directory's pickled weights, to be run by somebody who trusts where they come from.

    Args:
        directory: The directory.
        pickles: Paths of the pickles in it; several are taken for shards of one checkpoint.
    """
    weights = [path for path in pickles if not _BESIDE_WEIGHTS.match(PurePosixPath(path).name)] or list(pickles)
    sources = [str(directory / path) for path in weights[:200]]
    adapter = any(PurePosixPath(path).name.startswith("adapter_model") for path in weights)
    folder = PurePosixPath(weights[0]).parent
    target = str(directory / folder / ("adapter_model.safetensors" if adapter else "model.safetensors"))
    # clone: tied weights share memory in a pickle, which a safetensors file cannot say.
    program = (
        "import torch; from safetensors.torch import save_file; "
        "save_file({name: tensor.clone().contiguous() "
        f"for path in {sources!r} "
        "for name, tensor in torch.load(path, map_location='cpu', weights_only=True).items()}, "
        f"{target!r}, metadata={{'format': 'pt'}})"
    )
    return (
        f"If you trust where they come from, convert them: python -c {shlex.quote(program)} -- or load the model with "
        "transformers and save it again with save_pretrained(DIR), which writes safetensors."
    )
