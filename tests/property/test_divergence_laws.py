"""Laws of the divergences, for any logits."""

from __future__ import annotations

import math

import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis_tiers import law

from rblstore.divergence.measure import tensor_from_bytes, values_bytes
from rblstore.divergence.metrics import divergences, entropy
from rblstore.divergence.probe_file import BadProbeError, parse_prompts

LAWS = law(150)
DTYPES = st.sampled_from([torch.float64, torch.float32, torch.bfloat16, torch.float16])


@st.composite
def pairs(draw: st.DrawFn, *, infinite: bool = True) -> tuple[torch.Tensor, torch.Tensor]:
    """Two outputs of one shape: each row holds at least one finite logit."""
    positions, vocabulary = draw(st.integers(1, 3)), draw(st.integers(1, 12))
    finite = st.floats(-60, 60)
    logit = st.one_of(finite, st.just(-math.inf)) if infinite else finite

    def output() -> torch.Tensor:
        rows = [[draw(finite), *(draw(logit) for _ in range(vocabulary - 1))] for _ in range(positions)]
        return torch.tensor(rows, dtype=torch.float64).to(draw(DTYPES))

    first = output()
    near = draw(st.booleans())
    second = (first.double() + draw(st.floats(1e-7, 1e-2)) * output().double().clamp(-60, 60)) if near else output()
    return first, second


@LAWS
@given(pairs())
def test_bounds(pair: tuple[torch.Tensor, torch.Tensor]) -> None:
    found = divergences(*pair)
    assert not found.kl.isnan().any()
    assert bool((found.kl >= 0).all())
    assert bool((found.js >= 0).all())
    assert bool((found.js <= math.log(2)).all())


@LAWS
@given(pairs())
def test_js_is_symmetric_and_bounded_by_kl(pair: tuple[torch.Tensor, torch.Tensor]) -> None:
    there, back = divergences(*pair), divergences(*reversed(pair))
    torch.testing.assert_close(there.js, back.js, rtol=1e-9, atol=1e-18)
    # KL to a mixture is convex, so JS <= (KL + KL') / 4, which is less than the usual (KL + KL') / 2.
    bound = (there.kl + back.kl) / 4
    assert bool((there.js <= bound * (1 + 1e-9) + 1e-18).all())


@LAWS
@given(pairs())
def test_zero_for_equal_and_for_shifted_logits(pair: tuple[torch.Tensor, torch.Tensor]) -> None:
    first = pair[0].double()
    found = divergences(first, first.clone())
    assert found.kl.tolist() == found.js.tolist() == [0.0] * len(first)
    shifted = divergences(first, first + 3.0)
    assert bool((shifted.kl < 1e-20).all())
    assert bool((shifted.js < 1e-20).all())


@LAWS
@given(pairs(infinite=False), st.integers(0, 11), st.floats(1e-6, 5))
def test_not_zero_for_other_distributions(pair: tuple[torch.Tensor, torch.Tensor], place: int, change: float) -> None:
    first = pair[0].double().clamp(-3, 3)
    if first.shape[1] == 1:
        return
    second = first.clone()
    second[:, place % first.shape[1]] += change
    found = divergences(first, second)
    assert bool((found.kl > 0).all())
    assert bool((found.js > 0).all())


@LAWS
@given(pairs())
def test_positions_are_independent_and_tokens_have_no_order(pair: tuple[torch.Tensor, torch.Tensor]) -> None:
    first, second = pair
    whole = divergences(first, second)
    for row in range(len(first)):
        alone = divergences(first[row : row + 1], second[row : row + 1])
        torch.testing.assert_close(alone.kl[0], whole.kl[row], rtol=1e-9, atol=1e-18)
    reordered = divergences(first.flip(1), second.flip(1))
    torch.testing.assert_close(reordered.kl, whole.kl, rtol=1e-9, atol=1e-18)
    torch.testing.assert_close(reordered.js, whole.js, rtol=1e-9, atol=1e-18)


@LAWS
@given(pairs())
def test_entropy_is_the_distance_from_flat(pair: tuple[torch.Tensor, torch.Tensor]) -> None:
    found = entropy(pair[0])
    most = math.log(pair[0].shape[1])
    assert bool((found >= 0).all())
    assert bool((found <= most + 1e-12).all())
    from_flat = divergences(pair[0], torch.zeros_like(pair[0])).kl
    torch.testing.assert_close(found, most - from_flat, rtol=1e-9, atol=1e-12)


@LAWS
@given(pairs())
def test_bytes_come_back(pair: tuple[torch.Tensor, torch.Tensor]) -> None:
    names = {torch.float64: "F64", torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16"}
    values = pair[0]
    back = tensor_from_bytes(values_bytes(values), names[values.dtype], values.shape)
    assert torch.equal(back, values)
    assert values_bytes(back) == values_bytes(values)


@law(300)
@given(
    st.one_of(
        st.binary(max_size=200),
        st.text(max_size=100).map(lambda text: text.encode("utf-8", "surrogatepass")),
        st.text('[]{}",:0123456789.eE-+idtextokns \n\\u', max_size=60).map(str.encode),
    ),
    st.sampled_from(["p.json", "p.jsonl", "p.txt"]),
)
def test_any_file_gives_prompts_or_one_typed_error(data: bytes, name: str) -> None:
    try:
        prompts = parse_prompts(data, name)
    except BadProbeError:
        return
    assert prompts
    assert len({prompt.id for prompt in prompts}) == len(prompts)
    assert all((prompt.text is None) != (prompt.tokens is None) for prompt in prompts)
