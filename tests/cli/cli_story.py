"""Running the command line in a test, as a user would."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from click.testing import CliRunner, Result

from rblstore.cli.program import rbl


def run(*arguments: str | Path) -> Result:
    """Runs the command line in this process; an exception that it lets through fails the test."""
    result = CliRunner().invoke(rbl, [str(argument) for argument in arguments], prog_name="rbl")
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


@dataclass(frozen=True)
class Story:
    """A repository and what it was made from."""

    store: Path
    models: Path

    def run(self, *arguments: str | Path) -> Result:
        """Runs a command in the repository."""
        return run("-C", self.store, *arguments)

    def ok(self, *arguments: str | Path) -> str:
        """The text that a command prints, which must not fail."""
        result = self.run(*arguments)
        assert result.exit_code == 0, result.stderr
        return result.stdout

    def json(self, *arguments: str | Path, code: int = 0) -> Any:
        """The document that a command prints."""
        result = self.run(*arguments, "--json")
        assert result.exit_code == code, result.stderr
        return json.loads(result.stdout)

    def state(self) -> Any:
        """HEAD, every ref and every operation: what a refused command must not change."""
        return self.json("branch"), self.json("tag"), self.json("probe", "list"), self.json("op", "log")
