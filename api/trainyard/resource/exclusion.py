"""`spec.trainer.data.exclude`: samples that a model is not trained on."""

from typing import Annotated, ClassVar

from pydantic import Field

from trainyard.base import MAX_QUANTITY, ApiModel, Rule
from trainyard.resource.urls import url_rule

MAX_EXCLUDED = 10_000
"""Most samples that a manifest lists; a file may hold any number."""

SampleNumber = Annotated[int, Field(ge=0, le=MAX_QUANTITY)]
"""Number of a sample of the data, from 0."""


class Exclusion(ApiModel):
    """Samples that the model is not trained on, by number, as `trainyard explain-step` names them. All others keep
    their places in the order of the run, so a run may resume with other exclusions.
    """

    samples: Annotated[tuple[SampleNumber, ...], Field(max_length=MAX_EXCLUDED)] = ()
    """Numbers of samples."""
    file: Annotated[str, Field(min_length=1, max_length=4096)] | None = None
    """Path of a text file inside the worker container with more of them, one number a line, or its URL. Every worker
    must see the same file."""

    cel_rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            "has(self.file) || self.samples.size() > 0",
            "spec.trainer.data.exclude: needs samples or a file; add numbers of samples, or remove it",
        ),
        url_rule("file", "spec.trainer.data.exclude.file"),
    )
