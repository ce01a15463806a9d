"""`spec.trainer.model.lora`: fine-tuning of small adapters beside matrices that stay as they are."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from trainyard.base import ApiModel, Rule

Target = Literal["q", "k", "v", "o", "gate", "up", "down"]
"""Matrices of a block that can have an adapter: of attention, and of the feed-forward network."""
ALL_TARGETS: tuple[Target, ...] = ("q", "k", "v", "o", "gate", "up", "down")


class Lora(ApiModel):
    """Low-rank adaptation (Hu et al., 2022): beside each matrix W of shape [out, in] two small ones, A of shape [rank,
    in] and B of shape [out, rank], are trained, so that the layer computes with W + alpha / rank x B A. All other
    parameters stay as they are: they need no gradients and no optimizer state, and no checkpoint holds them.
    """

    rank: Annotated[int, Field(ge=1, le=1024)] = 16
    """Rows of A and columns of B. Defaults to 16."""
    alpha: Annotated[float, Field(gt=0, le=65_536)] = 32.0
    """The product of B and A is multiplied with alpha / rank. Defaults to 32."""
    targets: Annotated[tuple[Target, ...], Field(min_length=1, max_length=len(ALL_TARGETS))] = ALL_TARGETS
    """Matrices of each block that have adapters: q, k, v and o of attention; gate, up and down of the feed-forward
    network. Defaults to all."""

    cel_rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            "self.targets.all(a, self.targets.exists_one(b, b == a))",
            "spec.trainer.model.lora.targets: names a matrix twice; remove one of them",
        ),
    )

    @property
    def scale(self) -> float:
        """Factor of the product of B and A."""
        return self.alpha / self.rank
