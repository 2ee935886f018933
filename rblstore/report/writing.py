"""A report in one of its forms, as bytes or as a file that is there whole or not at all."""

from __future__ import annotations

import json
import os
import secrets
import stat
from contextlib import suppress
from pathlib import Path
from typing import Final, Literal, cast, get_args

from rblstore.errors import ConflictError, RblError, UsageError
from rblstore.operations.report_facts import ReportResult

ReportFormat = Literal["html", "json", "md"]

_SUFFIXES: Final = {".html": "html", ".htm": "html", ".json": "json", ".md": "md", ".markdown": "md"}


class UnknownReportFormatError(UsageError):
    """A report is asked for in a form that there is none of."""

    code = "unknown_report_format"


class FileExistsAlreadyError(ConflictError):
    """There is a file already where one is to be written."""

    code = "exists"


class FileWriteError(RblError):
    """The system did not take a file."""

    code = "write_failed"


def report_format(path: Path) -> ReportFormat:
    """The form that a file's name asks for; HTML where it asks for none."""
    return cast("ReportFormat", _SUFFIXES.get(path.suffix.lower(), "html"))


def render_report(report: ReportResult, format: ReportFormat = "html") -> bytes:
    """A report as bytes: the same for the same repository.

    Args:
        report: What ``repo.report()`` gave.
        format: ``html``, ``md`` or ``json``.

    Raises:
        UnknownReportFormatError: Another format.
    """
    if format not in get_args(ReportFormat):
        raise UnknownReportFormatError(
            f"there are no reports as {str(format)[:20]!r}", object=str(format)[:20], hint="Use html, md or json."
        )
    if format == "json":
        return (json.dumps(report.as_json(), indent=2, allow_nan=False) + "\n").encode("ascii")
    if format == "md":
        from rblstore.report.markdown import markdown_report

        return markdown_report(report).encode("utf-8")
    from rblstore.report.html import html_report

    return html_report(report).encode("utf-8")


def write_report(
    report: ReportResult, path: str | Path, format: ReportFormat | None = None, *, force: bool = False
) -> int:
    """Writes a report into a file.

    Args:
        report: What ``repo.report()`` gave.
        path: The file.
        format: ``html``, ``md`` or ``json``; None for what the file's suffix says.
        force: Whether to replace a file that is there.

    Returns:
        How many bytes.

    Raises:
        FileExistsAlreadyError: There is one.
        FileWriteError: The system refused.
    """
    target = Path(path)
    check_target(target, force=force)
    data = render_report(report, format or report_format(target))
    write_whole(target, data, force=force)
    return len(data)


def check_target(path: Path, *, force: bool) -> None:
    """Refuses a file that cannot be written, before minutes are spent on what goes into it.

    Raises:
        FileExistsAlreadyError: There is one.
        FileWriteError: It is no regular file, or its directory is not there.
    """
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        mode = None
    except (OSError, ValueError) as error:
        raise _refused(path, error) from error
    if mode is not None and not (stat.S_ISREG(mode) or stat.S_ISLNK(mode)):
        raise FileWriteError(f"{path} is not a file that can be replaced", object=str(path), hint="Name another file.")
    if mode is not None and not force:
        raise FileExistsAlreadyError(
            f"{path} is there already", object=str(path), hint="Name another file, or replace it with --force."
        )
    if not path.parent.is_dir():
        raise FileWriteError(f"the directory of {path} is not there", object=str(path.parent), hint="Make it first.")


def write_whole(path: Path, data: bytes, *, force: bool) -> None:
    """Puts bytes into a file that nobody ever sees half-written.

    Args:
        path: The file.
        data: All of it.
        force: Whether to replace one that is there.

    Raises:
        FileExistsAlreadyError: There is one, be it since a moment ago.
        FileWriteError: The system refused.
    """
    check_target(path, force=force)
    beside = path.with_name(f".{path.name[:100]}.{secrets.token_hex(6)}")
    try:
        try:
            with beside.open("xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            if force:
                beside.replace(path)
            else:
                os.link(beside, path)  # unlike a rename it replaces nothing
        finally:
            with suppress(OSError):
                beside.unlink(missing_ok=True)
    except FileExistsError as error:
        raise FileExistsAlreadyError(f"{path} is there already", object=str(path), hint="Name another file.") from error
    except OSError as error:
        raise _refused(path, error) from error


def _refused(path: Path, error: Exception) -> FileWriteError:
    reason = getattr(error, "strerror", None) or str(error)
    return FileWriteError(
        f"{path} could not be written: {reason}", object=str(path), hint="Check permissions and the space on the disk."
    )
