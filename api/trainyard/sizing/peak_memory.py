"""Peak memory of a rank of the built-in trainer, estimated from the configuration alone.

A step has a few moments at which memory peaks, and which of them is the highest depends on the layout. Each is added
up here in the order in which the trainer (`parallel`, `optim`) reaches it; the estimate is the highest.
"""

from dataclasses import dataclass

from trainyard.config import RunConfig
from trainyard.models.family import FULL_BYTES, Activations, RankParameters
from trainyard.sizing.activations import activations
from trainyard.sizing.memory import Memory, staged_bytes, states, temporaries, weight_bytes
from trainyard.sizing.model_size import rank_parameters, trained_parameters
from trainyard.sizing.placement import Placement, placement

BUCKET_BYTES = 25 * 2**20
"""Size of the buckets in which DistributedDataParallel reduces gradients."""
LOSS_CHUNK = 2**24
"""Logits that the loss computes with at once (`parallel.loss`), in float32; the gradient replaces the logits."""


def accumulates_shards(config: RunConfig) -> bool:
    """Return whether gradients are sharded after each micro-batch, should there be several."""
    sharded = config.memory_use.gradients == "sharded" and config.mesh.pipeline == 1
    return sharded and placement(config).sharded


def sample_gradient_bytes(config: RunConfig, scalars: int) -> int:
    """Return the bytes of the gradients of all samples of a micro-batch, of so many scalars, and of their clipped sum.

    Without spec.trainer.privacy there are none.
    """
    return 0 if config.trainer.privacy is None else FULL_BYTES * (config.micro_batch + 1) * scalars


def rank_memory(config: RunConfig, place: int, gpu: bool) -> Memory:
    """Return the peak memory of the ranks at one place of the pipeline, counted from 0."""
    own, kept = rank_parameters(config, place), activations(config, gpu)
    moments = _Rank(config, place, own, kept, gpu).moments() if own.layers else _without_blocks(config, own, kept)
    peak = max(moments, key=lambda memory: memory.total)
    # The copy that a checkpoint is written from is in the memory of the host, and stays from the first one on.
    return peak if gpu else peak.replace(checkpoint=staged_bytes(config, place))


@dataclass(frozen=True, slots=True)
class _Chunks:
    """Forward passes of micro-batches through a stage of a rank whose backward passes have not begun."""

    at_once: int
    """Number of them."""
    last: int
    """Number of them through the last stage, whose logits are kept."""


def _chunks(config: RunConfig, place: int) -> _Chunks:
    """Return the most forward passes in flight (Huang et al., 2019; Narayanan et al., 2021; Qi et al., 2024)."""
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
        case "ZBV":
            return _Chunks(min(2 * micros, 2 * stages), 1)


