"""How much memory a rank of the built-in trainer needs, from the configuration alone.

A step has a few moments at which memory peaks, and which of them is the highest depends on the layout. Each is added
up here as the trainer (`parallel.py`, `passes.py`, `optimizer.py`) reaches it; the estimate is the highest.
"""

from dataclasses import dataclass

from pydantic import computed_field

from trainyard.activations import LOSS_COPIES, Activations, activations, is_plain, widths
from trainyard.base import ApiModel
from trainyard.config import RunConfig
from trainyard.optimizer_memory import optimizer_states, optimizer_temporaries
from trainyard.parameters import RankParameters, mlp_parameters, rank_parameters

PARAMETER_BYTES = GRADIENT_BYTES = STATE_BYTES = 4
"""What a rank holds is float32; what it computes with may be bfloat16 (see `activations.widths`)."""
BUCKET_BYTES = 25 * 2**20
"""DistributedDataParallel exchanges gradients in pieces of this size."""


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


def rank_memory(config: RunConfig, place: int, gpu: bool) -> Memory:
    """Memory of the ranks at one place of the pipeline."""
    moments = _mlp_moments(config) if config.model.name == "mlp" else _Rank(config, place, gpu).moments()
    return max(moments, key=lambda memory: memory.total)


def held_parameters(config: RunConfig, place: int) -> int:
    """Trained scalars that each rank at one place of the pipeline holds."""
    if config.model.name == "mlp":
        return mlp_parameters(config) // config.mesh.shard
    return _Rank(config, place, gpu=False).held


@dataclass(frozen=True, slots=True)
class _Chunks:
    """Micro-batches that a rank has gone forward with and not yet back, each through one of its stages."""

    at_once: int
    last: int
    """Of these, those of the last stage, whose logits are kept."""


def _chunks(config: RunConfig, place: int) -> _Chunks:
    """Huang et al., 2019 (GPipe); Narayanan et al., 2021 (1F1B, interleaved); Qi et al., 2024 (ZBV)."""
    stages, micros = config.mesh.pipeline, config.accumulation
    if stages == 1:
        return _Chunks(1, 1)
    match config.parallelism.pipeline.schedule:
        case "GPipe":
            return _Chunks(micros, micros)
        case "1F1B":
            return _Chunks(min(micros, stages - place), 1)
        case "Interleaved1F1B":
            round_of = micros // max(1, micros // stages)
            return _Chunks(min(2 * micros, round_of + 2 * (stages - 1 - place) + 1), 1)
        case _:
            return _Chunks(min(2 * micros, 2 * stages), 1)


