"""Conversations as token ids, of which those that the assistant has written are marked.

A chat template (Jinja, as Hugging Face tokenizers have it) makes one text of the messages. It may say itself what the
assistant writes, by `{% generation %}`. Most templates do not: then it is what the text of a conversation up to a
message of the assistant has beyond the prompt for that message, so it includes the token that ends the turn.

Free of torch.
"""

import json
import re
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from trainyard.resource.datasets import BYTE_VOCABULARY
from trainyard_trainer.data.documents import Piece
from trainyard_trainer.data.tokenizer import BPE_END, BYTE_END, TokenizerFile, load_encoder
from trainyard_trainer.runtime.errors import ConfigError

LEARNED, BEGINS = 1 << 31, 1 << 30
"""Bits of a stored token: the assistant has written it; it is the first one of a conversation."""
TOKEN_ID = BEGINS - 1
"""Bits of a stored token that are its id."""
BYTE_TEMPLATE = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|>\\n' + message['content'] + '"
    f"{BPE_END}"
    "\\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% endif %}"
)
"""Template of the byte tokenizer. The end of each message is one token, that which ends a document."""
_MARKS_GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")

Span = tuple[int, int]
"""Part of a text: its first character, and the one behind its last."""


class _Encoded(NamedTuple):
    """A text as tokens."""

    ids: list[int]
    offsets: list[Span]
    """The characters of each token."""


class ChatTokenizer(ABC):
    """Converts a conversation, an object with the field `messages` as JSON, to token ids of 32 bits with two marks."""

    dtype = "uint32"
    size: int
    """Largest token id + 1."""
    end: int | None = None
    file: TokenizerFile | None = None

    def __init__(self, template: str, variables: Mapping[str, Any], separate: frozenset[str] = frozenset()) -> None:
        """Prepare a template.

        Args:
            template: the chat template.
            variables: what it finds besides the messages: the tokens that begin and end a text.
            separate: texts that are one token each in a template; messages must not contain them.
        """
        self.template, self._variables = template, dict(variables)
        self._separate = re.compile("|".join(map(re.escape, sorted(separate, key=len, reverse=True))) or "(?!)")
        self._marks_generation = _MARKS_GENERATION.search(template) is not None

    @abstractmethod
    def tokens(self, text: str) -> _Encoded:
        """Return a text as tokens, special ones included."""

    @abstractmethod
    def decode(self, ids: list[int]) -> str:
        """Return the text of token ids, special tokens included."""

    def encode(self, piece: Piece) -> bytes:
        """Return the stored tokens of a conversation.

        Raises:
            ConfigError: the template refuses it, or does not show what the assistant has written.
        """
        if found := self._separate.search(piece.text):
            raise ConfigError(
                f"{piece.place}: a message contains {found[0]}, which is a token of the chat template; remove it"
            )
        chat = json.loads(piece.text)
        text, spans = self._render(chat["messages"], chat.get("tools"), piece)
        encoded = self.tokens(text)
        stored = np.array(encoded.ids, dtype=np.uint32)
        stored[_touched(encoded.offsets, spans)] |= LEARNED
        stored[:1] |= BEGINS
        return stored.tobytes()

    def _render(self, messages: list[dict[str, Any]], tools: Any, piece: Piece) -> tuple[str, list[Span]]:
        """Return the text of a conversation, and what the assistant has written of it."""
        text, marked = self._apply(messages, tools, piece)
        if self._marks_generation:
            return text, marked
        return text, [
            self._span(text, messages, number, tools, piece)
            for number, message in enumerate(messages)
            if message["role"] == "assistant"
        ]

    def _span(self, text: str, messages: list[dict[str, Any]], number: int, tools: Any, piece: Piece) -> Span:
        """Return the part of a text that message `number`, one of the assistant, has added to it."""
        prompt, _ = self._apply(messages[:number], tools, piece, prompted=True)
        until, _ = self._apply(messages[: number + 1], tools, piece)
        start, turn = len(prompt), until[len(prompt) :]
        if text.startswith(prompt) and until.startswith(prompt):
            if text.startswith(turn, start):
                return start, start + len(turn)
            # Some templates put an empty thought before the last answer, and remove it once another message follows.
            content = messages[number].get("content")
            place = turn.find(content.strip()) if isinstance(content, str) and content.strip() else -1
            if place > 0 and text.startswith(turn[place:], start):
                return start, start + len(turn) - place
        raise ConfigError(
            f"{piece.place}: the chat template writes message {number + 1} in another way once others follow, so it is "
            "not known what to learn; mark what the assistant writes with {% generation %} (spec.trainer.data."
            "chatTemplate), or make a conversation of each answer"
        )

    def _apply(
        self, messages: list[dict[str, Any]], tools: Any, piece: Piece, *, prompted: bool = False
    ) -> tuple[str, list[Span]]:
        """Return the text of some messages, and what the template marks. `prompted`: the assistant is to continue."""
        import jinja2
        from transformers.utils.chat_template_utils import render_jinja_template

        try:
            texts, marked = render_jinja_template(
                [messages],
                tools=tools,
                chat_template=self.template,
                return_assistant_tokens_mask=self._marks_generation,
                add_generation_prompt=prompted,
                **self._variables,
            )
        except (jinja2.TemplateError, TypeError, ValueError, KeyError) as error:
            raise ConfigError(
                f"{piece.place}: the chat template refuses the conversation ({error}); correct it, or "
                "spec.trainer.data.chatTemplate"
            ) from error
        return texts[0], marked[0] if marked else []


