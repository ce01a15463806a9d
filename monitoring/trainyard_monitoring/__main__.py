"""`python -m trainyard_monitoring FOLDER`: write rules.yaml and dashboards/*.json there."""

import sys
from pathlib import Path

from trainyard_monitoring.frame import to_json
from trainyard_monitoring.queries import dashboards
from trainyard_monitoring.rule_file import rule_file


def generated() -> dict[str, str]:
    """Content of every file, by its path below charts/trainyard/files."""
    boards = {f"dashboards/{name}": to_json(board) for name, board in dashboards().items()}
    return {"rules.yaml": rule_file(), **boards}


def main(folder: Path) -> None:
    """Write the files."""
    (folder / "dashboards").mkdir(parents=True, exist_ok=True)
    for name, content in generated().items():
        (folder / name).write_text(content, "utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
