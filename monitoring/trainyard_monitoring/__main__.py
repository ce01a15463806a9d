"""Write rules.yaml and dashboards/*.json, and the table of metrics in a document.

python -m trainyard_monitoring FOLDER DOCUMENT
"""

import sys
from pathlib import Path

from trainyard_monitoring.frame import to_json
from trainyard_monitoring.metrics_table import with_metrics_table
from trainyard_monitoring.queries import dashboards
from trainyard_monitoring.rule_file import rule_file


def generated() -> dict[str, str]:
    """Return the content of every file, by its path below charts/trainyard/files."""
    boards = {f"dashboards/{name}": to_json(board) for name, board in dashboards().items()}
    return {"rules.yaml": rule_file(), **boards}


def main(folder: Path, document: Path) -> None:
    """Write the files into a folder, and the table between its markers in a document."""
    (folder / "dashboards").mkdir(parents=True, exist_ok=True)
    for name, content in generated().items():
        (folder / name).write_text(content, "utf-8")
    document.write_text(with_metrics_table(document.read_text("utf-8")), "utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
