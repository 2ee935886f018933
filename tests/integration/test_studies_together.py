"""Studies of several behaviors at once, on tiny models where the answers are known."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tiny_models
import torch
from click.testing import CliRunner
from safetensors.torch import load_file, save_file

import rblstore
from rblstore.cli.program import rbl
from rblstore.errors import ConflictError, NotFoundError, RblError, UsageError

PROMPTS = ["w5 w6 w7 w8", "w9 w10 w11", "w20 w21"]
OTHERS = ["w30 w31 w32", "w40"]
WEIGHTS = "adapter_model.safetensors"


class Together:
    """One repository, a commit for each set of behaviors that a test needs."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.model = tiny_models.llama()
        tiny_models.save(self.model, folder / "base")
        tiny_models.save_tokenizer(folder / "base")
        self.adapter("left", seed=1)
        self.adapter("other", seed=2)
        self.adapter("down", seed=3, target_modules=["down_proj"])
        self.adapter("nothing", seed=4)
        self.rewrite("nothing", lambda name, one: one * 0 if "lora_B" in name else one)
        # Writes where left does not: B's columns are orthogonal to those of left's, A is the same.
        tensors = load_file(folder / "left" / WEIGHTS)
        made = {name: one.clone() for name, one in tensors.items()}
        for name, one in tensors.items():
            if "lora_B" in name:
                basis = torch.linalg.qr(torch.cat([one, torch.randn(one.shape)], 1).double()).Q
                made[name] = (0.1 * basis[:, one.shape[1] :]).float().contiguous()
        self.copy("left", "upright", made)
        self.overlay("sft", "model.layers.0.mlp.down_proj.weight", 1.25)
        self.overlay("dpo", "model.layers.0.mlp.down_proj.weight", 1.1)
        self.repo: Any = rblstore.init(folder / "store")
        self.repo.commit("base", identity=folder / "base")
        self.repo.add_probe("ten", PROMPTS, default=True)
        self.repo.add_probe("held", OTHERS)
        self.repo.add_probe("mixed", [*OTHERS, PROMPTS[1]])
        self.pair = self.commit("left", "other")

    def adapter(self, name: str, **options: Any) -> None:
        tiny_models.save_adapter(self.model, self.folder / name, **options)

    def rewrite(self, name: str, change: Any) -> None:
        file = self.folder / name / WEIGHTS
        save_file({key: change(key, one).contiguous() for key, one in load_file(file).items()}, file, {"format": "pt"})

    def copy(self, source: str, name: str, tensors: dict[str, torch.Tensor]) -> None:
        (self.folder / name).mkdir()
        config = (self.folder / source / "adapter_config.json").read_bytes()
        (self.folder / name / "adapter_config.json").write_bytes(config)
        save_file(tensors, self.folder / name / WEIGHTS, {"format": "pt"})

    def overlay(self, name: str, tensor: str, factor: float) -> None:
        with torch.no_grad():
            self.model.get_parameter(tensor).mul_(factor)
        tiny_models.save(self.model, self.folder / name)
        tiny_models.save_tokenizer(self.folder / name)

    def commit(self, *behaviors: str | tuple[str, str]) -> str:
        """A commit of these behaviors alone, each a folder's name or (slot, folder)."""
        pairs = [one if isinstance(one, tuple) else (one, one) for one in behaviors]
        held = [slot.name for slot in self.repo.status().slots]
        if held:
            self.repo.commit("none", remove=held)
        for slot, folder in pairs:
            made = self.repo.commit(slot, behaviors={slot: self.folder / folder})
        return str(made.commit)


@pytest.fixture(scope="module")
def together(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Together]:
    found = Together(tmp_path_factory.mktemp("together"))
    yield found
    found.repo.close()


def points(result: Any, **condition: Any) -> list[Any]:
    return [
        point
        for point in result.record.points
        if all(point.condition.get(name) == value for name, value in condition.items())
    ]


def point(result: Any, **condition: Any) -> Any:
    found = points(result, **condition)
    assert len(found) == 1, (condition, len(found))
    return found[0]


