"""`spec.trainer.data`: the data that the model is trained on."""

from typing import Annotated, ClassVar, Literal, cast, get_args

from pydantic import Field

from trainyard.base import ApiModel, NonNegative, Rule
from trainyard.resource.exclusion import Exclusion
from trainyard.resource.urls import url_rule

BYTE_VOCABULARY, BPE_VOCABULARY = 256, 4096
"""Entries of the byte tokenizer, and the default of a bpe tokenizer."""
MAX_VOCABULARY = 1_048_576
MAX_SOURCES = 24
"""Most sources of one job: each adds a metric to an evaluation, of which the status holds 32."""

Source = Literal["text", "jsonl", "parquet", "huggingface", "tokens", "chat"]
"""Kinds of data that give tokens."""
_Path = Annotated[str, Field(min_length=1, max_length=4096)]
_Fraction = Annotated[float, Field(ge=0, le=0.9)]

_LOCATED = "spec.trainer.data.sources"
_URLS = ("path", "evalPath", "tokenizerFile", "chatTemplate")
"""Fields that may be URLs."""
_NO_CHAT = "!has(self.source) || self.source != 'chat'"


class DataSource(ApiModel):
    """One of several data sets that a model is trained on together."""

    name: Annotated[str, Field(min_length=1, max_length=32, pattern="^[a-z0-9_]+$")]
    """Name of the source, unique in the job; the evaluation loss on its held-out part is reported as loss_NAME."""
    weight: Annotated[float, Field(ge=0.0001, le=10_000)] = 1.0
    """Share of the samples that come from this source, in relation to the other weights. A source that is used up is
    read again in another order, while others continue. Defaults to 1."""
    source: Source
    """Kind of data, as in spec.trainer.data.source."""
    path: _Path
    """Path of the data inside the worker container, as in spec.trainer.data.path."""
    field: Annotated[str, Field(min_length=1, max_length=253)] = "text"
    """Field that holds the text, as in spec.trainer.data.field. Defaults to text."""
    split: Annotated[str, Field(min_length=1, max_length=253)] | None = None
    """Split of a data set, as in spec.trainer.data.split."""
    token_type: Literal["uint8", "uint16", "uint32"] = "uint16"
    """Type of the numbers in a .bin file, as in spec.trainer.data.tokenType. Defaults to uint16."""
    eval_fraction: _Fraction = 0.0
    """Fraction of the samples of this source, the last ones, that is used for evaluation and never for training.
    Defaults to 0."""
    eval_path: _Path | None = None
    """Path of other data of the same kind that is used for evaluation only."""

    cel_rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            "self.evalFraction == 0.0 || !has(self.evalPath)",
            f"{_LOCATED}: evalFraction and evalPath both hold out samples; keep one of them",
        ),
        Rule(
            "self.source == 'huggingface' || !has(self.split)",
            f"{_LOCATED}: split is for source huggingface only; remove it",
        ),
        Rule(
            "self.source != 'chat'",
            f"{_LOCATED}: conversations are not mixed with other sources; join their files in one folder, and set "
            "spec.trainer.data.source: chat",
        ),
        url_rule("path", f"{_LOCATED}.path"),
        url_rule("evalPath", f"{_LOCATED}.evalPath"),
    )


