"""What the tests share: real data."""

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def data_root() -> Path:
    """The folder of real data sets, or a skip where none is given."""
    variable = os.environ.get("FINEPRUNING_DATA")
    if not variable:
        pytest.skip("needs real data: set FINEPRUNING_DATA to a folder that holds it")
    if not Path(variable).is_dir():
        pytest.fail(f"FINEPRUNING_DATA={variable} is not a folder")
    return Path(variable)
