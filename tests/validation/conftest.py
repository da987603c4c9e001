"""Where measured rows lie, and small files in their formats."""

from pathlib import Path

import pytest

MEASURED = Path(__file__).parents[3] / "shared" / "measured"


@pytest.fixture(scope="session")
def measured():
    """The folder of measurements beside the repository; skips where there is none."""
    if not MEASURED.is_dir():
        pytest.skip("no ../shared/measured")
    return MEASURED


@pytest.fixture
def folder(tmp_path):
    """Writes `name` with a header and rows into a fresh folder, and returns the folder."""

    def write(name, header, *rows):
        lines = [header, *(",".join(str(cell) for cell in row) for row in rows)]
        (tmp_path / name).write_text("\n".join(lines) + "\n")
        return tmp_path

    return write