class ByteChat(ChatTokenizer):
    """One token for each byte, and one for the end of a message."""

    size = BYTE_VOCABULARY

    def __init__(self) -> None:
        super().__init__(BYTE_TEMPLATE, {}, frozenset({BPE_END}))

    def tokens(self, text: str) -> _Encoded:
        """Return the bytes of a text."""
        ids: list[int] = []
        offsets: list[Span] = []
        for found in re.finditer(f"{re.escape(BPE_END)}|.", text, re.DOTALL):
            own = bytes([BYTE_END]) if found[0] == BPE_END else found[0].encode(errors="replace")
            ids += own
            offsets += [found.span()] * len(own)
        return _Encoded(ids, offsets)

    def decode(self, ids: list[int]) -> str:
        """Return the text of bytes; an incomplete character becomes U+FFFD."""
        return bytes(ids).decode(errors="replace")


class JsonChat(ChatTokenizer):
    """A tokenizer.json, and the template and special tokens of the files beside it."""

    def __init__(self, path: Path, template: str | None) -> None:
        """Load a tokenizer; `template`: None for that of the files beside it.

        Raises:
            ConfigError: the file is missing or is not a tokenizer, or there is no template.
        """
        self._encoder, file, self.size = load_encoder(path)
        settings = _settings(path)
        special = {token.content for token in self._encoder.get_added_tokens_decoder().values() if token.special}
        names = {name: _content(settings[name]) for name in ("bos_token", "eos_token") if settings.get(name)}
        super().__init__(template or _template_beside(path, settings), names, frozenset(special))
        self.file = file._replace(chat_template=self.template)

    def tokens(self, text: str) -> _Encoded:
        """Return the tokens of a text."""
        found = self._encoder.encode(text, add_special_tokens=False)
        return _Encoded(found.ids, found.offsets)

    def decode(self, ids: list[int]) -> str:
        """Return the text of token ids, special tokens included."""
        return str(self._encoder.decode(ids, skip_special_tokens=False))

    def end_of_answer(self) -> int | None:
        """Return the special token that the template writes behind an answer; None if it writes none.

        Raises:
            ConfigError: the template refuses a question with its answer.
        """
        question, answer = {"role": "user", "content": "Question"}, {"role": "assistant", "content": "Answer"}
        text, _ = self._apply([question, answer], None, Piece("", place="a question with its answer"))
        found = self._separate.search(text, text.rfind(answer["content"]))
        return None if found is None else int(self._encoder.token_to_id(found[0]))


def load_chat_tokenizer(path: Path | None, template: Path | None) -> ChatTokenizer:
    """Return what converts conversations.

    Args:
        path: a tokenizer.json; None: bytes, which have a template of their own.
        template: file of the chat template; None: that of the tokenizer.

    Raises:
        ConfigError: a file is missing or is not what it should be.
    """
    own = None
    if template is not None:
        try:
            own = template.read_text("utf-8")
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else error.reason
            raise ConfigError(
                f"spec.trainer.data.chatTemplate: {template} cannot be read in the worker ({reason}); mount it, or "
                "correct the path"
            ) from error
    return ByteChat() if path is None else JsonChat(path, own)


def _touched(offsets: list[Span], spans: list[Span]) -> list[int]:
    """Return the tokens of which a part lies in one of the spans; both are in order."""

    def touched() -> Iterator[int]:
        left = iter(spans)
        span = next(left, None)
        for index, (start, end) in enumerate(offsets):
            while span is not None and start >= span[1]:
                span = next(left, None)
            if span is None:
                return
            if end > span[0]:
                yield index

    return list(touched())


def _settings(path: Path) -> dict[str, Any]:
    """Return the tokenizer_config.json beside a tokenizer; empty if there is none."""
    beside = path.with_name("tokenizer_config.json")
    try:
        found = json.loads(beside.read_text("utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"spec.trainer.data.tokenizerFile: {beside} cannot be read ({error}); correct or remove it"
        ) from error
    return found if isinstance(found, dict) else {}


def _template_beside(path: Path, settings: Mapping[str, Any]) -> str:
    """Return the template of a tokenizer.

    Raises:
        ConfigError: it has none.
    """
    beside = path.with_name("chat_template.jinja")
    if beside.is_file():
        return beside.read_text("utf-8")
    found = settings.get("chat_template")
    # Several templates have names.
    if isinstance(found, list):
        found = {entry.get("name"): entry.get("template") for entry in found if isinstance(entry, dict)}.get("default")
    if not isinstance(found, str):
        raise ConfigError(
            f"spec.trainer.data.chatTemplate: {path} has no chat template beside it (chat_template.jinja, or "
            "chat_template in tokenizer_config.json); name a file with one"
        )
    return found


def _content(token: Any) -> str:
    """Return the text of a special token, which may be an object with more properties."""
    return str(token.get("content")) if isinstance(token, dict) else str(token)
