"""A cache of encoded words in front of a tokenizer, which is three times as fast as the tokenizer for most text.

A byte-level BPE tokenizer divides text into words by a regular expression, and encodes each by itself. Text repeats its
words, so that dividing it here and looking the words up costs less than any encoding. The regular expressions of common
tokenizers are known; the cache passes the text of all others to the tokenizer. Python's `re` has no classes of Unicode
letters, so words are divided here only where the text is ASCII, in which the classes are simple.
"""

import re
from collections.abc import Callable
from itertools import groupby
from typing import Any

_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
KNOWN = (_GPT2, _LLAMA3, _LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}"))
"""Expressions of GPT-2, Llama 3 and Qwen 2: each begins a token at a space or tab behind a character that is no space,
and so each part of the text between such places can be divided by itself."""

_CLASSES = {r"\p{L}": "A-Za-z", r"\p{N}": "0-9", r"\s": r" \t\n\r\f\v"}
_UNIT = re.compile(r"(?<=\S)(?=[ \t])")
MAX_WORDS = 200_000
"""Words in memory; when they are more, the cache begins again."""
MAX_LENGTH = 48
"""Length of the longest word that is kept."""


class WordCache:
    """Encodes text, word by word where the tokenizer allows it."""

    def __init__(self, tokenizer: dict[str, Any], encode: Callable[[str], bytes]) -> None:
        """Prepare a cache.

        Args:
            tokenizer: content of the tokenizer.json.
            encode: the tokenizer: returns the ids of a text without any special tokens.
        """
        self._encode = encode
        self._words = _Words(encode)
        pattern = _pattern(tokenizer)
        self._find = None if pattern is None else re.compile(_in_ascii(pattern)).findall
        # An added token that is not special can be anywhere in the text, across words, too.
        added = [token["content"] for token in tokenizer.get("added_tokens") or () if not token.get("special")]
        self._added = sorted({content[:4] for content in added})

    def encode(self, text: str) -> bytes:
        """Return the ids of a text, the same as those of the tokenizer."""
        if self._find is None or any(beginning in text for beginning in self._added):
            return self._encode(text)
        words = self._words.limited()
        if text.isascii():
            return b"".join(map(words.__getitem__, self._find(text)))
        parts: list[bytes] = []
        for is_ascii, units in groupby(_UNIT.split(text), str.isascii):
            found = list(units)
            parts += map(words.__getitem__, self._find("".join(found)) if is_ascii else found)
        return b"".join(parts)


class _Words(dict[str, bytes]):
    """Encoded words."""

    def __init__(self, encode: Callable[[str], bytes]) -> None:
        super().__init__()
        self._encode = encode

    def __missing__(self, word: str) -> bytes:
        encoded = self._encode(word)
        if len(word) <= MAX_LENGTH:
            self[word] = encoded
        return encoded

    def limited(self) -> "_Words":
        """Return the words, none of them if they have become too many."""
        if len(self) > MAX_WORDS:
            self.clear()
        return self


def _pattern(tokenizer: dict[str, Any]) -> str | None:
    """Return the expression by which a tokenizer divides text into words, if it is known and nothing else divides."""
    normalizer, before = tokenizer.get("normalizer"), tokenizer.get("pre_tokenizer") or {}
    model = tokenizer.get("model") or {}
    # NFC does not change ASCII, and does not join anything with a space.
    if model.get("type") != "BPE" or model.get("dropout") or (normalizer or {"type": "NFC"}).get("type") != "NFC":
        return None
    steps = before.get("pretokenizers") if before.get("type") == "Sequence" else [before]
    *split, bytewise = steps or [{}]
    if bytewise.get("type") != "ByteLevel" or bytewise.get("add_prefix_space"):
        return None
    if not split:
        return _GPT2 if bytewise.get("use_regex", True) else None
    rule = split[0]
    isolates = rule.get("type") == "Split" and rule.get("behavior") == "Isolated" and not rule.get("invert")
    known = (rule.get("pattern") or {}).get("Regex") if isolates else None
    return known if len(split) == 1 and known in KNOWN and not bytewise.get("use_regex", True) else None


def _in_ascii(pattern: str) -> str:
    """Return an expression of the tokenizers library in Python's syntax, for text that is ASCII."""
    result, inside, position = "", False, 0
    while position < len(pattern):
        name = next((name for name in (*_CLASSES, r"\S") if pattern.startswith(name, position)), None)
        if name is None:
            character = pattern[position]
            length = 2 if character == "\\" else 1
            inside = character == "[" or (inside and character != "]")
            result += pattern[position : position + length]
        elif name == r"\S":
            length = len(name)
            result += f"[^{_CLASSES[chr(92) + 's']}]"
        else:
            length = len(name)
            result += _CLASSES[name] if inside else f"[{_CLASSES[name]}]"
        position += length
    return result
