"""What a run has consumed after each of its steps, in samples and in tokens, while batch and sequence length change.

Free of torch.
"""

from collections.abc import Sequence

from trainyard.base import ApiModel


class Phase(ApiModel):
    """Consecutive steps of a run with the same batch and the same sequence length."""

    step: int
    """Optimizer steps done when the phase began."""
    samples: int
    """Samples consumed by then, counted in samples of this phase."""
    tokens: int
    """Tokens consumed by then (of a table: rows)."""
    batch: int
    """Samples that a step consumes, over all ranks."""
    tokens_per_sample: int
    """Tokens of one sample."""

    def samples_at(self, step: int) -> int:
        """Return the samples consumed after a step of this phase."""
        return self.samples + (step - self.step) * self.batch

    def tokens_at(self, step: int) -> int:
        """Return the tokens consumed after a step of this phase."""
        return self.tokens + (step - self.step) * self.tokens_per_step

    @property
    def tokens_per_step(self) -> int:
        """Tokens that a step consumes, over all ranks."""
        return self.batch * self.tokens_per_sample


class Timeline:
    """Samples and tokens consumed after each step, also after steps of earlier attempts with other batches.

    Skipped steps count, and so do steps before a rollback, since their samples are not repeated.
    """

    def __init__(self, batch: int, tokens_per_sample: int) -> None:
        """Begin a run with the present batch and sequence length."""
        self._batch, self._tokens_per_sample = batch, tokens_per_sample
        self.phases: tuple[Phase, ...] = ()
        """All phases, the current one last; kept in checkpoints."""
        self.move(0, 0, 0, ())

    def move(self, step: int, samples: int, tokens: int, history: Sequence[Phase]) -> None:
        """Continue after a step, of this attempt or an earlier one, with the present batch and sequence length.

        Args:
            step: optimizer steps done.
            samples: samples consumed, counted in samples of the present length.
            tokens: tokens consumed.
            history: phases of the run so far; those that begin at the step or later are forgotten.
        """
        new = Phase(
            step=step,
            samples=samples,
            tokens=tokens,
            batch=self._batch,
            tokens_per_sample=self._tokens_per_sample,
        )
        kept = tuple(phase for phase in history if phase.step < step)
        # The last phase continues if the step is one of its own.
        continues = kept and new == kept[-1].replace(
            step=step, samples=kept[-1].samples_at(step), tokens=kept[-1].tokens_at(step)
        )
        self.phases = kept if continues else (*kept, new)

    @property
    def current(self) -> Phase:
        """The phase of the next step."""
        return self.phases[-1]

    def tokens_at(self, step: int) -> int:
        """Return the tokens consumed after a step; for steps to come, if nothing changes."""
        return self._phase_of(step).tokens_at(step)

    def samples_at(self, step: int) -> int:
        """Return the samples consumed after a step, counted in samples of that step's phase."""
        return self._phase_of(step).samples_at(step)

    def _phase_of(self, step: int) -> Phase:
        return next((phase for phase in reversed(self.phases) if phase.step <= step), self.phases[0])


def in_samples_of(tokens_per_sample: int, samples: int, counted_in: int) -> int:
    """Return a number of samples counted in samples of another length, rounded up: nothing of it is repeated.

    Args:
        tokens_per_sample: tokens of one sample in the result.
        samples: number of samples.
        counted_in: tokens of one of them.
    """
    return -(-samples * counted_in // tokens_per_sample)
