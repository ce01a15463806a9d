"""The plug-in of docs/plugins.md runs without a cluster, found by PYTHONPATH as in a pod."""

import json
import re
from pathlib import Path

import yaml

from tests.local.test_command import run

PAGE = (Path(__file__).parents[2] / "docs/plugins.md").read_text()


def test_the_example_of_the_page_runs(tmp_path: Path) -> None:
    manifest, code = (re.findall(rf"^```{kind}\n(.*?)^```", PAGE, re.M | re.S)[0] for kind in ("yaml", "python"))
    (tmp_path / "lines_plugin.py").write_text(code)
    (tmp_path / "lines.txt").write_text("\n".join(f"{n} squared is {n * n}" for n in range(200)))
    body = yaml.safe_load(manifest)
    body["spec"]["env"] = [{"name": "PYTHONPATH", "value": str(tmp_path)}]
    body["spec"]["trainer"]["data"]["path"] = str(tmp_path / "lines.txt")
    body["spec"]["trainer"]["stop"] = {"steps": 3}
    done = run("-", "-o", "json", "--folder", str(tmp_path / "run"), stdin=yaml.safe_dump(body))
    assert done.returncode == 0, done.stderr
    progress = json.loads(done.stdout)["status"]["progress"]
    assert progress["step"] == 3
    assert "digits" in progress["metrics"]
