"""R8: hostile input gives a result or an RblError, within a second of processor time and 64 MiB."""

from __future__ import annotations

import base64
import contextlib
import gc
import os
import random
import shutil
import traceback
import warnings
from collections.abc import Iterator

import packs_by_hand
import pytest
from confined import MEMORY, SECONDS, TooSlowError, confined
from fuzz_targets import Target, make_targets, scratch
from mutation import LARGEST, mutate_bytes, mutate_json, parse_pairs, write_pairs
from trials import Trials

from rblstore.errors import RblError


def draw(target: Target, chance: random.Random) -> bytes:
    """A hostile input for a target."""
    small = (*target.seeds, *(data for data in target.hostile if len(data) < 4096))
    seed, other = chance.choice(target.seeds if chance.random() < 0.9 else small), chance.choice(small)
    if target.json is not None and chance.random() < 0.6:
        before, text, after = target.json(seed)
        try:
            value = parse_pairs(text)
        except (ValueError, RecursionError):
            value = None
        with contextlib.suppress(RecursionError):  # what is too deep to be changed again is left as it was
            for _ in range(chance.choice((1, 1, 1, 2, 4)) if isinstance(value, list) else 0):
                value = mutate_json(value, chance)
                text = write_pairs(value, compact=chance.random() < 0.9)
        data = (before + text)[: 4 * LARGEST] + after
    else:
        data = mutate_bytes(seed, chance, target.words, other)
    if target.mend is not None and chance.random() < 0.6:
        data = target.mend(data)
    return data


def attempt(target: Target, data: bytes) -> str | None:
    """Reads one input; None where it was read or refused, else what went wrong."""
    try:
        with confined(memory=MEMORY + target.memory), warnings.catch_warnings():
            warnings.simplefilter("error")
            target.read(data)
    except RblError as error:
        if isinstance(error.__cause__ or error.__context__, MemoryError):
            return f"more than {MEMORY + target.memory} bytes\n{traceback.format_exc(limit=-6)}"
        if not isinstance(error.message, str) or len(error.message) > 20_000:
            return f"{type(error).__name__} with a message of {len(error.message)} characters"
    except TooSlowError:
        return f"more than {SECONDS} s of processor time\n{traceback.format_exc(limit=-6)}"
    except Exception:  # noqa: BLE001 - whatever else comes out is the defect that is looked for
        return traceback.format_exc(limit=-8)
    return None


@pytest.fixture(scope="module")
def targets() -> Iterator[dict[str, Target]]:
    folder = scratch()
    yield make_targets(folder)
    shutil.rmtree(folder)


@pytest.fixture(autouse=True)
def _no_waiting_for_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("fsync", "fdatasync"):
        monkeypatch.setattr(os, name, lambda descriptor: None)


def test_seeds_are_accepted(targets: dict[str, Target]) -> None:
    """Otherwise nothing but the first check of each reader would ever be reached."""
    refused: dict[str, list[str]] = {}
    for target in targets.values():
        for seed in target.seeds:
            try:
                target.read(seed)
            except RblError as error:
                refused.setdefault(target.name, []).append(error.message)
    assert refused == {}


def test_bombs(targets: dict[str, Target]) -> None:
    """What is meant to take for ever, or all memory there is; and every input that was found to break a reader."""
    problems = [
        f"{target.name}, hostile input {number}: {problem}"
        for target in targets.values()
        for number, data in enumerate(target.hostile)
        if (problem := attempt(target, data)) is not None
    ]
    assert not problems, "\n".join(problems)


def test_a_chain_of_differences_is_refused() -> None:
    """Two contents that are differences from each other, and one that is a difference from one of them."""
    problems = packs_by_hand.read_all(packs_by_hand.cycle())
    assert len(problems) == 3
    assert all("is a difference itself" in str(problem) for problem in problems.values())


@pytest.mark.slow
def test_only_typed_errors(targets: dict[str, Target]) -> None:
    wanted = os.environ.get("RBL_TEST_TARGETS")
    chosen = [target for target in targets.values() if wanted is None or target.name in wanted.split(",")]
    weights = [target.weight for target in chosen]
    with Trials("R8", "hostile inputs", quick=50_000, full=5_000_000) as run:
        for number in run:
            target = run.moment.choices(chosen, weights)[0]
            data = draw(target, run.moment)
            problem = attempt(target, data)
            run.count(target.name)
            if number % 500 == 0:
                gc.collect()
            if problem is not None:
                pytest.fail(f"{target.name}: {problem}\ninput, base64: {base64.b64encode(data).decode()}")
