"""Every command has help, an example, ``--json`` and its place in the manual; and the manual tells the truth."""

from __future__ import annotations

import importlib
import pkgutil
import re
import shlex
from dataclasses import fields
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner

import rblstore
from rblstore import errors
from rblstore.cli import failure, signals
from rblstore.cli.program import rbl
from rblstore.cli.registry import SUMMARIES
from rblstore.cli.verb import Verb

DOCS = Path(__file__).parents[2] / "docs"
CLI = (DOCS / "cli.md").read_text(encoding="utf-8")
JSON = (DOCS / "json.md").read_text(encoding="utf-8")


def _commands() -> dict[str, Verb]:
    found: dict[str, Verb] = {}

    def walk(words: str, group: click.Group) -> None:
        context = click.Context(group, info_name="rbl")
        for name in group.list_commands(context):
            command = group.get_command(context, name)
            if isinstance(command, click.Group):
                walk(f"{words}{name} ", command)
            else:
                assert isinstance(command, Verb), f"{words}{name} is no Verb"
                found[f"{words}{name}"] = command

    walk("", rbl)
    return found


COMMANDS = _commands()


def _section(name: str) -> str:
    match = re.search(rf"^### rbl {name}$(.*?)(?=^##|\Z)", CLI, re.MULTILINE | re.DOTALL)
    assert match is not None, f"docs/cli.md has no section '### rbl {name}'"
    return match.group(1)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help_with_an_example_and_json(name: str) -> None:
    result = CliRunner().invoke(rbl, [*name.split(), "--help"])
    assert result.exit_code == 0, result.output
    assert "--json" in result.output
    assert "Example:" in result.output
    assert COMMANDS[name].help
    for parameter in COMMANDS[name].params:
        if isinstance(parameter, click.Option):
            assert parameter.help, f"{name}: {parameter.name} has no help"


@pytest.mark.parametrize("name", COMMANDS)
def test_every_example_can_be_read(name: str) -> None:
    lines = [line.strip() for line in COMMANDS[name].example.strip().splitlines()]
    assert lines
    for line in lines:
        words = shlex.split(line)
        assert words[: 1 + len(name.split())] == ["rbl", *name.split()]
        context = COMMANDS[name].make_context(name, words[1 + len(name.split()) :])
        assert context.params["as_json"] is False


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_and_option_is_in_the_manual(name: str) -> None:
    section = _section(name)
    for parameter in COMMANDS[name].params:
        if isinstance(parameter, click.Option) and parameter.name != "as_json":
            for spelling in parameter.opts:
                assert spelling in section, f"docs/cli.md says nothing of {spelling} under rbl {name}"
    assert f"| `rbl {name}` |" in JSON, f"docs/json.md has no row for rbl {name}"


def test_the_manual_names_no_command_or_option_that_is_not_there() -> None:
    assert set(re.findall(r"^### rbl (.*)$", CLI, re.MULTILINE)) == set(COMMANDS)
    for name, command in COMMANDS.items():
        known = {spelling for parameter in command.params for spelling in parameter.opts}
        for spelling in re.findall(r"(?<![\w-])--[a-z][a-z-]*", _section(name)):
            assert spelling in known, f"docs/cli.md: rbl {name} has no {spelling}"
    for parameter in rbl.params:
        assert all(f"`{spelling}" in CLI for spelling in parameter.opts), parameter.opts


def test_help_summarises_every_command() -> None:
    output = CliRunner().invoke(rbl, ["--help"]).output
    for name, summary in SUMMARIES.items():
        assert name in output
        assert summary.split()[0] in output


def test_the_manual_has_every_exit_code() -> None:
    families = [
        value for value in vars(errors).values() if isinstance(value, type) and issubclass(value, errors.RblError)
    ]
    for code in {0, 130, *(family.exit_code for family in families)}:
        assert re.search(rf"^\| {code} \|", CLI, re.MULTILINE), f"docs/cli.md has no exit code {code}"


