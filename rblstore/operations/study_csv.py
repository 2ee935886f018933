"""A study as a table: one row a measured number, so that any tool can group, filter and draw it."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from rblstore.errors import RblError
from rblstore.objects.study_records import Scalar, Study

_ABOUT: Final = ("study", "point", "seed", "prompt", "measure", "value", "bit_equal")


class CsvWriteError(RblError):
    """The system did not take the table."""

    code = "csv_write_failed"


def study_csv(record: Study) -> str:
    """A study as CSV (RFC 4180), in long format.

    One row for each number: of each measure of each prompt of each point, and of each value of a point, whose
    ``prompt`` is empty. Conditions have a column each, called ``condition.NAME``; an unknown number is empty. Booleans
    are ``true`` and ``false``.

    Args:
        record: The study.
    """
    conditions = sorted({name for point in record.points for name in point.condition})
    out = io.StringIO(newline="")
    table = csv.writer(out, lineterminator="\r\n")
    table.writerow([*_ABOUT[:3], *(f"condition.{name}" for name in conditions), *_ABOUT[3:]])
    for row in _rows(record, conditions):
        table.writerow(row)
    return out.getvalue()


def _rows(record: Study, conditions: list[str]) -> Iterator[list[str]]:
    for place, point in enumerate(record.points):
        head = [record.study, str(place), _text(point.seed)]
        head += [_text(point.condition.get(name)) for name in conditions]
        equal = _text(point.bit_equal)
        for prompt in point.prompts:
            for name, value in prompt.values.items():
                yield [*head, _cell(prompt.id), name, _text(value), equal]
        for name, value in point.values.items():
            yield [*head, "", name, _text(value), equal]


def _text(value: Scalar) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    return json.dumps(value) if isinstance(value, (int, float)) else _cell(value)


def _cell(text: str) -> str:
    # A spreadsheet would take it for a formula, and somebody else may have named it.
    return f"'{text}" if text[:1] in ("=", "+", "-", "@", "\t", "\r") else text


def check_csv(path: Path) -> Path:
    """The path, where a table can be written to it as far as a look tells; before minutes are spent on measuring.

    Raises:
        CsvWriteError: It is a directory, or lies in none.
    """
    if path.is_dir() or not path.parent.is_dir():
        what = "it is a directory" if path.is_dir() else f"{path.parent} is no directory"
        raise CsvWriteError(f"{path} cannot be written: {what}", object=str(path), hint="Name a file.")
    return path


def write_study_csv(record: Study, path: Path) -> None:
    """Writes a study as CSV; a file that is there is replaced.

    Raises:
        CsvWriteError: The system refused.
    """
    try:
        path.write_text(study_csv(record), "utf-8", newline="")
    except OSError as error:
        raise CsvWriteError(
            f"{path} cannot be written: {error.strerror or error}",
            object=str(path),
            hint="The study is recorded all the same: rbl study list, then rbl study show ID --csv FILE",
        ) from error
