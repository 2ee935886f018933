"""Random walks of a live model over commits, apart and merged: wherever it comes, it is what a fresh load gives."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import tiny_models
import torch
from live_stories import NAMES, Story, weights
from trials import Trials

import rblstore


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Story]:
    made = Story(tmp_path_factory.mktemp("walks"), dtype=torch.bfloat16)
    yield made
    made.repo.close()


def step(live: Any, story: Story, run: Trials) -> None:
    kind = run.moment.choice(["switch", "switch", "form", "attach", "detach"])
    name = run.moment.choice(NAMES)
    if kind == "switch":
        live.switch(story.commits[name])
    elif kind == "form":
        live.unmerge() if live.form == "merged" else live.merge()
    elif kind == "detach" and live.behaviors:
        live.detach(run.moment.choice(live.behaviors))
    elif kind == "attach":
        slots = story.repo.log(story.commits[name], limit=1)[0].slots
        if slots:
            slot = run.moment.choice(slots)
            weight = run.moment.choice([None, 0.5, -1.0]) if slot.name in ("a", "b") else None
            live.attach(slot.name, story.commits[name], weight)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=["bf16", "fp32"])
def test_walks(story: Story, dtype: torch.dtype) -> None:
    options = {} if dtype == torch.bfloat16 else {"dtype": dtype}
    found: dict[Any, tuple[dict[str, str], list[Any]]] = {}
    model = story.load("base", **options)
    own = {name: (id(one), one.data_ptr()) for name, one in model.named_parameters()}
    with story.repo.attach(model, story.commits["base"], cache_bytes=1 << 18) as live:
        with Trials("live walk", "random walks of a live model", quick=30, full=5000) as run:
            for _ in run:
                try:
                    step(live, story, run)
                except rblstore.ConflictError:
                    run.count("refused")  # biases beside others, an overlay over what stands on it
                now = weights(live.model), tiny_models.outputs(live.model).tolist()
                key = live.composition, live.form
                if key not in found and live.form == "adapters":
                    fresh = story.fresh(live.composition, **options)
                    found[key] = weights(fresh), tiny_models.outputs(fresh).tolist()
                assert found.setdefault(key, now) == now
        live.switch(story.commits["base"], form="adapters")
        assert own == {name: (id(one), one.data_ptr()) for name, one in model.named_parameters()}
        assert live.residue() == []
        fresh = story.load("base", **options)
        assert weights(model) == weights(fresh)
        assert vars(model).keys() == vars(fresh).keys()
