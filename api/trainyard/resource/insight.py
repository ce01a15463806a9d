"""`spec.trainer.task` and `spec.trainer.explain`: jobs that evaluate a model, and explanations of its predictions."""

from typing import Annotated, Literal

from pydantic import Field

from trainyard.base import ApiModel, Positive, Rule
from trainyard.resource.cel import EXPERT, HAS_PARAMETER_SERVER, MODEL_PARALLEL, WITHOUT_ZBV

Task = Literal["train", "evaluate"]
EVALUATES = "self.task == 'evaluate'"
"""CEL expression, `self` being spec.trainer: nothing is trained."""
_EVALUATES = "has(self.trainer) && self.trainer.task == 'evaluate'"
_EXPLAINS = "has(self.trainer) && has(self.trainer.explain)"


class Explain(ApiModel):
    """Explanations of single predictions: what the model has looked at (integrated gradients; Sundararajan et al.,
    2017). Of a table also how much each column matters (feature ablation).
    """

    samples: Annotated[int, Field(ge=1, le=1000)] | None = None
    """Number of held-out samples that are explained, the first ones; without held-out samples, those of the training
    data. Default: 200 rows of a table, 8 texts."""
    tokens: Annotated[int, Field(ge=2, le=4096)] = 64
    """Tokens of a sample that the explained prediction follows. Only for tokens. Defaults to 64."""
    image_width: Positive | None = None
    """Columns in a row of an image, if each row of a table is one; the columns of the table are drawn as its pixels
    then. Default: 8 for builtin: digits, else no image."""


EXPLAIN_RULES = (
    Rule(
        "!has(self.explain) || !has(self.explain.imageWidth) || (has(self.data.source) && self.data.source == 'table')",
        "spec.trainer.explain.imageWidth: is for tables only; remove it",
    ),
)
"""Rules of spec.trainer about explanations."""

INSIGHT_RULES = (
    Rule(
        "!has(self.trainer) || has(self.checkpoint) || !(self.trainer.task == 'evaluate' || has(self.trainer.explain)"
        " || self.trainer.evaluation.report)",
        "spec.trainer: task: evaluate, evaluation.report and explain write reports to the checkpoint volume; add "
        "spec.checkpoint, or remove them",
    ),
    Rule(
        f"!({_EVALUATES}) || !({HAS_PARAMETER_SERVER})",
        "spec.trainer.task: evaluate needs no parameter server, which only updates parameters; set "
        "spec.parallelism.data.mode: ddp",
    ),
    Rule(
        f"!({_EVALUATES}) || {WITHOUT_ZBV}",
        "spec.parallelism.pipeline.schedule: ZBV cannot evaluate (torch 2.15 has no forward pass alone for it); "
        "choose Interleaved1F1B",
    ),
    Rule(
        f"!({_EXPLAINS}) || ({MODEL_PARALLEL} * {EXPERT} == 1 && (!has(self.parallelism) ||"
        " self.parallelism.data.mode in ['ddp', 'parameterServer']))",
        "spec.trainer.explain: needs the entire model on each rank; set spec.parallelism.data.mode: ddp without "
        "tensor, context, expert and pipeline, or remove it and run trainyard explain on the checkpoint",
    ),
)
"""Rules of a spec about evaluations and explanations."""
