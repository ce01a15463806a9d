"""Commands on weights, records and data in an object store: what works on a folder works on its URL."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner, Result

from tests.support.object_store import ObjectStore
from tests.support.run_config import make_config
from tests.trainer.layouts import TOLERANCE
from tests.trainer.pods import Starter
from tests.trainer.saved_models import save_model
from tests.trainer.test_chat import PLAIN, SPECIAL, talk, tokenizer_file
from tests.trainer.test_object_store import FSDP, losses, names, train
from tests.trainer.test_record import Keys
from trainyard.run_record import RunRecord
from trainyard_cli.main import app
from trainyard_trainer.data import downloads
from trainyard_trainer.data.chat_template import JsonChat
from trainyard_trainer.data.sources import tokenizer_choice
from trainyard_trainer.evaluation.folder import DataChoice, evaluate_folder, open_folder
from trainyard_trainer.record.statement import RECORD_FILE
from trainyard_trainer.runtime.object_store import ObjectPath
from trainyard_trainer.weights.adapted import digest
from trainyard_trainer.weights.folder import WeightsError, load_model, open_weights

__all__ = ["tokenizer_file"]

NEWEST, STEP = "step-00000004", 3


def command(*arguments: object, code: int = 0) -> Result:
    """Run a command in this process: each would import torch again in one of its own."""
    done = CliRunner().invoke(app, [str(argument) for argument in arguments], env={"COLUMNS": "1000"})
    assert done.exit_code == code, done.stdout + done.stderr
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return done


@pytest.fixture(scope="module")
def saved(start: Starter, started_store: ObjectStore) -> str:
    """The URL of a run of two ranks in the store, with data and an export there."""
    bucket = started_store.make_bucket()
    lines = "".join(json.dumps({"text": f"line {number} of a text"}) + "\n" for number in range(100))
    started_store.request("PUT", f"{bucket.removeprefix('s3://')}/data/a.jsonl", lines.encode())
    data = {"source": "jsonl", "path": f"{bucket}/data", "evalFraction": 0.1}
    root = ObjectPath(f"{bucket}/job")
    [pod] = train(start, started_store, root, 2, FSDP, procs=2, stop={"steps": 4}, data=data, export={})
    assert pod.wait(120) == 0, pod.stderr
    return str(root)


@pytest.fixture
def run(store: ObjectStore, saved: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ObjectPath:
    """That run; this process uses the store, too, and reports that nothing else is said about go to its folder."""
    monkeypatch.chdir(tmp_path)
    return ObjectPath(saved)


def test_a_run_is_evaluated_and_explained(run: ObjectPath, bucket: ObjectPath, tmp_path: Path) -> None:
    """On its own held-out samples, and on data of a folder in the store; reports are written there."""
    found = json.loads(command("evaluate", run, "-o", "json", "--report", bucket / "report").stdout)
    assert json.loads((bucket / "report" / "evaluation.json").read_text()) == found
    assert (bucket / "report" / "evaluation.html").is_file()
    assert found["weights"]["name"] == str(run / NEWEST)
    given = json.loads(command("evaluate", run / "export", "-o", "json", "--data", run.parent / "data").stdout)
    (tmp_path / "a.jsonl").write_bytes((run.parent / "data" / "a.jsonl").read_bytes())
    (tmp_path / "export").mkdir()
    for file in (run / "export").files():
        file.download(tmp_path / "export" / file.name)
    local = json.loads(command("evaluate", tmp_path / "export", "-o", "json", "--data", tmp_path / "a.jsonl").stdout)
    assert given["metrics"] == local["metrics"]
    command("explain", run, "--text", "line 7", "--report", bucket / "why")
    assert (bucket / "why" / "explanation.html").is_file()


def test_a_step_is_explained(run: ObjectPath, tmp_path: Path) -> None:
    """The places are in the store, too."""
    found = json.loads(command("explain-step", run, STEP, "-o", "json", "--exclude", tmp_path / "excluded").stdout)
    assert (found["step"], found["restoredStep"]) == (STEP, 2)
    assert found["samples"][0]["origin"]["places"][0].startswith(f"{run.parent}/data/a.jsonl, line ")


def test_weights_are_exported_and_imported(run: ObjectPath, bucket: ObjectPath) -> None:
    """What is printed names the store, not a copy of this machine."""
    done = command("export", run, bucket / "out")
    assert done.stdout == f"{run / NEWEST} is exported to {bucket / 'out'}\n"
    fields = yaml.safe_load(command("import", bucket / "out").stdout)
    assert fields["model"]["from"] == {"path": f"{bucket}/out"}
    assert fields["data"]["tokenizerFile"] == f"{bucket}/out/tokenizer.json"
    assert "is not empty; choose another one" in command("export", run, bucket / "out", code=2).stderr
    with (bucket / "out" / "model.safetensors").open("wb") as file:
        file.write(b"truncated")
    downloads._downloaded.cache_clear()
    done = command("import", bucket / "out", code=2)
    assert f"error: {bucket}/out/model.safetensors is truncated or no file of safetensors" in done.stderr
    (bucket / "out" / "model.safetensors").rename(bucket / "out" / "pytorch_model.bin")
    done = command("import", bucket / "out", code=2)
    assert "pytorch_model.bin is pickled, and such files are not loaded" in done.stderr


def test_records_are_signed_and_verified(run: ObjectPath, bucket: ObjectPath, tmp_path: Path) -> None:
    keys, copy = Keys(tmp_path), bucket / "copy"
    for name in names(run):
        (copy / name).write_bytes((run / name).read_bytes())
    command("record", copy, "--sign", keys.private)
    done = command("verify", copy, "--key", keys.public, "--data", "--steps", "0..4")
    assert done.stdout.splitlines()[-1] == "verified"
    assert "steps: 1 to 4 computed again (one process" in done.stdout
    assert "signature: 2 of 2 records are signed" in done.stdout
    command("verify", copy / NEWEST, "--key", keys.public)
    command("verify", copy / "export")
    (copy / NEWEST / "more").write_bytes(b"")
    done = command("verify", copy, code=1)
    assert done.stderr == f"error: {copy / NEWEST / 'more'} is not in the record of {copy / NEWEST}\n"
    (copy / NEWEST / "more").unlink()
    (copy / NEWEST / RECORD_FILE).unlink()
    assert f"has no {RECORD_FILE}, as the other checkpoints have; restore it" in command("verify", copy, code=2).stderr


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["import", "s3://none-such-bucket/a"], 2, "s3://none-such-bucket/a does not exist; name a folder of weights"),
        (["evaluate", "s3://none-such-bucket"], 2, "s3://none-such-bucket does not exist; name a folder of weights"),
        (["verify", "RUN/none"], 2, "/none has no record.intoto.json; name a checkpoint, an export, or a run"),
        (["explain-step", "RUN/none", "1"], 2, "/none is not a folder; name the folder of a run"),
        (["explain", "RUN/run.json"], 2, "/run.json is a file; name a folder of weights"),
        (["evaluate", "RUN", "--data", "RUN/none"], 2, "/none does not exist; correct the path"),
        (["export", "RUN", "s3://none-such-bucket/a"], 1, "s3://none-such-bucket/a/model.safetensors: "),
        (["import", "https://host/a"], 2, "https://host/a is neither s3://BUCKET/NAME, gs://BUCKET/NAME nor az://"),
        (["record", "s3://key:secret@bucket/a"], 2, "give credentials through the environment"),
        (["record", "RUN", "--sign", "s3://bucket/key"], 2, "it cannot be a URL; download the file, and name its path"),
        (["explain-step", "RUN", "3", "--exclude", "s3://bucket/a"], 2, "it cannot be a URL; download the file"),
    ],
)
def test_a_mistake_is_one_message(run: ObjectPath, arguments: list[str], code: int, message: str) -> None:
    done = command(*(argument.replace("RUN", str(run)) for argument in arguments), code=code)
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_a_store_without_an_answer_is_one_message(store: ObjectStore, run: ObjectPath) -> None:
    store.proxy.go_down()
    for arguments, code in ((("import", run), 1), (("evaluate", run), 2), (("verify", run), 2)):
        (line,) = command(*arguments, code=code).stderr.splitlines()
        assert line.startswith(f"error: {run}"), line
        assert "; correct the URL, or give this shell the credentials and the address of the store" in line


# --- fine-tuning -----------------------------------------------------------------------------------------------------


@pytest.fixture
def base(bucket: ObjectPath, tokenizer_file: Path, tmp_path: Path) -> ObjectPath:
    """A folder of transformers in the store, whose tokenizer has its chat template in a file of its own."""
    folder = save_model("qwen3", tmp_path / "base", vocab_size=600, max_position_embeddings=96)
    (folder / "tokenizer.json").write_bytes(tokenizer_file.read_bytes())
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": SPECIAL[0], "eos_token": SPECIAL[2]}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    (folder / "chat_template.jinja").write_text(PLAIN)
    for file in folder.iterdir():
        (bucket / "base" / file.name).upload(file)
    return bucket / "base"


def test_adapters_are_trained_on_conversations_beside_a_base(
    start: Starter, store: ObjectStore, bucket: ObjectPath, base: ObjectPath, tmp_path: Path
) -> None:
    """Conversations, tokenizer, base and checkpoints are in the store, and the commands find all of them."""
    talks = [{"messages": talk(f"What is {number}?", f"A number, {number}.")} for number in range(40)]
    (bucket / "chat" / "a.jsonl").write_bytes("".join(json.dumps(each) + "\n" for each in talks).encode())
    (bucket / "excluded").write_bytes(b"3\n")
    model = {"name": "llama", "from": {"path": str(base)}, "lora": {"rank": 2}}
    data = {"source": "chat", "path": f"{bucket}/chat/*.jsonl", "sequenceLength": 96, "vocabSize": 600}
    data |= {"tokenizer": "file", "tokenizerFile": f"{base}/tokenizer.json", "exclude": {"file": f"{bucket}/excluded"}}
    root = bucket / "job"
    for steps, made in ((2, [1, 2]), (4, [3, 4])):
        [pod] = train(start, store, root, model=model, data=data, replace=True, stop={"steps": steps})
        assert pod.wait(120) == 0, pod.stderr
        assert sorted(losses(pod)) == made
    record = RunRecord.read(root)
    assert record is not None
    assert record.base is not None
    assert record.base.sha256 == digest(base) == digest(tmp_path / "base")
    assert (root / "chat_template.jinja").read_text() == PLAIN

    weights = open_weights(root)
    assert weights.tokenizer is not None
    assert weights.tokenizer.with_name("chat_template.jinja").read_text() == PLAIN
    scores = evaluate_folder(open_folder(root, DataChoice()))
    command("export", root, bucket / "merged")
    merged = evaluate_folder(open_folder(bucket / "merged", DataChoice(bucket / "chat")))
    assert scores.metrics()["loss"] == pytest.approx(merged.metrics()["loss"], rel=TOLERANCE)
    command("export", root, bucket / "adapters", "--format", "peft")
    assert {"adapter_config.json", "adapter_model.safetensors"} <= set(names(bucket / "adapters"))

    # Without the base where the run had it, a copy in the folder of the run serves.
    for file in base.files():
        (root / "base" / file.name).write_bytes(file.read_bytes())
    base.remove_folder()
    assert load_model(root).config == weights.config
    (root / "base").remove_folder()
    with pytest.raises(WeightsError, match=f"their base {base} does not exist here; put it there, or copy it to"):
        open_weights(root)


def test_a_chat_template_is_read_from_a_store(bucket: ObjectPath, store: ObjectStore, tokenizer_file: Path) -> None:
    (bucket / "template").write_bytes(PLAIN.encode())
    data: dict[str, Any] = {"source": "chat", "path": f"{bucket}/chat", "chatTemplate": f"{bucket}/template"}
    data |= {"tokenizer": "file", "tokenizerFile": str(tokenizer_file), "vocabSize": 600}
    chosen = tokenizer_choice(make_config(data=data).trainer.data, tokenizer_file).load()
    assert isinstance(chosen, JsonChat)
    assert chosen.template == PLAIN
