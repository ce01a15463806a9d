"""The tokenizer of exported weights: the files by which transformers loads it."""

import json
import shutil
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import ValidationError

from trainyard.resource.datasets import Data
from trainyard.run_record import CHAT_TEMPLATE_FILE, TOKENIZER_FILE, TOKENIZER_SIDE_FILES, RunRecord
from trainyard_trainer.data.chat_template import BYTE_TEMPLATE, JsonChat
from trainyard_trainer.data.tokenizer import BPE_END, BYTE_END, JsonTokenizer
from trainyard_trainer.runtime.errors import ConfigError
from trainyard_trainer.weights.weights import Weights


class EndToken(NamedTuple):
    """The token that ends a document."""

    text: str
    id: int


def write_tokenizer(weights: Weights, folder: Path) -> EndToken | None:
    """Write tokenizer.json and tokenizer_config.json into a folder, if it is known which tokens the model has learnt.

    Returns the token that ends a document; None if there is no tokenizer, or documents were joined.
    """
    data = _data(weights.record)
    # Rule 1: the tokenizer of the run, or of the folder that the weights were in.
    if weights.tokenizer is not None:
        shutil.copyfile(weights.tokenizer, folder / TOKENIZER_FILE)
        end = _end_of(weights.tokenizer, data)
    # Rule 2: a run that has read bytes has no file; the same tokenizer in the form of one is written.
    elif data is not None and data.tokenizer == "byte" and data.is_text:
        byte_tokenizer().save(str(folder / TOKENIZER_FILE))
        if data.source == "chat":
            (folder / CHAT_TEMPLATE_FILE).write_text(BYTE_TEMPLATE)
        end = None if data.documents == "joined" else EndToken(BPE_END, BYTE_END)
    # Rule 3: of tokens that another program has written, nothing is known.
    else:
        return None
    positions = getattr(weights.config, "sequence_length", None)
    _write_config(weights.tokenizer, folder, end, positions)
    return end


def generation_config(weights: Weights, folder: Path, end: EndToken | None) -> dict[str, Any]:
    """Return the content of generation_config.json: generation stops at the end of a document and of an answer.

    Tokens are drawn: else the servers of transformers ignore the temperature of a request, unless it is 0.

    Args:
        weights: what is exported.
        folder: where its tokenizer has been written.
        end: the token that ends a document; None: there is none.
    """
    ends = [] if end is None else [end.id]
    answer = _end_of_answer(weights, folder)
    if answer is not None and answer not in ends:
        ends.append(answer)
    content: dict[str, Any] = {"do_sample": True}
    if ends:
        content |= {"eos_token_id": ends[0] if len(ends) == 1 else ends, "pad_token_id": ends[0]}
    return content


def byte_tokenizer() -> Any:
    """Return the tokenizer of bytes as one of the library tokenizers: token N is the byte N.

    The byte 255 occurs in no text, and ends a document. Its token has a name that no text is taken for by accident.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    vocabulary = {character: byte for byte, character in enumerate(_characters()) if byte != BYTE_END}
    tokenizer = Tokenizer(models.BPE({**vocabulary, BPE_END: BYTE_END}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(BPE_END, special=True, normalized=False)])
    return tokenizer


def _characters() -> list[str]:
    """Return the characters by which byte-level tokenizers write the 256 bytes (Radford et al., 2019)."""
    printable = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    numbers = {byte: byte for byte in printable} | {byte: 256 + index for index, byte in enumerate(others)}
    return [chr(numbers[byte]) for byte in range(256)]


def _data(record: RunRecord | None) -> Data | None:
    """Return spec.trainer.data of a run; None if it is not known."""
    try:
        return None if record is None else Data.model_validate(record.config["trainer"]["data"], extra="ignore")
    except (KeyError, TypeError, ValidationError):
        return None


def _end_of(path: Path, data: Data | None) -> EndToken | None:
    """Return the token that ends a document, as the run has found it."""
    if data is not None and data.documents == "joined":
        return None
    try:
        tokenizer = JsonTokenizer(path, separates=True, end_token=None if data is None else data.end_token)
    except ConfigError:
        return None
    assert tokenizer.end is not None, "it separates documents"
    return EndToken(tokenizer.token(tokenizer.end), tokenizer.end)


def _end_of_answer(weights: Weights, folder: Path) -> int | None:
    """Return the token that ends an answer; None if the run has learned no conversations.

    The tokenizer of a base model often has a chat template that ends answers otherwise than documents.
    """
    data = _data(weights.record)
    if data is None or data.source != "chat":
        return None
    try:
        return JsonChat(folder / TOKENIZER_FILE, None).end_of_answer()
    except ConfigError:
        return None


def _write_config(source: Path | None, folder: Path, end: EndToken | None, positions: int | None) -> None:
    """Write tokenizer_config.json: the one beside the source, with its chat template, or one that suffices."""
    for name in TOKENIZER_SIDE_FILES:
        if source is not None and source.with_name(name).exists():
            shutil.copyfile(source.with_name(name), folder / name)
    path = folder / TOKENIZER_SIDE_FILES[0]
    if path.exists():
        return
    content: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
    if end is not None:
        content |= {"eos_token": end.text, "pad_token": end.text}
    if positions is not None:
        content["model_max_length"] = positions
    path.write_text(json.dumps(content, indent=2) + "\n")
