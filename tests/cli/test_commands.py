"""Each command as a user types it: the text it prints, the document, and what changed."""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from cli_story import Story, run

from rblstore.objects.ids import is_full_id


def _digests(directory: Path) -> dict[str, str]:
    return {
        path.relative_to(directory).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(directory.rglob("*"))
        if path.is_file()
    }


def test_init(tmp_path: Path) -> None:
    result = run("-C", tmp_path, "init", "store", "--branch", "trunk", "--json")
    assert result.exit_code == 0
    assert json.loads(result.stdout) == {"path": str(tmp_path / "store"), "branch": "trunk"}
    assert (tmp_path / "store" / ".rbl" / "format").read_text() == "rblstore 1\n"
    assert "no commits yet" in run("-C", tmp_path / "store", "status").stdout
    assert run("-C", tmp_path / "store", "init").exit_code == 4


def test_the_repository_is_found_from_a_folder_below(story: Story) -> None:
    below = story.store / "a" / "b"
    below.mkdir(parents=True)
    result = run("-C", below, "log", "--oneline")
    assert (result.exit_code, len(result.stdout.splitlines())) == (0, 3)


def test_commit_says_what_it_recorded(story: Story) -> None:
    document = story.json(
        "commit", "-m", "both again", "--remove", "brief", "--weight", "polite=0.25", "--author", "Grace"
    )
    assert document["parents"] == [story.json("log", "HEAD~1", "-n", "1")[0]["commit"]]
    assert [(slot["name"], slot["weight"]) for slot in document["slots"]] == [("polite", 0.25)]
    assert (document["branch"], document["message"], document["added_bytes"]) == ("main", "both again", 0)
    entry = story.json("log", "-n", "1")[0]
    assert (entry["commit"], entry["author"]) == (document["commit"], "Grace")


def test_commit_prints_what_was_read_and_left_out(story: Story, tmp_path: Path) -> None:
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    for path in (story.models / "polite").iterdir():
        (adapter / path.name).write_bytes(path.read_bytes())
    (adapter / "optimizer.pt").write_bytes(b"\x80\x02}q\x00.")
    text = story.ok("commit", "-m", "third", "--behavior", f"third={adapter}")
    assert "[main " in text.splitlines()[0]
    assert "behaviors  polite, brief (weight 0.5), third" in text
    assert "left out   third: optimizer.pt" in text or "left out   third/optimizer.pt" in text, text


def test_the_author_is_the_option_the_environment_the_configuration_or_the_user(
    story: Story, monkeypatch: pytest.MonkeyPatch
) -> None:
    def author_of_a_commit(*arguments: str) -> str:
        story.ok("commit", "-m", "again", "--allow-empty", *arguments)
        return str(story.json("log", "-n", "1")[0]["author"])

    monkeypatch.delenv("RBL_AUTHOR", raising=False)
    monkeypatch.setenv("LOGNAME", "lovelace")
    assert author_of_a_commit().startswith("lovelace@")
    config = story.store / ".rbl" / "config.toml"
    config.write_text('author = "Configured"\n')
    assert author_of_a_commit() == "Configured"
    monkeypatch.setenv("RBL_AUTHOR", "From Environment")
    assert author_of_a_commit() == "From Environment"
    assert author_of_a_commit("--author", "From Option") == "From Option"
    assert story.json("op", "log", "-n", "1")[0]["author"] == "From Option"


def test_log(story: Story) -> None:
    entries = story.json("log")
    assert [entry["message"].split("\n")[0] for entry in entries] == ["brief", "polite", "base"]
    assert [entry["refs"] for entry in entries] == [["HEAD -> main"], ["tag: v1"], []]
    assert story.json("log", "-n", "1") == entries[:1]
    assert story.json("log", "v1") == entries[1:]
    short = [entry["commit"][:12] for entry in entries]
    assert story.ok("log", "--oneline").splitlines() == [
        f"{short[0]} (HEAD -> main) brief",
        f"{short[1]} (tag: v1) polite",
        f"{short[2]} base",
    ]
    paragraph = story.ok("log", "-n", "1", "HEAD~2")
    assert paragraph.startswith(f"commit {short[2]}\nAuthor:    ")
    assert paragraph.endswith("Behaviors: none\n\n    base\n\n    The longer story.\n")


