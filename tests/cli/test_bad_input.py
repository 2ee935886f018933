"""Bad input, a case each: one clear error that names the object and the next step, its exit code, nothing changed."""

from __future__ import annotations

import errno
import json
import os
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cli_story import Story, run

import rblstore
from rblstore.catalog.database import CatalogReader
from rblstore.objects.ids import RecordId
from rblstore.transaction import Transaction

ROOT = Path(__file__).parents[2]


def refused(story: Story, *arguments: str | Path, exit_code: int, code: str, says: str, hinted: bool = True) -> Any:
    """Runs a command that must fail in one way and change nothing; gives the document."""
    before = story.state()
    result = story.run(*arguments)
    assert (result.exit_code, result.stdout) == (exit_code, "")
    assert result.stderr.count("error: ") == 1
    assert says in result.stderr
    assert ("hint: " in result.stderr) == hinted
    document = story.json(*arguments, code=exit_code)
    assert (document["code"], document["exit_code"]) == (code, exit_code)
    assert says in document["error"] or says in (document["hint"] or "")
    assert story.state() == before
    assert story.json("fsck", "--full")["ok"] is True
    assert not list((story.store / ".rbl" / "tmp").iterdir())
    return document


@pytest.mark.parametrize(
    "arguments",
    [
        ["log"], ["show"], ["diff"], ["status"], ["audit"], ["branch"], ["tag"], ["undo"], ["op", "log"], ["fsck"],
        ["reindex"], ["switch", "x"], ["commit", "-m", "x"], ["checkout", "HEAD", "out"], ["revert", "HEAD"],
        ["probe", "list"], ["probe", "add", "p", "--prompts", "f"], ["baseline"], ["verify"],
    ],
    ids=" ".join,
)  # fmt: skip
def test_not_a_repository(arguments: list[str], tmp_path: Path) -> None:
    result = run("-C", tmp_path, *arguments)
    assert (result.exit_code, result.stdout) == (3, "")
    assert f"{tmp_path} is not in an rblstore repository" in result.stderr
    assert "hint: Make one with: rbl init" in result.stderr
    assert json.loads(run("-C", tmp_path, *arguments, "--json").stdout)["code"] == "no_repository"
    assert not list(tmp_path.iterdir())


def test_a_repository_of_a_later_format(story: Story) -> None:
    (story.store / ".rbl" / "format").write_text("rblstore 9\n")
    document = story.json("log", code=3)
    assert "'rblstore 9'" in document["error"]
    assert "version" in document["hint"]


@pytest.mark.parametrize(
    "text",
    ["bogus = 1", 'author = "x', "author = 5", 'storage = "fast"', '[storage]\ncompression = "best"', "#" * 70_000],
    ids=lambda text: text[:20],
)
def test_settings_that_cannot_be_read(text: str, story: Story) -> None:
    (story.store / ".rbl" / "config.toml").write_text(text + "\n")
    document = story.json("log", code=1)
    assert document["error"].startswith("config.toml: ")
    assert (document["object"], "config.toml" in document["hint"]) == ("config.toml", True)


@pytest.mark.parametrize("command", [["log"], ["show"], ["diff"], ["audit"], ["verify"], ["revert"], ["baseline"]])
def test_an_unknown_revision(command: list[str], story: Story) -> None:
    refused(story, *command, "nowhere", exit_code=1, code="unknown_revision", says="'nowhere'")


def test_a_revision_behind_the_first_commit(story: Story) -> None:
    refused(story, "log", "HEAD~9", exit_code=1, code="unknown_revision", says="'HEAD~9'")


def test_an_ambiguous_revision(story: Story, monkeypatch: pytest.MonkeyPatch) -> None:
    def find(*_: object) -> list[tuple[RecordId, str]]:
        return [(RecordId("abcdef" + "0" * 58), "commit"), (RecordId("abcdef" + "1" * 58), "commit")]

    monkeypatch.setattr(CatalogReader, "find_records", find)
    refused(story, "log", "abcdef", exit_code=2, code="ambiguous_revision", says="abcdef000000 (commit)")


@pytest.mark.parametrize("revision", ["HEAD~x", "HEAD^^^z", "~1", "main@{nothing}", "a b", "../x", "\x1b[2J"])
def test_a_malformed_revision(revision: str, story: Story) -> None:
    before = story.state()
    result = story.run("log", revision)
    assert (result.exit_code, result.stdout) in ((1, ""), (2, ""))
    assert result.stderr.startswith("error: ")
    assert "hint: " in result.stderr
    assert "\x1b" not in result.stderr
    assert story.state() == before