class _Rank:
    """The moments of a step on one rank of a gpt."""

    def __init__(self, config: RunConfig, place: int, gpu: bool) -> None:
        mesh = config.mesh
        self.config = config
        self.own: RankParameters = rank_parameters(config, place)
        self.kept: Activations = activations(config, gpu)
        self.chunks = _chunks(config, place)
        self.accumulates = config.accumulation > 1
        self.pipelined = mesh.pipeline > 1
        self.plain = is_plain(config)
        self.half = config.trainer.precision == "bfloat16"
        self.sharded = not self.plain and (mesh.data * mesh.context > 1 or self.half)
        """Whether the parameters are under fully_shard."""
        self.shards = mesh.shard * mesh.context * mesh.expert if self.sharded else 1
        self.expert_shards = mesh.shard * mesh.context if self.sharded else 1
        self.replicated = self.plain and mesh.size > 1
        """Whether whole gradients stay from step to step: in DistributedDataParallel, or for a parameter server."""
        self.served = config.servers > 0
        self.held = self.own.held(self.shards, self.expert_shards)

    def moments(self) -> list[Memory]:
        """Every moment at which the peak may be."""
        moments = [self._begin(), self._end(), self._step()]
        if self.own.head:
            moments += [self._loss(), self._head()]
        if self.sharded:
            moments.append(self._reduce())
        if self.config.trainer.data.held_out > 0:
            moments.append(self._evaluation())
        return moments

    def _loss(self) -> Memory:
        """All activations of a micro-batch are there, and the gradient of its logits is computed."""
        copies = LOSS_COPIES + (self.chunks.last if self.pipelined else 0) + (self.config.mesh.tensor > 1)
        return self._moment(
            "loss",
            gradients=self._before,
            activations=self._stored + self.kept.end,
            logits=copies * self.kept.logits,
            buffers=self._gathered if self.pipelined else 0,
        )

    def _head(self) -> Memory:
        """The backward pass of the head: its gradient is there, and so is that of the logits."""
        return self._moment(
            "backward pass of the head",
            gradients=self._before + (0 if self._before else self.own.head),
            activations=self._stored + self.kept.end,
            logits=(self.chunks.last if self.pipelined else 1) * self.kept.logits,
            buffers=self._gathered + (self.own.head if self.accumulates else 0),
        )

    def _begin(self) -> Memory:
        """The first block of the backward pass."""
        head = 0 if self._before else self.own.head
        waiting = self.chunks.last - 1 if self.own.head else 0
        return self._moment(
            "backward pass begins",
            gradients=self._before + head + self._loose_block,
            activations=self._stored + self.kept.working,
            logits=waiting * self.kept.logits,
            buffers=self._gathered + self._added,
        )

    def _end(self) -> Memory:
        """The last block of the backward pass: all gradients are there."""
        gradients = self.own.total
        if self.sharded and not self.pipelined:
            gradients = self._inner_held + self.own.outer + self._loose_block
        gradients += self._whole_embedding
        copies = self._shared_block if self.sharded else 0
        if self.replicated and not self.served:
            copies = min(BUCKET_BYTES // GRADIENT_BYTES, self.own.total)
        return self._moment(
            "backward pass ends",
            gradients=gradients,
            activations=self.kept.block + self.kept.working,
            buffers=self._gathered + self._added + copies,
        )

    def _reduce(self) -> Memory:
        """What lies outside of the blocks is reduced last, and is copied for that."""
        outer, inner = self.own.outer, self.own.layers * self.own.block
        gathered = self.own.total if self.pipelined else outer
        unreduced = inner if self.pipelined else self._inner_held
        return self._moment("gradients are reduced", gradients=unreduced + outer, buffers=gathered + outer)

    def _step(self) -> Memory:
        """The optimizer's step."""
        gradients = self.held if self.sharded else self.held + self._whole_embedding
        model = self.config.gpt
        temporaries = 0 if self.served else optimizer_temporaries(self.config, self.held, model.dim * model.ffn_dim)
        return self._moment("optimizer step", gradients=gradients, buffers=temporaries)

    def _evaluation(self) -> Memory:
        """Logits of held-out samples: of a pipeline those of a whole step, and a tensor group makes them whole."""
        split = self.config.mesh.tensor
        # To gather them takes the parts of all ranks, and then a copy in their right order.
        whole = 2 * split if split > 1 else 0
        micros = self.config.accumulation if self.pipelined else 1
        copies = (2 * micros + 1 if self.pipelined else 2) + micros * whole
        return self._moment(
            "evaluation",
            gradients=self.own.total if self.replicated else 0,
            activations=self.kept.end,
            logits=copies * self.kept.logits if self.own.head else 0,
            buffers=self._gathered,
        )

    @property
    def _inner_held(self) -> int:
        """Scalars of the blocks that this rank holds."""
        return self.held - self.own.outer // self.shards

    @property
    def _stored(self) -> int:
        """Bytes of the activations of all micro-batches on their way."""
        return self.chunks.at_once * self.own.chunk_layers * self.kept.block

    @property
    def _before(self) -> int:
        """Scalars of the gradients that are there when the last backward pass of a step begins.

        Under fully_shard they are not reduced before the last micro-batch, and so are whole until then.
        DistributedDataParallel keeps room for all of them.
        """
        return self.own.total if self.accumulates or self.replicated else 0

    @property
    def _whole_embedding(self) -> int:
        """Scalars of the embedding's gradient beyond this rank's part: torch makes it whole, and cuts it then."""
        return self.own.embedding * (self.config.mesh.tensor - 1)

    @property
    def _loose_block(self) -> int:
        """Scalars of a block's gradients before they are sharded."""
        return self._shared_block if self.sharded and not self.accumulates else 0

    @property
    def _shared_block(self) -> int:
        """Scalars of a block that fully_shard looks after: not the experts, if no other rank has the same."""
        alone = self.config.mesh.replicate * self.expert_shards == 1 and not self.half
        return self.own.dense if alone else self.own.block

    @property
    def _gathered(self) -> int:
        """Float32 scalars of gathered parameters: all in a pipeline, else the block in use, the next, the outer ones.

        Autocast keeps a copy of all parameters for the backward pass.
        """
        if not self.sharded:
            return self.own.total // 2 if self.half else 0
        _, width = widths(self.config)
        layers = self.own.layers if self.pipelined else 2
        scalars = layers * self._shared_block + self.own.outer
        return scalars * width // PARAMETER_BYTES

    @property
    def _added(self) -> int:
        """Scalars of a gradient that is about to be added to that of the micro-batches before."""
        model = self.config.gpt
        return model.dim * model.ffn_dim // self.config.mesh.tensor if self.accumulates else 0

    def _moment(
        self, moment: str, *, gradients: int = 0, activations: int = 0, logits: int = 0, buffers: int = 0
    ) -> Memory:
        """Activations and logits in bytes, the rest in float32 scalars."""
        states = 0 if self.served else optimizer_states(self.config, self.held, self.own.matrices // self.shards)
        return Memory(
            moment=moment,
            weights=PARAMETER_BYTES * self.held,
            gradients=GRADIENT_BYTES * gradients,
            optimizer=STATE_BYTES * states,
            activations=activations,
            logits=logits,
            buffers=PARAMETER_BYTES * buffers,
        )


def _mlp_moments(config: RunConfig) -> list[Memory]:
    """An mlp is never split, and small: all of it at once."""
    assert config.model.name == "mlp"
    held = held_parameters(config, 0)
    served = config.servers > 0
    return [
        Memory(
            moment="backward pass ends",
            weights=PARAMETER_BYTES * held,
            gradients=GRADIENT_BYTES * held,
            optimizer=0 if served else STATE_BYTES * optimizer_states(config, held, 0),
            activations=4 * 3 * config.micro_batch * sum(config.model.hidden),
            logits=0,
            buffers=0 if served else PARAMETER_BYTES * optimizer_temporaries(config, held, 0),
        )
    ]


def server_memory(config: RunConfig) -> Memory:
    """Memory of a parameter server, which holds the sum of the gradients and the one that arrives."""
    gpt = config.model.name != "mlp"
    held = rank_parameters(config, 0).total if gpt else mlp_parameters(config)
    matrices = rank_parameters(config, 0).matrices if gpt else 0
    largest = config.gpt.dim * config.gpt.ffn_dim if gpt else 0
    return Memory(
        moment="update",
        weights=PARAMETER_BYTES * held,
        gradients=GRADIENT_BYTES * 2 * held,
        optimizer=STATE_BYTES * optimizer_states(config, held, matrices),
        activations=0,
        logits=0,
        buffers=PARAMETER_BYTES * optimizer_temporaries(config, held, largest),
    )
