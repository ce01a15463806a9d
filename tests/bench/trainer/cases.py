"""What is compared with what."""

from dataclasses import dataclass, field
from typing import Any, Literal

from trainyard.admission import admit
from trainyard.config import RunConfig
from trainyard.protocol.constants import GROUP, KIND, VERSION
from trainyard.resolve import resolve

LOG_EVERY = 10

Kind = Literal["trainyard", "unmeasured", "plain", "transformers", "lightning", "torchtitan"]


@dataclass(frozen=True, eq=False)
class Program:
    """A program that trains, and the processes it runs in."""

    label: str
    """What it is called as a reference."""
    kind: Kind
    processes: int = 1
    """Those of one process group."""
    threads: int = 1
    groups: int = 1
    """Process groups at the same time, each of which trains a model of its own on batches of its own."""
    batch_share: float = 1.0
    """Share of the case's global batch that a step of a group takes. Its speed counts as if it took all of it."""
    parallelism: dict[str, Any] = field(default_factory=dict)
    servers: int = 0
    """Parameter servers, one more process each, which take no turns."""
    checkpointing: str = "none"


@dataclass(frozen=True)
class Case:
    """A model, and programs that train it in turns."""

    name: str
    subject: Program
    references: tuple[Program, ...]
    model: dict[str, Any]
    sequence_length: int
    global_batch: int
    steps: int
    """Steps of one turn."""
    rounds: int
    """Turns of each program."""
    starts: int = 1
    """Times that all programs are started. What a process happens to be given (addresses, a place in the caches) makes
    it a percent faster or slower in all its turns. Of several starts, each counts as one: its speed over all rounds."""

    @property
    def programs(self) -> tuple[Program, ...]:
        """All that take turns."""
        return self.subject, *self.references

    def config(self, program: Program) -> RunConfig:
        """The configuration of a program, as admission lets it pass."""
        return make_config(
            self.model,
            self.sequence_length,
            round(self.global_batch * program.batch_share),
            program.processes,
            program.parallelism,
            {"stop": {"steps": 1_000_000}, "activationCheckpointing": program.checkpointing},
        )

    @property
    def tokens(self) -> int:
        """Tokens of one turn."""
        return self.steps * self.global_batch * self.sequence_length


def local_batch(config: RunConfig, processes: int) -> int:
    """Samples of one process in a step."""
    assert config.trainer.batch.global_ is not None
    return config.trainer.batch.global_ // processes


def make_config(
    model: dict[str, Any],
    sequence_length: int,
    batch: int,
    processes: int,
    parallelism: dict[str, Any],
    trainer: dict[str, Any],
) -> RunConfig:
    """A job on one worker that trains on the source of Python's standard library."""
    trainer = {
        "model": {"name": "llama", **model},
        "data": {"source": "text", "builtin": "python-stdlib", "sequenceLength": sequence_length},
        "batch": {"global": batch},
        "logEverySteps": LOG_EVERY,
        **trainer,
    }
    workers = {"replicas": 1, "procsPerWorker": processes}
    spec = {"workers": workers, "trainer": trainer, "parallelism": parallelism}
    body = {"apiVersion": f"{GROUP}/{VERSION}", "kind": KIND, "metadata": {"name": "bench"}, "spec": spec}
    return resolve(admit(body))
