"""Conversations: the tokens are those of transformers, only the assistant's are learned, and each counts the same."""

import json
from collections.abc import Callable
from itertools import compress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from tests.support.run_config import make_config
from tests.trainer.layouts import FSDP, SERVER, Layout, assert_equal, extended, pipe, run
from tests.trainer.pods import Starter, finish
from trainyard.protocol import constants
from trainyard_trainer.data import chat, documents
from trainyard_trainer.data.chat_template import BEGINS, LEARNED, TOKEN_ID, JsonChat, load_chat_tokenizer
from trainyard_trainer.data.documents import Piece
from trainyard_trainer.data.loading import load_samples
from trainyard_trainer.data.samples import IGNORED
from trainyard_trainer.evaluation.folder import DataChoice, evaluate_folder, open_folder
from trainyard_trainer.runtime.errors import ConfigError

MARKED = (
    "{{ bos_token }}{% for m in messages %}<|im_start|>{{ m['role'] }}\n{% if m['role'] == 'assistant' %}"
    "{% generation %}{{ m['content'] }}<|im_end|>\n{% endgeneration %}{% else %}{{ m['content'] }}<|im_end|>\n"
    "{% endif %}{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
PLAIN = MARKED.replace("{% generation %}", "").replace("{% endgeneration %}", "")
THINKING = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{% if m['role'] == 'assistant' and loop.last %}<think>\n\n"
    "</think>\n\n{% endif %}{{ m['content'] }}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}"
    "<|im_start|>assistant\n{% endif %}"
)
"""As the template of Qwen 3: an empty thought before the last answer only."""
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]

TALK = [
    {"role": "system", "content": "Answer in a word."},
    {"role": "user", "content": "What is white and falls? ☃"},
    {"role": "assistant", "content": "Snow, é."},
    {"role": "user", "content": "And wet?"},
    {"role": "assistant", "content": "Rain"},
]


def talk(*words: str) -> list[dict[str, str]]:
    """Return a conversation of alternating messages, the first of the user."""
    return [{"role": ("user", "assistant")[i % 2], "content": word} for i, word in enumerate(words)]


def write(path: Path, conversations: list[list[dict[str, str]]]) -> Path:
    path.write_text("".join(json.dumps({"messages": messages}) + "\n" for messages in conversations))
    return path


@pytest.fixture(scope="session")
def tokenizer_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a tokenizer.json of 600 entries, with a template that marks nothing in its tokenizer_config.json."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    folder = tmp_path_factory.mktemp("tokenizer")
    encoder = Tokenizer(models.BPE())
    encoder.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    encoder.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=600, show_progress=False, special_tokens=SPECIAL, initial_alphabet=alphabet
    )
    encoder.train_from_iterator([Path(json.__file__).read_text()], trainer)
    encoder.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": SPECIAL[0],
        "eos_token": {"__type": "AddedToken", "content": SPECIAL[2], "special": True},
        "chat_template": PLAIN,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder / "tokenizer.json"


@pytest.fixture(scope="session")
def hugging_face(tokenizer_file: Path) -> Any:
    """Return the same tokenizer in transformers, whose template marks what the assistant writes."""
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(
        tokenizer_file=str(tokenizer_file), bos_token=SPECIAL[0], eos_token=SPECIAL[2], chat_template=MARKED
    )


def stored(tokenizer: JsonChat, messages: list[dict[str, str]]) -> tuple[list[int], list[int]]:
    """Return the ids of a conversation, and which of them are learned."""
    found = np.frombuffer(tokenizer.encode(Piece(json.dumps({"messages": messages}))), np.uint32)
    assert [bool(token & BEGINS) for token in found] == [True] + [False] * (len(found) - 1)
    return (found & TOKEN_ID).tolist(), [int(token & LEARNED > 0) for token in found]


