"""One small fault, and the test that must notice it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Fault:
    """One fault.

    Attributes:
        name: What is broken, in words.
        file: Below ``rblstore/``.
        before: Text of the file.
        after: What a careless hand would make of it.
        tests: A file below ``tests/``.
        select: Which tests of it, as ``pytest -k`` takes it, all where it is empty; one of them must fail.
    """

    name: str
    file: str
    before: str
    after: str
    tests: str
    select: str = ""
