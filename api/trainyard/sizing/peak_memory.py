"""How much memory a rank of the built-in trainer needs, from the configuration alone.

A step has a few moments at which memory peaks, and which of them is the highest depends on the layout. Each is added
up here as the trainer (`parallel`, `optim`) reaches it; the estimate is the highest.
"""

from dataclasses import dataclass

from trainyard.config import RunConfig
from trainyard.sizing.activations import LOSS_COPIES, Activations, activations
from trainyard.sizing.memory import Memory, states, temporaries
from trainyard.sizing.model_size import DIGITS_SAMPLES, RankParameters, mlp_parameters, rank_parameters
from trainyard.sizing.placement import FULL_BYTES, Placement, placement

BUCKET_BYTES = 25 * 2**20
"""DistributedDataParallel exchanges gradients in pieces of this size."""


def rank_memory(config: RunConfig, place: int, gpu: bool) -> Memory:
    """Memory of the ranks at one place of the pipeline."""
    moments = _mlp_moments(config) if config.model.name == "mlp" else _Rank(config, place, gpu).moments()
    return max(moments, key=lambda memory: memory.total)


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
    """The moments of a step on one rank of a llama or moe, in bytes."""

    def __init__(self, config: RunConfig, place: int, gpu: bool) -> None:
        self.config = config
        self.own: RankParameters = rank_parameters(config, place)
        self.kept: Activations = activations(config, gpu)
        self.placed: Placement = placement(config)
        self.chunks = _chunks(config, place)
        # With gd nobody knows how many micro-batches all samples make; there will be some.
        self.accumulates = config.accumulation > 1 or config.trainer.batch.global_ is None
        self.pipelined = config.mesh.pipeline > 1

    def moments(self) -> list[Memory]:
        """Every moment at which the peak may be."""
        moments = [self._begin(), self._end(), self._step()]
        if self.own.head:
            moments += [self._loss(), self._head()]
        if self.placed.sharded:
            moments.append(self._reduce())
            if self.accumulates and not self.pipelined:
                moments.append(self._first_reduce())
        if self.config.trainer.data.eval_fraction > 0:
            moments.append(self._evaluation())
        return moments

    def _loss(self) -> Memory:
        """All activations of a micro-batch are there, and the gradient of its logits is computed."""
        copies = LOSS_COPIES + (self.config.mesh.tensor > 1)
        waiting = self.chunks.last if self.pipelined else 0
        return self._moment(
            "loss",
            gradients=self._before,
            activations=self._stored + self.kept.end,
            logits=copies * self.kept.logits + waiting * self.kept.scores,
            buffers=self._copies(self.own.layers) + (self._gathered if self.pipelined else 0),
        )

    def _head(self) -> Memory:
        """The backward pass of the head: its gradient is there, and so is that of the logits."""
        head = FULL_BYTES * self.own.head
        return self._moment(
            "backward pass of the head",
            gradients=self._before + (0 if self._before else head),
            activations=self._stored + self.kept.end,
            logits=(self.chunks.last if self.pipelined else 1) * self.kept.scores,
            buffers=self._gathered + self._copies(self.own.layers) + (head if self._adds else 0),
        )

    def _begin(self) -> Memory:
        """The first block of the backward pass."""
        head = 0 if self._before else FULL_BYTES * self.own.head
        waiting = self.chunks.last - 1 if self.own.head else 0
        return self._moment(
            "backward pass begins",
            gradients=self._before + head + self._loose_block,
            activations=self._stored + self.kept.working,
            logits=waiting * self.kept.scores,
            buffers=self._gathered + self._copies(self.own.layers) + self._added,
        )

    def _end(self) -> Memory:
        """The last block of the backward pass: all gradients are there."""
        own = self.own
        gradients = FULL_BYTES * own.total
        if self.placed.sharded and not self.pipelined:
            inner = own.layers * own.block // self.placed.shards + own.stacked // self.placed.expert_shards
            gradients = FULL_BYTES * inner + self._width * own.outer + self._loose_block
        copies = FULL_BYTES * self._together if self.placed.sharded else 0
        if self.placed.replicated:
            copies = min(BUCKET_BYTES, FULL_BYTES * own.total)
        return self._moment(
            "backward pass ends",
            gradients=gradients + self._whole_embedding,
            activations=self.kept.block + self.kept.working,
            buffers=self._gathered + self._copies(1) + self._added + copies,
        )

    def _first_reduce(self) -> Memory:
        """The gradients of the first block in the last of several micro-batches are reduced; all others are whole."""
        loose = self._width * self._together if self._width < FULL_BYTES else 0  # not yet added to those in float32
        return self._moment(
            "gradients are reduced",
            gradients=self._before + loose,
            activations=self._stored,
            buffers=self._gathered + FULL_BYTES * self._together,
        )

    def _reduce(self) -> Memory:
        """What lies outside of the blocks is reduced last, and is copied for that."""
        own, placed = self.own, self.placed
        inner, outer = own.layers * own.block, FULL_BYTES * own.outer
        gathered, unreduced = self._width * own.outer, inner // placed.shards + own.stacked // placed.expert_shards
        if self.pipelined:
            gathered, unreduced = self._gathered, inner + own.stacked
        return self._moment("gradients are reduced", gradients=FULL_BYTES * unreduced + outer, buffers=gathered + outer)

    def _step(self) -> Memory:
        """The optimizer's step; with a parameter server there is none here, but all gradients are."""
        held = self.placed.held(self.own)
        gradients = FULL_BYTES * held + (0 if self.placed.sharded else self._whole_embedding)
        scalars = 0 if self.placed.served else temporaries(self.config, held)
        return self._moment("optimizer step", gradients=gradients, buffers=FULL_BYTES * scalars)

    def _evaluation(self) -> Memory:
        """Logits of held-out samples: of a pipeline those of a whole step, and a tensor group makes them whole."""
        split, kept = self.config.mesh.tensor, self.kept
        # To gather them takes the parts of all ranks, and then a copy in their right order.
        whole = 2 * split if split > 1 else 0
        micros = self.config.accumulation if self.pipelined else 1
        logits = ((2 if self.pipelined else 1) * micros + micros * whole) * kept.scores + kept.logits
        if kept.scores < kept.logits:
            logits += kept.logits  # in float32 for the loss
        return self._moment(
            "evaluation",
            gradients=FULL_BYTES * self.own.total if self._lasting else 0,
            activations=kept.end,
            logits=logits if self.own.head else 0,
            buffers=self._gathered + self._copies(self.own.layers),
        )

    @property
    def _width(self) -> int:
        """Bytes of a gathered parameter, and of its gradient before it is reduced or added to others."""
        return FULL_BYTES if self.placed.casts else self.placed.width

    @property
    def _stored(self) -> int:
        """Activations of all micro-batches on their way."""
        return self.chunks.at_once * self.own.chunk_layers * self.kept.block

    @property
    def _lasting(self) -> bool:
        """Whether there is room for all gradients from step to step."""
        return self.placed.replicated or self.placed.served

    @property
    def _adds(self) -> bool:
        """Whether a gradient is made first and then added to what is there."""
        return self.accumulates or self.placed.served

    @property
    def _before(self) -> int:
        """Gradients that are there when the last backward pass of a step begins.

        Under fully_shard they are not reduced before the last micro-batch, and so are whole until then, in float32.
        """
        return FULL_BYTES * self.own.total if self.accumulates or self._lasting else 0

    @property
    def _whole_embedding(self) -> int:
        """The embedding's gradient beyond this rank's part: torch makes it whole, and cuts it then."""
        return FULL_BYTES * self.own.embedding * (self.config.mesh.tensor - 1)

    @property
    def _together(self) -> int:
        """Scalars of the most parameters that are gathered, and whose gradients are reduced, at once in a block."""
        own = self.own
        if not self.placed.apart:
            return own.block + own.experts
        return max(own.block, own.experts) if self.placed.experts_sharded else own.block

    @property
    def _loose_block(self) -> int:
        """A block's gradients before they are sharded."""
        return self._width * self._together if self.placed.sharded and not self.accumulates else 0

    @property
    def _gathered(self) -> int:
        """Gathered parameters: all in a pipeline, else the block in use, the next, and the outer ones. Experts that
        are apart are gathered after their block, and are gone before those of the next.
        """
        own, placed = self.own, self.placed
        if not placed.sharded:
            return 0
        experts = own.experts if placed.experts_sharded else 0
        if self.pipelined:
            return self._width * (own.dense + own.layers * experts)
        return self._width * (2 * own.block + own.outer + (experts if placed.apart else 2 * experts))

    def _copies(self, layers: int) -> int:
        """Copies that autocast makes of matrices, and that last until the backward pass has used them: those of so many
        blocks, and before its first block that of the head.
        """
        if not self.placed.casts:
            return 0
        return self.placed.width * (self.own.matrices // self.own.layers * layers + self.own.head)

    @property
    def _added(self) -> int:
        """The largest gradient that is made and then added to what is there."""
        model, mesh = self.config.transformer, self.config.mesh
        largest = model.dim * model.ffn_dim // mesh.tensor
        if model.mixture is not None:
            largest *= model.mixture.experts // mesh.expert
        return FULL_BYTES * largest if self._adds else 0

    def _moment(
        self, moment: str, *, gradients: int = 0, activations: int = 0, logits: int = 0, buffers: int = 0
    ) -> Memory:
        held = self.placed.held(self.own)
        kept = 0 if self.placed.served else states(self.config, held, self.own.matrices // self.placed.shards)
        return Memory(
            moment=moment,
            weights=FULL_BYTES * held,
            gradients=gradients,
            optimizer=FULL_BYTES * kept,
            activations=activations,
            logits=logits,
            buffers=buffers,
        )


def _mlp_moments(config: RunConfig) -> list[Memory]:
    """An mlp is never split, and small: all of it at once."""
    assert config.model.name == "mlp"
    placed, samples = placement(config), config.micro_batch
    if config.trainer.batch.global_ is None and config.trainer.data.builtin == "digits":
        samples = min(samples, -(-DIGITS_SAMPLES // config.mesh.data))
    held = mlp_parameters(config) // placed.shards
    optimizer = 0 if placed.served else states(config, held, 0)
    buffers = 0 if placed.served else temporaries(config, held)
    return [
        Memory(
            moment="backward pass ends",
            weights=FULL_BYTES * held,
            gradients=FULL_BYTES * held,
            optimizer=FULL_BYTES * optimizer,
            activations=FULL_BYTES * 3 * samples * sum(config.model.hidden_sizes),
            logits=0,
            buffers=FULL_BYTES * buffers,
        )
    ]
