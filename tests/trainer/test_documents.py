"""Documents of every kind of source: read in parts, whatever their size, without loss, in order."""

import gzip
import json
import sysconfig
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainyard.resource.datasets import DataSource
from trainyard_trainer.data import documents
from trainyard_trainer.data.documents import Documents, Part, open_documents
from trainyard_trainer.data.files import BUILTIN, find_files
from trainyard_trainer.runtime.errors import ConfigError

FIELD = "spec.trainer.data.path"
TEXTS = ["one two three", "", "é\r\n☃ snow " * 50, "last", "a  b\t c\n\n d" * 30]


def write(path: Path, content: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode())
    return path


def source(kind: str, path: Path | str, **fields: Any) -> Documents:
    return open_documents(
        DataSource.model_validate({"name": "data", "source": kind, "path": str(path), **fields}), FIELD
    )


def read(found: Documents, limit: int = 1 << 20) -> list[str]:
    """Return the documents, read part by part."""
    texts: list[str] = []
    open_document = False
    for part in found.parts(limit):
        for piece in found.read(part):
            assert piece.first != open_document
            texts += [""] if piece.first else []
            texts[-1] += piece.text
            open_document = not piece.last
    assert not open_document
    return texts


def jsonl(path: Path, rows: list[dict[str, Any]]) -> Path:
    return write(path, "".join(json.dumps(row) + "\n" for row in rows))


def rows_of(texts: list[str]) -> list[dict[str, Any]]:
    return [{"id": number, "body": text} for number, text in enumerate(texts)]


@pytest.fixture(params=["text", "jsonl", "gzip", "parquet", "huggingface"])
def every_source(request: pytest.FixtureRequest, tmp_path: Path) -> Documents:
    kind = request.param
    if kind == "text":
        for number, text in enumerate(TEXTS):
            write(tmp_path / "data" / f"{number}.txt", text)
        return source("text", tmp_path / "data")
    if kind == "jsonl":
        jsonl(tmp_path / "a.jsonl", rows_of(TEXTS[:2]))
        jsonl(tmp_path / "b.jsonl", rows_of(TEXTS[2:]))
        return source("jsonl", tmp_path, field="body")
    if kind == "gzip":
        path = jsonl(tmp_path / "a", rows_of(TEXTS))
        (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(path.read_bytes()))
        return source("jsonl", tmp_path / "*.gz", field="body")
    if kind == "parquet":
        import pyarrow
        from pyarrow import parquet

        table = pyarrow.Table.from_pylist(rows_of(TEXTS))
        parquet.write_table(table, tmp_path / "a.parquet", row_group_size=2)
        return source("parquet", tmp_path, field="body")
    import datasets

    datasets.disable_progress_bars()
    datasets.DatasetDict({"train": datasets.Dataset.from_list(rows_of(TEXTS))}).save_to_disk(tmp_path / "set")
    return source("huggingface", tmp_path / "set", field="body", split="train")


@pytest.mark.parametrize("limit", [1 << 20, 64])
def test_every_kind_of_source_gives_its_documents_in_order(every_source: Documents, limit: int) -> None:
    """Empty documents have no tokens. Text files and rows of JSON are divided into parts of 64 bytes, too."""
    assert read(every_source, limit) == [text for text in TEXTS if text]


def test_parts_depend_on_the_files_alone(every_source: Documents) -> None:
    assert list(every_source.parts(64)) == list(every_source.parts(64))
    assert all(Part(*json.loads(json.dumps(part))) == part for part in every_source.parts(64))


@given(
    text=st.text(st.sampled_from("aé☃ \t\n."), max_size=400),
    limit=st.integers(1, 50),
    piece=st.integers(1, 20),
    searched=st.integers(0, 20),
)
def test_a_text_of_any_size_is_cut_between_characters_only(text: str, limit: int, piece: int, searched: int) -> None:
    """Wherever parts and pieces end, no character is lost or repeated."""
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        patch.setattr(documents, "PIECE", piece)
        patch.setattr(documents, "SEARCHED", searched)
        path = write(folder / "text", text)
        assert read(source("text", path), limit) == ([text] if text else [])
        lines = jsonl(folder / "lines.jsonl", [{"text": text}, {"text": "x"}, {"text": text}])
        assert read(source("jsonl", lines), limit) == [each for each in (text, "x", text) if each]


