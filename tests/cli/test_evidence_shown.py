"""What verify, revert and show say of uncertainty, of single prompts and of embeddings; and probes that are refused."""

from __future__ import annotations

import json
import math
import re
import struct
from pathlib import Path
from typing import Any

import pytest
import tiny_models
from cli_story import Story, run


def test_a_verification_shows_intervals_flags_and_what_decided(story: Story) -> None:
    story.ok("baseline")
    exact = story.json("verify")
    assert (exact["verdict"], exact["decided_by"]) == ("exact", "bits")
    assert exact["intervals"]["kl"]["high"] == 0
    assert exact["local"] == {"flagged": [], "largest": 0, "mean": 0, "threshold": 1e-6}
    assert "local" not in story.ok("verify")
    found = story.json("verify", "--against", "HEAD~2", code=5)
    assert (found["verdict"], found["decided_by"]) == ("diverged", "upper_95")
    for name in ("kl", "js"):
        interval = found["intervals"][name]
        assert interval["low"] < interval["mean"] < interval["high"]
        assert interval["mean"] == pytest.approx(found[name])
        assert (interval["level"], interval["prompts"], interval["seeds"]) == (0.95, 3, 1)
    assert found["local"]["flagged"] == ["p00", "p01", "p02"]
    least = sorted(prompt["kl"] for prompt in found["prompts"])
    flagged = story.json("verify", "--against", "HEAD~2", "--threshold", least[1], code=5)["local"]
    assert (flagged["threshold"], len(flagged["flagged"]), flagged["largest"]) == (least[1], 1, least[2])
    text = story.run("verify", "--against", "HEAD~2", "--threshold", str(least[1])).stderr
    assert re.search(r"^KL +\S+ nats \[\S+, \S+\]$", text, re.MULTILINE), text
    assert f"1 of 3 prompts above {least[1]:.4g}: {flagged['flagged'][0]}" in text
    assert "KL " in text.splitlines()[0]
    assert "(up to " in text.splitlines()[0]
    assert not any("values" in prompt for prompt in found["prompts"])


def test_the_upper_end_has_to_be_below_the_tolerance(story: Story) -> None:
    story.ok("baseline")
    found = story.json("verify", "--against", "HEAD~2", code=5)
    high = max(found["intervals"][name]["high"] for name in ("kl", "js"))
    mean = max(found["kl"], found["js"])
    assert mean < high
    between = story.json("verify", "--against", "HEAD~2", "--tolerance", (mean + high) / 2, code=5)
    assert (between["verdict"], between["decided_by"]) == ("diverged", "upper_95")
    within = story.json("verify", "--against", "HEAD~2", "--tolerance", high * 1.01)
    assert (within["verdict"], within["decided_by"]) == ("within_tolerance", "upper_95")
    shown = story.json("show", within["verification"])
    assert shown["derived"] == {name: within[name] for name in ("decided_by", "intervals", "local")}
    assert "the 95 % intervals of KL and JS both end below the tolerance" in story.ok("show", within["verification"])


def test_a_revert_keeps_what_rf_needs_of_each_prompt(story: Story) -> None:
    found = story.json("revert", "--behavior", "brief")
    for prompt in found["prompts"]:
        assert prompt["values"]["kl_adapted"] > 0
        assert prompt["values"]["js_adapted"] > 0
    assert (found["rf"], found["decided_by"]) == (1, "bits")
    assert (found["intervals"]["rf"]["low"], found["intervals"]["rf"]["high"]) == (1, 1)
    before = found["intervals"]["kl_adapted"]
    assert before["low"] < before["mean"] < before["high"]
    assert before["mean"] == pytest.approx(found["kl_adapted"])
    assert re.search(r"^before +KL \S+ nats \[\S+, \S+\]\n +JS ", story.ok("show", found["verification"]), re.MULTILINE)
    undone = story.json("revert", "HEAD", "--no-verify")
    assert (undone["intervals"], undone["decided_by"], undone["local"]) == (None, None, None)
    assert "threshold" not in undone


def test_a_threshold_that_is_none_is_refused_before_anything_is_measured(story: Story) -> None:
    before = story.state()
    for command in (["verify"], ["revert", "--behavior", "brief"]):
        result = story.json(*command, "--threshold", "nan", code=2)
        assert result["code"] == "bad_threshold"
        assert story.run(*command, "--threshold", "-1").exit_code == 2
    assert story.state() == before