@pytest.mark.parametrize("name", ["../x", "a/../b", "HEAD", "-x", "a b", "a..b", "x.lock", "con", "ü", "a" * 300])
def test_a_name_that_no_branch_may_have(name: str, story: Story) -> None:
    for command in (["branch", "--", name], ["tag", "--", name], ["switch", "-c", "--", name]):
        result = story.run(*command)
        assert (result.exit_code, "error: " in result.stderr) == (2, True), command


@pytest.mark.parametrize("name", ["..", "../x", "a/b", "con", ".rbl", "", "a b"])
def test_a_behavior_name_that_would_leave_the_directory(name: str, story: Story) -> None:
    before = story.state()
    result = story.run("commit", "-m", "x", "--behavior", f"{name}={story.models / 'polite'}")
    assert result.exit_code == 2
    assert story.state() == before


def test_an_adapter_for_another_model(story: Story) -> None:
    document = refused(
        story, "commit", "-m", "x", "--behavior", f"f={story.models / 'foreign'}",
        exit_code=4, code="wrong_base", says="transformer.h.0.attn.c_attn",
    )  # fmt: skip
    assert document["object"]


def test_an_adapter_trained_on_a_fine_tune(story: Story, tmp_path: Path) -> None:
    adapter = _copy(story.models / "polite", tmp_path / "adapter")
    _edit_json(adapter / "adapter_config.json", lambda config: config.update(
        base_model_name_or_path=str(story.models / "tuned")
    ))  # fmt: skip
    refused(
        story, "commit", "-m", "x", "--behavior", f"t={adapter}",
        exit_code=4, code="wrong_base", says="model.layers.0.self_attn.q_proj.weight",
    )  # fmt: skip


def test_an_adapter_of_another_shape(story: Story, tmp_path: Path) -> None:
    adapter = _copy(story.models / "polite", tmp_path / "adapter")
    _edit_header(adapter / "adapter_model.safetensors", _swap_first_shape)
    result = story.run("commit", "-m", "x", "--behavior", f"s={adapter}")
    assert result.exit_code in (1, 4)
    assert "q_proj" in result.stderr or "v_proj" in result.stderr


def test_a_truncated_file(story: Story, tmp_path: Path) -> None:
    model = _copy(story.models / "base", tmp_path / "model")
    data = (model / "model.safetensors").read_bytes()
    (model / "model.safetensors").write_bytes(data[:-7])
    refused(
        story, "commit", "-m", "x", "--identity", model, exit_code=1, code="bad_safetensors", says="model.safetensors"
    )


def test_a_file_whose_header_lies(story: Story, tmp_path: Path) -> None:
    model = _copy(story.models / "base", tmp_path / "model")

    def lie(header: dict[str, Any]) -> None:
        name = next(key for key in header if key != "__metadata__")
        header[name]["data_offsets"][1] += 4

    _edit_header(model / "model.safetensors", lie)
    refused(
        story, "commit", "-m", "x", "--identity", model, exit_code=1, code="bad_safetensors", says="model.safetensors"
    )


def test_a_header_with_a_key_twice(story: Story, tmp_path: Path) -> None:
    model = _copy(story.models / "base", tmp_path / "model")
    path = model / "model.safetensors"
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header = data[8 : 8 + length].rstrip()
    name = next(key for key in json.loads(header) if key != "__metadata__")
    twice = header[:-1] + f',"{name}":{json.dumps(json.loads(header)[name])}}}'.encode()
    path.write_bytes(struct.pack("<Q", len(twice)) + twice + data[8 + length :])
    refused(story, "commit", "-m", "x", "--identity", model, exit_code=1, code="bad_safetensors", says=name)


def test_an_index_that_leaves_the_directory(story: Story, tmp_path: Path) -> None:
    model = _copy(story.models / "base", tmp_path / "model")
    index = {"metadata": {}, "weight_map": {"model.embed_tokens.weight": "../base/model.safetensors"}}
    (model / "model.safetensors").unlink()
    (model / "model.safetensors.index.json").write_text(json.dumps(index))
    before = story.state()
    result = story.run("commit", "-m", "x", "--identity", model)
    assert result.exit_code == 1
    assert result.stderr.startswith("error: ")
    assert story.state() == before


