"""Memory of a rank or of the parameter server, by what it holds, and the part of it that the optimizer needs."""

from pydantic import computed_field

from trainyard.base import ApiModel
from trainyard.config import RunConfig
from trainyard.models.family import FULL_BYTES
from trainyard.sizing.model_size import frozen_bytes, rank_parameters, trained_parameters
from trainyard.sizing.placement import placement


class Memory(ApiModel):
    """Bytes that one rank holds at one moment of a step, without the process itself."""

    moment: str
    """Moment of the step."""
    weights: int
    """Parameters."""
    gradients: int
    """Gradients of the parameters."""
    optimizer: int
    """State of the optimizer."""
    activations: int
    """Activations kept for the backward pass, and intermediate results of it."""
    logits: int
    """Logits and their gradients."""
    buffers: int
    """Gathered parameters, copies for communication, and intermediate results of the optimizer."""
    checkpoint: int = 0
    """Copy of parameters and optimizer state in /dev/shm, which an asynchronous checkpoint is written from."""

    @property
    def parts(self) -> dict[str, int]:
        """Bytes by field, in the order of the fields."""
        return {name: size for name, size in self if name != "moment"}

    @computed_field  # type: ignore[prop-decorator]
    @property
    def total(self) -> int:
        """Sum of all fields, in bytes."""
        return sum(self.parts.values())


def states(config: RunConfig, held: int, matrices: int) -> int:
    """Return the scalars of optimizer state.

    Args:
        config: configuration of the run.
        held: scalars of trained parameters.
        matrices: how many of them are in matrices inside the blocks.
    """
    optimizer = config.trainer.optimizer
    parameters, info = optimizer.parameters(), optimizer.info
    each = info.state_scalars(parameters)
    each_of_matrix = each if info.matrix_state_scalars is None else info.matrix_state_scalars(parameters)
    return each_of_matrix * matrices + each * (held - matrices)


def staged_bytes(config: RunConfig, place: int) -> int:
    """Return the bytes of /dev/shm that a rank at a place of the pipeline fills for asynchronous checkpoints.

    The first save copies the rank's part of trained parameters and optimizer state there, and later ones use the same
    memory. With a parameter server, which has all of it, training waits for each checkpoint.
    """
    placed = placement(config)
    if config.checkpoint is None or not config.checkpoint.async_ or placed.served:
        return 0
    trained = trained_parameters(config, place)
    held = placed.held(trained)
    return FULL_BYTES * (held + states(config, held, trained.matrices // placed.shards))


def weight_bytes(config: RunConfig, place: int) -> int:
    """Return the bytes of the parameters that a rank at a place of the pipeline holds."""
    placed = placement(config)
    trained = placed.held(trained_parameters(config, place))
    return FULL_BYTES * trained + frozen_bytes(config) * (placed.held(rank_parameters(config, place)) - trained)


def temporaries(config: RunConfig, held: int, largest_matrix: int) -> int:
    """Return the scalars of intermediate results in a step of the optimizer over `held` scalars of parameters."""
    optimizer = config.trainer.optimizer
    info = optimizer.info
    matrix = info.matrix_temporary_scalars * largest_matrix
    # Replicas divide the work on their matrices among them, and exchange the results in bfloat16.
    exchanged = config.mesh.replicate * largest_matrix // 2 if matrix and config.mesh.replicate > 1 else 0
    return info.temporary_scalars(optimizer.parameters()) * held + matrix + exchanged


def server_memory(config: RunConfig) -> Memory:
    """Return the memory of the parameter server: the sum of all gradients, an arriving gradient, and the update."""
    own = rank_parameters(config, 0)
    return Memory(
        moment="optimizer step",
        weights=FULL_BYTES * own.total,
        gradients=FULL_BYTES * own.total,
        optimizer=FULL_BYTES * states(config, own.total, own.matrices),
        activations=0,
        logits=0,
        buffers=FULL_BYTES * (own.total + temporaries(config, own.total, own.largest_matrix)),
    )