@pytest.mark.parametrize("template", [None, MARKED], ids=["what a turn adds", "what the template marks"])
@pytest.mark.parametrize(
    "messages", [TALK, talk("Hi", "Ho"), talk("a", "  b  ", "c", "b")], ids=["long", "short", "spaces"]
)
def test_tokens_and_marks_are_those_of_transformers(
    tokenizer_file: Path, hugging_face: Any, template: str | None, messages: list[dict[str, str]]
) -> None:
    expected = hugging_face.apply_chat_template(messages, return_dict=True, return_assistant_tokens_mask=True)
    ids, learned = stored(JsonChat(tokenizer_file, template), messages)
    assert ids == expected["input_ids"]
    assert learned == expected["assistant_masks"]
    assert 0 < sum(learned) < len(learned)


def test_a_thought_before_the_last_answer_only_does_not_hide_the_others(tokenizer_file: Path) -> None:
    tokenizer = JsonChat(tokenizer_file, THINKING)
    ids, learned = stored(tokenizer, TALK)
    text = tokenizer.decode([token for token, mark in zip(ids, learned, strict=True) if mark])
    assert text == "Snow, é.<|im_end|>\n<think>\n\n</think>\n\nRain<|im_end|>\n"


@pytest.mark.parametrize(
    ("template", "end"),
    [(PLAIN, "<|im_end|>"), (MARKED, "<|im_end|>"), (THINKING, "<|im_end|>"), (PLAIN.replace("<|im_end|>", "#"), None)],
    ids=["plain", "marked", "thinking", "no special token"],
)
def test_the_end_of_an_answer_is_known(tokenizer_file: Path, template: str, end: str | None) -> None:
    tokenizer = JsonChat(tokenizer_file, template)
    found = tokenizer.end_of_answer()
    assert (None if found is None else tokenizer.decode([found])) == end


def test_bytes_have_a_template_of_their_own() -> None:
    ids, learned = stored(load_chat_tokenizer(None, None), TALK)  # type: ignore[arg-type]
    text, answers = (bytes(each).decode(errors="replace") for each in (ids, compress(ids, learned)))
    assert text.startswith("<|system|>\nAnswer in a word.\N{REPLACEMENT CHARACTER}\n<|user|>\n")
    assert answers == "Snow, é.\N{REPLACEMENT CHARACTER}\nRain\N{REPLACEMENT CHARACTER}\n"


def config(path: Path, **data: Any) -> Any:
    data = {"source": "chat", "path": str(path), "sequenceLength": 64, **data}
    return make_config(data=data, replace=True, batch={"global": 4})


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRAINYARD_CACHE", str(tmp_path / "cache"))


def test_a_sample_holds_one_conversation_and_padding(tmp_path: Path) -> None:
    samples = load_samples(config(write(tmp_path / "a.jsonl", [talk("Hi", "Ho"), talk("A", "B")])))
    assert samples.masks_targets
    assert samples.count == 2
    inputs, targets, isolation = samples.read(np.array([1, 0]), 0, 1)
    assert isolation is None
    text = b"<|user|>\nHi\xff\n<|assistant|>\nHo\xff\n"
    assert bytes(inputs[1, : len(text) - 1].tolist()) == text[:-1]
    assert inputs[1, len(text) - 1 :].abs().sum() == 0
    learned = targets[1][targets[1] != IGNORED]
    assert bytes(learned.tolist()) == b"Ho\xff\n"
    # Each target is the token behind its input.
    places = (targets[1] != IGNORED).nonzero().flatten()
    assert bytes(inputs[1, places[0] : places[-1] + 1].tolist()) == b"\nHo\xff"


def test_parts_of_a_sample_make_the_whole(tmp_path: Path) -> None:
    samples = load_samples(config(write(tmp_path / "a.jsonl", [talk("Hi", "Ho")])))
    whole, parts = samples.read(np.array([0]), 0, 1), [samples.read(np.array([0]), part, 4) for part in range(4)]
    torch.testing.assert_close(torch.cat([part.inputs for part in parts], 1), whole.inputs)
    torch.testing.assert_close(torch.cat([part.targets for part in parts], 1), whole.targets)