def test_the_same_behavior_twice_lies_in_the_same_directions(together: Together) -> None:
    head = together.commit(("left", "left"), ("twin", "left"))
    result = together.repo.study_interference(head)
    overlaps = [one for one in points(result, part="subspaces") if one.condition["tensor"] is not None]
    assert len(overlaps) == 4
    for one in overlaps:
        assert one.values["delta_cosine"] == pytest.approx(1.0)
        for side in ("output", "input"):
            assert one.values[f"{side}_overlap"] == pytest.approx(1.0)
            assert one.values[f"{side}_angle_max"] < 1e-10
    assert overlaps[0].values["output_chance"] == 4 / 32
    whole = point(result, part="subspaces", tensor=None)
    assert whole.values["delta_cosine"] == pytest.approx(1.0)
    assert whole.values["tensors"] == 4.0
    # They are one behavior under two names: whatever is asked of one, the other answers the same.
    ours, theirs = (point(result, part="given", behavior=name) for name in ("left", "twin"))
    assert [one.values for one in ours.prompts] == [one.values for one in theirs.prompts]
    assert point(result, part="order").bit_equal


def test_orthogonal_factors_stand_upright_on_one_side(together: Together) -> None:
    result = together.repo.study_interference(together.commit("left", "upright"))
    for one in points(result, part="subspaces"):
        if one.condition["tensor"] is not None:
            assert one.values["output_angle_min"] == pytest.approx(90.0, abs=1e-4)  # factors are stored in float32
            assert one.values["output_overlap"] < 1e-12
            assert one.values["input_overlap"] == pytest.approx(1.0)
            assert abs(one.values["delta_cosine"]) < 1e-6


def test_small_behaviors_on_disjoint_modules_are_kept_whole(together: Together) -> None:
    for name in ("left", "down"):
        tensors = load_file(together.folder / name / WEIGHTS)
        small = {key: (one * 1e-2 if "lora_B" in key else one).contiguous() for key, one in tensors.items()}
        together.copy(name, f"small-{name}", small)
    result = together.repo.study_interference(together.commit("small-left", "small-down"))
    whole = point(result, part="subspaces", tensor=None)
    assert whole.reason == "they change no tensor in common"
    assert whole.values["output_overlap"] is None
    for one in points(result, part="given"):
        assert one.values["kept_pooled"] == pytest.approx(1.0, abs=0.02)
        assert one.values["shift_cosine_pooled"] == pytest.approx(1.0, abs=0.02)
        assert one.bit_equal is False
    for one in points(result, part="removed"):
        assert one.bit_equal is True
        assert all(prompt.values["kl"] == 0.0 for prompt in one.prompts)


def test_what_is_alone_and_beside_is_what_fresh_loads_say(together: Together) -> None:
    repo = together.repo
    head = together.commit("left", "other")
    result = repo.study_interference(head, subspaces=False)
    assert points(result, part="subspaces") == []
    states = {(): repo.commit("none", remove=["left", "other"]).commit, ("left", "other"): head}
    for name in ("left", "other"):
        states[name,] = together.commit(name)
    logits = {names: outputs(repo, commit) for names, commit in states.items()}
    for behavior, given in (("left", "other"), ("other", "left")):
        alone = point(result, part="alone", behavior=behavior)
        beside = point(result, part="given", behavior=behavior, given=given)
        for place, (one, two) in enumerate(zip(alone.prompts, beside.prompts, strict=True)):
            ground, ours, theirs, both = (
                logits[names][place] for names in ((), (behavior,), (given,), ("left", "other"))
            )
            expected = kl(ground, ours)
            assert one.values["kl"] == pytest.approx(expected, rel=1e-9)
            assert two.values["kl_alone"] == pytest.approx(expected, rel=1e-9)
            assert two.values["kl"] == pytest.approx(kl(theirs, both), rel=1e-9)
            assert two.values["kl_ratio"] == pytest.approx(kl(theirs, both) / expected, rel=1e-8)
            s, t = ours - ground, both - theirs
            weight = ground.exp()
            mean_s, mean_t = ((weight * shift).sum(1, keepdim=True) for shift in (s, t))
            product, square = (
                (weight * (s - mean_s) * (other - mean)).sum() for other, mean in ((t, mean_t), (s, mean_s))
            )
            assert two.values["kept"] == pytest.approx(float(product / square), rel=1e-8)


def outputs(repo: Any, commit: Any) -> list[torch.Tensor]:
    """Log-probabilities of each prompt by transformers itself."""
    model, found = repo.load(commit), []
    for text in PROMPTS:
        tokens = torch.tensor([[1, *(int(word[1:]) for word in text.split())]])
        with torch.no_grad():
            found.append(torch.log_softmax(model(input_ids=tokens, use_cache=False).logits[0].double(), -1))
    return found


def kl(reference: torch.Tensor, other: torch.Tensor) -> float:
    return float((reference.exp() * (reference - other)).sum(-1).mean())


