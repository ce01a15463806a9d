"""What the claim `corpus` of some samples holds: texts, tokens, and a small model with conversations for it."""

import json
import sysconfig
from pathlib import Path

import numpy as np

VOCABULARY = 384
"""Tokens of the small model; the sample has those of Qwen 3."""
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
"""The first tokens."""
ENDS = [0, 2]
"""The tokens that end a document, and an answer."""


def write_corpus(folder: Path) -> None:
    """Write what the claim `corpus` holds, from the source code of Python's standard library."""
    modules = sorted(Path(sysconfig.get_path("stdlib")).glob("[a-d]*.py"))
    (folder / "web").mkdir()
    (folder / "web" / "0.jsonl").write_text("".join(json.dumps({"text": m.read_text()}) + "\n" for m in modules))
    (folder / "code").mkdir()
    for module in modules[:10]:
        (folder / "code" / module.name).write_text(module.read_text())
    content = np.frombuffer(b"".join(module.read_bytes() for module in modules), np.uint8).astype(np.uint16)
    content[:-10_000].tofile(folder / "train.bin")
    content[-10_000:].tofile(folder / "val.bin")


def write_model(folder: Path) -> None:
    """Write a small random model in the shape of Qwen 3, its tokenizer, and conversations."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    from tests.trainer.saved_models import save_model

    save_model("qwen3", folder / "model", vocab_size=VOCABULARY)
    encoder = Tokenizer(models.BPE())
    encoder.pre_tokenizer, encoder.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    encoder.train_from_iterator(
        [Path(__file__).read_text()],
        trainers.BpeTrainer(
            vocab_size=VOCABULARY, show_progress=False, special_tokens=SPECIAL, initial_alphabet=alphabet
        ),
    )
    encoder.save(str(folder / "model" / "tokenizer.json"))
    template = (
        "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    (folder / "model" / "chat_template.jinja").write_text(template)
    talks = [[("user", f"What is {i} + {i}?"), ("assistant", f"{2 * i}")] for i in range(200)]
    lines = (json.dumps({"messages": [{"role": r, "content": c} for r, c in talk]}) for talk in talks)
    (folder / "chat.jsonl").write_text("\n".join(lines))