def test_log_draws_the_graph_of_branches(story: Story) -> None:
    story.ok("switch", "-c", "side", "HEAD~2")
    story.ok("commit", "-m", "aside", "--behavior", f"b={story.models / 'brief'}")
    text = story.ok("log", "--graph", "--oneline", "--all")
    lines = [line.split(" ", 1)[0] if line.startswith("*") else line[:3] for line in text.splitlines()]
    assert sorted(line.rsplit(" ", 1)[-1] for line in text.splitlines() if "*" in line) == [
        "aside", "base", "brief", "polite",
    ]  # fmt: skip
    assert "|/" in lines
    assert text.splitlines()[-1].startswith("* ")


def test_show_describes_any_object(story: Story) -> None:
    document = story.json("show")
    assert (document["kind"], document["record"]["message"]) == ("commit", "brief")
    assert document["identity"]["tensors"] > 10
    assert [behavior["name"] for behavior in document["behaviors"]] == ["polite", "brief"]
    text = story.ok("show")
    assert text.startswith(f"commit {document['id']} (HEAD -> main)\n")
    assert "adapter LORA" in text
    assert "weight 0.5" in text
    assert story.json("show", "--only", "behaviors") == document["behaviors"]
    assert "polite" in story.ok("show", "--only", "behaviors")
    assert "identity" not in story.ok("show", "--only", "behaviors")
    for name, kind in [
        ("v1", "tag"),
        ("three", "probe"),
        (document["record"]["composition"][:12], "composition"),
        (document["identity"]["identity"][:12], "identity"),
        (document["behaviors"][0]["behavior"][:12], "behavior"),
        (story.json("baseline", "--list")[0]["baseline"][:12], "baseline"),
    ]:
        assert story.ok("show", name).startswith(f"{kind} ")
        assert story.json("show", name)["kind"] == kind


def test_diff(story: Story) -> None:
    document = story.json("diff")
    assert [(change["name"], change["change"]) for change in document["slots"]] == [("brief", "added")]
    assert document == story.json("diff", "HEAD^") == story.json("diff", "HEAD~1", "main")
    text = story.ok("diff", "HEAD", "HEAD~2")
    assert "- behavior polite: removed" in text
    assert "- behavior brief: removed" in text
    assert "model.layers.0.self_attn.q_proj.weight" in text
    assert "no difference" in story.ok("diff", "HEAD", "main")


def test_status(story: Story) -> None:
    document = story.json("status")
    assert (document["branch"], document["commit"]) == ("main", story.json("log", "-n", "1")[0]["commit"])
    text = story.ok("status")
    assert "on branch main" in text
    assert "polite, brief (weight 0.5)" in text


def test_checkout_and_status_of_the_directory(story: Story, tmp_path: Path) -> None:
    document = story.json("checkout", "HEAD~2", tmp_path / "base")
    assert _digests(tmp_path / "base").items() >= _digests(story.models / "base").items()
    assert document["form"] == "adapters"
    text = story.ok("checkout", "HEAD", tmp_path / "out")
    assert "import rblstore" in text
    assert f"load_checkout('{tmp_path / 'out'}')" in text
    assert _digests(tmp_path / "out" / "behaviors" / "polite") == _digests(story.models / "polite")
    assert story.json("status", tmp_path / "out")["clean"] is True
    assert "clean: every file is as it was checked out" in story.ok("status", tmp_path / "out")
    (tmp_path / "out" / "config.json").write_text("{}")
    (tmp_path / "out" / "note").write_text("mine")
    (tmp_path / "out" / "behaviors" / "polite" / "adapter_config.json").unlink()
    status = story.json("status", tmp_path / "out")  # exits 0: an answer, not a failure
    assert status["clean"] is False
    assert {(one["path"], one["kind"]) for one in status["differences"]} == {
        ("config.json", "changed"),
        ("note", "added"),
        ("behaviors/polite/adapter_config.json", "missing"),
    }
    assert "  changed  config.json" in story.ok("status", tmp_path / "out")


def test_checkout_merged(story: Story, tmp_path: Path) -> None:
    document = story.json("checkout", "HEAD", tmp_path / "merged", "--form", "merged")
    assert document["form"] == "merged"
    assert not (tmp_path / "merged" / "behaviors").exists()
    assert (tmp_path / "merged" / "model.safetensors").stat().st_size > 0
    assert "from_pretrained" in document["load"][-1]