def test_a_link_that_leaves_the_directory(story: Story, tmp_path: Path) -> None:
    model = _copy(story.models / "base", tmp_path / "model")
    (tmp_path / "secret").write_text("secret")
    (model / "notes.txt").symlink_to(tmp_path / "secret")
    before = story.state()
    result = story.run("commit", "-m", "x", "--identity", model, "--json")
    if result.exit_code == 0:  # left out and named
        assert "notes.txt" in json.dumps(json.loads(result.stdout)["left_out"])
    else:
        assert (result.exit_code, story.state()) == (1, before)
        assert "notes.txt" in result.stderr


def test_weights_that_are_only_a_pickle(story: Story, tmp_path: Path) -> None:
    model = _copy(story.models / "base", tmp_path / "model")
    (model / "model.safetensors").unlink()
    (model / "pytorch_model.bin").write_bytes(b"\x80\x02}q\x00.")
    document = refused(
        story, "commit", "-m", "x", "--identity", model,
        exit_code=1, code="pickle_refused", says="pytorch_model.bin",
    )  # fmt: skip
    assert "safetensors" in document["hint"]


@pytest.mark.parametrize("option", ["--identity", "--behavior"])
def test_a_directory_that_is_not_there(option: str, story: Story, tmp_path: Path) -> None:
    path = str(tmp_path / "missing")
    value = path if option == "--identity" else f"x={path}"
    refused(story, "commit", "-m", "x", option, value, exit_code=1, code="bad_directory", says=path, hinted=True)


def test_nan_weights_are_committed_with_a_warning(story: Story, tmp_path: Path) -> None:
    adapter = _copy(story.models / "polite", tmp_path / "adapter")
    path = adapter / "adapter_model.safetensors"
    data = bytearray(path.read_bytes())
    data[-4:] = struct.pack("<f", float("nan"))
    path.write_bytes(data)
    result = story.run("commit", "-m", "x", "--behavior", f"n={adapter}")
    assert result.exit_code == 0
    assert "warning: " in result.stderr
    assert "NaN" in result.stderr


def test_a_checkout_into_a_directory_that_is_not_empty(story: Story, tmp_path: Path) -> None:
    target = tmp_path / "out"
    target.mkdir()
    (target / "mine.txt").write_text("mine")
    refused(story, "checkout", "HEAD", target, exit_code=4, code="target_not_empty", says=str(target))
    assert [path.name for path in target.iterdir()] == ["mine.txt"]


def test_a_directory_that_is_no_checkout(story: Story, tmp_path: Path) -> None:
    refused(story, "status", tmp_path, exit_code=1, code="bad_input", says=str(tmp_path))


def test_a_branch_that_moved_meanwhile(story: Story, monkeypatch: pytest.MonkeyPatch) -> None:
    publish = Transaction.publish
    winners = []

    def publish_after_another(transaction: Transaction) -> None:
        monkeypatch.setattr(Transaction, "publish", publish)
        with rblstore.open(story.store) as other:
            winners.append(other.commit("the other", allow_empty=True).commit)
        publish(transaction)

    monkeypatch.setattr(Transaction, "publish", publish_after_another)
    result = story.run("commit", "-m", "ours", "--remove", "brief", "--json")
    document = json.loads(result.stdout)
    assert (result.exit_code, document["code"]) == (4, "ref_moved")
    assert "main" in document["error"]
    assert story.json("log", "-n", "1")[0]["commit"] == winners[0]
    assert story.json("fsck", "--full")["ok"] is True


def test_nothing_to_commit(story: Story) -> None:
    refused(story, "commit", "-m", "x", exit_code=1, code="nothing_changed", says="nothing changed")


def test_a_first_commit_without_an_identity(story: Story) -> None:
    story.ok("switch", "--orphan", "fresh")
    refused(story, "commit", "-m", "x", exit_code=2, code="no_identity", says="identity")
    refused(story, "log", exit_code=1, code="no_commits", says="'fresh'")


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["commit", "-m", "x", "--remove", "nobody"], "no_such_behavior"),
        (["commit", "-m", "x", "--weight", "nobody=2"], "no_such_behavior"),
        (["revert", "--behavior", "nobody"], "no_such_behavior"),
        (["switch", "nobody"], "no_such_branch"),
        (["branch", "-d", "nobody"], "no_such_branch"),
        (["tag", "-d", "nobody"], "no_such_tag"),
        (["baseline", "--probe", "nobody"], "no_such_probe"),
        (["verify", "--probe", "nobody"], "no_such_probe"),
        (["revert", "HEAD", "--probe", "nobody"], "no_such_probe"),
        (["undo", "nobody"], "unknown_revision"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else value,
)
def test_a_name_that_nobody_has(arguments: list[str], code: str, story: Story) -> None:
    document = refused(story, *arguments, exit_code=1, code=code, says="nobody")
    assert document["object"] == "nobody"


