"""docs/interop.md is what tests/interop.py says, and each of its cells is a test that exists."""

import subprocess
import sys
from pathlib import Path

import pytest

from interop import CELLS, DIRECTIONS, PAGE, VERDICTS, Cell, render

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def collected():
    """The node ids of the files that cells name, as pytest itself collects them."""
    files = sorted({f"tests/{cell.test.partition('::')[0]}" for cell in CELLS})
    command = [sys.executable, "-m", "pytest", "--collect-only", "-q", "-p", "no:cacheprovider", *files]
    found = subprocess.run(command, cwd=HERE.parent, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stdout[-2000:] + found.stderr[-2000:]
    return {line.removeprefix("tests/") for line in found.stdout.splitlines() if "::" in line}


def exists(test, collected):
    """Whether a test, or a parametrised one without its case, was collected."""
    return any(node == test or node.startswith(f"{test}[") for node in collected)


def test_every_cell_names_a_test_that_is_collected(collected):
    assert not [cell for cell in CELLS if not exists(cell.test, collected)]


def test_a_test_that_does_not_exist_would_be_noticed(collected):
    assert not exists("test_parity.py::test_nothing", collected)
    assert not exists("test_parity.py::test_we_run_pefts[nothing]", collected)


def test_the_page_is_what_the_cells_say():
    assert PAGE.read_text() == render(CELLS), "python tests/interop.py writes it anew"


def test_cells_are_told_apart_and_use_the_words_of_the_table():
    assert len({(cell.method, cell.peer, cell.direction, cell.note) for cell in CELLS}) == len(CELLS)
    assert {cell.direction for cell in CELLS} <= set(DIRECTIONS)
    assert {cell.verdict for cell in CELLS} <= set(VERDICTS)


def test_a_method_with_some_refusals_says_how_many():
    cells = [Cell("M", "P", "reads", verdict, verdict, "t") for verdict in VERDICTS]
    assert "| M | exact, but for 1 refused |" in render(cells)
    assert "| M | refused |" in render(cells[1:])