def test_checkout_of_a_part(story: Story, tmp_path: Path) -> None:
    document = story.json(
        "checkout", "HEAD", tmp_path / "files", "--only", "config.json", "--only", "behaviors/brief/*"
    )
    brief = {f"behaviors/brief/{path}": digest for path, digest in _digests(story.models / "brief").items()}
    found = _digests(tmp_path / "files")
    assert found.keys() == {"config.json", "rbl-composition.json", *brief}
    assert found.items() >= brief.items()
    assert (document["form"], document["files"], document["tensors"], document["load"]) == (
        "partial",
        1 + len(brief),
        0,
        [],
    )
    text = story.ok("checkout", "HEAD", tmp_path / "tensors", "--tensor", "model.layers.0.*")
    assert "1 file with " in text
    assert f"load_file('{tmp_path / 'tensors' / 'tensors.safetensors'}')" in text
    assert "load it with" not in story.ok("checkout", "HEAD", tmp_path / "one", "--only", "config.json")
    assert story.json("status", tmp_path / "tensors")["clean"] is True
    assert "form partial" in story.ok("status", tmp_path / "files")


def test_parts_that_are_refused(story: Story, tmp_path: Path) -> None:
    before = story.state()
    failure = story.json("checkout", "HEAD", tmp_path / "out", "--only", "confg.json", code=1)
    assert (failure["code"], failure["object"]) == ("nothing_matched", "confg.json")
    assert "config.json" in failure["hint"]
    assert story.json("checkout", "HEAD", tmp_path / "out", "--tensor", "x", code=1)["code"] == "nothing_matched"
    merged = story.json("checkout", "HEAD", tmp_path / "out", "--form", "merged", "--only", "*", code=2)
    assert merged["code"] == "usage"
    assert not (tmp_path / "out").exists()
    story.ok("checkout", "HEAD", tmp_path / "out", "--only", "*")
    for option in (f"--identity={tmp_path / 'out'}", f"--behavior=half={tmp_path / 'out'}"):
        assert story.json("commit", "-m", "half", option, code=1)["code"] == "partial_checkout"
    assert story.state() == before


def test_branch_switch_and_tag(story: Story) -> None:
    head, before = (entry["commit"] for entry in story.json("log", "-n", "2"))
    assert story.json("branch", "side", "HEAD~1") == {"name": "side", "commit": before, "current": False}
    assert story.ok("branch") == f"* main  {head[:12]}\n  side  {before[:12]}\n"
    assert story.ok("switch", "side") == f"on branch side at {before[:12]}\n"
    assert story.json("status")["branch"] == "side"
    assert story.json("switch", "-c", "third", "v1~1")["current"] is True
    assert story.ok("switch", "--orphan", "fresh") == "on branch fresh, which has no commit yet\n"
    assert story.json("switch", "main")["commit"] == head
    assert "deleted the branch side" in story.ok("branch", "-d", "side")
    assert [tag["name"] for tag in story.json("tag")] == ["v1"]
    assert story.json("tag", "v2", "-m", "second")["commit"] == head
    assert story.ok("tag") == f"v1  {before[:12]}  first\nv2  {head[:12]}  second\n"
    assert "deleted the tag v2" in story.ok("tag", "-d", "v2")


def test_undo_and_the_operation_log(story: Story) -> None:
    commits = [entry["commit"] for entry in story.json("log")]
    operations = story.json("op", "log")
    assert [one["description"].split(":")[0] for one in operations[:3]] == ["tag", "commit", "commit"]
    assert operations[-1]["sequence"] == 1
    assert story.json("op", "log", "-n", "2") == operations[:2]
    undone = story.json("undo")  # the tag
    assert (undone["undone"], undone["description"]) == (operations[0]["id"], operations[0]["description"])
    text = story.ok("undo")  # the commit
    assert text.startswith(f"undid {operations[1]['id'][:12]} (commit: brief)\n")
    assert f"refs/heads/main: {commits[0][:12]} -> {commits[1][:12]}" in text
    assert story.json("log", "-n", "1")[0]["commit"] == commits[1]
    assert "(undone)" in story.ok("op", "log")
    assert story.json("log", f"main@{{{operations[1]['sequence']}}}", "-n", "1")[0]["commit"] == commits[0]


def test_probes_and_baselines(story: Story) -> None:
    (probe,) = story.json("probe", "list")
    assert (probe["name"], probe["prompts"], probe["default"]) == ("three", 3, True)
    lines = story.models / "lines.txt"
    lines.write_text("w5 w6\nw7\n")
    added = story.json("probe", "add", "last", "--prompts", lines, "--positions", "last", "--default")
    assert (added["positions"], added["measured_positions"], added["default"]) == ("last", 2, True)
    assert story.ok("probe", "list").splitlines()[0].startswith("* last")
    assert "a baseline takes" in story.ok("probe", "add", "again", "--prompts", lines)
    (known,) = story.json("baseline", "--list")
    again = story.json("baseline", "HEAD~2", "--probe", "three")
    assert (again["baseline"], again["reused"]) == (known["baseline"], True)
    assert "(recorded before)" in story.ok("baseline", "HEAD~2", "--probe", "three")
    assert known["baseline"][:12] in story.ok("baseline", "--list")