def test_isolated_conversations_share_a_sample(tmp_path: Path) -> None:
    talks = [talk("a" * (7 * i % 23), "b") for i in range(20)]
    path = write(tmp_path / "a.jsonl", talks)
    alone = load_samples(config(path, sequenceLength=200))
    packed = load_samples(config(path, sequenceLength=200, documents="isolated"))
    assert packed.count < alone.count == 20
    assert packed.fingerprint != alone.fingerprint
    single = alone.read(np.arange(20), 0, 1)
    shared = packed.read(np.arange(packed.count), 0, 1)
    assert shared.documents is not None
    found = []
    for row in range(packed.count):
        numbers = shared.documents[row]
        for number in range(int(numbers.max())):
            own = numbers == number
            found.append((shared.inputs[row, own].tolist(), shared.targets[row, own].tolist()))
    expected = []
    for row in range(20):
        size = int((single.targets[row] != IGNORED).nonzero().max()) + 1
        expected.append((single.inputs[row, :size].tolist(), single.targets[row, :size].tolist()))
    assert found == expected


def test_long_conversations_are_cut_and_those_without_an_answer_are_left_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = write(tmp_path / "a.jsonl", [talk("a" * 100, "b"), talk("a", "b" * 100), talk("a", "b")])
    with caplog.at_level("WARNING", "trainyard"):
        samples = load_samples(config(path))
    assert samples.count == 2
    assert "of 3 conversations 2 are longer than sequenceLength (64)" in caplog.text
    targets = samples.read(np.array([0]), 0, 1).targets[0]
    assert targets[-1] == ord("b")
    with pytest.raises(ConfigError, match=r"spec.trainer.data.path: in none of 1 conversations the assistant"):
        load_samples(config(write(tmp_path / "b.jsonl", [talk("a" * 100, "b")])))


def test_held_out_conversations_are_the_last_ones(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", [talk(f"{i}", f"{i}") for i in range(10)])
    (subset,) = load_samples(config(path, evalFraction=0.2)).subsets
    assert (subset.train, subset.held_out) == (range(8), range(8, 10))
    other = write(tmp_path / "b.jsonl", [talk("x", "yes"), talk("x", "no")])
    samples = load_samples(config(path, evalPath=str(other)))
    (subset,) = samples.subsets
    assert (subset.train, subset.held_out) == (range(10), range(10, 12))
    targets = samples.read(np.array([10]), 0, 1).targets
    assert bytes(targets[targets != IGNORED].tolist()) == b"yes\xff\n"


def test_the_scan_does_not_depend_on_its_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "a.jsonl", [talk("a" * (i % 9), "b" * (i % 5 + 1)) for i in range(50)])
    whole = load_samples(config(path)).read(np.arange(50), 0, 1)
    monkeypatch.setattr(chat, "SCANNED", 37)
    pieces = load_samples(config(path)).read(np.arange(50), 0, 1)
    assert torch.equal(whole.targets, pieces.targets)


