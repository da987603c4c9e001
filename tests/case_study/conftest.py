import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))


@pytest.fixture(scope="session")
def answered():
    """All claims with their answers, and the case: half a minute, once."""
    from case_claims import Case, rows

    case = Case()
    return case, rows(case)