FIGURES = {"verdict", "bit_equal", "kl", "js", "rf", "kl_adapted", "prompts", "probe", "baseline", "environment"}


def test_revert_proves_that_the_behavior_is_gone(story: Story) -> None:
    story.ok("revert", "--behavior", "brief", "--no-verify")
    document = story.json("revert", "--behavior", "polite")
    assert document.keys() >= FIGURES | {"commit", "composition", "parents", "message"}
    assert (document["verdict"], document["bit_equal"], document["rf"]) == ("exact", True, 1.0)
    assert (document["kl"], document["js"]) == (0.0, 0.0)
    assert document["kl_adapted"] > 0
    base = story.json("log")[-1]
    assert (document["composition"], document["same_composition_as"]) == (base["composition"], base["commit"])
    assert [prompt["bit_equal"] for prompt in document["prompts"]] == [True, True, True]
    assert "Verified:  exact, RF 1, KL 0, JS 0" in story.ok("log", "-n", "1")
    assert "[exact]" in story.ok("log", "-n", "1", "--oneline")
    shown = story.ok("show", document["verification"][:12])
    assert "verdict      exact: every output equal, bit for bit" in shown
    assert shown.splitlines()[-1].split() == [prompt_id(document, -1), "0", "0", "yes"]


def prompt_id(document: dict[str, list[dict[str, str]]], index: int) -> str:
    return document["prompts"][index]["id"]


def test_revert_of_a_commit_in_text(story: Story) -> None:
    text = story.ok("revert", "HEAD", "-m", "no more brief")
    assert text.startswith("[main ")
    assert "no more brief" in text.splitlines()[0]
    assert "taken out    brief" in text
    assert "verdict      " in text
    text = story.ok("revert", "HEAD", "--no-verify")
    assert "put back     brief" in text
    assert "verdict      unverified: no outputs were measured" in text


def test_verify_and_its_exit_codes(story: Story) -> None:
    document = story.json("verify", "HEAD~2")
    assert (document["verdict"], document["bit_equal"]) == ("exact", True)
    assert is_full_id(document["verification"])
    assert "verdict      exact" in story.ok("verify", "HEAD~2")
    result = story.run("verify", "HEAD", "--against", "HEAD~2")
    assert (result.exit_code, result.stdout) == (5, "")
    assert result.stderr.startswith("error: ")
    assert "verdict      diverged" in result.stderr
    document = story.json("verify", "HEAD", "--against", "HEAD~2", code=5)
    assert document.keys() >= FIGURES | {"error", "code", "object", "hint", "exit_code", "verification"}
    assert (document["code"], document["verdict"]) == ("diverged", "diverged")
    assert document["kl"] > 1e-6
    assert story.json("show", document["verification"])["record"]["kl"] == document["kl"]
    assert story.json("verify", "HEAD", "--against", "HEAD~2", "--tolerance", "1000")["verdict"] == "within_tolerance"


def test_audit(story: Story) -> None:
    document = story.json("audit")
    assert [(part["role"], part["name"], part["license"]) for part in document["components"]] == [
        ("identity", "base", ["apache-2.0"]),
        ("behavior", "polite", []),
        ("behavior", "brief", []),
        ("tokenizer", "base", ["apache-2.0"]),
    ]
    text = story.ok("audit")
    assert re.search(r"^identity base [0-9a-f]{12}.*\n  licence +Apache-2\.0", text, re.MULTILINE)
    assert len(document["warnings"]) == 2
    assert text.count("no licence is stated") == 2


def test_du(story: Story) -> None:
    document = story.json("du")
    assert document["total"] == sum(path.stat().st_size for path in (story.store / ".rbl").rglob("*") if path.is_file())
    text = story.ok("du").splitlines()
    assert text[0].split() == ["count", "raw", "stored", "ratio"]
    assert text[1].split()[:2] == ["contents", str(document["contents"]["contents"])]
    (main,) = (line.split() for line in text if line.startswith("main "))
    assert main[1] == document["branches"][0]["commit"][:12]
    assert f"{document['branches'][0]['ratio']:.2f}x" in main
    assert text[-1].startswith("total ")
    document = story.json("du", "v1")
    assert [part["name"] for part in document["behaviors"]] == ["polite"]
    assert document["baselines"]["contents"] == 0
    assert story.json("du", "HEAD~2")["baselines"]["contents"] == 3
    text = story.ok("du", "HEAD")
    assert [line.split()[:2] for line in text.splitlines()[3:7]] == [
        ["identity", "-"],
        ["behavior", "polite"],
        ["behavior", "brief"],
        ["commit", "-"],
    ]
    assert "added to its parents" in text
    assert "baselines" in story.ok("du", "HEAD~2")
    assert story.run("du", "nowhere").exit_code == 1