def test_a_behavior_that_does_nothing_has_nothing_to_keep(together: Together) -> None:
    result = together.repo.study_interference(together.commit("left", "nothing"))
    one = point(result, part="given", behavior="nothing")
    assert one.bit_equal is True
    assert one.values["kept_pooled"] is None
    assert "moves no output alone" in one.reason
    assert point(result, part="given", behavior="left").values["kept_pooled"] == pytest.approx(1.0)
    overlap = next(one for one in points(result, part="subspaces") if one.condition["tensor"])
    assert overlap.reason == "nothing: its delta is zero"
    shares = together.repo.study_attribution()
    for prompt in point(shares, part="share", behavior="nothing").prompts:
        assert prompt.values == {"kl_share": 0.0, "js_share": 0.0, "most": 0.0}
    for prompt in point(shares, part="sum").prompts:
        assert prompt.values["kl_additivity"] == pytest.approx(1.0)
        assert prompt.values["kl_gap"] == pytest.approx(0.0, abs=1e-12)


def test_what_stands_on_the_other_has_no_effect_alone(together: Together) -> None:
    result = together.repo.study_interference(together.commit("sft", "dpo", "left"), subspaces=False)
    lone = point(result, part="given", behavior="dpo", given="sft")
    assert lone.values == {}
    assert "sft" in lone.reason
    assert point(result, part="order", behavior="dpo", given="sft").bit_equal is None
    # Beside the adapter the upper overlay lies on the lower one, which is the ground of both.
    assert point(result, part="given", behavior="dpo", given="left").values["kept_pooled"] is not None
    assert point(result, part="alone", behavior="dpo").prompts[0].values["kl"] > 0
    shares = together.repo.study_attribution()
    assert "sft" in point(shares, part="without", behavior="sft").reason
    assert point(shares, part="without", behavior="dpo").prompts
    assert "without 'sft'" in point(shares, part="share", behavior="left").reason
    assert point(shares, part="sum").prompts == ()
    said = shares.as_json()["figures"]
    assert said["whole"] > 0  # is measured, although its parts are not all known
    assert (said["parts"], said["additivity"]) == (None, None)
    assert [row["moved_most"] for row in said["behaviors"]] == [None] * 3


def test_attribution_says_which_behavior_moved_which_prompt(together: Together) -> None:
    repo = together.repo
    head = together.commit("left", "other", "down")
    result = repo.study_attribution(head)
    whole = outputs(repo, head)
    parts: dict[str, list[float]] = {}
    for name in ("left", "other", "down"):
        rest = outputs(repo, together.commit(*({"left", "other", "down"} - {name})))
        parts[name] = [kl(*pair) for pair in zip(whole, rest, strict=True)]
        back = [kl(*pair) for pair in zip(rest, whole, strict=True)]
        found = point(result, part="without", behavior=name).prompts
        assert [one.values["kl"] for one in found] == pytest.approx(parts[name], rel=1e-6)
        assert [one.values["kl_reverse"] for one in found] == pytest.approx(back, rel=1e-6)
    for place in range(len(PROMPTS)):
        total = sum(part[place] for part in parts.values())
        most = max(parts, key=lambda name: parts[name][place])
        for name, part in parts.items():
            values = point(result, part="share", behavior=name).prompts[place].values
            assert values["kl_share"] == pytest.approx(part[place] / total, rel=1e-6)
            assert values["most"] == float(name == most)
        summed = point(result, part="sum").prompts[place].values
        assert summed["kl_parts"] == pytest.approx(total, rel=1e-6)
        assert summed["kl_gap"] == pytest.approx(summed["kl_whole"] - total, rel=1e-6)
    bare = outputs(repo, repo.commit("none", remove=[slot.name for slot in repo.status().slots]).commit)
    found = [one.values["kl"] for one in point(result, part="whole").prompts]
    assert found == pytest.approx([kl(*pair) for pair in zip(whole, bare, strict=True)], rel=1e-6)


def test_shift_proves_recovery_on_prompts_that_were_held_out(together: Together) -> None:
    head = together.commit("left", "other")
    result = together.repo.study_shift(head, behavior="other", held_out="held")
    assert [one.condition["role"] for one in result.record.points] == ["probe", "probe", "held_out", "held_out"]
    assert [len(one.prompts) for one in result.record.points] == [3, 3, 2, 2]
    for role in ("probe", "held_out"):
        before, after = (point(result, part=part, role=role) for part in ("adapted", "recovered"))
        mean = sum(prompt.values["kl"] for prompt in before.prompts) / len(before.prompts)
        assert mean > 0
        assert after.bit_equal is True
        assert after.values["rf"] == 1.0
        assert after.values["kl_adapted"] == pytest.approx(mean)
        assert (after.values["ils_max"], after.values["ils_flagged"]) == (0.0, 0.0)