class _Rank:
    """The moments of a step on one rank of a model with blocks, in bytes."""

    def __init__(self, config: RunConfig, place: int, own: RankParameters, kept: Activations, gpu: bool) -> None:
        self.config = config
        self.place, self.own = place, own
        self.trained = trained_parameters(config, place)
        self.kept = kept
        self.gpu = gpu
        self.placed: Placement = placement(config)
        self.chunks = _chunks(config, place)
        # How many micro-batches all samples make is known in the worker only; there are probably several.
        accumulates = config.accumulation > 1 or config.trainer.batch.global_ is None
        self.pipelined = config.mesh.pipeline > 1
        self.adds_shards = accumulates and accumulates_shards(config)
        """Whether the gradients of each micro-batch are sharded, and then added to those of the others."""
        self.accumulates = accumulates and not self.adds_shards
        """Whether the complete gradients of the micro-batches are added up."""

    def moments(self) -> list[Memory]:
        """Return every moment at which memory may peak."""
        if self.config.only_evaluates:
            return [self._evaluation()]
        moments = [self._begin(), self._end(), self._step()]
        if self.own.head:
            moments += [self._loss(), self._head()]
        if self.placed.sharded:
            moments.append(self._reduce())
            if self.accumulates and not self.pipelined:
                moments.append(self._first_reduce())
        if self.config.trainer.data.holds_out:
            moments.append(self._evaluation())
        return moments

    def _loss(self) -> Memory:
        """Return the moment at which all activations are kept and the gradient of the logits is computed."""
        waiting = self.chunks.last if self.pipelined else 1
        return self._moment(
            "loss",
            gradients=self._accumulated,
            activations=self._stored + self.kept.end,
            logits=waiting * self.kept.scores + self._loss_chunk,
            buffers=self._copies(self.own.layers) + (self._gathered if self.pipelined else self._gathered_head),
        )

    def _head(self) -> Memory:
        """Return the backward pass of the head, whose gradient and the logits' are held."""
        head = FULL_BYTES * self.trained.head
        return self._moment(
            "backward pass of the head",
            gradients=self._accumulated + (0 if self._complete else head) + self._sample_gradients(self.trained.head),
            activations=self._stored + self.kept.end,
            logits=(self.chunks.last if self.pipelined else 1) * self.kept.scores,
            buffers=self._gathered + self._gathered_head + self._copies(self.own.layers) + (head if self._adds else 0),
        )

    def _begin(self) -> Memory:
        """Return the first block of the backward pass."""
        head = 0 if self._complete else FULL_BYTES * self.trained.head
        waiting = self.chunks.last - 1 if self.own.head else 0
        return self._moment(
            "backward pass begins",
            gradients=self._accumulated + head + self._unreduced_block,
            activations=self._stored + self.kept.working,
            logits=waiting * self.kept.scores,
            buffers=self._gathered + self._gather_copy + self._copies(self.own.layers) + self._added,
        )

    def _end(self) -> Memory:
        """Return the last block of the backward pass, when all gradients are held."""
        own = self.trained
        gradients = FULL_BYTES * own.total
        if self.placed.sharded and not self.pipelined:
            inner = own.layers * own.block // self.placed.shards + own.stacked // self.placed.expert_shards
            gradients = FULL_BYTES * (inner + own.head // self.placed.shards) + self._unreduced_block
            gradients += self._embedding_shards
        copies = FULL_BYTES * self._reduced_at_once if self.placed.sharded else 0
        if self.adds_shards:  # the shards of this micro-batch, before they are added to the others
            copies += FULL_BYTES * self._reduced_at_once // self.placed.shards
        if self.placed.replicated:
            copies = min(BUCKET_BYTES, FULL_BYTES * own.total)
        return self._moment(
            "backward pass ends",
            gradients=gradients + self._complete_embedding + self._sample_gradients(own.total),
            activations=self.kept.block + self.kept.working,
            buffers=self._gathered + self._copies(1) + self._added + copies,
        )

    def _first_reduce(self) -> Memory:
        """Return the first reduction in the last of several micro-batches: all other gradients are not sharded yet."""
        # Gradients in bfloat16 are held besides those in float32 to which they are added.
        loose = self._width * self._reduced_at_once if self._width < FULL_BYTES else 0
        return self._moment(
            "gradients are reduced",
            gradients=self._accumulated + loose,
            activations=self._stored,
            buffers=self._gathered + FULL_BYTES * self._reduced_at_once,
        )

    def _reduce(self) -> Memory:
        """Return the last reduction: the gradient of the embedding is copied for it."""
        own, placed = self.trained, self.placed
        inner, last = own.layers * own.block + own.head, FULL_BYTES * own.embedding
        gathered, unreduced = 0, inner // placed.shards + own.stacked // placed.expert_shards
        if self.pipelined:
            gathered, unreduced = self._gathered, inner + own.stacked
        gradients = FULL_BYTES * unreduced + last + self._embedding_shards
        return self._moment("gradients are reduced", gradients=gradients, buffers=gathered + last)

    def _step(self) -> Memory:
        """Return the optimizer's step; with a parameter server it is the server's, but all gradients are held."""
        held = self.placed.held(self.trained)
        gradients = FULL_BYTES * held + (0 if self.placed.sharded else self._complete_embedding)
        scalars = 0 if self.placed.served else temporaries(self.config, held, self.trained.largest_matrix)
        return self._moment("optimizer step", gradients=gradients, buffers=FULL_BYTES * scalars)

    def _evaluation(self) -> Memory:
        """Return the evaluation: a pipeline keeps the logits of all micro-batches, and a tensor group gathers them."""
        split, kept = self.config.mesh.tensor, self.kept
        # Gathering takes the parts of all ranks, and a copy of them in the right order.
        gathered = 2 * split if split > 1 else 0
        micros = self.config.accumulation if self.pipelined else 1
        logits = ((2 if self.pipelined else 1) * micros + micros * gathered) * kept.scores + self._loss_chunk
        return self._moment(
            "evaluation",
            gradients=FULL_BYTES * self.trained.total if self._gradients_persist else 0,
            # Otherwise training needs more than the blocks of an evaluation, which keep nothing.
            activations=kept.end + (kept.block if self.config.only_evaluates else 0),
            logits=logits if self.own.head else 0,
            buffers=self._gathered + self._gathered_head + self._copies(self.own.layers),
        )

    def _sample_gradients(self, scalars: int) -> int:
        """Bytes of the gradients of the samples of a micro-batch, of so many scalars."""
        return sample_gradient_bytes(self.config, scalars)

    @property
    def _width(self) -> int:
        """Bytes of a gathered parameter, and of its gradient before it is reduced or added to others."""
        return FULL_BYTES if self.placed.casts else self.placed.width

    @property
    def _loss_chunk(self) -> int:
        """Bytes of the probabilities of some rows."""
        return min(self.kept.logits, FULL_BYTES * LOSS_CHUNK)

    @property
    def _stored(self) -> int:
        """Activations of all micro-batches in flight."""
        return self.chunks.at_once * self.own.chunk_layers * self.kept.block

    @property
    def _gradients_persist(self) -> bool:
        """Whether the memory of all gradients is kept from step to step."""
        return self.placed.replicated or self.placed.served

    @property
    def _adds(self) -> bool:
        """Whether a gradient is computed first and then added to an accumulated one."""
        return self.accumulates or self.placed.served

    @property
    def _complete(self) -> bool:
        """Whether the memory of all gradients, not sharded, is held when the last backward pass of a step begins."""
        return self.accumulates or self._gradients_persist

    @property
    def _accumulated(self) -> int:
        """Gradients that are held when the last backward pass of a step begins, in float32."""
        if self._complete:
            return FULL_BYTES * self.trained.total
        return FULL_BYTES * self.placed.held(self.trained) if self.adds_shards else 0

    @property
    def _embedding_shards(self) -> int:
        """Shards of the gradient of the embedding, to which that of the last micro-batch is added."""
        return FULL_BYTES * self.trained.embedding // self.placed.shards if self.adds_shards else 0

    @property
    def _complete_embedding(self) -> int:
        """The embedding's gradient beyond this rank's part: torch computes all of it before it is split."""
        return FULL_BYTES * self.trained.embedding * (self.config.mesh.tensor - 1)

    @property
    def _reduced_at_once(self) -> int:
        """Scalars of the largest set of parameters of a block whose gradients are reduced at once."""
        own = self.trained
        if not self.placed.apart:
            return own.block + own.experts
        return max(own.block, own.experts) if self.placed.experts_sharded else own.block

    @property
    def _unreduced_block(self) -> int:
        """Gradients of a block before they are sharded."""
        return self._width * self._reduced_at_once if self.placed.sharded and not self.accumulates else 0

    @property
    def _gathered(self) -> int:
        """Gathered parameters: all in a pipeline, else those of the current and the next block.

        Experts that are sharded apart are gathered after their block, and freed before those of the next block.
        """
        own, placed = self.own, self.placed
        if not placed.sharded:
            return 0
        experts = own.experts if placed.experts_sharded else 0
        if self.pipelined:
            return self._width * (own.dense + own.layers * experts)
        return self._width * (2 * own.block + (experts if placed.apart else 2 * experts))

    @property
    def _gather_copy(self) -> int:
        """Gathered parameters of the next block once more: gloo gathers into memory of its own, and copies them."""
        if self.gpu or self.pipelined or not self.placed.sharded:
            return 0
        return self._width * (self.own.block + (0 if self.placed.apart else self.own.experts))

    @property
    def _gathered_head(self) -> int:
        """Gathered parameters of the head, which stay from its forward pass to its backward pass."""
        return self._width * self.own.head if self.placed.sharded and not self.pipelined else 0

    def _copies(self, layers: int) -> int:
        """Return the bytes of the copies of matrices that autocast keeps until their backward pass.

        They are those of the head and of the given number of blocks.
        """
        if not self.placed.casts:
            return 0
        return self.placed.width * (self.own.matrices // self.own.layers * layers + self.own.head)

    @property
    def _added(self) -> int:
        """Largest gradient that is computed first and then added to the accumulated one."""
        return FULL_BYTES * self.trained.largest if self._adds else 0

    def _moment(
        self, moment: str, *, gradients: int = 0, activations: int = 0, logits: int = 0, buffers: int = 0
    ) -> Memory:
        held = self.placed.held(self.trained)
        kept = 0 if self.placed.served else states(self.config, held, self.trained.matrices // self.placed.shards)
        return Memory(
            moment=moment,
            weights=weight_bytes(self.config, self.place),
            gradients=gradients,
            optimizer=FULL_BYTES * kept,
            activations=activations,
            logits=logits,
            buffers=buffers,
        )


def _without_blocks(config: RunConfig, own: RankParameters, kept: Activations) -> list[Memory]:
    """Return the one moment of a model without blocks, which is small and never divided: everything is held at once."""
    placed = placement(config)
    held = placed.held(own)
    optimizer = 0 if placed.served else states(config, held, own.matrices)
    evaluates = config.only_evaluates
    buffers = 0 if placed.served or evaluates else temporaries(config, held, own.largest_matrix)
    # DistributedDataParallel allocates gradients before the first backward pass.
    keeps_gradients = placed.replicated or not evaluates
    return [
        Memory(
            moment="evaluation" if evaluates else "backward pass ends",
            weights=FULL_BYTES * held,
            gradients=(FULL_BYTES * held if keeps_gradients else 0) + sample_gradient_bytes(config, held),
            optimizer=FULL_BYTES * optimizer,
            activations=kept.block,
            logits=0,
            buffers=FULL_BYTES * buffers,
        )
    ]
