"""Which modules of a moe parallelism applies to."""

from collections.abc import Sequence

from torch import nn

from trainyard_trainer.models.family import LoadBalance, TensorPlan
from trainyard_trainer.models.llama.parallelize import LlamaPlan
from trainyard_trainer.models.moe.model import Moe


class MoePlan(LlamaPlan):
    """Plan of a moe, or of a pipeline stage of it."""

    def __init__(self, model: Moe) -> None:
        super().__init__(model)
        self._mixtures = model.mixtures()

    def tensor_plan(self) -> TensorPlan:
        """Return nothing: experts are divided by an expert group instead."""
        return ()

    def experts(self) -> Sequence[nn.Module]:
        """Return the experts of each block."""
        return [mixture.experts for mixture in self._mixtures]

    def load_balances(self) -> Sequence[LoadBalance]:
        """Return the auxiliary loss of each block."""
        return [mixture.balance for mixture in self._mixtures]