@pytest.mark.parametrize("weight", ["abc", "nan", "inf", "-Infinity", "1e999"])
def test_a_weight_that_is_no_finite_number(weight: str, story: Story) -> None:
    refused(story, "commit", "-m", "x", f"--weight=polite={weight}", exit_code=2, code="usage", says=f"polite={weight}")


@pytest.mark.parametrize("command", ["log", "fsck", "reindex"])
def test_a_repository_of_another_user(command: str, story: Story, monkeypatch: pytest.MonkeyPatch) -> None:
    if os.geteuid() == 0:
        os.chown(story.store / ".rbl", 54321, -1)
    else:
        monkeypatch.setattr(os, "geteuid", lambda: 54321)
    document = story.json(command, code=3)
    assert (document["code"], document["object"]) == ("foreign_owner", str(story.store / ".rbl"))
    assert "--allow-foreign" in document["hint"]
    assert run("--allow-foreign", "-C", story.store, command).exit_code == 0


def test_a_repository_that_is_there_already(story: Story) -> None:
    refused(story, "init", exit_code=4, code="exists", says=str(story.store))


def test_a_file_of_prompts_that_is_not_there(story: Story, tmp_path: Path) -> None:
    path = str(tmp_path / "missing")
    refused(story, "probe", "add", "p", "--prompts", path, exit_code=1, code="bad_input", says=path)


def test_refs_that_exist_or_are_in_use(story: Story) -> None:
    refused(story, "tag", "v1", exit_code=4, code="ref_exists", says="'v1'")
    refused(story, "branch", "main", exit_code=4, code="ref_exists", says="'main'")
    refused(story, "branch", "-d", "main", exit_code=4, code="conflict", says="'main'")
    refused(
        story, "probe", "add", "three", "--prompts", story.models / "prompts.json",
        exit_code=4, code="ref_exists", says="'three'",
    )  # fmt: skip


def test_reverts_that_cannot_be(story: Story) -> None:
    refused(story, "revert", "HEAD~2", exit_code=2, code="usage", says="root commit")
    refused(story, "revert", "HEAD", "--tolerance", "nan", exit_code=2, code="bad_tolerance", says="nan")
    story.ok("commit", "-m", "heavier", "--weight", "brief=0.75")
    refused(story, "revert", "HEAD~1", exit_code=4, code="revert_conflict", says="'brief'")


def test_a_revert_that_must_be_verified_without_a_probe(story: Story) -> None:
    while story.json("probe", "list"):
        story.ok("undo")
    story.ok("commit", "-m", "polite", "--behavior", f"polite={story.models / 'polite'}")
    refused(story, "revert", "HEAD", "--require-verified", exit_code=1, code="unverified", says="probe")
    assert story.json("revert", "HEAD")["verdict"] == "unverified"


def test_a_verify_without_a_baseline(story: Story) -> None:
    refused(story, "verify", "HEAD", exit_code=1, code="no_baseline", says="rbl baseline")


