"""Every bug that scripts/mutate.py plants can be planted: the line that it changes is there, once."""

import importlib.util
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
spec = importlib.util.spec_from_file_location("mutate", ROOT / "scripts" / "mutate.py")
mutate = importlib.util.module_from_spec(spec)
spec.loader.exec_module(mutate)


@pytest.mark.parametrize("bug", mutate.BUGS, ids=lambda bug: bug[3])
def test_each_can_be_planted(bug):
    source, old, new, _ = bug
    assert old != new
    assert len(mutate.places(ROOT / "src" / "graft", source, old)) == 1
