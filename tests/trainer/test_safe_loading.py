"""No file of a volume can run code: a foreign index of a checkpoint is refused, and nothing else loads pickle files."""

import ast
import enum
import io
import os
import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed.checkpoint.filesystem import FileSystemWriter, _StorageInfo
from torch.distributed.checkpoint.metadata import (
    _MEM_FORMAT_ENCODING,
    BytesStorageMetadata,
    Metadata,
    MetadataIndex,
)
from torch.distributed.checkpoint.state_dict_saver import save as torch_save

from tests.support.run_config import make_config
from tests.trainer.pods import Starter
from trainyard.protocol import constants
from trainyard_trainer.checkpoint import catalog
from trainyard_trainer.checkpoint.manifest import Manifest
from trainyard_trainer.checkpoint.metadata import METADATA, read_metadata
from trainyard_trainer.checkpoint.storage import load, saved_shapes
from trainyard_trainer.data.table import load_table
from trainyard_trainer.runtime.errors import ConfigError

SOURCES = Path(__file__).parents[2]


class Malicious:
    """Creates a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


def write_checkpoint(folder: Path) -> dict[str, torch.Tensor]:
    """Write a checkpoint with torch's own writer."""
    tensors = {"layer.weight": torch.arange(6.0).view(2, 3), "layer.bias": torch.ones(2, dtype=torch.bfloat16)}
    with pytest.warns(UserWarning, match="single process"):
        torch_save(dict(tensors), storage_writer=FileSystemWriter(folder), no_dist=True)
    return tensors


def index_of(folder: Path) -> Metadata:
    with (folder / METADATA).open("rb") as file:
        return read_metadata(file, "it")


def rewrite(folder: Path, change: Callable[[Metadata], object]) -> None:
    """Change the index of a checkpoint, as someone with write access to the volume can."""
    index = index_of(folder)
    changed = change(index)
    (folder / METADATA).write_bytes(pickle.dumps(changed if changed is not None else index))


def test_a_checkpoint_of_torch_itself_is_read(tmp_path: Path) -> None:
    """So checkpoints of older versions are, whose index has the path of the folder as well."""
    tensors = write_checkpoint(tmp_path)
    assert b"PosixPath" in (tmp_path / METADATA).read_bytes()
    assert saved_shapes(tmp_path) == {"layer.weight": (2, 3), "layer.bias": (2,)}
    loaded = {name: torch.zeros_like(tensor) for name, tensor in tensors.items()}
    with pytest.warns(UserWarning, match="single process"):
        load(tmp_path, loaded, None)
    assert all(torch.equal(loaded[name], tensors[name]) for name in tensors)


class OlderPickler(pickle.Pickler):
    """Writes members of enumerations as Python 3.11.2 does, which Debian 12 has."""

    def reducer_override(self, value: Any) -> Any:
        return (getattr, (type(value), value.name)) if isinstance(value, enum.Enum) else NotImplemented


def test_a_checkpoint_of_an_older_python_is_read(tmp_path: Path) -> None:
    write_checkpoint(tmp_path)
    index, older = index_of(tmp_path), io.BytesIO()
    OlderPickler(older).dump(index)
    assert b"getattr" in older.getvalue()
    (tmp_path / METADATA).write_bytes(older.getvalue())
    assert index_of(tmp_path) == index


class Attribute:
    """Becomes the attribute of a class when it is unpickled, which leads to any function in a few steps."""

    def __init__(self, kind: type, name: str) -> None:
        self.kind, self.name = kind, name

    def __reduce__(self) -> tuple[Any, ...]:
        return getattr, (self.kind, self.name)


@pytest.mark.parametrize(("kind", "name"), [(Metadata, "__init__"), (_MEM_FORMAT_ENCODING, "__class__")])
def test_an_index_has_no_other_attributes(tmp_path: Path, kind: type, name: str) -> None:
    write_checkpoint(tmp_path)

    def add(index: Metadata) -> None:
        index.planner_data = Attribute(kind, name)

    rewrite(tmp_path, add)
    with pytest.raises(ConfigError, match=r"it holds builtins\.getattr, which is no part of a checkpoint"):
        saved_shapes(tmp_path)


