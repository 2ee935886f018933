"""How many examples a law is tried on: a fixed few each time, or with ``RBL_TEST_TIER=full`` many, drawn afresh."""

from __future__ import annotations

import os
from typing import Any

from hypothesis import settings

FULL = os.environ.get("RBL_TEST_TIER", "quick") == "full"
_TIMES = 30


def law(examples: int, **options: Any) -> settings:
    """Settings of a law whose examples are dearer or cheaper than most.

    Args:
        examples: How many in the quick tier; the full one tries thirty times as many.
        options: Further settings of Hypothesis.
    """
    if FULL:
        return settings(max_examples=examples * _TIMES, deadline=None, print_blob=True, **options)
    return settings(max_examples=examples, deadline=None, derandomize=True, database=None, **options)
