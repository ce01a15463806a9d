"""What a rank, or the parameter server, holds: the parts of its memory, and those of them that the optimizer needs."""

from pydantic import computed_field

from trainyard.base import ApiModel
from trainyard.config import RunConfig
from trainyard.sizing.model_size import mlp_parameters, rank_parameters
from trainyard.sizing.placement import FULL_BYTES


class Memory(ApiModel):
    """Bytes of one rank at the moment of a step at which it holds the most, without the process itself."""

    moment: str
    """When that is."""
    weights: int
    """Parameters."""
    gradients: int
    """Gradients of the parameters."""
    optimizer: int
    """States of the optimizer."""
    activations: int
    """Kept for the backward pass, and used by it."""
    logits: int
    """Scores of the vocabulary and their gradients."""
    buffers: int
    """Gathered parameters, copies for communication, and intermediate results of the optimizer."""

    @property
    def parts(self) -> dict[str, int]:
        """Bytes by name, in the order of the fields."""
        return {name: size for name, size in self if name != "moment"}

    @computed_field  # type: ignore[prop-decorator]
    @property
    def total(self) -> int:
        """All of them."""
        return sum(self.parts.values())


def states(config: RunConfig, held: int, matrices: int) -> int:
    """Scalars that the optimizer keeps for those held; of these so many are in matrices inside the blocks."""
    optimizer = config.trainer.optimizer
    momentum = bool(optimizer.parameters().get("momentum"))
    match optimizer.name:
        case "gd" | "sgd":
            return held * momentum
        case "adagrad":
            return held
        case "rmsprop":
            return held * (1 + momentum)
        case "muon":
            return matrices + 2 * (held - matrices)
        case _:
            return 2 * held


def temporaries(config: RunConfig, held: int) -> int:
    """Scalars of intermediate results: torch's foreach steps make some for all parameters at once, fused ones none,
    and muon makes one matrix orthogonal after the other.
    """
    optimizer = config.trainer.optimizer
    decays = bool(optimizer.parameters()["weightDecay"])
    match optimizer.name:
        case "gd" | "sgd":
            return held * decays
        case "adagrad":
            return 2 * held
        case "rmsprop":
            return held * (1 + decays)
        case "muon":
            return 4 * _largest_matrix(config)
        case _:
            return 0


def _largest_matrix(config: RunConfig) -> int:
    """Scalars of the largest matrix inside the blocks; stacks of experts are none."""
    if config.model.name == "mlp":
        return 0
    model = config.transformer
    if model.mixture is None:
        return model.dim * model.ffn_dim
    return model.dim * max(model.dim, model.mixture.experts)


def server_memory(config: RunConfig) -> Memory:
    """Memory of the parameter server: it holds the sum of the gradients and one that arrives, and then steps."""
    if config.model.name == "mlp":
        size, matrices = mlp_parameters(config), 0
    else:
        own = rank_parameters(config, 0)
        size, matrices = own.total, own.matrices
    return Memory(
        moment="optimizer step",
        weights=FULL_BYTES * size,
        gradients=FULL_BYTES * size,
        optimizer=FULL_BYTES * states(config, size, matrices),
        activations=0,
        logits=0,
        buffers=FULL_BYTES * (size + temporaries(config, size)),
    )
