"""Fine-tuning on conversations, of all parameters and of adapters: the losses are those of a plain loop."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.support.run_config import make_config
from tests.trainer.layouts import FSDP, Layout
from tests.trainer.pods import Starter, finish
from tests.trainer.saved_models import save_model
from tests.trainer.test_chat import PLAIN, SPECIAL, talk, tokenizer_file, write
from tests.trainer.test_export import alone
from tests.trainer.test_lora import PEFT_WARNS, adapters_of
from trainyard.config import RunConfig
from trainyard.protocol import constants
from trainyard.resource.lora import Lora
from trainyard_trainer.data.batches import Batches
from trainyard_trainer.data.loading import load_samples
from trainyard_trainer.data.samples import IGNORED
from trainyard_trainer.models.initial import initialize
from trainyard_trainer.models.llama import FAMILY
from trainyard_trainer.models.llama.model import Llama
from trainyard_trainer.models.lora import apply_lora, initial_with_adapters, is_adapter, save_peft
from trainyard_trainer.weights.folder import load_model
from trainyard_trainer.weights.initial import with_initial_sizes

__all__ = ["tokenizer_file"]

STEPS = 15
LORA = {"rank": 4, "alpha": 8, "targets": ["q", "v", "down"]}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory, tokenizer_file: Path) -> dict[str, Any]:
    """Return conversations with answers of very different lengths."""
    talks = [talk(f"What is {i}?", "import " * (i % 11 + 1), "More", "x" * (i % 3 + 1)) for i in range(60)]
    path = write(tmp_path_factory.mktemp("talks") / "a.jsonl", talks)
    tokenizer = {"tokenizer": "file", "tokenizerFile": str(tokenizer_file), "vocabSize": 600}
    return {"source": "chat", "path": str(path), "sequenceLength": 96, **tokenizer}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model("qwen3", tmp_path_factory.mktemp("base") / "base", vocab_size=600, max_position_embeddings=96)


def configure(base: Path, data: dict[str, Any], layout: Layout, lora: dict[str, Any] | None) -> RunConfig:
    model = {"name": "llama", "from": {"path": str(base)}, **({"lora": lora} if lora else {})}
    return make_config(
        layout.processes,
        layout.parallelism,
        replace=True,
        model=model,
        data=data,
        batch={"global": 8, "micro": layout.micro},
        optimizer={"learningRate": 0.003, "eps": 1e-6, "weightDecay": 0.1, "gradientClip": 0.5},
        schedule={"name": "constant"},
        stop={"steps": STEPS},
    )


def with_peft(base: Path, model: Any, folder: Path) -> Any:
    """Return a model of transformers with the adapters that a run begins with."""
    from peft import PeftModel

    own = load_model(base).module
    assert isinstance(own, Llama)
    apply_lora(own, own.layers(), Lora.model_validate(LORA))
    initialize(own, 0, initial_with_adapters(own), is_adapter)
    assert FAMILY.hugging_face is not None
    save_peft(folder, adapters_of(own), Lora.model_validate(LORA), FAMILY.hugging_face(own.config), str(base))
    return PeftModel.from_pretrained(model, folder, is_trainable=True)


def losses_of_a_plain_loop(model: Any, config: RunConfig) -> list[float]:
    """Return the losses over the same batches, each the mean of torch over all targets of the batch."""
    batches = Batches(load_samples(config), config, alone())
    trained = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": 0.1},
        {"params": [p for p in trained if p.ndim == 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW([group for group in groups if group["params"]], lr=0.003, betas=(0.9, 0.95), eps=1e-6)
    losses = []
    for step in range(STEPS):
        (batch,) = batches.micro_batches(step)
        logits = model(input_ids=batch.inputs).logits
        loss: Tensor = F.cross_entropy(logits.flatten(0, 1), batch.targets.flatten(), ignore_index=IGNORED)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(trained, 0.5)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    batches.close()
    return losses


@PEFT_WARNS
@pytest.mark.parametrize("lora", [None, LORA], ids=["all parameters", "adapters"])
def test_the_losses_are_those_of_a_plain_loop(
    start: Starter,
    base: Path,
    data: dict[str, Any],
    lora: dict[str, Any] | None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The run has two ranks with two micro-batches each, the loop one batch."""
    from transformers import AutoModelForCausalLM

    layout = Layout(2, {"data": FSDP}, 2)
    (pod,) = start(configure(base, data, layout, lora), 1, 2)
    monkeypatch.setenv(constants.ENV_CACHE, str(tmp_path / "cache"))
    model: Any = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    if lora is not None:
        model = with_peft(base, model, tmp_path)
    expected = losses_of_a_plain_loop(model, with_initial_sizes(configure(base, data, Layout(1, {}), lora)))
    assert finish([pod], 120) == [0], pod.stderr
    found = [report["loss"] for report in pod.reports]
    assert found[0] == pytest.approx(expected[0], rel=1e-6)
    assert found == pytest.approx(expected, rel=1e-4)
    assert expected[-1] < expected[0] - (0.2 if lora is None else 0.005)


def test_an_exported_model_chats_with_its_template(
    start: Starter, base: Path, data: dict[str, Any], tmp_path: Path
) -> None:
    """The template of the run is in the export, whether it was beside the tokenizer or not."""
    from transformers import AutoTokenizer

    template = tmp_path / "own.jinja"
    template.write_text("Own: " + PLAIN)
    config = configure(base, {**data, "chatTemplate": str(template)}, Layout(1, {}), LORA)
    trainer = config.to_dict()["trainer"]
    body = {name: trainer[name] for name in ("model", "data", "batch", "optimizer", "schedule")}
    config = make_config(replace=True, checkpoint={}, **body, stop={"steps": 1}, export={})
    (pod,) = start(config, env={constants.ENV_CHECKPOINTS: str(tmp_path / "run")})
    assert finish([pod], 120) == [0], pod.stderr
    assert (tmp_path / "run" / "chat_template.jinja").read_text() == template.read_text()
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "run" / "export")
    text = tokenizer.apply_chat_template(talk("Hi"), tokenize=False, add_generation_prompt=True)
    assert text == f"Own: {SPECIAL[0]}<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    assert tokenizer.eos_token == SPECIAL[2]
    generation = json.loads((tmp_path / "run" / "export" / "generation_config.json").read_text())
    assert generation["eos_token_id"] == tokenizer.eos_token_id