def test_a_corrupt_frame_stops_checkout_and_revert(story: Story, tmp_path: Path) -> None:
    before = story.state()
    packs = sorted((story.store / ".rbl" / "packs").rglob("*.pack"), key=lambda path: path.stat().st_size)
    data = bytearray(packs[-1].read_bytes())
    data[len(data) // 2] ^= 0x10  # the identity's weights
    packs[-1].chmod(0o644)
    packs[-1].write_bytes(data)
    for arguments in (
        ["checkout", "HEAD", str(tmp_path / "out")],
        ["revert", "HEAD"],
        ["revert", "HEAD", "--no-verify"],
    ):
        result = story.run(*arguments, "--json")
        document = json.loads(result.stdout)
        assert result.exit_code == 6, arguments
        assert document["object"], arguments
        assert document["hint"], arguments
        assert story.state() == before
    assert not (tmp_path / "out").exists()
    assert packs[-1].exists()  # nothing is deleted


def test_a_probe_for_another_tokenizer(story: Story, tmp_path: Path) -> None:
    model = _copy(story.models / "base", tmp_path / "model")
    _edit_json(model / "tokenizer.json", lambda tokenizer: tokenizer["model"]["vocab"].update(w5=6, w6=5))
    story.ok("switch", "--orphan", "other")
    story.ok("commit", "-m", "other", "--identity", model)
    refused(story, "baseline", "--probe", "three", exit_code=4, code="probe_mismatch", says="three")


@pytest.mark.parametrize("prompts", ["", "[]", "[1, {}]", '{"a": ', '[{"id": "a", "tokens": [99999]}]'])
def test_a_file_of_prompts_that_cannot_be_measured(prompts: str, story: Story, tmp_path: Path) -> None:
    path = tmp_path / "prompts.json"
    path.write_text(prompts)
    before = story.state()
    result = story.run("probe", "add", "bad", "--prompts", path)
    assert result.exit_code == (4 if "99999" in prompts else 1)
    assert story.state() == before
    assert result.stderr.startswith("error: ")


def test_a_full_disk(story: Story, monkeypatch: pytest.MonkeyPatch) -> None:
    before = story.state()
    write = os.write

    def full(descriptor: int, data: Any) -> int:
        if ".rbl" in str(Path(f"/proc/self/fd/{descriptor}").readlink()):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(descriptor, data)

    monkeypatch.setattr(os, "write", full)
    result = story.run("commit", "-m", "x", "--behavior", f"x={_reseeded(story)}")
    monkeypatch.undo()
    assert result.exit_code == 1, result.output
    assert result.stderr.startswith("error: ")
    assert "space" in result.stderr or "full" in result.stderr
    assert story.state() == before
    assert story.json("fsck", "--full")["ok"] is True
    story.ok("commit", "-m", "x", "--behavior", f"x={story.models / 'reseeded'}")  # a second try succeeds


FILE_TOO_LARGE = """
import resource, sys
from rblstore.cli.main import main
resource.setrlimit(resource.RLIMIT_FSIZE, (64 << 10, 64 << 10))
main(sys.argv[1:])
"""


def test_a_limit_of_the_system(story: Story) -> None:
    before = story.state()
    done = _python(
        FILE_TOO_LARGE,
        *("-C", story.store, "commit", "-m", "x", "--json", "--compression", "none"),
        *("--identity", story.models / "tuned", "--remove", "polite", "--remove", "brief"),
    )
    assert done.returncode == 1, done.stderr
    assert json.loads(done.stdout)["exit_code"] == 1
    assert "Traceback" not in done.stderr
    assert story.state() == before


INTERRUPTED = """
import os, signal, sys
from contextlib import contextmanager
from rblstore.cli import progress
from rblstore.cli.main import main

@contextmanager
def interrupting(*, enabled):
    yield lambda event: os.kill(os.getpid(), signal.SIGINT)

progress.progress_bar = interrupting
main(sys.argv[1:])
"""


def test_control_c_during_a_commit_and_a_checkout(story: Story, tmp_path: Path) -> None:
    before = story.state()
    for arguments in (
        ["commit", "-m", "x", "--behavior", f"x={_reseeded(story)}"],
        ["checkout", "HEAD", tmp_path / "out"],
    ):
        done = _python(INTERRUPTED, "-C", story.store, *arguments)
        assert (done.returncode, done.stdout) == (130, ""), done.stderr
        assert done.stderr == "interrupted; nothing is half done\n"
        assert story.state() == before
        assert not list((story.store / ".rbl" / "tmp").iterdir())
    assert not list(tmp_path.glob("*out*"))
    assert story.json("fsck", "--full")["ok"] is True


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_repository_that_may_not_be_written(story: Story) -> None:
    for folder in ("packs", "tmp"):
        (story.store / ".rbl" / folder).chmod(0o555)
    result = story.run("commit", "-m", "x", "--allow-empty")
    for folder in ("packs", "tmp"):
        (story.store / ".rbl" / folder).chmod(0o755)
    assert result.exit_code == 1
    assert "ermission denied" in result.stderr


def _copy(source: Path, target: Path) -> Path:
    shutil.copytree(source, target)
    return target


def _edit_json(path: Path, edit: Callable[[Any], Any]) -> None:
    value = json.loads(path.read_text())
    edit(value)
    path.write_text(json.dumps(value))


def _edit_header(path: Path, edit: Callable[[dict[str, Any]], Any]) -> None:
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    edit(header)
    encoded = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(encoded)) + encoded + data[8 + length :])


def _swap_first_shape(header: dict[str, Any]) -> None:
    name = next(key for key in sorted(header) if key.endswith("lora_A.weight"))
    header[name]["shape"].reverse()


def _reseeded(story: Story) -> Path:
    """An adapter that is stored nowhere yet."""
    adapter = story.models / "reseeded"
    if not adapter.exists():
        _copy(story.models / "polite", adapter)
        path = adapter / "adapter_model.safetensors"
        data = bytearray(path.read_bytes())
        data[-4:] = struct.pack("<f", 0.125)
        path.write_bytes(data)
    return adapter


def _python(code: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
