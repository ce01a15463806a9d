"""Change of rotary frequencies for longer sequences than those that a model was first trained on."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from trainyard.base import ApiModel, Positive, Rule

_Factor = Annotated[float, Field(gt=0, le=1_000_000)]


class RopeScaling(ApiModel):
    """Change of the rotary frequencies, for longer sequences than those that the model was first trained on."""

    type: Literal["none", "linear", "llama3", "yarn"]
    """none: no change, in place of a preset's. linear: all frequencies are divided by factor. llama3: only those of
    wavelengths that originalLength does not hold lowFreqFactor times, as in Llama 3.1. yarn: as llama3 with other
    limits, and with larger scores (Peng et al., 2023)."""
    factor: Annotated[float, Field(ge=1, le=10_000)] = 1.0
    """How many times longer sequences may be. Defaults to 1."""
    original_length: Positive | None = None
    """llama3, yarn: number of tokens of the longest sequences that the model was first trained on."""
    low_freq_factor: _Factor | None = None
    """llama3: frequencies with fewer periods than this in originalLength are divided by factor. Default: 1."""
    high_freq_factor: _Factor | None = None
    """llama3: frequencies with more periods than this in originalLength do not change. Default: 4."""
    beta_slow: _Factor | None = None
    """yarn: frequencies with fewer periods than this in originalLength are divided by factor. Default: 1."""
    beta_fast: _Factor | None = None
    """yarn: frequencies with more periods than this in originalLength do not change. Default: 32."""

    cel_rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            "!(self.type in ['llama3', 'yarn']) || has(self.originalLength)",
            "spec.trainer.model.ropeScaling.originalLength: llama3 and yarn need it; add the sequence length that the "
            "model was first trained on (Llama 3: 8192)",
        ),
        Rule(
            "self.type == 'llama3' || !(has(self.lowFreqFactor) || has(self.highFreqFactor))",
            "spec.trainer.model.ropeScaling: lowFreqFactor and highFreqFactor are for llama3 only; remove them, or set "
            "type: llama3",
        ),
        Rule(
            "self.type == 'yarn' || !(has(self.betaSlow) || has(self.betaFast))",
            "spec.trainer.model.ropeScaling: betaSlow and betaFast are for yarn only; remove them, or set type: yarn",
        ),
        Rule(
            "(has(self.lowFreqFactor) ? self.lowFreqFactor : 1.0) < (has(self.highFreqFactor) ? self.highFreqFactor : "
            "4.0) && (has(self.betaSlow) ? self.betaSlow : 1.0) < (has(self.betaFast) ? self.betaFast : 32.0)",
            "spec.trainer.model.ropeScaling: lowFreqFactor must be below highFreqFactor, and betaSlow below betaFast; "
            "change one of them",
        ),
    )