GOOD = json.dumps({"messages": talk("a", "b")})
BROKEN: dict[str, tuple[str, str]] = {
    "no JSON": ('{"messages": [', "line 3: the line is not JSON"),
    "no field": ('{"text": "a"}', "line 3: there is no field messages, the line has the fields text"),
    "no list": ('{"messages": "a"}', "line 3: there are no messages; write"),
    "no role": ('{"messages": [{"content": "a"}]}', "line 3: message 1 has no role; write"),
    "no content": ('{"messages": [{"role": "user"}]}', "line 3: message 1, of the user, has no content; write"),
    "no answer": (json.dumps({"messages": talk("a")}), "line 3: the assistant says nothing"),
    "tools": (json.dumps({"messages": talk("a", "b"), "tools": "x"}), "line 3: its tools are not a list"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_the_line_of_a_mistake_is_named(tmp_path: Path, name: str) -> None:
    line, message = BROKEN[name]
    path = tmp_path / "a.jsonl"
    path.write_text(f"{GOOD}\n{GOOD}\n{line}\n{GOOD}\n")
    with pytest.raises(ConfigError) as error:
        load_samples(config(path))
    assert str(error.value).startswith(f"spec.trainer.data.path: {path}, {message}")
    assert "\n" not in str(error.value)


def test_the_line_is_named_in_a_part_of_a_compressed_or_long_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import gzip

    content = f"{GOOD}\n\n" * 300 + "oops\n"
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(gzip.compress(content.encode()))
    with pytest.raises(ConfigError, match=r"a\.jsonl\.gz, line 601: the line is not JSON"):
        load_samples(config(path))
    plain = tmp_path / "a.jsonl"
    plain.write_text(content)
    found = documents.open_documents(config(plain).trainer.data.each_source[0], "spec.trainer.data.path")
    *_, last = found.parts(1000)
    with pytest.raises(ConfigError, match=r"a\.jsonl, line 601: the line is not JSON"):
        list(found.read(last))


@pytest.mark.parametrize(
    ("template", "messages", "message"),
    [
        ("{{ raise_exception('roles must alternate') }}", talk("a", "b"), "refuses the conversation (roles must"),
        ("{% for m in messages", talk("a", "b"), "refuses the conversation"),
        (PLAIN, talk("a <|im_end|> b", "c"), "a message contains <|im_end|>, which is a token of the chat template"),
        (
            "{% for m in messages %}{{ m['role'] }}{{ '' if m['role'] == 'assistant' and not loop.last else "
            "m['content'] }}{% endfor %}",
            talk("a", "b", "c", "d"),
            "writes message 2 in another way once others follow",
        ),
    ],
    ids=["refusal", "syntax", "special token", "hidden answers"],
)
def test_what_the_template_refuses_names_the_line(
    tmp_path: Path, tokenizer_file: Path, template: str, messages: list[dict[str, str]], message: str
) -> None:
    (tmp_path / "template").write_text(template)
    path = write(tmp_path / "a.jsonl", [talk("a", "b")] * 2 + [messages])
    data = {"tokenizer": "file", "tokenizerFile": str(tokenizer_file), "vocabSize": 600}
    with pytest.raises(ConfigError) as error:
        load_samples(config(path, chatTemplate=str(tmp_path / "template"), **data))
    assert message in str(error.value)
    assert str(error.value).startswith(f"spec.trainer.data.path: {path}, line ")
    assert "\n" not in str(error.value)


def test_a_tokenizer_without_a_template_is_refused(tmp_path: Path, tokenizer_file: Path) -> None:
    alone = tmp_path / "tokenizer.json"
    alone.write_bytes(tokenizer_file.read_bytes())
    with pytest.raises(ConfigError, match=r"spec.trainer.data.chatTemplate: .* has no chat template beside it"):
        load_chat_tokenizer(alone, None)
    with pytest.raises(ConfigError, match=r"spec.trainer.data.chatTemplate: .*missing cannot be read in the worker"):
        load_chat_tokenizer(alone, tmp_path / "missing")
    (tmp_path / "chat_template.jinja").write_text(PLAIN)
    assert load_chat_tokenizer(alone, None).template == PLAIN


# --- training -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Return conversations of which some have 20 times as many targets as others, so that a mean of means is wrong."""
    talks = [talk("q" * (i % 7 + 1), chr(97 + i % 26) * (1 if i % 3 else 20)) for i in range(40)]
    path = write(tmp_path_factory.mktemp("talks") / "a.jsonl", talks)
    return {"source": "chat", "path": str(path), "sequenceLength": 96, "evalFraction": 0.1}


def with_data(data: dict[str, Any], layout: Layout) -> dict[str, Any]:
    return data if layout.evaluates else {**data, "evalFraction": 0}


LAYOUTS = (
    Layout(1, {}, 1),
    Layout(2, {"data": FSDP}, 2),
    Layout(2, {"context": 2}),
    Layout(2, {"pipeline": pipe(2)}),
)
MORE_LAYOUTS = (
    Layout(2, {}, 1),
    Layout(2, {"data": SERVER}),
    Layout(2, {"tensor": 2}),
    Layout(2, {"pipeline": pipe(2, "ZBV")}),
)


@pytest.fixture(scope="module")
def reference(start: Starter, data: dict[str, Any]) -> Callable[[Layout], Any]:
    found: dict[str, Any] = {}

    def alone(layout: Layout) -> Any:
        key = f"{layout.layers} {layout.alone}"
        if key not in found:
            model = {"heads": 8, "kvHeads": 4, "layers": layout.layers}
            found[key] = run(start, layout.alone, data=with_data(data, layout), model=model)
        return found[key]

    return alone


@pytest.mark.parametrize("layout", [*LAYOUTS, *extended(MORE_LAYOUTS)], ids=str)
def test_every_layout_learns_the_same(
    start: Starter, data: dict[str, Any], reference: Callable[[Layout], Any], layout: Layout
) -> None:
    assert_equal(run(start, layout, data=with_data(data, layout)), reference(layout))


def test_the_loss_is_the_mean_over_all_answers_of_the_batch(
    start: Starter, data: dict[str, Any], reference: Callable[[Layout], Any]
) -> None:
    """The first loss of the run, on micro-batches of one sample, is that of one torch call over the whole batch."""
    from tests.trainer.layouts import configure
    from trainyard_trainer.data.sampling import Sampler
    from trainyard_trainer.models.initial import initialize
    from trainyard_trainer.models.llama.model import Llama

    settings = configure(Layout(1, {}), data=data)
    samples = load_samples(settings)
    (subset,) = samples.subsets
    batch = samples.read(Sampler(len(subset.train), 0, 8, 1).batch_windows(0, 0), 0, 1)
    model = Llama(settings.model)  # type: ignore[arg-type]
    initialize(model, 0, model.initial)
    loss = F.cross_entropy(model(batch.inputs).flatten(0, 1), batch.targets.flatten(), ignore_index=IGNORED)
    assert reference(Layout(1, {}))[0]["loss"] == pytest.approx(loss.item(), rel=1e-5)


def test_a_broken_line_fails_a_job_with_one_message(start: Starter, tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(f"{GOOD}\noops\n")
    (pod,) = start(config(path))
    assert finish([pod]) == [78]
    assert pod.word is not None
    assert pod.word.message.startswith(f"spec.trainer.data.path: {path}, line 2: the line is not JSON")


def test_answers_are_evaluated_and_explained_by_the_job_and_by_the_command(
    start: Starter, tokenizer_file: Path, tmp_path: Path
) -> None:
    data = write(tmp_path / "chat.jsonl", [talk(f"Say {i}.", f"It is {i}.", "Again?", f"{i}!") for i in range(40)])
    spec: dict[str, Any] = {
        "model": {"name": "llama", "preset": "nano"},
        "data": {
            "source": "chat",
            "path": str(data),
            "tokenizer": "file",
            "tokenizerFile": str(tokenizer_file),
            "vocabSize": 600,
            "sequenceLength": 64,
            "evalFraction": 0.2,
        },
        "batch": {"global": 4},
        "stop": {"steps": 3},
        "evaluation": {"report": True},
        "explain": {"samples": 2, "tokens": 30},
    }
    config = make_config(1, replace=True, checkpoint={}, **spec)
    (pod,) = start(config, env={constants.ENV_CHECKPOINTS: str(tmp_path / "run")})
    assert finish([pod]) == [0], pod.stderr
    (report,) = (tmp_path / "run").glob("reports/*/evaluation.json")
    expected = json.loads(report.read_text())
    folder = open_folder(tmp_path / "run", DataChoice())
    scores = evaluate_folder(folder)
    assert scores.metrics() == pytest.approx(expected["metrics"], rel=1e-4)
    samples = [folder.samples.read(np.array([n]), 0, 1) for each in folder.evaluated for n in each.numbers]
    assert scores.positions() == expected["positions"] == sum(int((b.targets != IGNORED).sum()) for b in samples)
    assert open_folder(tmp_path / "run", DataChoice(data)).config.trainer.data.source == "chat"
    assert (report.with_name("explanation.html")).exists()
