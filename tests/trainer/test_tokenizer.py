"""Tokenizers: text to token ids and back; separators; the cache of words gives what the tokenizer gives."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, decoders, models, pre_tokenizers, processors, trainers
from tokenizers import Tokenizer as Encoder

from trainyard_trainer.data import word_cache
from trainyard_trainer.data.documents import Piece
from trainyard_trainer.data.files import BUILTIN, find_files
from trainyard_trainer.data.tokenizer import BPE_END, ByteTokenizer, JsonTokenizer, learn_bpe, read_ids
from trainyard_trainer.data.word_cache import KNOWN, WordCache
from trainyard_trainer.runtime.errors import ConfigError

TEXT = ["the cat sat on the mat; it's 1234 " * 50, "the dog ate\n\n  the hat.\t" * 50, "Grüße, Jürgen! ☃ 中文 " * 20]
MIXED = st.text(st.sampled_from("ab'sT12 \t\n\r\x0b\x1c\x85\xa0é中.,<|>☃\u2003") | st.characters(), max_size=60)


@pytest.fixture(scope="module")
def learned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bpe") / "tokenizer.json"
    learn_bpe(iter(TEXT), 600, path)
    return path


@given(st.text())
def test_bytes_round_trip(text: str) -> None:
    tokenizer = ByteTokenizer(separates=False)
    assert tokenizer.decode(read_ids(tokenizer.encode(Piece(text)), 256).tolist()) == text


@given(st.text())
def test_no_text_has_the_byte_that_ends_a_document(text: str) -> None:
    tokenizer = ByteTokenizer(separates=True)
    assert list(tokenizer.encode(Piece(text))) == [*text.encode(), tokenizer.end]
    assert tokenizer.end not in list(tokenizer.encode(Piece(text, last=False)))


@given(text=st.text())
def test_bpe_round_trip(learned: Path, text: str) -> None:
    bpe = JsonTokenizer(learned, separates=False)
    assert bpe.decode(read_ids(bpe.encode(Piece(text)), bpe.size).tolist()) == text


def test_bpe_shortens_what_it_was_trained_on(learned: Path) -> None:
    bpe = JsonTokenizer(learned, separates=False)
    assert 257 < bpe.size <= 600
    assert len(read_ids(bpe.encode(Piece("the cat ate the hat")), bpe.size)) <= 6


def test_bpe_learns_the_same_entries_every_time(tmp_path: Path) -> None:
    texts = [path.read_text() for path in find_files(BUILTIN, "")[:20]]
    for name in ("a.json", "b.json"):
        learn_bpe(iter(texts), 1024, tmp_path / name)
    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "b.json").read_bytes()


def test_text_cannot_contain_the_end_of_a_document(learned: Path) -> None:
    bpe = JsonTokenizer(learned, separates=True)
    ids = read_ids(bpe.encode(Piece(f"x{BPE_END}y")), bpe.size).tolist()
    assert ids.count(bpe.end) == 1
    assert ids[-1] == bpe.end
    assert bpe.decode(ids) == f"x{BPE_END}y{BPE_END}"


def of_pattern(pattern: str, **options: Any) -> Encoder:
    """Return a tokenizer in the form of Llama 3, which divides text by a pattern."""
    encoder = Encoder(models.BPE(ignore_merges=True))
    split = pre_tokenizers.Split(Regex(pattern), behavior="isolated")
    bytewise = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    encoder.pre_tokenizer = pre_tokenizers.Sequence([split, bytewise])
    encoder.decoder = decoders.ByteLevel()
    special = ["<|begin|>", "<|end_of_text|>"]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    encoder.train_from_iterator(
        TEXT,
        trainers.BpeTrainer(vocab_size=600, special_tokens=special, initial_alphabet=alphabet, show_progress=False),
    )
    begin = encoder.token_to_id("<|begin|>")
    encoder.post_processor = processors.TemplateProcessing("<|begin|> $A", special_tokens=[("<|begin|>", begin)])
    return encoder


@pytest.fixture(scope="module", params=KNOWN, ids=["gpt2", "llama3", "qwen2"])
def known(request: pytest.FixtureRequest) -> Encoder:
    return of_pattern(request.param)


def ids_of(encoder: Encoder, text: str) -> bytes:
    return np.asarray(encoder.encode(text, add_special_tokens=False).ids, np.uint16).tobytes()


@given(text=MIXED)
def test_cached_words_are_those_of_the_tokenizer(known: Encoder, text: str) -> None:
    cache = WordCache(json.loads(known.to_str()), lambda piece: ids_of(known, piece))
    assert cache.encode(text) == ids_of(known, text)


def test_the_words_of_known_tokenizers_are_cached(known: Encoder) -> None:
    calls: list[str] = []

    def encode(text: str) -> bytes:
        calls.append(text)
        return ids_of(known, text)

    cache = WordCache(json.loads(known.to_str()), encode)
    text = "the cat sat on the mat " * 100
    assert cache.encode(text) == ids_of(known, text)
    assert len(calls) <= 7


def test_long_and_too_many_words_are_not_kept(known: Encoder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(word_cache, "MAX_WORDS", 3)
    cache = WordCache(json.loads(known.to_str()), lambda piece: ids_of(known, piece))
    for text in ("a bc", "def ghi jkl mno", "x" * 1000, "a bc"):
        assert cache.encode(text) == ids_of(known, text)
    assert len(cache._words) <= 4


@pytest.mark.parametrize("changes", [{"normalizer": {"type": "Lowercase"}}, {"pre_tokenizer": {"type": "Whitespace"}}])
def test_other_tokenizers_encode_by_themselves(known: Encoder, changes: dict[str, Any]) -> None:
    other = Encoder.from_str(json.dumps(json.loads(known.to_str()) | changes))
    cache = WordCache(json.loads(other.to_str()), lambda piece: ids_of(other, piece))
    assert cache._find is None
    assert cache.encode("The Cat. \n") == ids_of(other, "The Cat. \n")


def test_added_tokens_are_found_across_words(known: Encoder) -> None:
    other = Encoder.from_str(known.to_str())
    other.add_tokens([AddedToken("cat sat")])
    cache = WordCache(json.loads(other.to_str()), lambda piece: ids_of(other, piece))
    text = "the cat sat on"
    assert cache.encode(text) == ids_of(other, text) != ids_of(known, text)


def test_documents_begin_and_end_as_the_tokenizer_says(tmp_path: Path) -> None:
    encoder = of_pattern(KNOWN[1])
    encoder.save(str(tmp_path / "tokenizer.json"))
    tokenizer = JsonTokenizer(tmp_path / "tokenizer.json", separates=True)
    begin, end = (encoder.token_to_id(name) for name in ("<|begin|>", "<|end_of_text|>"))
    pieces = [Piece("the cat", last=False), Piece(" sat", first=False)]
    ids = read_ids(b"".join(map(tokenizer.encode, pieces)), tokenizer.size).tolist()
    assert ids == [begin, *read_ids(ids_of(encoder, "the cat sat"), 600).tolist(), end]
    joined = JsonTokenizer(tmp_path / "tokenizer.json", separates=False)
    assert joined.end is None
    assert joined.encode(Piece("the cat")) == ids_of(encoder, "the cat")


def test_the_token_that_ends_a_document(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    encoder = of_pattern(KNOWN[0])
    encoder.save(str(path))
    assert JsonTokenizer(path, separates=True).end == encoder.token_to_id("<|end_of_text|>")
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"eos_token": {"content": "<|begin|>"}}))
    assert JsonTokenizer(path, separates=True).end == encoder.token_to_id("<|begin|>")
    assert JsonTokenizer(path, separates=True, end_token="a").end == encoder.token_to_id("a")
    with pytest.raises(ConfigError, match=r"spec\.trainer\.data\.endToken: .* has no token <end>; name one"):
        JsonTokenizer(path, separates=True, end_token="<end>")


@pytest.mark.parametrize(("content", "message"), [(None, "cannot be read in the worker"), ("{}", "is not a tokenizer")])
def test_a_wrong_file_is_named(tmp_path: Path, content: str | None, message: str) -> None:
    path = tmp_path / "tokenizer.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(ConfigError) as error:
        JsonTokenizer(path, separates=True)
    assert str(error.value).startswith(f"spec.trainer.data.tokenizerFile: {path}")
    assert message in str(error.value)
