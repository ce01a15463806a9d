"""`trainyard import` and `trainyard export`: from a folder of transformers to a manifest, and back to a folder."""

import subprocess
from pathlib import Path

import pytest
import yaml

from tests.builders import make_manifest, trainer_spec
from tests.local.test_command import COMMAND
from tests.trainer.saved_models import save_model
from trainyard.admission import load_manifest
from trainyard.estimate import estimate


def trainyard(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [*COMMAND, *map(str, arguments)]
    return subprocess.run(command, check=False, capture_output=True, text=True, timeout=120)


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model("llama", tmp_path_factory.mktemp("saved") / "llama", vocab_size=256)


def test_the_printed_fields_are_those_of_a_manifest(llama: Path) -> None:
    done = trainyard("import", llama)
    assert done.returncode == 0, done.stderr
    assert "a llama with 34,976 parameters, complete" in done.stderr
    fields = yaml.safe_load(done.stdout)
    data = {"source": "text", "builtin": "python-stdlib", "sequenceLength": 64, **fields.pop("data")}
    whole = load_manifest(yaml.safe_dump(make_manifest(trainer=trainer_spec(data=data, **fields))))
    found = estimate(whole)
    assert found.training is not None
    assert found.training.parameters == 34_976
    # With the path alone nothing is estimated, which is said.
    fields["model"] = {"name": "llama", "from": {"path": str(llama)}}
    short = estimate(load_manifest(yaml.safe_dump(make_manifest(trainer=trainer_spec(data=data, **fields)))))
    assert short.training is None
    assert "spec.trainer.model.from: only the workers know the sizes" in short.warnings[0]


def test_an_export_loads_and_is_not_written_over_other_files(llama: Path, tmp_path: Path) -> None:
    done = trainyard("export", llama, tmp_path / "out", "--dtype", "bfloat16")
    assert (done.returncode, done.stdout) == (0, f"{llama} is exported to {tmp_path / 'out'}\n"), done.stderr
    assert trainyard("import", tmp_path / "out").returncode == 0
    again = trainyard("export", llama, tmp_path / "out")
    assert again.returncode == 2
    assert "is not empty; choose another one" in again.stderr


@pytest.mark.parametrize("arguments", [("import",), ("export", "out")])
def test_what_is_wrong_with_the_weights_is_bad_input(arguments: tuple[str, ...], tmp_path: Path) -> None:
    command, *rest = arguments
    (tmp_path / "config.json").write_text('{"architectures": ["BertForMaskedLM"]}')
    done = trainyard(command, tmp_path, *(tmp_path / name for name in rest))
    assert done.returncode == 2
    assert "architectures: BertForMaskedLM is not supported, only LlamaForCausalLM" in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