@pytest.mark.parametrize(
    ("study", "options", "error", "says"),
    [
        ("interference", {"behaviors": ["left"]}, UsageError, "1 behavior to study"),
        ("interference", {"behaviors": ["left", "nowhere"]}, NotFoundError, "no behavior 'nowhere'"),
        ("interference", {"probe": "nowhere"}, NotFoundError, "nowhere"),
        ("interference", {"revision": "main~9999"}, NotFoundError, "9999"),
        ("attribution", {"probe": "nowhere"}, NotFoundError, "nowhere"),
        ("shift", {"held_out": "nowhere"}, NotFoundError, "nowhere"),
        ("shift", {"held_out": "ten"}, UsageError, "nothing is held out"),
        ("shift", {"held_out": "mixed"}, UsageError, "prompts of 'mixed' are in 'ten' as well: p02"),
        ("shift", {"held_out": "held", "behavior": "nowhere"}, NotFoundError, "nowhere"),
        ("shift", {"held_out": "held", "tolerance": -1.0}, UsageError, "tolerance"),
    ],
)
def test_bad_input_is_refused_before_anything_is_loaded(
    together: Together,
    study: str,
    options: dict[str, Any],
    error: type[RblError],
    says: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    head = together.pair
    monkeypatch.setattr("rblstore.operations.study_model.load_composition", None)
    before = len(together.repo.studies()), len(together.repo.baselines())
    with pytest.raises(error, match=says):
        getattr(together.repo, f"study_{study}")(**{"revision": head, **options})
    assert (len(together.repo.studies()), len(together.repo.baselines())) == before


def test_one_behavior_or_none_is_too_few(together: Together) -> None:
    repo = together.repo
    head = together.commit("left")
    for study in (repo.study_interference, repo.study_attribution):
        with pytest.raises(UsageError, match="at least 2 are needed") as caught:
            study(head)
        assert caught.value.code == "too_few_behaviors"
    bare = repo.commit("none", remove=["left"]).commit
    with pytest.raises(UsageError, match="has no behavior to study"):
        repo.study_shift(str(bare), held_out="held")


def test_what_peft_cannot_attach_is_refused(together: Together) -> None:
    together.adapter("prompt", kind="prompt_tuning")
    together.commit("left")
    head = together.repo.commit("both", behaviors={"prompt": together.folder / "prompt"}, unloadable=True).commit
    for study in ("interference", "attribution"):
        with pytest.raises(ConflictError, match="prompt"):
            getattr(together.repo, f"study_{study}")(str(head))


def test_shared_prompts_are_measured_where_they_are_allowed(together: Together) -> None:
    result = together.repo.study_shift(together.commit("left"), held_out="mixed", allow_shared=True)
    assert result.record.parameters["allow_shared"] is True
    assert [len(one.prompts) for one in points(result, part="recovered")] == [3, 3]


def test_a_study_is_evidence_that_can_be_read_again(together: Together) -> None:
    result = together.repo.study_attribution(together.commit("left", "other"))
    again = together.repo.study(str(result.study_id))
    assert again.record == result.record
    assert together.repo.fsck(full=True).ok
    assert json.loads(json.dumps(result.as_json(), allow_nan=False))["study"] == "attribution"
    assert all(
        math.isfinite(value) for one in result.record.points for value in one.values.values() if value is not None
    )


def test_the_command_line_says_the_same(together: Together) -> None:
    head = together.pair
    table = together.folder / "study.csv"
    for words, says in (
        (["interference", head, "--behavior", "other", "--behavior", "left"], "beside left"),
        (["attribution", head], "sum of the parts"),
        (["shift", head, "--held-out", "held", "--csv", str(table)], "held (held out)"),
    ):
        ran = CliRunner().invoke(rbl, ["-C", str(together.repo.path), "study", *words, "--json"])
        assert ran.exit_code == 0, ran.output
        document = json.loads(ran.stdout)
        shown = CliRunner().invoke(rbl, ["-C", str(together.repo.path), "study", "show", document["id"]])
        assert shown.exit_code == 0, shown.output
        assert says in shown.output
    assert document["figures"]["bit_equal"] == {"probe": True, "held_out": True}
    assert {row["difference"]["mean"] for row in document["figures"]["measures"] if row["measure"] == "rf"} == {0.0}
    assert "condition.role" in table.read_text("utf-8").splitlines()[0]
    refused = CliRunner().invoke(
        rbl, ["-C", str(together.repo.path), "study", "shift", head, "--held-out", "ten", "--json"]
    )
    assert (refused.exit_code, json.loads(refused.stdout)["code"]) == (2, "not_held_out")
