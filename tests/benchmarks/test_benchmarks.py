"""The parts of the benchmarks that measure nothing: what they make of figures, and what they skip."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path
from typing import Any

import figures
import live_page
import live_switching
import live_training
import many_behaviors
import peer_page
import peer_rounds
import peers
import pytest
import scale
import synthetic
import targets
import verification
from measuring import ProcessFailedError, Run, run
from peer_tools import ADAPTER, BASE, FINE_TUNE, MERGED, PEERS, STEPS, TOUCHED, UNTOUCHED, Action, Peer, installed

VARIABLES = {"PATH": "/usr/bin:/bin"}


def _document(**walls: float) -> dict[str, Any]:
    """A run of three tools in which every step takes as long as is said of the tool."""

    def part(name: str) -> dict[str, Any]:
        seconds = walls[name.replace("-", "_")]
        steps = {
            step: {
                "command": "x",
                "wall_s": [seconds, 9 * seconds, seconds / 2],
                "cpu_s": [1.0] * 3,
                "peak_bytes": [100, 200, 150],
                "failed": None,
            }
            for step in STEPS
            if step != MERGED
        }
        return {"title": name, "steps": steps, "store_bytes": {BASE: [600], FINE_TUNE: [800], ADAPTER: [801]}}

    names = ("rblstore", "dvc-hardlink", "borg-none")
    return {
        "name": "peers",
        "machine": {
            "processor": "p", "cores": 2, "memory_bytes": 1 << 30, "file_system": "f", "kernel": "k",
            "load_average": [0.1, 0.1, 0.1],
        },
        "versions": {"python": "3"},
        "rounds": 3,
        "floor_bytes": 10,
        "inputs": {BASE: {"bytes": 1000}, FINE_TUNE: {"bytes": 1000}, ADAPTER: {"bytes": 10}},
        "peers": {name: part(name) for name in names},
        "skipped": {"restic": "not on PATH: restic"},
        "load": {
            "from_pretrained": [_loaded(0.5)] * 3,
            "repo.load": [_loaded(0.4), _loaded(0.3), _loaded(9.0)],
        },
    }  # fmt: skip


def _loaded(total: float) -> dict[str, Any]:
    return {
        "load_s": total, "total_s": total, "again_s": total, "imported_bytes": 50, "model_bytes": 1000,
        "peak_bytes": 1100,
    }  # fmt: skip


def _by_name(found: list[targets.Verdict]) -> dict[str, targets.Verdict]:
    return {one.what: one for one in found}


def test_medians_keep_their_extremes_and_nothing_has_none() -> None:
    assert figures.spread([3.0, 1.0, 9.0]) == figures.Spread(3.0, 1.0, 9.0)
    assert figures.spread([]) is None
    assert figures.median(None) is None
    assert figures.ratio(1.0, 4.0) == 0.25
    assert figures.ratio(1.0, 0.0) is None
    assert figures.ratio(None, 1.0) is None


def test_the_exponent_of_a_power_law_is_found_and_is_of_its_size_alone() -> None:
    points = [(size, 7.0 * size**1.25) for size in (1.0, 10.0, 300.0, 8000.0)]
    found = figures.exponent(points)
    assert found is not None
    assert math.isclose(found, 1.25)
    assert figures.exponent([(5.0, 1.0), (5.0, 2.0)]) is None
    assert figures.exponent([(5.0, 1.0), (6.0, 0.0), (7.0, -1.0)]) is None


def test_neighbours_leave_out_what_belongs_to_another_order_of_magnitude() -> None:
    values = [float(number) for number in range(1, 101)]
    assert figures.neighbours(values, 1) == 1.0
    assert figures.neighbours([100.0, 100.0, *values[2:]], 10) == 10.0
    assert figures.neighbours(values, 50) == 50.0
    assert figures.neighbours(values, 100) == 95.0
    assert figures.neighbours(values, 101) is None


def test_tables_are_markdown_and_figures_keep_what_says_something() -> None:
    table = figures.markdown_table(("a", "b"), [("x|y", figures.digits(None)), ("z", figures.digits(1234.5))])
    assert table.splitlines() == ["| a | b |", "|---|---:|", "| x\\|y | n/a |", "| z | 1,234.50 |"]
    assert figures.digits(0.00123) == "0.0012"
    assert figures.digits(0.0) == "0.00"


def test_targets_are_met_at_the_limit_missed_above_it_and_silent_without_figures() -> None:
    found = _by_name(targets.verdicts(_document(rblstore=0.8, dvc_hardlink=1.0, borg_none=0.8)))
    assert found["commit base"].met is True
    assert found["commit adapter"] == targets.Verdict("commit adapter", "x DVC with hard links", 0.8, 0.8, True)
    assert found["re-commit, touched"].measured == 1.0
    assert found["re-commit, touched"].met is False
    assert found["store after base"].measured == 0.6
    assert found["added by the fine-tune"].measured == 0.2
    assert found["checkout fine-tune"].measured == 1.0
    assert found["repo.load, verified"].measured == pytest.approx(0.8)
    assert found["commit base, compression none"].met is None
    assert found["peak memory of commit and checkout, merged too"].measured == pytest.approx(200 / 256e6)
    assert found["peak memory of repo.load over the imports, less the model"].measured == pytest.approx(50 / 128e6)


def test_a_step_that_failed_in_any_round_has_no_figure() -> None:
    document = _document(rblstore=0.1, dvc_hardlink=1.0, borg_none=1.0)
    document["peers"]["rblstore"]["steps"][UNTOUCHED]["failed"] = "it broke"
    found = _by_name(targets.verdicts(document))
    assert found["re-commit, untouched"].met is None
    text = peer_page.page(document, ["peers-time.svg"])
    assert "- rblstore: it broke (again, untouched)" in text
    assert "- restic: not on PATH: restic" in text
    assert "![peers-time.svg](peers-time.svg)" in text
    assert "| re-commit, untouched | 0.8 x DVC with hard links | n/a | not measured |" in text
    assert "| rblstore | 0.10 (0.05 to 0.90) |" in text
    assert "| dvc-hardlink | 0.10 | 0.10 | 0.10 | n/a | 0.10 |" in text


def test_growth_is_fitted_above_the_fixed_cost() -> None:
    sizes = (1e6, 1e8, 1e9, 8e9)
    points = [
        {"bytes": size, "commit_s": [0.5 + 3e-9 * size], "checkout_s": [0.5 + 2e-9 * size], "peak_bytes": [size / 100]}
        for size in sizes
    ]
    found = scale.exponents(points)
    whole, above = found["commit"]["whole"], found["commit"]["above_fixed_cost"]
    assert whole is not None
    assert above is not None
    assert whole < 0.95 < above < 1.01
    document = {"exponents": {"rblstore": found}, "sizes": {"rblstore": points}, "behaviors": {
        "commit_s": {"1": 0.1, "10": 0.01, "10000": 0.013}}}  # fmt: skip
    judged = _by_name(targets.verdicts(document, targets.SCALE_TARGETS))
    assert judged["exponent of commit"].met is True
    assert judged["committing the 10,000th behavior"].met is False
    assert judged["peak memory at any size"].measured == pytest.approx(80 / 256)
    del document["behaviors"]
    assert _by_name(targets.verdicts(document, targets.SCALE_TARGETS))["committing the 10,000th behavior"].met is None


def test_what_is_not_installed_is_skipped_by_name_and_a_wrong_name_is_refused(tmp_path: Path) -> None:
    (tmp_path / "borg").write_text("#!/bin/sh\n")
    (tmp_path / "borg").chmod(0o755)
    found, skipped = installed(("borg-none", "dvc", "git-lfs"), str(tmp_path))
    assert [peer.name for peer in found] == ["borg-none"]
    assert skipped == {"dvc": "not on PATH: git, dvc", "git-lfs": "not on PATH: git, git-lfs"}
    with pytest.raises(SystemExit, match="unknown peer: tar"):
        installed(("tar",), str(tmp_path))


def test_every_peer_has_every_step_and_names_no_folder_of_this_machine() -> None:
    for peer in PEERS.values():
        assert set(peer.actions) >= set(STEPS) - {MERGED}
        lines = [*peer.prepare, *(line for one in peer.actions.values() for line in (one.line, *one.before))]
        assert not [line for line in lines if " /" in line]


def test_a_round_times_steps_compares_what_comes_back_and_goes_on_after_a_failure(tmp_path: Path) -> None:
    source = synthetic.write_checkpoint(tmp_path / "model", 4096)
    sources = dict.fromkeys((BASE, FINE_TUNE), source)
    good = Action("cp -r base store/base")
    peer = Peer("made", "made", (), "store", ("mkdir store",), (), {
        "commit base": good,
        "commit fine-tune": Action("echo no room >&2; exit 3"),
        TOUCHED: Action("cmp -s base/model.safetensors store/base/model.safetensors || cp -r base store/touched"),
        "restore base": Action("cp -r store/base out", restored="out"),
        "restore fine-tune": Action("true"),
    })  # fmt: skip
    found = peer_rounds.one_round(peer, sources, tmp_path, VARIABLES)
    assert set(found.runs) == {"commit base", TOUCHED, "restore base"}
    assert found.failures["commit fine-tune"].endswith("no room")
    assert found.failures["restore fine-tune"] == "fine-tune was not committed"
    size = peer_rounds.tree_bytes(source)
    assert found.stores == {BASE: size, TOUCHED: 2 * size}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model"]

    lossy = Action("cp -r store/base out && printf x >> out/config.json", restored="out")
    wrong = Peer("made", "made", (), "store", ("mkdir store",), (), {"commit base": good, "restore base": lossy})
    found = peer_rounds.one_round(wrong, sources, tmp_path, VARIABLES)
    assert "config.json" in found.failures["restore base"]

    part = peers.blank(peer)
    peers.record(part, peer, peer_rounds.Round({"commit base": Run(0.5, 0.4, 7)}, {BASE: 9}, {TOUCHED: "broke"}))
    assert part["steps"]["commit base"]["wall_s"] == [0.5]
    assert part["steps"][TOUCHED]["failed"] == "broke"
    assert part["store_bytes"] == {BASE: [9]}


def test_a_touch_changes_the_lowest_bit_of_four_elements_and_no_more(tmp_path: Path) -> None:
    path = synthetic.write_checkpoint(tmp_path / "model", 4096) / "model.safetensors"
    before = path.read_bytes()
    peer_rounds.touch(tmp_path / "model")
    after = path.read_bytes()
    changed = [at for at in range(len(before)) if before[at] != after[at]]
    assert len(after) == len(before)
    assert [later - earlier for earlier, later in itertools.pairwise(changed)] == [2, 2, 2]
    assert all(before[at] ^ after[at] == 1 for at in changed)


def test_a_process_that_fails_says_so_and_one_with_links_is_weighed_once(tmp_path: Path) -> None:
    with pytest.raises(ProcessFailedError, match="exited 4:\nbroken"):
        run(["sh", "-c", "echo broken >&2; exit 4"], tmp_path, VARIABLES)
    (tmp_path / "one").write_bytes(b"12345")
    (tmp_path / "two").hardlink_to(tmp_path / "one")
    assert peer_rounds.tree_bytes(tmp_path) == 5


def _live_document(guarded: float = 0.11, again: float = 0.1) -> dict[str, Any]:
    """A run on one model: a copy takes 1 ms, loading anew 1 s, a step 0.1 s, or as long as given where one checks."""
    milliseconds = {
        live_switching.COPY: 1.0, live_switching.RELOAD: 1010.0, live_switching.WARM: 10.0,
        live_switching.MERGED_DETACH + live_switching.CACHED: 2.0,
        live_switching.MERGED_DETACH + live_switching.STORED: 251.0,
        live_switching.SWITCH: 4.0, live_switching.SET_ADAPTER: 5.0,
    }  # fmt: skip

    def loop(seconds: float) -> list[dict[str, float]]:
        others = dict.fromkeys(("enter_s", "leave_s", "cpu_s", "inside_s"), 0.5)
        steps = [seconds if number % 10 == 9 else 0.1 for number in range(29)]
        return [{"loop_s": sum(steps), "steps_s": steps, **others}] * 3

    row = {"dtype": "bfloat16", "of_elements": 8, "max_abs": 0.5, "mean_abs": 0.25, "relative": 0.125, "elsewhere": 0}
    return {
        "name": "live", "machine": _document(rblstore=1.0, dvc_hardlink=1.0, borg_none=1.0)["machine"],
        "versions": {"python": "3"}, "rounds": 3, "threads": 2,
        "subjects": {"tiny": {
            "bytes": 1000, "touched_bytes": 100, "bit_equal_afterwards": True,
            "seconds": {name: [took / 1e3] * 3 for name, took in milliseconds.items()},
        }},
        "cycles": [
            {"tool": "peft", "cycles": 1000, "bits": 4096, "elements": 4, **row},
            {"tool": "rblstore", "cycles": 1000, "bits": 0, "elements": 0, **row},
        ],
        "training": {
            "steps": 29, "every": 10, "checks": 2, "tokens": 64, "check_s": {"full, 1 threads": [0.02]},
            "loops": {
                live_training.PLAIN: loop(0.1), live_training.AGAIN: loop(again), live_training.GUARD: loop(guarded),
            },
        },
    }  # fmt: skip


def test_live_targets_are_ratios_inside_the_run() -> None:
    document = _live_document()
    found = _by_name(targets.verdicts(document, live_page.live_targets(document)))
    assert found["take out a merged behavior, cached"].measured == pytest.approx(2.0)
    assert found["take out a merged behavior, from the store"].measured == pytest.approx(0.251)
    assert found["take out a merged behavior, from the store"].met is False
    assert found["switch, held apart"].met is True
    assert found["bits changed by merging and unmerging"].met is True
    assert found["guard every 10 steps"].measured == pytest.approx(0.01)
    assert found["RblCallback every 10 steps"].met is None
    text = live_page.page(document)
    assert "| peft, bfloat16 | 1,000 | 4,096 | 50.0% |" in text
    assert "| guard, behind | 0.100 | 0.500 | 0.500 | 0.500 | 0.500 | +1.0% |" in text
    assert "The callback was not measured." in text


def test_a_cache_that_is_too_small_is_said_to_be() -> None:
    document = _live_document()
    document["subjects"]["tiny"]["cache_bytes"] = 300
    assert "push each other out" not in live_page.page(document)
    document["subjects"]["tiny"]["cache_bytes"] = 299
    assert "push each other out" in live_page.page(document)


def test_an_overhead_is_stated_for_ten_steps_and_slow_steps_anywhere_are_none() -> None:
    document = _live_document()
    document["training"] |= {"every": 4}
    kinds = document["training"]["loops"]
    # Every fourth step is 10 ms longer, which is 1 % of ten steps.
    kinds[live_training.GUARD][:] = [{"steps_s": [0.11 if number % 4 == 3 else 0.1 for number in range(23)]}]
    assert live_page.overhead(document, live_training.GUARD) == pytest.approx(0.01)
    # One step in each half takes twice as long, as steps now and then do.
    kinds[live_training.PLAIN][:] = [{"steps_s": [0.2 if number % 2 else 0.1 for number in range(23)]}]
    assert live_page.overhead(document, live_training.PLAIN) == pytest.approx(0.0)


def test_an_overhead_below_the_noise_is_no_figure() -> None:
    document = _live_document(guarded=0.05, again=0.125)
    assert live_page.overhead(document, live_training.GUARD) == pytest.approx(-0.05)
    assert live_page.noise(document) == pytest.approx(0.025)
    found = _by_name(targets.verdicts(document, live_page.live_targets(document)))
    assert found["guard every 10 steps"].met is None


def test_residual_error_is_counted_in_bits() -> None:
    torch = pytest.importorskip("torch")
    import live_cycles

    before = {"w": torch.tensor([1.0, -2.0, 3.0, 2.0], dtype=torch.bfloat16), "n": torch.tensor([float("nan"), 0.0])}
    now = {name: one.clone() for name, one in before.items()}
    assert live_cycles.residue({"w": now["w"]}, {"w": before["w"]})["bits"] == 0
    now["w"][2] = 3.5  # mantissas 1.1000000 and 1.1100000
    now["n"][1] = -0.0
    assert live_cycles.residue({"w": now["w"]}, {"w": before["w"]}) == {
        "bits": 1, "elements": 1, "of_elements": 4, "max_abs": 0.5, "mean_abs": 0.125, "relative": 0.0625,
    }  # fmt: skip
    assert live_cycles.changed_bits(now["n"], before["n"]) == (1, 1)


def test_made_behaviors_differ_and_made_weights_are_normal(tmp_path: Path) -> None:
    np = pytest.importorskip("numpy")
    first = (many_behaviors.write_adapter(tmp_path / "a", 1) / "adapter_model.safetensors").read_bytes()
    second = (many_behaviors.write_adapter(tmp_path / "a", 2) / "adapter_model.safetensors").read_bytes()
    assert first != second
    assert len(first) == len(second)
    path = synthetic.write_normal_checkpoint(tmp_path / "m", 200_000) / "model.safetensors"
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    bits = np.frombuffer(data[8 + length :], "<u2").astype("<u4") << 16
    values = bits.view("<f4")
    assert json.loads(data[8 : 8 + length])["model.layers.0.weight"]["dtype"] == "BF16"
    assert abs(float(values.std()) - 0.02) < 1e-3
    assert abs(float(values.mean())) < 1e-3


def _verification_document(differing: float = 1.4) -> dict[str, Any]:
    names = tuple(verification.TITLES)
    return {
        "name": "verification", "machine": _document(rblstore=1.0, dvc_hardlink=1.0, borg_none=1.0)["machine"],
        "versions": {"python": "3"}, "rounds": 3, "threads": 2, "model": "m", "parameters": 2_000_000, "dtype": "BF16",
        "prompts": 10, "positions": 154, "vocabulary": 262_144,
        "memory_over_model_bytes": {"bare": 1_000_000, "equal": 2_000_000, "differing": 301_000_000},
        "wall_s": {name: [1.0, 9.0, 0.5] for name in names}, "cpu_s": {name: [1.0] * 3 for name in names},
        "ratios": {"equal": [1.05, 9.0, 1.0], "differing": [differing, 9.0, 1.0], "plain": [1.8, 1.9, 1.7]},
        "cpu_ratios": {"equal": [1.0] * 3, "differing": [1.3] * 3, "plain": [1.8] * 3},
    }  # fmt: skip


def test_verification_targets_are_medians_of_ratios() -> None:
    document = _verification_document()
    found = _by_name(targets.verdicts(document, verification.TARGETS))
    assert found["verify outputs that are bit-equal"].measured == 1.05
    assert found["verify outputs that differ"].met is True
    assert found["memory over the model"].met is False
    assert "154 positions x 262,144" in verification.page(document)
    assert _by_name(targets.verdicts(_verification_document(1.51), verification.TARGETS))[
        "verify outputs that differ"
    ].met is False  # fmt: skip
    document["memory_over_model_bytes"] = dict.fromkeys(document["memory_over_model_bytes"])
    assert _by_name(targets.verdicts(document, verification.TARGETS))["memory over the model"].met is None
    assert "not measured" in verification.page(document)
