"""What `make test` runs: no folder of tests is forgotten, and the tests that it leaves out are accounted for."""

import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_test_paths_name_every_folder_with_tests_and_the_unit_tests_come_first() -> None:
    configured = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["pytest"]["ini_options"]["testpaths"]
    folders = {f"tests/{path.relative_to(ROOT / 'tests').parts[0]}" for path in (ROOT / "tests").rglob("test_*.py")}
    assert set(configured) == folders
    assert configured[0] == "tests/unit"