def test_commit_says_what_was_new(story: Story) -> None:
    document = story.json("commit", "-m", "base again", "--behavior", f"again={story.models / 'polite'}")
    assert (document["added_contents"], document["new_bytes"], document["stored_bytes"]) == (0, 0, 0)
    assert document["added_bytes"] > 0
    text = story.ok("commit", "-m", "third", "--behavior", f"third={story.models / 'brief'}")
    assert "  added      nothing: " in text
    tuned = story.run("switch", "--orphan", "fresh")
    assert tuned.exit_code == 0
    text = story.ok("commit", "-m", "tuned", "--identity", story.models / "tuned")
    assert re.search(
        r"^  added      [0-9.]+ KiB as [0-9.]+ KiB \([0-9.]+x\), [0-9.]+ KiB were stored already$", text, re.MULTILINE
    )


def test_fsck_and_reindex(story: Story) -> None:
    before = story.json("log")
    assert story.json("fsck", "--full")["ok"] is True
    assert story.ok("fsck").startswith("whole: ")
    assert story.ok("fsck", "--quick") == story.ok("fsck")
    assert "--quick and --full" in story.json("fsck", "--quick", "--full", code=2)["error"]
    (story.store / ".rbl" / "catalog.db").unlink()
    assert story.json("log", code=6)["code"] == "corrupt"
    assert story.json("reindex")["operations"] >= 4
    assert story.json("log") == before
    assert story.ok("reindex").startswith("rebuilt the catalog: ")


def test_fsck_names_damage_and_exits_6(story: Story) -> None:
    pack = max((story.store / ".rbl" / "packs").rglob("*.pack"), key=lambda path: path.stat().st_size)
    data = bytearray(pack.read_bytes())
    data[len(data) // 2] ^= 1
    pack.chmod(0o644)
    pack.write_bytes(data)
    result = story.run("fsck")
    assert result.exit_code == 6
    assert "damaged: " in result.stdout
    document = story.json("fsck", code=6)
    assert document["ok"] is False
    assert document["damages"]


def test_a_message_from_elsewhere_cannot_drive_the_terminal(story: Story, monkeypatch: pytest.MonkeyPatch) -> None:
    assert story.run("commit", "-m", "ring", "--allow-empty", "--author", "x\x07y").exit_code == 2
    # Whoever wrote it elsewhere was not as strict.
    monkeypatch.setattr("rblstore.api.Repository.author", lambda _, author: author)
    story.ok("commit", "-m", "clear \x1b[2J all", "--allow-empty", "--author", "x\x07y")
    for arguments in (["log"], ["log", "--oneline"], ["show"], ["op", "log"], ["log", "--graph"]):
        assert not {"\x1b", "\x07"} & set(story.ok(*arguments)), arguments
    assert story.json("log", "-n", "1")[0]["message"] == "clear \x1b[2J all"


LIGHT = """
import sys
from rblstore.cli.main import main
heavy = ("torch", "numpy", "rich", "alembic", "yaml", "transformers", "peft", "safetensors")
for words in ("log --graph", "status", "branch", "tag", "op log", "diff", "show", "audit", "du", "du HEAD"):
    arguments = words.split()
    try:
        main(["-C", sys.argv[1], *arguments])
    except SystemExit as done:
        assert not done.code, (arguments, done.code)
    assert not set(heavy) & set(sys.modules), (arguments, set(heavy) & set(sys.modules))
"""


def test_reading_history_imports_nothing_heavy(story: Story) -> None:
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run(
        [sys.executable, "-c", LIGHT, story.store], capture_output=True, text=True, check=False, env=environment
    )
    assert done.returncode == 0, done.stderr


def test_an_operation_is_shown_by_its_id(story: Story) -> None:
    newest = story.json("op", "log", "-n", "1")[0]
    document = story.json("show", newest["id"][:12])
    assert (document["kind"], document["id"]) == ("operation", newest["id"])
    assert document["record"]["description"] == newest["description"]
    assert newest["description"] in story.ok("show", newest["id"])
    assert "branch, tag or commit" in story.json("show", "abcdef0", code=1)["error"]
    assert story.json("show", "1", code=1)["code"] == "unknown_revision"