def test_an_index_that_would_run_code_is_refused_and_runs_nothing(tmp_path: Path) -> None:
    folder, created = tmp_path / "checkpoint", tmp_path / "created"
    write_checkpoint(folder)

    def add(index: Metadata) -> None:
        index.planner_data = Malicious(created)

    rewrite(folder, add)
    with pytest.raises(ConfigError, match=r"\.metadata is refused: it holds posix.mkdir, which is no part of a"):
        saved_shapes(folder)
    assert not created.exists()
    pickle.loads((folder / METADATA).read_bytes())
    assert created.exists(), "the file is what it should be"


def test_an_entry_that_torch_would_unpickle_is_refused(tmp_path: Path) -> None:
    """torch loads an entry that is no tensor with weights_only=False, whatever the run asks for."""
    folder, created = tmp_path / "checkpoint", tmp_path / "created"
    write_checkpoint(folder)
    payload = io.BytesIO()
    torch.save(Malicious(created), payload)
    (folder / "__9_0.distcp").write_bytes(payload.getvalue())

    def add(index: Metadata) -> None:
        index.state_dict_metadata["layer.weight"] = BytesStorageMetadata()
        index.storage_data = {
            **{key: info for key, info in index.storage_data.items() if key.fqn != "layer.weight"},
            MetadataIndex("layer.weight"): _StorageInfo("__9_0.distcp", 0, len(payload.getvalue())),
        }

    rewrite(folder, add)
    with pytest.raises(ConfigError, match=r"holds torch\.distributed\.checkpoint\.metadata\.BytesStorageMetadata"):
        load(folder, {"layer.weight": torch.zeros(2, 3)}, None)
    assert not created.exists()


@pytest.mark.parametrize("path", ["../other/__0_0.distcp", "/etc/passwd", "..", ""])
def test_a_path_that_leads_out_of_the_checkpoint_is_refused(tmp_path: Path, path: str) -> None:
    write_checkpoint(tmp_path)

    def redirect(index: Metadata) -> None:
        for info in index.storage_data.values():
            info.relative_path = path

    rewrite(tmp_path, redirect)
    with pytest.raises(ConfigError, match=f"it holds the path {re.escape(path)},"):
        saved_shapes(tmp_path)


@pytest.mark.parametrize("content", [b"", b"\x80\x04", b"no pickle file", pickle.dumps({"a": 1}), pickle.dumps(None)])
def test_a_damaged_index_is_an_error_of_one_line(tmp_path: Path, content: bytes) -> None:
    (tmp_path / METADATA).write_bytes(content)
    with pytest.raises(ValueError, match=r"^\S+\.metadata is damaged: .+$"):
        saved_shapes(tmp_path)


def test_a_job_refuses_a_malicious_checkpoint_with_a_message(start: Starter, tmp_path: Path) -> None:
    """Its checksums are right: whoever can write the files can write the manifest as well."""
    root, created = tmp_path / "run", tmp_path / "created"
    config = make_config(stop={"steps": 2}, checkpoint={"everySteps": 2, "async": False})
    env = {constants.ENV_CHECKPOINTS: str(root)}
    [pod] = start(config, env=env)
    assert pod.wait(60) == 0, pod.stderr
    folder = root / "step-00000002"

    def add(index: Metadata) -> None:
        index.planner_data = Malicious(created)

    rewrite(folder, add)
    manifest = Manifest.read(folder)
    files = {**manifest.files, METADATA: catalog.file_checksum(folder / METADATA)}
    catalog.complete_folder(root, 2).rename(catalog.partial_folder(root, 2))
    catalog.commit(catalog.partial_folder(root, 2), manifest.replace(files=files))
    [pod] = start(config, env=env)
    assert pod.wait(60) == constants.EXIT_INVALID_CONFIG, pod.stderr
    assert pod.word is not None
    assert pod.word.message.startswith(f"spec.checkpoint: {folder}/.metadata is refused: it holds posix.mkdir")
    assert "Traceback" not in pod.stderr
    assert not created.exists()


