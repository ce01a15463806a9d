"""From spec.trainer.data to tokens: which sources there are, their tokenizer, and their held-out samples.

Free of torch: `trainyard prepare` uses it, too.
"""

from pathlib import Path
from typing import NamedTuple, cast

from trainyard.config import RunConfig
from trainyard.resource.datasets import Data, DataSource
from trainyard.run_record import TOKENIZER_SIDE_FILES
from trainyard_trainer.data.chat_template import ChatTokenizer
from trainyard_trainer.data.documents import Documents, open_documents
from trainyard_trainer.data.downloads import local_path
from trainyard_trainer.data.encoding import TokenizerChoice
from trainyard_trainer.data.preparation import Report, Workshop
from trainyard_trainer.data.token_set import TokenSet, open_tokens
from trainyard_trainer.data.tokenizer import Tokenizer, TokenizerFile
from trainyard_trainer.runtime.errors import ConfigError


class WindowedSource(NamedTuple):
    """A source of windows."""

    name: str
    weight: float
    tokens: TokenSet
    held_out_windows: int
    """The last ones of `tokens`."""
    eval_tokens: TokenSet | None
    """Other tokens that are held out."""


class PreparedSources(NamedTuple):
    """The tokens of all sources."""

    sources: list[WindowedSource]
    end: int | None
    """Id of the token that ends a document, if attention must not cross it."""
    tokenizer: TokenizerFile | None
    """The tokenizer.json of the run, if there is one."""


def prepare_sources(config: RunConfig, report: Report, tokenizer: Path | None = None) -> PreparedSources:
    """Return the tokens of all sources; see `trainyard_trainer.data.loading.load_samples`."""
    data = config.trainer.data
    workshop = Workshop.of_rank(config, report)
    preparation = _Preparation(config, workshop, tokenizer)
    sources = [
        _windowed(
            source,
            preparation.tokens(source, _field(data, source)),
            None if source.eval_path is None else preparation.tokens(*_held_out(data, source)),
            config,
        )
        for source in data.each_source
    ]
    if workshop.started_work:
        report(1.0, workshop.seconds)
    end = preparation.end if data.documents == "isolated" and data.source != "chat" else None
    return PreparedSources(sources, end, preparation.tokenizer_file)


def tokenizer_choice(data: Data, path: Path | None) -> TokenizerChoice:
    """Return the tokenizer that makes tokens of documents; `path`: its tokenizer.json, None for bytes."""
    field, template = "spec.trainer.data.chatTemplate", data.chat_template
    return TokenizerChoice(
        None if path is None else str(path),
        data.documents != "joined",
        data.end_token,
        chat=data.source == "chat",
        template=None if template is None else local_path(template, field),
    )


class _Preparation:
    """Turns the sources of a job into tokens, all with one tokenizer."""

    def __init__(self, config: RunConfig, workshop: Workshop, tokenizer: Path | None) -> None:
        self._config, self._data, self._workshop = config, config.trainer.data, workshop
        self._given = tokenizer
        self._choice: TokenizerChoice | None = None
        self._tokenizer: Tokenizer | None = None
        self.tokenizer_file: TokenizerFile | None = None
        if self._data.tokenizer_file is not None and all(s.source == "tokens" for s in self._data.each_source):
            self._load()

    @property
    def end(self) -> int:
        """Id of the token that ends a document."""
        if self._data.end_token_id is not None:
            return self._data.end_token_id
        _, tokenizer = self._load()
        assert tokenizer.end is not None, "documents that are isolated are separated"
        return tokenizer.end

    def tokens(self, source: DataSource, field: str) -> TokenSet:
        """Return the tokens of a source.

        Raises:
            ConfigError: the source is missing or unreadable.
        """
        if source.source == "tokens":
            return open_tokens(source, field)
        choice, tokenizer = self._load()
        identity = "bytes" if self.tokenizer_file is None else self.tokenizer_file.sha256
        if choice.chat:
            identity += f" {cast(ChatTokenizer, tokenizer).template}"
        return self._workshop.tokens(open_documents(source, field), choice, tokenizer, identity)

    def _load(self) -> tuple[TokenizerChoice, Tokenizer]:
        """Return the tokenizer; it is learned and loaded when it is needed first."""
        if self._choice is not None and self._tokenizer is not None:
            return self._choice, self._tokenizer
        data = self._data
        path: Path | None = None
        if data.tokenizer == "file":
            assert data.tokenizer_file is not None, "admission demands it"
            field = "spec.trainer.data.tokenizerFile"
            path = Path(local_path(data.tokenizer_file, field, beside=TOKENIZER_SIDE_FILES))
        elif data.tokenizer == "bpe":
            path = self._given or self._workshop.learned_tokenizer(self._documents(), self._config.vocabulary)
        choice = tokenizer_choice(data, path)
        tokenizer = choice.load()
        if tokenizer.size > self._config.vocabulary:
            raise ConfigError(
                f"spec.trainer.data.vocabSize: the tokenizer has token ids up to {tokenizer.size - 1}, and the "
                f"vocabulary {self._config.vocabulary} entries; set it to {tokenizer.size} or more"
            )
        self.tokenizer_file = tokenizer.file
        self._choice, self._tokenizer = choice, tokenizer
        return choice, tokenizer

    def _documents(self) -> list[Documents]:
        return [open_documents(s, _field(self._data, s)) for s in self._data.each_source if s.source != "tokens"]


def _windowed(source: DataSource, tokens: TokenSet, eval_tokens: TokenSet | None, config: RunConfig) -> WindowedSource:
    """Return a source with its held-out windows.

    Raises:
        ConfigError: a set of tokens is shorter than one window, or nothing is left to train on.
    """
    data = config.trainer.data
    # Conversations are divided into samples in another way, see `data.chat`.
    if source.source == "chat":
        return WindowedSource(source.name, source.weight, tokens, 0, eval_tokens)
    field, length = _field(data, source), data.sequence_length
    for path, each in ((source.path, tokens), (source.eval_path, eval_tokens)):
        if each is not None and each.count < length + 1:
            raise ConfigError(
                f"{field}: {path} gives {each.count} tokens, and one sample needs {length + 1} (sequenceLength + 1); "
                "add data, or lower spec.trainer.data.sequenceLength"
            )
    windows = (tokens.count - 1) // length
    held_out = held_out_count(windows, source.eval_fraction)
    if held_out >= windows:
        raise ConfigError(
            f"{field.rpartition('.')[0]}.evalFraction: {source.eval_fraction} leaves none of {windows} samples to "
            "train on; lower it, or add data"
        )
    return WindowedSource(source.name, source.weight, tokens, held_out, eval_tokens)


def held_out_count(count: int, share: float) -> int:
    """Return how many of `count` samples, the last ones, are for evaluation only: at least one if share > 0."""
    return max(1, round(count * share)) if share > 0 else 0


def _field(data: Data, source: DataSource) -> str:
    """Return the name of the field that holds the path of a source."""
    if data.sources is None:
        return f"spec.trainer.data.{'path' if data.builtin is None else 'builtin'}"
    return f"spec.trainer.data.sources[{data.sources.index(source)}].path"


def _held_out(data: Data, source: DataSource) -> tuple[DataSource, str]:
    """Return the source of the held-out data of a source, and the name of its field."""
    held_out = source.replace(path=source.eval_path, eval_path=None, name=f"{source.name} (held out)")
    return held_out, _field(data, source).rpartition(".")[0] + ".evalPath"
