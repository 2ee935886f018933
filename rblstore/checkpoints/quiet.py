"""Keeps transformers and PEFT from printing while they load, and puts everything back afterwards."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def quiet() -> Iterator[None]:
    """No progress bars, log lines or warnings of the model libraries inside; their settings as before outside."""
    from transformers.utils import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            # CRITICAL, not ERROR: what goes wrong is raised as an error of our own and need not be logged as well.
            logging.set_verbosity(logging.CRITICAL)
            if bars:
                logging.disable_progress_bar()
            yield
        finally:
            logging.set_verbosity(verbosity)
            if bars:
                logging.enable_progress_bar()
