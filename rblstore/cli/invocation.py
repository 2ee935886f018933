"""What the options before the command set: where to work, and how to talk."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from rblstore.api import Repository
    from rblstore.cli.progress import ProgressCallback

    _PathType = click.ParamType[Path]  # generic for the type checker; at run time only in newer versions of click
    _PairType = click.ParamType[tuple[str, str]]
else:
    _PathType = _PairType = click.ParamType


@dataclass(frozen=True)
class Invocation:
    """One run of ``rbl``.

    Attributes:
        directory: Where to run; paths on the command line are relative to it.
        show_progress: Whether a progress bar may be drawn.
        allow_foreign: Whether a repository of another user may be opened.
        as_json: Whether stdout takes one JSON document.
    """

    directory: Path
    show_progress: bool = True
    allow_foreign: bool = False
    as_json: bool = False

    def repository(self) -> Repository:
        """The nearest repository at or above the directory.

        Raises:
            NoRepositoryError: There is none.
        """
        import rblstore

        return rblstore.open(self.directory, allow_foreign=self.allow_foreign)

    @contextmanager
    def progress(self) -> Iterator[ProgressCallback | None]:
        """What an operation reports its bytes to, or None where nobody would see it."""
        from rblstore.cli.progress import progress_bar

        with progress_bar(enabled=self.show_progress and not self.as_json) as callback:
            yield callback


def author_from(option: str | None, repository: Repository) -> str:
    """Who does this: ``--author``, else RBL_AUTHOR, else the repository's ``config.toml``, else ``user@host``."""
    from rblstore.api import UNKNOWN_AUTHOR

    named = (option or os.environ.get("RBL_AUTHOR", "")).strip()
    if named:
        return named
    configured = repository.author()
    if configured != UNKNOWN_AUTHOR:
        return configured
    import getpass

    try:
        user = getpass.getuser()
    except (KeyError, OSError, ImportError):  # a user id without a name, as in many containers
        user = str(os.getuid())
    return f"{user}@{os.uname().nodename}"


class PathInDirectory(_PathType):
    """A path, relative to the directory that ``-C`` names."""

    name = "path"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        """Joins without touching the file system: whether the path exists is the operation's to say."""
        if isinstance(value, Path):
            return value
        if not value or "\0" in value:
            self.fail("a path cannot be empty", param, ctx)
        invocation = ctx.find_object(Invocation) if ctx is not None else None
        return Path(value) if invocation is None else invocation.directory / value


PATH = PathInDirectory()


class Pair(_PairType):
    """``KEY=VALUE``."""

    def __init__(self, metavar: str) -> None:
        self.name = metavar

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, str]:
        """Splits at the first equals sign; both sides must hold something."""
        if isinstance(value, tuple):
            return value
        key, _, rest = value.partition("=")
        if not key or not rest:
            self.fail(f"{value!r} is not {self.name}", param, ctx)
        return key, rest

    def get_metavar(self, param: click.Parameter, ctx: click.Context | None = None) -> str:
        """The form as help shows it."""
        return self.name


def gather_pairs(pairs: tuple[tuple[str, str], ...], option: str) -> dict[str, str]:
    """Repeated ``KEY=VALUE`` options as a mapping.

    Raises:
        click.UsageError: A key was given twice.
    """
    found = dict(pairs)
    if len(found) != len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise click.UsageError(f"{option} names {twice!r} twice")
    return found
