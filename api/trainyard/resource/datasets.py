"""`spec.trainer.data`: the data that the model is trained on."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from trainyard.base import ApiModel, Rule


class Data(ApiModel):
    """Training data: text, tokenized once per worker and read in windows of sequenceLength tokens, or a table of
    labelled samples.
    """

    source: Literal["text", "table"]
    """Kind of data. text: for the models llama and moe. table: labelled samples, for the model mlp."""
    path: Annotated[str, Field(min_length=1, max_length=4096)] | None = None
    """Path of the data inside the worker container; mount it with workers.template. Give either path or builtin. text:
    a UTF-8 file, or a folder whose files are read in sorted order. table: a NumPy archive (.npz) with x of shape
    [samples, features] and y of shape [samples], which holds class numbers from 0."""
    builtin: Literal["python-stdlib", "digits"] | None = None
    """Data that every trainer image contains; give either builtin or path. python-stdlib: the source code of Python's
    standard library, about 12 MB of text. digits: scikit-learn's 1,797 images of handwritten digits, 8 x 8 pixels, as a
    table."""
    tokenizer: Literal["byte", "bpe"] = "byte"
    """Tokenizer of text. byte: each byte is a token, 256 in all. bpe: byte-pair encoding with vocabSize entries,
    trained on the data at startup. Defaults to byte."""
    vocab_size: Annotated[int, Field(ge=512, le=262_144)] = 4096
    """Number of entries of the bpe tokenizer; the byte tokenizer ignores it. Defaults to 4096."""
    sequence_length: Annotated[int, Field(ge=2, le=1_048_576)] = 256
    """Number of tokens in one sample of text. Defaults to 256."""
    eval_fraction: Annotated[float, Field(ge=0, le=0.9)] = 0.0
    """Fraction of the samples that is used for evaluation and never for training. text: the last samples. table: a
    random selection, the same for every seed. Defaults to 0: no evaluation."""

    cel_rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            "has(self.path) != has(self.builtin)",
            "spec.trainer.data: exactly one of path and builtin must be given; remove one, or add one "
            "(builtin: python-stdlib and builtin: digits need no files)",
        ),
        Rule(
            "!has(self.builtin) || (self.builtin == 'digits') == (self.source == 'table')",
            "spec.trainer.data.builtin: python-stdlib is text and digits is a table; change builtin or source",
        ),
    )