class Data(ApiModel):
    """Training data: documents, which are tokenized once per job and read in windows of sequenceLength tokens; tokens
    that another program has written; or a table of labelled samples.
    """

    source: Literal["text", "jsonl", "parquet", "huggingface", "tokens", "chat", "table", "custom"] | None = None
    """Kind of data; required unless `sources` is given. For the models llama, moe and custom: text: UTF-8 files, each
    of which is a document. jsonl: JSON objects, one a line, each of which is a document. parquet: Parquet files, each
    row of which is a document. huggingface: a data set that datasets.save_to_disk has written, each row of which is a
    document. tokens: token ids, written by `trainyard prepare`, by Megatron (.bin with .idx), or as a flat array (.bin,
    as for nanoGPT). chat: conversations as JSON lines, of which only what the assistant says is learned. custom: the
    data set of spec.trainer.module, which finds path and sequenceLength in its configuration. table: labelled samples,
    for the model mlp."""
    path: _Path | None = None
    """Path of the data inside the worker container, which you mount with workers.template, or the URL of objects in a
    store, such as s3://bucket/folder. Give one of path, builtin and sources. A file, a folder, whose files are read in
    sorted order, or a pattern such as /data/**/*.jsonl.gz. table: a NumPy archive (.npz) with x of shape [samples,
    features] and y of shape [samples], which holds class numbers from 0."""
    builtin: Literal["python-stdlib", "digits"] | None = None
    """Data that every trainer image contains; give either builtin or path. python-stdlib: the source code of Python's
    standard library, about 12 MB of text. digits: scikit-learn's 1,797 images of handwritten digits, 8 x 8 pixels, as a
    table."""
    sources: Annotated[tuple[DataSource, ...], Field(min_length=1, max_length=MAX_SOURCES)] | None = None
    """Several data sets, of which each sample is drawn from one with a probability in proportion to its weight."""
    field: Annotated[str, Field(min_length=1, max_length=253)] | None = None
    """jsonl, parquet, huggingface: field (or column) that holds the text of a document; defaults to text. chat: field
    that holds the messages; defaults to messages."""
    split: Annotated[str, Field(min_length=1, max_length=253)] | None = None
    """huggingface: split to read of a folder that holds several."""
    token_type: Literal["uint8", "uint16", "uint32"] = "uint16"
    """tokens: type of the numbers in a .bin file that has no header. Defaults to uint16."""
    tokenizer: Literal["byte", "bpe", "file"] = "byte"
    """Tokenizer of documents. byte: each byte is a token, 256 in all. bpe: byte-pair encoding with vocabSize entries,
    trained on a part of the data (256 MiB at most). file: tokenizerFile. Defaults to byte."""
    tokenizer_file: _Path | None = None
    """Path of a tokenizer.json (Hugging Face tokenizers) inside the worker container, or its URL. With source tokens it
    is not used, but is saved with the checkpoints."""
    vocab_size: Annotated[int, Field(ge=256, le=MAX_VOCABULARY)] | None = None
    """Number of entries of the model's vocabulary. bpe: number of entries that the tokenizer learns. file and tokens:
    required, at least the largest token id + 1; it may be larger, for example to be a multiple of 128. Defaults to 256
    for the byte tokenizer and 4096 for bpe."""
    chat_template: _Path | None = None
    """chat: path of a file with the Jinja template that makes one text of the messages, or its URL. Defaults to the
    chat_template.jinja, or the chat_template of a tokenizer_config.json, beside tokenizerFile. The byte tokenizer has
    one of its own."""
    documents: Literal["joined", "separated", "isolated"] = "separated"
    """How documents follow each other in a sample. joined: without a separator. separated: each ends with an
    end-of-document token. isolated: that, and a token attends to tokens of its own document only. The tokens of source
    tokens stay as they are. chat: with separated a sample holds one conversation, with isolated as many as fit; joined
    is not possible. Defaults to separated."""
    end_token: Annotated[str, Field(min_length=1, max_length=253)] | None = None
    """file: the token that ends a document, for example <|end_of_text|>. Defaults to the eos_token of a
    tokenizer_config.json beside tokenizerFile, or to a usual one that the tokenizer has."""
    end_token_id: NonNegative | None = None
    """tokens: id of the token that ends a document; required with documents: isolated."""
    sequence_length: Annotated[int, Field(ge=2, le=1_048_576)] = 256
    """Number of tokens in one sample. Defaults to 256."""
    eval_fraction: _Fraction = 0.0
    """Fraction of the samples that is used for evaluation and never for training. Tokens: the last samples. table: a
    random selection, the same for every seed. Defaults to 0: no evaluation."""
    eval_path: _Path | None = None
    """Path of other data of the same kind that is used for evaluation only; not for a table."""
    exclude: Exclusion | None = None
    """Samples that the model is not trained on."""
    cache: _Path | None = None
    """Folder inside the worker container, best on a volume that all workers share, where tokenized documents are kept
    for this and other jobs. Defaults to a folder beside the checkpoints, or without spec.checkpoint to a folder of each
    worker."""

    cel_rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            "[has(self.path), has(self.builtin), has(self.sources)].filter(given, given).size() == 1",
            "spec.trainer.data: exactly one of path, builtin and sources must be given; remove one, or add one "
            "(builtin: python-stdlib and builtin: digits need no files)",
        ),
        Rule(
            "has(self.source) != has(self.sources)",
            "spec.trainer.data.source: is required, except with sources, each of which has its own; add or remove it",
        ),
        Rule(
            "!has(self.builtin) || !has(self.source) || self.source == (self.builtin == 'digits' ? 'table' : 'text')",
            "spec.trainer.data.builtin: python-stdlib is text and digits is a table; change builtin or source",
        ),
        Rule(
            "!has(self.sources) || self.sources.all(a, self.sources.exists_one(b, b.name == a.name))",
            "spec.trainer.data.sources: each needs a name of its own; rename one",
        ),
        Rule(
            "!has(self.sources) || self.evalFraction == 0.0 && !has(self.evalPath) && !has(self.split)"
            " && !has(self.field) && self.tokenType == 'uint16'",
            "spec.trainer.data: field, split, tokenType, evalFraction and evalPath belong to each of sources; move "
            "them there",
        ),
        Rule(
            "self.evalFraction == 0.0 || !has(self.evalPath)",
            "spec.trainer.data: evalFraction and evalPath are two ways to hold out samples; keep one of them",
        ),
        Rule(
            "!has(self.evalPath) || (has(self.path) && self.source != 'table')",
            "spec.trainer.data.evalPath: needs path, and tokens or documents; remove it, or use evalFraction",
        ),
        Rule(
            "!has(self.split) || (has(self.source) && self.source == 'huggingface')",
            "spec.trainer.data.split: is for source huggingface only; remove it",
        ),
        *(url_rule(name, f"spec.trainer.data.{name}") for name in _URLS),
        Rule(
            "!has(self.cache) || !self.cache.contains('://')",
            "spec.trainer.data.cache: must be a path on a volume, since tokens are mapped into memory; correct it, or "
            "remove it",
        ),
        Rule(
            "self.tokenizer != 'file' || has(self.tokenizerFile)",
            "spec.trainer.data.tokenizerFile: is required with tokenizer: file; add the path of a tokenizer.json",
        ),
        Rule(
            "self.tokenizer == 'file' || !has(self.tokenizerFile)",
            "spec.trainer.data.tokenizer: must be file with tokenizerFile; set it, or remove tokenizerFile",
        ),
        Rule(
            "has(self.vocabSize) || (self.tokenizer != 'file' && !(has(self.source) && self.source == 'tokens')"
            " && !(has(self.sources) && self.sources.exists(s, s.source == 'tokens')))",
            "spec.trainer.data.vocabSize: is required with tokenizer: file and source: tokens; set it to the largest "
            "token id + 1 or more",
        ),
        Rule(
            "self.tokenizer != 'bpe' || !has(self.vocabSize) || self.vocabSize >= 512",
            "spec.trainer.data.vocabSize: must be at least 512 with tokenizer: bpe, which begins with 256 bytes; "
            "raise it",
        ),
        Rule(
            "!has(self.endToken) || self.tokenizer == 'file'",
            "spec.trainer.data.endToken: is for tokenizer: file only, the others have one of their own; remove it",
        ),
        Rule(
            "self.documents != 'isolated' || has(self.endTokenId) ||"
            " !(has(self.source) && self.source == 'tokens')"
            " && !(has(self.sources) && self.sources.exists(s, s.source == 'tokens'))",
            "spec.trainer.data.endTokenId: is required with source: tokens and documents: isolated; set it to the id "
            "that ends a document",
        ),
        Rule(
            f"{_NO_CHAT} || (self.tokenizer != 'bpe' && self.documents != 'joined')",
            "spec.trainer.data: source chat needs a tokenizer that exists (tokenizer: file, or byte), and keeps "
            "conversations apart (documents: separated or isolated); change tokenizer or documents",
        ),
        Rule(
            f"!has(self.chatTemplate) || !({_NO_CHAT}) && self.tokenizer == 'file'",
            "spec.trainer.data.chatTemplate: is for source chat and tokenizer: file only; remove it",
        ),
    )

    @property
    def each_source(self) -> tuple[DataSource, ...]:
        """The sources of tokens; a single one has the name `data`, and without a path the path of `builtin`."""
        if self.sources is not None:
            return self.sources
        assert self.source is not None, "admission demands source or sources"
        assert self.source in get_args(Source), "a table and a custom data set are no sources of tokens"
        return (
            DataSource(
                name="data",
                source=cast(Source, self.source),
                path=self.path or f"builtin:{self.builtin}",
                field=self.field or ("messages" if self.source == "chat" else "text"),
                split=self.split,
                token_type=self.token_type,
                eval_fraction=self.eval_fraction,
                eval_path=self.eval_path,
            ),
        )

    @property
    def is_text(self) -> bool:
        """Whether all data are text, which the tokenizer of the job turns into tokens."""
        kinds = {self.source} if self.sources is None else {source.source for source in self.sources}
        return kinds.isdisjoint(("tokens", "table", "custom"))

    @property
    def holds_out(self) -> bool:
        """Whether there are samples for evaluation."""
        held_out = any(source.eval_fraction > 0 or source.eval_path is not None for source in self.sources or ())
        return held_out or self.eval_fraction > 0 or self.eval_path is not None


HOLDS_OUT = (
    "({data}.evalFraction > 0.0 || has({data}.evalPath) || (has({data}.sources) &&"
    " {data}.sources.exists(s, s.evalFraction > 0.0 || has(s.evalPath))))"
)
"""CEL expression for `Data.holds_out`; {data} is the path of the data."""
VOCABULARY = (
    "(has({data}.vocabSize) ? {data}.vocabSize :"
    f" ({{data}}.tokenizer == 'bpe' ? {BPE_VOCABULARY} : {BYTE_VOCABULARY}))"
)
"""CEL expression for `vocabulary`; {data} is the path of the data."""


def vocabulary(data: Data) -> int:
    """Return the number of entries of the model's vocabulary."""
    if data.vocab_size is not None:
        return data.vocab_size
    return BPE_VOCABULARY if data.tokenizer == "bpe" else BYTE_VOCABULARY
