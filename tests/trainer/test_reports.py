"""Reports of jobs, and the commands that make the same from what a job leaves behind."""

import json
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from typer.testing import CliRunner

from tests.support.run_config import DIGITS, make_config
from tests.trainer.pods import Pod, Starter, finish
from trainyard.protocol import constants
from trainyard.resource.insight import Explain
from trainyard.run_record import RunRecord
from trainyard_cli.main import app
from trainyard_trainer.data.table import load_table
from trainyard_trainer.data.tokenizer import learn_bpe
from trainyard_trainer.evaluation.folder import DataChoice, evaluate_folder, open_folder
from trainyard_trainer.evaluation.harness import read_harness
from trainyard_trainer.explanation.folder import explain_folder
from trainyard_trainer.launcher.hang_detection import FIRST_TIMEOUT, timeout_of
from trainyard_trainer.runtime import heartbeat
from trainyard_trainer.runtime.heartbeat import HeartbeatTable
from trainyard_trainer.runtime.world import World
from trainyard_trainer.train import Trainer

TEXT = "The yard has seven tracks, and every track has a signal of its own. " * 40
REPORTED: dict[str, Any] = {"evaluation": {"report": True}}


class Trained(NamedTuple):
    """A job that has ended, and what it has left behind."""

    pod: Pod
    folder: Path
    """Its folder on the checkpoint volume."""

    def report(self, name: str) -> dict[str, Any]:
        (file,) = self.folder.glob(f"reports/*/{name}.json")
        content: dict[str, Any] = json.loads(file.read_text())
        return content

    def page(self, name: str) -> str:
        (file,) = self.folder.glob(f"reports/*/{name}.html")
        return file.read_text()


def run(start: Starter, folder: Path, processes: int = 1, **spec: Any) -> Trained:
    config = make_config(processes, spec.pop("parallelism", None), replace=True, checkpoint={}, **spec)
    (pod,) = start(config, 1, processes, env={constants.ENV_CHECKPOINTS: str(folder)})
    assert finish([pod], 120) == [0], pod.stderr
    return Trained(pod, folder)


