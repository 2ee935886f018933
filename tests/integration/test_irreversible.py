"""The paper's irreversible case: a fine-tune that wrote into shared weights comes back with the store, and not without.

A language model of thirty thousand parameters is trained on one text, then fine-tuned as a whole on another. Ways to
"reset" it without a snapshot are measured beside the revert. To unload has RF 0, as in arXiv 2603.02934: there is
nothing that could be unloaded. To optimize back moves the model somewhere else: on the first text further away (RF
-0.3), towards the base's recorded outputs, where those are still at hand, nearer (RF 0.9), and never there. What holds
for all, and is asserted, is that none reaches RF 0.99, that no prompt's output comes back bit for bit, and that KL
stays a thousand times above the tolerance; the revert has RF 1 and every bit equal.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import tiny_models
import torch

import rblstore
from rblstore.divergence.compare import compare_measurements
from rblstore.divergence.measure import measure
from rblstore.divergence.probe_file import RawPrompt
from rblstore.divergence.probes import make_probe
from rblstore.divergence.verdict import recovery

PROMPTS = [{"id": f"p{at}", "tokens": row.tolist()} for at, row in enumerate(tiny_models.PROMPT)]
STEPS = 40


def texts(rule: int) -> Iterator[torch.Tensor]:
    """Batches of a made-up language, for ever: each token decides the next by a rule, now and then by chance."""
    generator = torch.Generator().manual_seed(rule)
    while True:
        rows = torch.randint(3, tiny_models.VOCABULARY, (8, 16), generator=generator)
        for at in range(1, rows.shape[1]):
            follows = (rows[:, at - 1] * rule + 7) % (tiny_models.VOCABULARY - 3) + 3
            chance = torch.rand(rows.shape[0], generator=generator) < 0.1
            rows[:, at] = torch.where(chance, rows[:, at], follows)
        yield rows


def train(model: Any, loss_of: Callable[[Any, torch.Tensor], torch.Tensor], rule: int, steps: int = STEPS) -> Any:
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.0)
    model.train()
    for _, tokens in zip(range(steps), texts(rule), strict=False):
        optimizer.zero_grad()
        loss_of(model, tokens).backward()
        optimizer.step()
    return model.eval()


def likelihood(model: Any, tokens: torch.Tensor) -> torch.Tensor:
    loss: torch.Tensor = model(input_ids=tokens, labels=tokens).loss
    return loss


@pytest.fixture(scope="module")
def models() -> tuple[Any, Any]:
    """The base and the fine-tune of all its weights."""
    base = train(tiny_models.llama(), likelihood, 5)
    return base, train(copy.deepcopy(base), likelihood, 11)


def test_with_the_store_every_bit_comes_back(models: tuple[Any, Any], tmp_path: Path) -> None:
    base, fine = models
    with rblstore.init(tmp_path / "store") as repo:
        repo.commit("base", identity=base)
        repo.add_probe("two", PROMPTS)
        repo.commit("ft", behaviors={"ft": fine})
        live = repo.attach(repo.load("HEAD"), "HEAD")
        evidence = live.revert("ft").verification
        assert (evidence.rf, evidence.kl, evidence.js, evidence.bit_equal) == (1.0, 0.0, 0.0, True)
        assert evidence.kl_adapted > 0.1  # the fine-tune is another model, not a nuance
        assert live.verify().verdict == "exact"
        here, before = live.model.state_dict(), base.state_dict()
        assert all(torch.equal(here[name], before[name]) for name in before)


def unloaded(base: Any, fine: Any) -> Any:
    """By taking off what was attached, which is nothing."""
    del base
    return fine


def trained_back(base: Any, fine: Any) -> Any:
    """On the text that the base was trained on."""
    del base
    return train(copy.deepcopy(fine), likelihood, 5)


def distilled_back(base: Any, fine: Any) -> Any:
    """On the base's outputs, which whoever lost the weights may still have written down."""

    def loss_of(model: Any, tokens: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            wanted = base(input_ids=tokens).logits.log_softmax(-1)
        found = model(input_ids=tokens).logits.log_softmax(-1)
        return torch.nn.functional.kl_div(found, wanted, log_target=True, reduction="batchmean") / tokens.shape[1]

    return train(copy.deepcopy(fine), loss_of, 5)


def pulled_back(base: Any, fine: Any) -> Any:
    """By weight decay towards what weights start from: the base itself is what is not there any more."""
    del base
    start = tiny_models.llama().state_dict()

    def loss_of(model: Any, tokens: torch.Tensor) -> torch.Tensor:
        pull = sum(((one - start[name]) ** 2).sum() for name, one in model.named_parameters())
        return likelihood(model, tokens) + 0.01 * pull

    return train(copy.deepcopy(fine), loss_of, 5)


def subtracted(base: Any, fine: Any) -> Any:
    """By taking off an estimate of what the fine-tune added: the same training, repeated with other batches."""
    again = train(copy.deepcopy(fine), likelihood, 11)
    del base
    found = copy.deepcopy(fine)
    with torch.no_grad():
        for (_, weight), (_, later) in zip(found.named_parameters(), again.named_parameters(), strict=True):
            weight.sub_(later - weight)
    return found


@pytest.mark.parametrize("reset", [unloaded, trained_back, distilled_back, pulled_back, subtracted])
def test_without_it_nothing_does(models: tuple[Any, Any], reset: Callable[[Any, Any], Any]) -> None:
    base, fine = models
    prompts = [RawPrompt(one["id"], tokens=tuple(one["tokens"])) for one in PROMPTS]
    probe = make_probe(prompts, None, None)
    reference = list(measure(base, probe))
    adapted = compare_measurements(reference, measure(fine, probe))
    recovered = compare_measurements(reference, measure(reset(base, fine), probe))
    rf, reason = recovery(recovered.kl, adapted.kl)
    assert reason is None
    assert rf is not None
    assert rf == 0 if reset is unloaded else rf != 0
    assert rf < 0.99
    assert not recovered.bit_equal
    assert not any(prompt.bit_equal for prompt in recovered.prompts)
    assert recovered.kl is not None
    assert recovered.kl > 1e-3  # a thousand times the tolerance
