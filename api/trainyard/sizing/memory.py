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
    """Return the scalars of optimizer state for `held` scalars of parameters, `matrices` of which are matrices of blocks."""
    optimizer = config.trainer.optimizer
    parameters, info = optimizer.parameters(), optimizer.info
    each = info.state_scalars(parameters)
    each_of_matrix = each if info.matrix_state_scalars is None else info.matrix_state_scalars(parameters)
    return each_of_matrix * matrices + each * (held - matrices)


def temporaries(config: RunConfig, held: int) -> int:
    """Return the scalars of intermediate results in a step of the optimizer over `held` scalars of parameters."""
    optimizer = config.trainer.optimizer
    info = optimizer.info
    return info.temporary_scalars(optimizer.parameters()) * held + info.matrix_temporary_scalars * _largest_matrix(config)


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