def _documents() -> list[tuple[str, Any]]:
    from rblstore.operations.audit import AuditResult
    from rblstore.operations.audit_history import AuditHistory
    from rblstore.operations.baseline import BaselineResult
    from rblstore.operations.checkout import CheckoutResult
    from rblstore.operations.commit import CommitResult
    from rblstore.operations.diff import DiffResult
    from rblstore.operations.doctor import DoctorResult
    from rblstore.operations.du import CommitUsage, RepositoryUsage
    from rblstore.operations.export import ExportResult
    from rblstore.operations.forget import ForgetResult
    from rblstore.operations.fsck import FsckResult
    from rblstore.operations.gc import GcResult
    from rblstore.operations.gc_restore import RestoreResult
    from rblstore.operations.license_effect import LicenseEffect
    from rblstore.operations.log import LogEntry
    from rblstore.operations.probe import ProbeInfo
    from rblstore.operations.reindex import ReindexResult
    from rblstore.operations.repack import RepackResult
    from rblstore.operations.repair import RepairResult
    from rblstore.operations.report_facts import ReportResult
    from rblstore.operations.revert import RevertResult
    from rblstore.operations.show import ShowResult
    from rblstore.operations.sign import SignResult
    from rblstore.operations.state import StatementsResult
    from rblstore.operations.status import CheckoutStatus, RepositoryStatus
    from rblstore.operations.switch import BranchInfo
    from rblstore.operations.tag import TagInfo
    from rblstore.operations.training_state import StateInfo
    from rblstore.operations.undo import OperationInfo, UndoResult
    from rblstore.operations.verify_signature import SignatureCheck

    return [
        ("audit", AuditResult),
        ("audit --history", AuditHistory),
        ("diff --licenses", LicenseEffect),
        ("baseline", BaselineResult),
        ("branch", BranchInfo),
        ("checkout", CheckoutResult),
        ("commit", CommitResult),
        ("diff", DiffResult),
        ("doctor", DoctorResult),
        ("du", RepositoryUsage),
        ("du REV", CommitUsage),
        ("export", ExportResult),
        ("forget", ForgetResult),
        ("fsck", FsckResult),
        ("gc", GcResult),
        ("gc --restore", RestoreResult),
        ("log", LogEntry),
        ("op log", OperationInfo),
        ("probe add", ProbeInfo),
        ("reindex", ReindexResult),
        ("repack", RepackResult),
        ("repair", RepairResult),
        ("report", ReportResult),
        ("revert", RevertResult),
        ("show", ShowResult),
        ("sign", SignResult),
        ("training list", StateInfo),
        ("state", StatementsResult),
        ("status", RepositoryStatus),
        ("status DIR", CheckoutStatus),
        ("switch", BranchInfo),
        ("tag", TagInfo),
        ("undo", UndoResult),
        ("verify-signature", SignatureCheck),
    ]


def test_every_key_of_every_document_is_documented() -> None:
    for name, result in _documents():
        row = re.search(rf"^\| `rbl {name}` \| (.*) \|$", JSON, re.MULTILINE)
        assert row is not None, name
        for field in fields(result):
            if field.name == "verification_id":  # its document has it as `verification`, as that of `rbl verify`
                continue
            assert f"`{field.name}`" in row.group(1), f"docs/json.md: rbl {name} says nothing of {field.name!r}"


def test_the_codes_of_failures_are_those_of_the_errors() -> None:
    for module in pkgutil.walk_packages(rblstore.__path__, "rblstore."):
        if not module.name.startswith("rblstore.migrations") and not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    exits: dict[str, int] = {code: 1 for code, *_ in failure._SYSTEM.values()} | {"system_error": 1}
    exits |= {code: 128 + number for number, code in signals.CODES.items()}
    families = [errors.RblError]
    while families:
        family = families.pop()
        exits[family.code] = family.exit_code
        families += family.__subclasses__()
    rows = re.findall(r"^\| (\d+) \| (.*) \|$", JSON.partition("## Parts")[0], re.MULTILINE)
    assert rows
    for number, row in rows:
        for code in re.findall(r"`([a-z_]+)`", row):
            assert exits.get(code) == int(number), f"docs/json.md: {code} does not exit {number}"