@pytest.fixture(scope="session")
def digits(start: Starter, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    return run(start, tmp_path_factory.mktemp("digits"), **DIGITS, **REPORTED, explain={"samples": 12})


def text_spec(folder: Path) -> dict[str, Any]:
    return {
        "model": {"name": "llama", "preset": "nano", "dim": 32, "layers": 2, "heads": 4, "kvHeads": 2, "ffnDim": 64},
        "data": {
            "source": "text",
            "path": str(folder / "text"),
            "tokenizer": "bpe",
            "vocabSize": 512,
            "sequenceLength": 16,
            "evalFraction": 0.2,
        },
        "batch": {"global": 8},
        "optimizer": {"learningRate": 0.01},
        "stop": {"steps": 20},
    }


@pytest.fixture(scope="session")
def text(start: Starter, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    folder = tmp_path_factory.mktemp("text")
    (folder / "text").write_text(TEXT)
    spec = {**text_spec(folder), **REPORTED, "explain": {"samples": 3, "tokens": 12}}
    return run(start, folder / "run", 2, **spec)


class Parts(HTMLParser):
    """Tags of a page, and what it would load."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.loaded: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        for name, value in attrs:
            if name in ("src", "href", "xlink:href") and value and not value.startswith(("#", "data:")):
                self.loaded.append(value)


@pytest.mark.parametrize("name", ["evaluation", "explanation"])
def test_a_page_is_one_file_without_scripts(digits: Trained, text: Trained, name: str) -> None:
    for trained in (digits, text):
        parts = Parts(trained.page(name))
        assert parts.loaded == []
        assert not {"script", "link", "iframe"} & set(parts.tags)
        assert "svg" in parts.tags


def test_the_report_of_a_training_has_the_metrics_of_its_last_evaluation(digits: Trained) -> None:
    report = digits.report("evaluation")
    (shown,) = digits.pod.evaluations
    assert report["metrics"] == pytest.approx(shown, rel=1e-5)
    assert report["positions"] == 359
    assert sum(map(sum, report["confusion"])) == 359
    assert sum(row["actual"] for row in report["classes"]) == 359
    assert sum(row["positions"] for row in report["calibration"]["bins"]) == 359
    right = sum(report["confusion"][i][i] for i in range(10))
    assert right / 359 == pytest.approx(report["metrics"]["accuracy"])
    assert report["data"]["samples"] == "359 samples that were held out from the training"
    record = RunRecord.read(digits.folder)
    assert record is not None
    assert report["weights"] == {"name": "default/tests", "model": "mlp", "step": 60, "run": record.id}


def test_a_worker_starts_without_what_only_reports_need() -> None:
    late = ("captum", "matplotlib", "transformers")
    program = f"import sys, trainyard_trainer.rank_process; sys.exit(any(n in sys.modules for n in {late}))"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


def test_an_attempt_that_finds_the_training_complete_writes_the_reports(
    start: Starter, digits: Trained, tmp_path: Path
) -> None:
    shutil.copytree(digits.folder, tmp_path / "run", ignore=shutil.ignore_patterns("reports"))
    again = run(start, tmp_path / "run", **DIGITS, **REPORTED, explain={"samples": 12})
    assert again.report("evaluation")["metrics"] == digits.report("evaluation")["metrics"]
    assert again.report("explanation")["overall"] == digits.report("explanation")["overall"]


def test_a_training_explains_its_held_out_samples(digits: Trained, text: Trained) -> None:
    rows = digits.report("explanation")
    assert [row["sample"] for row in rows["samples"]] == list(range(1438, 1450))
    assert rows["method"]["largestGap"] <= 1e-3
    assert rows["imageWidth"] == 8
    texts = text.report("explanation")["texts"]
    assert [len(each["tokens"]) for each in texts] == [12, 12, 12]
    assert len({each["sample"] for each in texts}) == 3
    assert "".join(texts[0]["tokens"]).strip() in TEXT


@pytest.mark.parametrize("mode", ["pipeline", "fsdp"])
def test_a_job_evaluates_the_checkpoint_of_another_layout_and_leaves_the_run_as_it_is(
    start: Starter, text: Trained, mode: str
) -> None:
    before = {path: path.stat().st_mtime_ns for path in text.folder.rglob("*") if "reports" not in path.parts}
    spec = {**text_spec(text.folder.parent), "task": "evaluate", "batch": {}, "stop": {}}
    layout = {"pipeline": {"stages": 2}} if mode == "pipeline" else {"data": {"mode": "fsdp"}}
    found = run(start, text.folder, 2, **spec, parallelism=layout)
    (trained,) = text.pod.evaluations
    (evaluated,) = found.pod.evaluations
    assert evaluated == pytest.approx(trained, rel=1e-5)
    assert found.report("evaluation")["metrics"] == pytest.approx(trained, rel=1e-5)
    word = found.pod.word
    assert word is not None
    assert word.progress is not None
    assert (word.progress.step, word.progress.eval_loss) == (20, evaluated["loss"])
    after = {path: path.stat().st_mtime_ns for path in text.folder.rglob("*") if "reports" not in path.parts}
    assert {p: t for p, t in after.items() if p.is_file()} == {p: t for p, t in before.items() if p.is_file()}


def test_a_job_of_another_name_evaluates_the_weights_that_it_names(
    start: Starter, text: Trained, tmp_path: Path
) -> None:
    spec = text_spec(text.folder.parent)
    data = {**spec["data"], "tokenizer": "file", "tokenizerFile": str(text.folder / "tokenizer.json")}
    model = {"name": "llama", "from": {"path": str(text.folder)}}
    layout = {"tensor": 2}
    found = run(start, tmp_path, 2, model=model, data=data, parallelism=layout, task="evaluate", batch={}, stop={})
    report, expected = found.report("evaluation"), text.report("evaluation")
    assert report["metrics"] == pytest.approx(expected["metrics"], rel=1e-5)
    assert report["calibration"]["error"] == pytest.approx(expected["calibration"]["error"], abs=1e-5)
    assert report["data"]["samples"] == expected["data"]["samples"]
    assert report["weights"]["run"] == expected["weights"]["run"]
    assert found.pod.word is not None
    assert found.pod.word.progress is not None
    assert found.pod.word.progress.eval_loss == pytest.approx(expected["metrics"]["loss"], rel=1e-5)
    assert [path.name for path in tmp_path.iterdir() if path.name != "data"] == ["reports"], "nothing else is written"


def test_a_training_in_bfloat16_is_explained_in_float32(start: Starter, text: Trained, tmp_path: Path) -> None:
    """fully_shard casts then, with a shard axis of one rank, and blocks are wrapped."""
    spec = {**text_spec(text.folder.parent), "stop": {"steps": 3}, "explain": {"samples": 2, "tokens": 12}}
    found = run(start, tmp_path, 2, **spec, precision="bfloat16", activationCheckpointing="full")
    content = found.report("explanation")
    assert len(content["texts"]) == 2
    assert content["method"]["largestGap"] <= 1e-3


def test_an_evaluation_that_hangs_is_detected() -> None:
    config = make_config(1, replace=True, checkpoint={}, task="evaluate", **DIGITS)
    trainer = Trainer(config, World(0, 0, 1, 1, torch.device("cpu")), load_table(config))
    trainer.initialize()
    table = HeartbeatTable(1)
    heartbeat.install(table.writer(0))
    try:
        trainer.evaluate_only()
        found = table.read(0)
    finally:
        heartbeat.install(None)
        table.close()
    assert found.phase is heartbeat.Phase.EVALUATION
    assert timeout_of(found) == FIRST_TIMEOUT


def test_an_evaluation_without_a_checkpoint_is_a_mistake(start: Starter, tmp_path: Path) -> None:
    config = make_config(1, replace=True, checkpoint={}, task="evaluate", **DIGITS)
    (pod,) = start(config, env={constants.ENV_CHECKPOINTS: str(tmp_path)})
    assert finish([pod]) == [constants.EXIT_INVALID_CONFIG]
    assert pod.word is not None
    assert "spec.trainer.task: evaluate needs weights" in pod.word.message


def test_the_command_gives_the_metrics_of_the_job(digits: Trained, text: Trained, tmp_path: Path) -> None:
    for trained in (digits, text):
        arguments = ["evaluate", str(trained.folder), "--report", str(tmp_path), "-o", "json"]
        done = CliRunner().invoke(app, arguments, catch_exceptions=False)
        assert done.exit_code == 0, done.stderr
        content, expected = json.loads(done.stdout), trained.report("evaluation")
        assert content["metrics"] == pytest.approx(expected["metrics"], rel=1e-5)
        assert content["data"]["samples"] == expected["data"]["samples"]
        assert content == json.loads((tmp_path / "evaluation.json").read_text())
        assert content["weights"]["step"] == expected["weights"]["step"]


def test_other_rows_are_scaled_as_the_model_knows_them(digits: Trained, tmp_path: Path) -> None:
    """A part of the digits, with only some classes: its own mean and deviation are others."""
    x, y = load_digits(return_X_y=True)
    np.savez(tmp_path / "part.npz", x=x[y < 3], y=y[y < 3])
    found = evaluate_folder(open_folder(digits.folder, DataChoice(tmp_path / "part.npz")))
    assert found.positions() == int((y < 3).sum())
    assert found.metrics()["accuracy"] > 0.9
    folder = open_folder(digits.folder, DataChoice(tmp_path / "part.npz"))
    assert folder.subject().samples == "537 samples of other data than those of the run"


@pytest.fixture(scope="session")
def hugging_face(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that transformers has saved, with a tokenizer."""
    from transformers import LlamaConfig, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("hugging-face")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=384, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        intermediate_size=64, max_position_embeddings=32, initializer_range=0.2,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    learn_bpe(iter([TEXT]), 300, folder / "tokenizer.json")
    return folder


def test_the_loss_of_a_hugging_face_folder_is_that_of_transformers(hugging_face: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    (tmp_path / "text").write_text(TEXT)
    data = open_folder(hugging_face, DataChoice(tmp_path / "text"))
    found = evaluate_folder(data).metrics()
    batch = data.samples.read(np.arange(data.samples.count), 0, 1)
    with torch.no_grad():
        logits = AutoModelForCausalLM.from_pretrained(hugging_face)(batch.inputs).logits
    loss = F.cross_entropy(logits.flatten(0, 1).float(), batch.targets.flatten())
    assert found["loss"] == pytest.approx(loss.item(), abs=1e-5)
    assert found["accuracy"] == pytest.approx((logits.argmax(-1) == batch.targets).double().mean().item())
    assert data.subject().samples.endswith("it is not known whether the model was trained on them")


def test_the_command_explains_the_rows_that_the_job_has_explained(digits: Trained, tmp_path: Path) -> None:
    arguments = ["explain", str(digits.folder), "--samples", "3", "--report", str(tmp_path)]
    done = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert done.exit_code == 0, done.stderr
    content = json.loads((tmp_path / "explanation.json").read_text())
    for row, expected in zip(content["samples"], digits.report("explanation")["samples"][:3], strict=True):
        assert row["gradients"] == pytest.approx(expected["gradients"], abs=1e-3)
        assert row["ablation"] == pytest.approx(expected["ablation"], abs=1e-5)
        assert row["features"] == pytest.approx(expected["features"])


def test_the_command_explains_texts_without_data(hugging_face: Path, text: Trained, tmp_path: Path) -> None:
    long = "The yard has seven tracks, and every track has a signal of its own, which is longer than the model has seen"
    for folder in (hugging_face, text.folder):
        arguments = ["explain", str(folder), "--text", "The yard has", "--text", long, "--report", str(tmp_path)]
        done = CliRunner().invoke(app, arguments, catch_exceptions=False)
        assert done.exit_code == 0, done.stderr
        content = json.loads((tmp_path / "explanation.json").read_text())
        assert ["".join(each["tokens"]) for each in content["texts"]] == ["The yard has", long]
        likely = content["texts"][0]["predicted"]
        printed = f"'The yard has' is followed by {likely['text']!r} {likely['probability']:.1%}, "
        assert done.stdout.startswith(printed)
        for each in content["texts"]:
            assert sum(each["weights"]) == pytest.approx(each["difference"], abs=2e-3)
        assert (tmp_path / "explanation.html").exists()


def test_adapters_are_evaluated_and_explained_with_their_base(
    start: Starter, hugging_face: Path, tmp_path: Path
) -> None:
    (tmp_path / "text").write_text(TEXT)
    spec: dict[str, Any] = {
        "model": {"name": "llama", "from": {"path": str(hugging_face)}, "lora": {"rank": 2}},
        "data": {
            "source": "text",
            "path": str(tmp_path / "text"),
            "tokenizer": "file",
            "tokenizerFile": str(hugging_face / "tokenizer.json"),
            "vocabSize": 384,
            "sequenceLength": 16,
            "evalFraction": 0.2,
        },
        "optimizer": {"learningRate": 0.05},
        "explain": {"samples": 2, "tokens": 12},
    }
    trained = run(start, tmp_path / "run", **spec, **REPORTED, batch={"global": 8}, stop={"steps": 10})
    expected = trained.report("evaluation")["metrics"]
    texts = trained.report("explanation")["texts"]
    (tmp_path / "run" / "reports").rename(tmp_path / "before")
    evaluated = run(start, tmp_path / "run", **spec, task="evaluate", batch={}, stop={})
    assert evaluated.report("evaluation")["metrics"] == pytest.approx(expected, rel=1e-5)
    found = evaluate_folder(open_folder(trained.folder, DataChoice())).metrics()
    assert found == pytest.approx(expected, rel=1e-4)
    base = evaluate_folder(open_folder(hugging_face, DataChoice(tmp_path / "text"))).metrics()
    assert base["loss"] > expected["loss"] + 0.1, "the adapters have learnt something"
    again = explain_folder(open_folder(trained.folder, DataChoice()), Explain(samples=2, tokens=12))["texts"]
    for one, other in zip(again, texts, strict=True):
        assert one["weights"] == pytest.approx(other["weights"], abs=1e-3)


@pytest.mark.parametrize(
    ("command", "options", "message"),
    [
        ("evaluate", ["--data", "missing"], "--data: missing does not exist; correct the path"),
        ("evaluate", ["--harness", "missing"], "missing cannot be read"),
        ("explain", ["--text", "a"], "--text: is for language models"),
        ("explain", ["--text", "a", "--data", "b"], "--text: replaces samples of data"),
        ("explain", ["--image-width", "7"], "spec.trainer.explain.imageWidth: 7 does not divide the 64 columns"),
    ],
)
def test_a_mistake_is_one_line(digits: Trained, command: str, options: list[str], message: str) -> None:
    done = CliRunner().invoke(app, [command, str(digits.folder), *options], catch_exceptions=False)
    assert done.exit_code == 2
    assert message in done.stderr
    assert done.stderr.count("error:") == 1


def test_data_of_another_shape_and_folders_without_weights_are_mistakes(digits: Trained, tmp_path: Path) -> None:
    np.savez(tmp_path / "wide.npz", x=np.zeros((5, 7)), y=np.zeros(5, dtype=int))
    np.savez(tmp_path / "many.npz", x=np.zeros((5, 64)), y=np.full(5, 12))
    with pytest.raises(ValueError, match="x has 7 columns, but the model was trained on 64"):
        open_folder(digits.folder, DataChoice(tmp_path / "wide.npz"))
    with pytest.raises(ValueError, match="y has the class 12, but the model was trained on 10 classes"):
        open_folder(digits.folder, DataChoice(tmp_path / "many.npz"))
    with pytest.raises(ValueError, match="holds no weights"):
        open_folder(tmp_path, DataChoice())


HARNESS = {
    "results": {
        "piqa": {"alias": "piqa", "sample_len": 100, "acc,none": 0.79, "acc_stderr,none": 0.01, "acc_norm,none": 0.8},
        "gsm8k": {"exact_match,strict-match": 0.5, "exact_match_stderr,strict-match": "N/A"},
    },
    "versions": {"piqa": 1.0},
}


def test_results_of_the_harness_are_read_and_shown(digits: Trained, tmp_path: Path) -> None:
    below = tmp_path / "model"
    below.mkdir()
    (below / "results_2026-01-01.json").write_text(json.dumps({"results": {}}))
    (below / "results_2026-02-01.json").write_text(json.dumps(HARNESS))
    rows = read_harness(tmp_path)
    assert rows == [
        {"task": "piqa", "metric": "acc", "value": 0.79, "error": 0.01},
        {"task": "piqa", "metric": "acc_norm", "value": 0.8, "error": None},
        {"task": "gsm8k", "metric": "exact_match (strict-match)", "value": 0.5, "error": None},
    ]
    arguments = ["evaluate", str(digits.folder), "--harness", str(tmp_path), "--report", str(tmp_path)]
    done = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert done.exit_code == 0, done.stderr
    assert "exact_match (strict-match)" in (tmp_path / "evaluation.html").read_text()
    for content in ("{}", "[]", '{"results": {}}', "no json"):
        (tmp_path / "other.json").write_text(content)
        with pytest.raises(ValueError, match=r"lm-evaluation-harness|no metrics"):
            read_harness(tmp_path / "other.json")