def test_batches_are_part_of_a_probe(story: Story) -> None:
    made = story.json("probe", "add", "pairs", "--prompts", story.models / "prompts.json", "--batch", "2")
    assert (made["prompts"], made["batches"]) == (3, 2)
    assert story.json("show", "pairs")["record"]["batches"] == [[0, 1], [2]]
    assert "batches    1, padded" in story.ok(
        "probe", "add", "all", "--prompts", story.models / "prompts.json", "--batch", "99"
    )
    assert story.json("baseline", "--probe", "pairs")["prompts"] == 3
    assert story.json("verify", "--probe", "pairs")["verdict"] == "exact"
    # Another plan is another probe: the baseline of one is none of the other's.
    assert story.json("verify", "--probe", "all", code=1)["code"] == "no_baseline"
    before = story.state()
    for batch in ("0", "-1", "1.5", "100000"):
        result = story.run("probe", "add", "other", "--prompts", story.models / "prompts.json", "--batch", batch)
        assert result.exit_code == 2, batch
    assert story.state() == before


@pytest.mark.parametrize(
    ("prompts", "code", "says"),
    [
        ([{"id": "mine", "text": ""}], "bad_probe", "'mine' is empty"),
        ([{"id": "mine", "tokens": []}], "bad_probe", "'mine' is empty"),
        (["w3", {"id": "p00", "tokens": [1]}], "bad_probe", "'p00'"),
        ([{"id": "long", "tokens": [5] * 65}], "probe_mismatch", "'long': 65 tokens, and the model reads at most 64"),
    ],
)
def test_prompts_that_no_model_reads_are_refused_when_they_are_added(
    story: Story, tmp_path: Path, prompts: list[Any], code: str, says: str
) -> None:
    (tmp_path / "prompts.json").write_text(json.dumps(prompts))
    before = story.state()
    result = story.json("probe", "add", "bad", "--prompts", tmp_path / "prompts.json", code=4 if "65" in says else 1)
    assert result["code"] == code
    assert says in result["error"]
    assert story.state() == before


def test_a_model_that_gives_nan_leaves_no_evidence(story: Story, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    broken.mkdir()
    for path in (story.models / "polite").iterdir():
        (broken / path.name).write_bytes(path.read_bytes())
    data = bytearray((broken / "adapter_model.safetensors").read_bytes())
    data[-4:] = struct.pack("<f", math.nan)
    (broken / "adapter_model.safetensors").write_bytes(data)
    story.ok("baseline")
    story.ok("commit", "-m", "broken", "--behavior", f"broken={broken}")
    before, recorded = story.state(), story.json("baseline", "--list")
    for command in (["baseline"], ["verify", "--against", "HEAD~1"]):
        result = story.json(*command, code=1)
        assert (result["code"], result["object"]) == ("nan_output", "p00")
        assert "prompt 'p00'" in result["error"]
        assert "verification" not in result
    assert (story.state(), story.json("baseline", "--list")) == (before, recorded)
    # Taking it out is possible, and proved; there is no RF, and no number that NaN made.
    found = story.json("revert", "--behavior", "broken")
    assert (found["verdict"], found["rf"], found["kl_adapted"]) == ("exact", None, None)
    assert not any("values" in prompt for prompt in found["prompts"])
    assert "rf" not in found["intervals"]


def test_embeddings_are_never_said_to_have_a_divergence(tmp_path: Path) -> None:
    base = tiny_models.bert()
    tiny_models.save(base, tmp_path / "base")
    tiny_models.save_adapter(base, tmp_path / "polite", seed=1)
    (tmp_path / "prompts.json").write_text(json.dumps([{"tokens": [5, 17]}, {"tokens": [80, 3, 42]}]))
    story = Story(tmp_path / "store", tmp_path)
    assert run("init", story.store).exit_code == 0
    story.ok("commit", "-m", "base", "--identity", tmp_path / "base")
    story.ok("probe", "add", "two", "--prompts", tmp_path / "prompts.json")
    story.ok("baseline")
    same = story.json("verify")
    assert (same["verdict"], same["kl"], same["decided_by"]) == ("exact", None, "bits")
    assert [prompt["values"] for prompt in same["prompts"]] == [{"relative_l2": 0, "cosine": 1}] * 2
    story.ok("commit", "-m", "polite", "--behavior", f"polite={tmp_path / 'polite'}")
    found = story.json("verify", "--against", "HEAD~1", "--tolerance", "1e9", code=5)
    assert (found["verdict"], found["decided_by"], found["kl"], found["js"]) == ("diverged", "bits", None, None)
    assert set(found["intervals"]) == {"relative_l2", "cosine"}
    assert found["intervals"]["relative_l2"]["mean"] > 0
    assert "relative L2" in found["error"]
    text = story.run("verify", "--against", "HEAD~1").stderr
    assert re.search(r"^relative L2 +\S+ \[", text, re.MULTILINE)
    assert re.search(r"^prompt +relative L2 +cosine +bit-equal", text, re.MULTILINE)
    assert re.search(r"^KL +-$", text, re.MULTILINE)
    reverted = story.json("revert", "--behavior", "polite")
    assert (reverted["verdict"], reverted["rf"]) == ("exact", None)
    for prompt in reverted["prompts"]:
        assert prompt["values"]["relative_l2"] == 0
        assert prompt["values"]["relative_l2_adapted"] > 0
        assert "kl_adapted" not in prompt["values"]
