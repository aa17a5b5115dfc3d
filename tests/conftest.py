import os
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def shared() -> Path:
    """Folder of real slides and reference numbers that are not in the repository; tests skip without it."""
    folder = Path(os.environ.get("ISOSLIDE_SHARED", REPOSITORY.parent / "shared"))
    if not folder.is_dir():
        pytest.skip("the folder of shared test data is absent")
    return folder