def test_folder_is_read_in_sorted_order_without_hidden_files(tmp_path: Path) -> None:
    for name in ("b/2.txt", "a.txt", "b/1.txt", ".hidden/x.txt", "b/.y"):
        write(tmp_path / "text" / name, f"<{name}>")
    assert read(source("text", tmp_path / "text")) == ["<a.txt>", "<b/1.txt>", "<b/2.txt>"]
    assert read(source("text", tmp_path / "text" / "**" / "?.txt")) == ["<a.txt>", "<b/1.txt>", "<b/2.txt>"]


def test_builtin_text_is_source_without_tests() -> None:
    root = Path(sysconfig.get_path("stdlib"))
    names = [str(path).removeprefix(f"{root}/") for path in find_files(BUILTIN, FIELD)]
    assert {"argparse.py", "json/decoder.py"} < set(names)
    assert not any(part in name.split("/") for name in names for part in ("test", "tests", "site-packages"))
    assert sum((root / name).stat().st_size for name in names) > 5_000_000


def mistakes(folder: Path) -> dict[str, tuple[Documents, str]]:
    import pyarrow
    from pyarrow import parquet

    write(folder / "text" / "a.txt", "fine")
    (folder / "text" / "b.txt").symlink_to(folder / "nowhere")
    jsonl(folder / "other.jsonl", [{"body": "x"}])
    jsonl(folder / "number.jsonl", [{"text": 1}])
    write(folder / "words.jsonl", "no json\n")
    write(folder / "list.jsonl", "[1]\n")
    write(folder / "wrong.parquet", "no parquet")
    parquet.write_table(pyarrow.Table.from_pylist(rows_of(["x"])), folder / "a.parquet")
    (folder / "latin.txt").write_bytes(b"caf\xe9 au lait")
    return {
        "a broken link": (source("text", folder / "text"), "b.txt cannot be read in the worker"),
        "no text": (source("text", folder / "latin.txt"), "latin.txt is not UTF-8 text"),
        "missing": (source("text", folder / "missing"), "does not exist in the worker"),
        "no suffix": (source("parquet", folder / "text"), "holds no files that end with .parquet"),
        "no field": (
            source("jsonl", folder / "other.jsonl"),
            "line 1: there is no field text, the line has the fields",
        ),
        "no text in the field": (source("jsonl", folder / "number.jsonl"), "text is of type int"),
        "no JSON": (source("jsonl", folder / "words.jsonl"), "the line is not JSON"),
        "no object": (source("jsonl", folder / "list.jsonl"), "is not an object"),
        "no Parquet": (source("parquet", folder / "wrong.parquet"), "cannot be read as Parquet"),
        "no column": (source("parquet", folder / "a.parquet"), "has no column text, only id, body"),
        "no data set": (source("huggingface", folder / "text"), "is not a folder that datasets.save_to_disk"),
    }


def test_a_mistake_names_the_field_the_file_and_the_fix(tmp_path: Path) -> None:
    for name, (found, message) in mistakes(tmp_path).items():
        with pytest.raises(ConfigError) as error:
            read(found)
        assert str(error.value).startswith(f"{FIELD}: {tmp_path}"), name
        assert message in str(error.value), name
        assert "\n" not in str(error.value).split("(")[0], name


def test_a_folder_that_cannot_be_entered_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Root may enter every folder, so the system call is made to fail."""
    folder = tmp_path / "closed"
    folder.mkdir()

    def refuse(path: object) -> Any:
        raise PermissionError(13, "Permission denied", str(path))

    with monkeypatch.context() as patch:
        patch.setattr("os.scandir", refuse)
        with pytest.raises(ConfigError, match="closed cannot be read in the worker"):
            find_files(str(folder), FIELD)
    monkeypatch.setattr(Path, "stat", lambda path, **_: refuse(path))
    with pytest.raises(ConfigError, match="closed/x cannot be read in the worker"):
        find_files(str(folder / "x"), FIELD)
