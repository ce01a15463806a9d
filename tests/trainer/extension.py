"""A package outside of the repository: it adds a model family and an optimizer through the public registries.

Run as a program, it trains with them on some layouts and prints what happened as JSON.
"""

import json
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

from trainyard import models, optimizers
from trainyard.base import ApiModel, Positive
from trainyard.models.decoder import VOCABULARY
from trainyard.models.family import (
    Activations,
    DataShape,
    Feature,
    LayoutRule,
    MicroBatch,
    ModelConfig,
    ModelFamily,
    ModelPart,
    RankParameters,
)
from trainyard.optimizers import OptimizerInfo


class RecallFields(ApiModel):
    """Fields of a recall in spec.trainer.model."""

    width: Positive | None = None
    """Width of the residual stream. Default: 32."""
    depth: Positive | None = None
    """Number of blocks. Default: 2."""


class RecallConfig(ModelConfig):
    """Resolved sizes of a recall."""

    name: Literal["recall"] = "recall"
    width: int
    depth: int
    vocab_size: int


class RecallFamily(ModelFamily[RecallConfig]):
    """Predicts the next token from the last one alone."""

    name: ClassVar[str] = "recall"
    description: ClassVar[str] = "residual blocks that predict the next token from the last one alone"
    fields: ClassVar[type[ApiModel]] = RecallFields
    supports: ClassVar[frozenset[Feature]] = frozenset({"tensor"})
    reasons: ClassVar[Mapping[Feature, str]] = {"context": "a recall has no attention"}
    layout_rules: ClassVar[tuple[LayoutRule, ...]] = (VOCABULARY,)

    @property
    def config(self) -> type[RecallConfig]:
        return RecallConfig

    def resolve(self, given: Mapping[str, Any], data: DataShape) -> RecallConfig:
        return RecallConfig(width=given.get("width", 32), depth=given.get("depth", 2), vocab_size=data.vocabulary)

    def layers(self, config: RecallConfig) -> int:
        return config.depth

    def active_parameters(self, config: RecallConfig) -> int:
        return self.parameters(config)

    def rank_parameters(self, config: RecallConfig, part: ModelPart) -> RankParameters:
        layers, block = sum(part.stages), 2 * config.width**2 // part.tensor
        outer = config.vocab_size * config.width // part.tensor
        return RankParameters(layers, max(part.stages), block, 0, outer, outer, layers * block, block // 2, block // 2)

    def flops_per_token(self, config: RecallConfig) -> int:
        return 6 * self.parameters(config)

    def activations(self, config: RecallConfig, batch: MicroBatch) -> Activations:
        return Activations(block=8 * batch.samples * config.width)


def register() -> None:
    """Register what needs no torch; the resource types are made from it when they are imported."""
    models.register(RecallFamily())
    optimizers.register(
        "lion",
        OptimizerInfo(
            description="the sign of a moving mean of the gradients (Chen et al., 2023)",
            defaults={"betas": (0.9, 0.99), "weightDecay": 0.1},
            state_scalars=lambda _: 1,
        ),
    )


def register_trainer() -> None:
    """Register the implementations."""
    import torch
    from torch import Tensor, nn
    from torch.distributed.tensor import Replicate, Shard
    from torch.distributed.tensor.parallel import ColwiseParallel, ParallelStyle, RowwiseParallel

    from trainyard.resource.optimization import Optimizer
    from trainyard_trainer.models import FAMILIES
    from trainyard_trainer.models.family import Family, Model, ParallelPlan, TensorPlan
    from trainyard_trainer.optim.builders import BUILDERS, Named

    class Block(nn.Module):
        def __init__(self, width: int) -> None:
            super().__init__()
            self.up = nn.Linear(width, width, bias=False)
            self.down = nn.Linear(width, width, bias=False)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = x + self.down(torch.tanh(self.up(x)))
            return y

    class Recall(Model):
        def __init__(self, config: RecallConfig) -> None:
            super().__init__()
            self.embed = nn.Embedding(config.vocab_size, config.width)
            self.blocks = nn.ModuleList(Block(config.width) for _ in range(config.depth))
            self.head = nn.Linear(config.width, config.vocab_size, bias=False)

        def initial(self, name: str, shape: tuple[int, ...]) -> tuple[float, float]:
            return 0.0, 0.1

        def forward(self, x: Tensor) -> Tensor:
            x = self.embed(x)
            for block in self.blocks:
                x = block(x)
            logits: Tensor = self.head(x)
            return logits

    class RecallPlan(ParallelPlan):
        def __init__(self, model: Recall) -> None:
            self._model = model

        def layers(self) -> Sequence[nn.Module]:
            return list(self._model.blocks)

        def tensor_plan(self) -> TensorPlan:
            styles: dict[str, ParallelStyle] = {
                "embed": RowwiseParallel(input_layouts=Replicate()),
                "blocks.*.up": ColwiseParallel(),
                "blocks.*.down": RowwiseParallel(),
                "head": ColwiseParallel(output_layouts=Shard(-1), use_local_output=False),
            }
            return [(self._model, styles)]

    class Lion(torch.optim.Optimizer):
        def __init__(self, parameters: list[nn.Parameter], lr: float, betas: Sequence[float], decay: float) -> None:
            super().__init__(parameters, {"lr": lr, "betas": betas, "decay": decay})

        @torch.no_grad()
        def step(self, closure: Any = None) -> None:  # type: ignore[override]
            for group in self.param_groups:
                first, second = group["betas"]
                for parameter in group["params"]:
                    state = self.state[parameter]
                    mean = state.setdefault("mean", torch.zeros_like(parameter))
                    update = (first * mean + (1 - first) * parameter.grad).sign()
                    parameter.mul_(1 - group["lr"] * group["decay"]).add_(update, alpha=-group["lr"])
                    mean.mul_(second).add_(parameter.grad, alpha=1 - second)

    def build_lion(named: Named, config: Optimizer) -> list[torch.optim.Optimizer]:
        own = config.parameters()
        return [Lion([parameter for _, parameter in named], config.learning_rate, own["betas"], own["weightDecay"])]

    FAMILIES["recall"] = Family(build=lambda config, _shape, _layers: Recall(config), plan=RecallPlan)
    BUILDERS["lion"] = build_lion  # type: ignore[index]


def train() -> dict[str, Any]:
    """Train the family on some layouts, and a llama with the optimizer; return reports and messages."""
    import subprocess

    from tests.support.run_config import make_config
    from tests.trainer.pods import Starter, environment, finish
    from trainyard.crd import openapi_schema
    from trainyard.manifest import ManifestError

    recall: dict[str, Any] = {
        "model": {"name": "recall", "width": 16},
        "optimizer": {"learningRate": 0.01},
        "replace": True,
    }
    lion = {"name": "lion", "learningRate": 0.001}
    configs = {
        "alone": make_config(1, **recall),
        "fsdp": make_config(2, {"data": {"mode": "fsdp"}}, **recall),
        "tensor": make_config(2, {"tensor": 2}, **recall),
        "lion": make_config(1, optimizer=lion, stop={"steps": 2}),
    }
    try:
        make_config(1, model={"width": 16})
        refused = ""
    except ManifestError as error:
        refused = str(error)
    command = [sys.executable, "-m", "tests.trainer.extension", "serve"]
    reports = {}
    pipe = subprocess.PIPE
    with (
        tempfile.TemporaryDirectory() as folder,
        subprocess.Popen(command, env=environment(), stdin=pipe, stdout=pipe, text=True) as zygote,
    ):
        start = Starter(Path(folder), zygote)
        for name, config in configs.items():
            (pod,) = start(config, 1, config.world_size)
            assert finish([pod]) == [0], pod.stderr
            reports[name] = pod.reports
        zygote.kill()
    trainer = openapi_schema()["properties"]["spec"]["properties"]["trainer"]["properties"]
    named = {field: trainer[field]["properties"]["name"]["enum"] for field in ("model", "optimizer")}
    return {"reports": reports, "refused": refused, "names": named}


if __name__ == "__main__":
    register()
    if sys.argv[1:] == ["serve"]:
        register_trainer()
        from tests.trainer.pods import serve

        serve()
    else:
        print(json.dumps(train()))
