"""What operations return: frozen dataclasses that also have one JSON form."""

from __future__ import annotations

from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any

from rblstore.objects.record import Record


def to_json(value: Any) -> Any:
    """The JSON form of a result's value: dataclasses by field, records by body, ids and paths as text."""
    if isinstance(value, Record):
        return value.body()
    if isinstance(value, Result):
        return value.as_json()
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: to_json(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, dict):
        return {str(key): to_json(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_json(item) for item in value]
    if isinstance(value, (str, Path)):
        return str(value)
    return value


@dataclass(frozen=True)
class Result:
    """A frozen result; its fields are the keys of its JSON form."""

    def as_json(self) -> dict[str, Any]:
        """The document that ``--json`` prints."""
        return {field.name: to_json(getattr(self, field.name)) for field in fields(self)}
