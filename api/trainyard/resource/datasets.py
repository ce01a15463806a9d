"""`spec.trainer.data`: what the model learns from."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from trainyard.base import ApiModel, Rule


class Data(ApiModel):
    """Text, tokenized once per worker and read in windows of sequenceLength tokens; or a table of labelled samples."""

    source: Literal["text", "table"]
    """text: for llama. table: for mlp."""
    path: Annotated[str, Field(min_length=1, max_length=4096)] | None = None
    """As seen inside the worker; mount it through workers.template. text: a UTF-8 file, or a folder whose files are
    read in sorted order. table: a NumPy archive (.npz) with x [samples, features] and y [samples], whole
    numbers from 0."""
    builtin: Literal["python-stdlib", "digits"] | None = None
    """Data that every trainer image already holds. python-stdlib: the source of Python's standard library as text
    (about 12 MB). digits: 1,797 images of handwritten digits, 8 x 8 pixels (scikit-learn's), as a table."""
    tokenizer: Literal["byte", "bpe"] = "byte"
    """text. byte: 256 entries, nothing to learn. bpe: byte-pair encoding, trained on the data at start-up."""
    vocab_size: Annotated[int, Field(ge=512, le=65_536)] = 4096
    """text: entries of the bpe tokenizer (a byte tokenizer always has 256)."""
    sequence_length: Annotated[int, Field(ge=2, le=1_048_576)] = 256
    """text: tokens of one sample."""
    eval_fraction: Annotated[float, Field(ge=0, le=0.9)] = 0.0
    """Share of the samples that is never trained on but used for evaluation. text: the last part; table: a
    part drawn at random, the same for every seed."""

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