def test_a_table_with_a_pickled_array_is_refused(tmp_path: Path) -> None:
    import numpy as np

    created = tmp_path / "created"
    np.savez(tmp_path / "table.npz", x=np.array([[Malicious(created)]], dtype=object), y=np.array([0]))
    data = {"source": "table", "path": str(tmp_path / "table.npz")}
    config = make_config(replace=True, model={"name": "mlp"}, data=data)
    with pytest.raises(ConfigError, match=r"table\.npz"):
        load_table(config)
    assert not created.exists()


DANGEROUS = {
    "pickle": {"load", "loads", "Unpickler"},
    "torch": {"load"},
    "np": {"load"},
    "numpy": {"load"},
    "marshal": {"load", "loads"},
    "shelve": {"open"},
    "joblib": {"load"},
    "dill": {"load", "loads"},
    "cloudpickle": {"load", "loads"},
    "yaml": {"load", "unsafe_load", "full_load"},
}
"""Functions that can run code of the file that they read, by module."""
SAFE_WITH = {"torch": "weights_only", "np": "allow_pickle", "numpy": "allow_pickle"}
"""Argument with which they cannot, if it has the value below."""
REQUIRED = {"weights_only": True, "allow_pickle": False, "trust_remote_code": False}
READERS = {"FileSystemReader", "FsspecReader", "dcp_to_torch_save", "torch_save_to_dcp"}
"""Readers of torch's checkpoints, which load the index with pickle."""
EXAMINED = {
    "trainer/trainyard_trainer/checkpoint/metadata.py": {"pickle.Unpickler"},
    "trainer/trainyard_trainer/checkpoint/storage.py": {"FileSystemReader"},
}
"""Uses that are safe, since they admit only what an index consists of."""


def dangerous_uses(path: Path) -> set[str]:
    """Return the names of functions in a file that can run code of the files which they read."""
    nodes = list(ast.walk(ast.parse(path.read_text())))
    safe = {id(node.func) for node in nodes if isinstance(node, ast.Call) and is_safe_call(node)}
    found = set()
    for node in nodes:
        if isinstance(node, ast.Name | ast.Attribute):
            name = node.id if isinstance(node, ast.Name) else node.attr
            found |= {name} & READERS
        if isinstance(node, ast.keyword) and node.arg in REQUIRED and not has_value(node, REQUIRED[node.arg]):
            found.add(node.arg)
        if id(node) not in safe and (used := attribute_of_module(node)) and used[1] in DANGEROUS.get(used[0], ()):
            found.add(".".join(used))
    return found


def attribute_of_module(node: ast.AST) -> tuple[str, str] | None:
    """Return the names of a module and its attribute, as in `torch.load`; None for other code."""
    if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
        return node.value.id, node.attr
    return None


def has_value(keyword: ast.keyword, value: bool) -> bool:
    """Return whether an argument is given a constant value."""
    return isinstance(keyword.value, ast.Constant) and keyword.value.value is value


def is_safe_call(call: ast.Call) -> bool:
    """Return whether a call has the argument with which its function cannot run code."""
    used = attribute_of_module(call.func)
    argument = SAFE_WITH.get(used[0]) if used else None
    return argument is not None and any(k.arg == argument and has_value(k, REQUIRED[argument]) for k in call.keywords)


def test_no_other_code_loads_what_can_run_code() -> None:
    """A new use belongs into EXAMINED only if the file that it reads cannot be changed by others."""
    found = {}
    for package in ("api", "operator", "trainer", "cli", "monitoring"):
        for path in sorted((SOURCES / package).rglob("*.py")):
            if uses := dangerous_uses(path):
                found[str(path.relative_to(SOURCES))] = uses
    assert found == EXAMINED


@pytest.mark.parametrize(
    ("code", "safe"),
    [
        ("torch.load(path)", False),
        ("torch.load(path, weights_only=True)", True),
        ("torch.load(path, weights_only=False)", False),
        ("np.load(path)", False),
        ("np.load(path, allow_pickle=False)", True),
        ("AutoModel.from_pretrained(path, trust_remote_code=True)", False),
        ("pickle.loads(content)", False),
        ("FsspecReader(path)", False),
        ("json.loads(content)", True),
    ],
)
def test_the_check_of_the_code_notices(tmp_path: Path, code: str, safe: bool) -> None:
    path = tmp_path / "code.py"
    path.write_text(code)
    assert (dangerous_uses(path) == set()) is safe
