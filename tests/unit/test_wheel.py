"""The wheel: built without the network, installed apart, and used away from the source tree."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.slow


def run(*command: str | Path, cwd: Path, path: Path | None = None) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")}
    if path is not None:
        environment["PYTHONPATH"] = str(path)
    ran = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, f"{command}\n{ran.stdout}\n{ran.stderr}"
    return ran


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("wheel")
    run(sys.executable, "-m", "build", "--no-isolation", "--wheel", "--outdir", out, ROOT, cwd=out)
    (found,) = out.glob("*.whl")
    return found


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that holds the wheel's packages and nothing else; what they depend on is the environment's."""
    folder = tmp_path_factory.mktemp("installed")
    pip = (sys.executable, "-m", "pip", "--isolated", "--disable-pip-version-check", "install", "--quiet")
    run(*pip, "--no-deps", "--no-index", "--target", folder, wheel, cwd=folder)
    return folder


def test_what_is_in_it(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        (metadata,) = (archive.read(name).decode() for name in names if name.endswith(".dist-info/METADATA"))
        (entries,) = (archive.read(name).decode() for name in names if name.endswith(".dist-info/entry_points.txt"))
    source = {str(path.relative_to(ROOT)) for end in ("py", "toml") for path in (ROOT / "rblstore").rglob(f"*.{end}")}
    assert "rblstore/provenance/rules/gemma.toml" in source
    migrations = {f"rblstore/{path.relative_to(ROOT)}" for path in (ROOT / "migrations").rglob("*.py")}
    assert any("/versions/" in name for name in migrations)
    assert source | migrations | {"rblstore/py.typed", "rblstore/migrations/script.py.mako"} <= names
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in names)
    assert all(name.startswith(("rblstore/", "rblstore-")) for name in names)
    assert not [name for name in names if "__pycache__" in name or ".rbl/" in name]
    assert "rbl = rblstore.cli.main:main" in entries
    assert "License-Expression: Apache-2.0" in metadata
    assert "Requires-Python: >=3.11" in metadata


def test_it_is_used_away_from_the_source_tree(installed: Path, tmp_path: Path) -> None:
    where = run(sys.executable, "-c", "import rblstore; print(rblstore.__file__)", cwd=tmp_path, path=installed)
    assert Path(where.stdout.strip()).is_relative_to(installed)

    rbl = installed / "bin" / "rbl"
    version = run(rbl, "--version", cwd=tmp_path, path=installed).stdout
    assert "0.1.0" in version
    run(rbl, "init", cwd=tmp_path, path=installed)
    assert (tmp_path / ".rbl" / "format").read_text() == "rblstore 1\n"
    assert (tmp_path / ".rbl" / "catalog.db").is_file()

    checkpoint = tmp_path / "checkpoint"
    checkpoint.mkdir()
    (checkpoint / "config.json").write_text('{"model_type": "example"}')
    header = b'{"w":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}  '
    (checkpoint / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + b"\0\0\x80\x3f")
    commit = ("commit", "-m", "base", "--identity", "checkpoint", "--author", "Ada")
    run(sys.executable, "-m", "rblstore", *commit, cwd=tmp_path, path=installed)

    # The migrations come from the wheel too: the catalog is made anew from packs and refs.log.
    (tmp_path / ".rbl" / "catalog.db").unlink()
    run(rbl, "reindex", cwd=tmp_path, path=installed)
    log = json.loads(run(rbl, "log", "--json", cwd=tmp_path, path=installed).stdout)
    assert "base" in json.dumps(log)
