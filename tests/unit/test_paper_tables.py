"""The script of the paper's tables: what it calls impossible, and what it puts into a page."""

from __future__ import annotations

import importlib.util
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def script(pages: ModuleType) -> ModuleType:
    return loaded("paper_tables")


@pytest.fixture(scope="module")
def pages() -> Iterator[ModuleType]:
    found = loaded("paper_pages")
    sys.modules["paper_pages"] = found
    yield found
    del sys.modules["paper_pages"]


def loaded(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / "examples" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_impossible_entries_are_marked_with_the_bound_that_they_break(pages: ModuleType) -> None:
    assert "ln 2" in pages.impossible(None, 9.63)
    assert "(ln 2 / 2) KL = 0.117" in pages.impossible(0.339, 0.665)
    possible = [pair for sizes in pages.PUBLISHED_MUTATION.values() for pair in sizes.values()]
    assert [pages.impossible(*pair) for pair in possible] == [None] * 6
    assert pages.impossible(0.0, 0.0) is None
    assert pages.published_pair(0.339, 0.665).startswith("~~0.339 / 0.665~~ impossible")


def test_the_bound_holds_for_distributions_and_is_nearly_reached(pages: ModuleType) -> None:
    generator = torch.Generator().manual_seed(0)
    worst = 0.0
    for scale in (0.1, 1.0, 5.0, 20.0):
        p, q = torch.softmax(torch.randn(2, 500, 6, generator=generator, dtype=torch.float64) * scale, dim=-1)
        kl = (p * (p / q).log()).sum(dim=-1)
        mixed = (p + q) / 2
        js = ((p * (p / mixed).log()).sum(dim=-1) + (q * (q / mixed).log()).sum(dim=-1)) / 2
        assert all(pages.impossible(*pair) is None for pair in zip(kl.tolist(), js.tolist(), strict=True))
        worst = max(worst, float((js / kl).max()))
    assert 0.25 < worst <= math.log(2) / 2


def row(condition: dict[str, Any], *, equal: bool, **measures: float) -> dict[str, Any]:
    found = {name: {"mean": value, "low": value / 2, "high": value * 2} for name, value in measures.items()}
    return {"condition": condition, "bit_equal": equal, "measures": found}


class Result:
    """As a study's, as far as tables go."""

    record = None

    def __init__(self, *rows: dict[str, Any]) -> None:
        self.rows = rows

    def as_json(self) -> dict[str, Any]:
        return {"id": "0" * 64, "environment": {"device": "cpu"}, "figures": {}, "summary": list(self.rows)}


def test_tables_hold_ours_beside_the_published(pages: ModuleType) -> None:
    mutation = pages.mutation_table(
        pages.Rows(
            Result(
                row({"alpha": 0.01, "reset": "none"}, equal=False, kl=5.0, js=0.5, rf=0.0),
                row({"alpha": 0.01, "reset": "store"}, equal=True, kl=0.0, js=0.0, rf=1.0),
            )
        )
    )
    assert "| 0.01 | 5 (2.5 to 10) | 0.5 (0.25 to 1) | 0 | 1 | **yes** | 6.347 / 0.574 | 8.78 / 0.655 |" in mutation
    scale = pages.scale_table(
        pages.Rows(
            Result(
                *(
                    row(
                        {"identity": "main", "mechanism": "unstructured", "reset": reset},
                        equal=reset == "store",
                        rf=fidelity,
                        parameters=2e6,
                        seconds=1.0,
                    )
                    for reset, fidelity in (("none", 0.0), ("pull_back", -0.5), ("distillation", 0.25), ("store", 1.0))
                )
            )
        )
    )
    assert "| main (2.0 M) | unstructured | 0 % | 25 % (distillation) | 100 % | 30 % / 40 % / 10 % | 1 |" in scale
    assert pages.percent(row({}, equal=False, rf=-2.5)) == "-250 %"


def test_a_page_does_not_say_where_things_lie_on_a_disk(pages: ModuleType) -> None:
    given = ["--model", "/home/me/gemma", "--adapter", "a=/home/me/lora-a", "--seeds", "3"]
    assert " ".join(map(pages.without_folders, given)) == "--model gemma --adapter a=lora-a --seeds 3"


def test_a_page_gets_what_stands_between_its_markers(script: ModuleType, tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("a\n<!-- paper_tables: x -->\nold\n<!-- end -->\nb\n<!-- paper_tables: y -->\n<!-- end -->\n")
    out = tmp_path / "out"
    out.mkdir()
    (out / "x.svg").write_text("drawn")
    for _ in range(2):
        script.put_into(page, {"x": "new\n\n![x](x.svg)", "absent": "![no](no.svg)"}, out)
    assert (tmp_path / "figures" / "x.svg").read_text() == "drawn"
    assert page.read_text() == (
        "a\n<!-- paper_tables: x -->\n\nnew\n\n![x](figures/x.svg)\n\n<!-- end -->\nb\n"
        "<!-- paper_tables: y -->\n<!-- end -->\n"
    )
