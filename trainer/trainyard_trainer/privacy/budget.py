"""The privacy budget of a run: which steps it allows, and that each step is charged before it is made.

The rule: no step is made that the ledger on the checkpoint volume does not hold. Steps are charged ahead, a number of
them at a time. An attempt with the same configuration repeats steps with the same samples and the same noise, so its
repeated steps show nothing new and are not charged again. An attempt with another configuration gets another key, since
the same noise on other gradients would give both away, and pays for its steps whether or not they repeat others.
"""

import hashlib
import json
import os
from collections.abc import Sequence
from typing import Any

import torch.distributed as dist

from trainyard.config import RunConfig
from trainyard_trainer.privacy.accountant import Target, affordable_steps, epsilon_of, smallest_noise
from trainyard_trainer.privacy.ledger import LEDGER_FILE, Charge, Ledger, PrivacySpent, Store, read_ledger, write_ledger
from trainyard_trainer.runtime import log
from trainyard_trainer.runtime.errors import ConfigError
from trainyard_trainer.runtime.secret_words import KEY_BYTES
from trainyard_trainer.runtime.world import World

CHARGED_AHEAD = 100
"""Steps that are charged at once. They cost something only if an attempt fails and the next one has another
configuration."""
_FIELD = "spec.trainer.privacy"
_WITHOUT_EFFECT = (
    "job",
    "namespace",
    "worldSize",
    "servers",
    "mesh",
    "parallelism",
    "microBatch",
    "memoryUse",
    "checkpoint",
)
_WITHOUT_EFFECT_IN_TRAINER = (
    "task",
    "logEverySteps",
    "tensorboard",
    "profile",
    "evaluation",
    "explain",
    "export",
    "signingKeyFile",
)
"""Parts of a configuration that neither samples, noise nor parameters follow from, rounding aside."""


class Budget:
    """The budget of a run, the same on every rank; rank 0 keeps the ledger."""

    def __init__(self, config: RunConfig, samples: int, data: Sequence[int | None], store: Store, world: World) -> None:
        """Prepare the budget.

        Args:
            config: configuration of the run.
            samples: number of training samples.
            data: numbers that identify the data, and what is excluded of them.
            store: where the ledger is.
            world: the ranks; they have a control group, since a private run writes checkpoints.

        Raises:
            ConfigError: delta or the batch is too large for the number of samples.
        """
        privacy, batch = config.trainer.privacy, config.trainer.batch.global_
        assert privacy is not None, "only a private run has a budget"
        assert batch is not None, "admission demands a batch"
        if privacy.delta * samples >= 1:
            raise ConfigError(
                f"{_FIELD}.delta: {privacy.delta:g} must be below 1 / {samples}, the number of training samples, since "
                "it is the probability with which a sample may be shown as it is; lower it"
            )
        if batch > samples:
            raise ConfigError(
                f"spec.trainer.batch.global: {batch} is larger than the number of training samples, {samples}, of "
                "which a private step draws each with probability batch.global / samples; lower it"
            )
        self._privacy = privacy
        self._target = Target(privacy.epsilon, privacy.delta)
        self._rate = batch / samples
        self._configuration = configuration_digest(config, data)
        self._store, self._world = store, world
        self._ledger = Ledger()
        self._planned = self._total = 0

    def begin(self, step: int, planned: int) -> int:
        """Open the account of an attempt, and return the number of steps of the run that the budget allows.

        Args:
            step: optimizer steps done.
            planned: optimizer steps of the entire run, by spec.trainer.stop.

        Raises:
            ConfigError: the budget is spent, or the ledger does not account for all steps done.
            OSError: the storage fails.
        """
        answer: list[Any] = [None, None]
        if self._world.rank == 0:
            try:
                answer[0] = self._opened(read_ledger(self._store), step, planned)
            except ConfigError as error:
                answer[1] = str(error)
        if self._world.size > 1:
            dist.broadcast_object_list(answer, 0, group=self._world.control)
        if answer[1] is not None:
            raise ConfigError(answer[1])
        self._ledger, allowed = answer[0]
        self._planned, self._total = planned, min(planned, allowed)
        if self._world.rank == 0:
            log.info(
                f"differentially private: epsilon {self.epsilon(step):.4g} of {self._target.epsilon:g} is spent (delta "
                f"{self._target.delta:g}), noise multiplier {self.noise_multiplier:g}, sample rate {self._rate:.4g}",
                noiseMultiplier=self.noise_multiplier,
            )
            if self._total < planned:
                log.info(f"{self.reason_to_stop()}; spec.trainer.stop would end it after step {planned}")
        return self._total

    @property
    def key(self) -> bytes:
        """The secret key of samples and noise. Empty if no step is left to make."""
        return bytes.fromhex(self._ledger.key or "")

    @property
    def noise_multiplier(self) -> float:
        """Standard deviation of the noise, divided by the largest norm of a sample's gradient."""
        return self._ledger.charges[-1].noise_multiplier

    def charge(self, step: int) -> None:
        """Charge a step, counted from 1, before it is made; some more are charged with it.

        Raises:
            OSError: the storage refuses; then the step must not be made.
        """
        newest = self._ledger.charges[-1]
        if step <= newest.last:
            return
        last = min(self._total, step + CHARGED_AHEAD - 1)
        self._keep(self._ledger.key, newest.replace(steps=last - newest.first + 1))

    def epsilon(self, step: int) -> float:
        """Return the epsilon that is spent after a step of this attempt."""
        return epsilon_of(self._ledger.up_to(step), self._target.delta)

    def spent(self, step: int) -> PrivacySpent:
        """Return what the parameters after a step of this attempt have cost."""
        charges = self._ledger.up_to(step)
        return PrivacySpent(epsilon=self.epsilon(step), delta=self._target.delta, charges=charges)

    def close(self, step: int, *, complete: bool) -> None:
        """Charge for no more steps than were made, all of which are in a checkpoint now.

        The state is saved by then, so a ledger that cannot be written is worth a warning, but does not end the run.

        `complete`: no step is left to make or to repeat, so that nothing needs the key any more.
        """
        try:
            self._keep(None if complete else self._ledger.key, self._ledger.up_to(step)[-1])
        except OSError as error:
            log.logger.warning(
                "%s could not be written: %s; %s",
                LEDGER_FILE,
                error,
                "it still has the secret key, so remove it by hand" if complete else "it charges more steps than made",
            )

    def reason_to_stop(self) -> str | None:
        """Return why the training ends before spec.trainer.stop; None if it does not."""
        if self._total == self._planned:
            return None
        return (
            f"the privacy budget ends the training after step {self._total}: one more step would exceed {_FIELD}"
            f".epsilon {self._target.epsilon:g}"
        )

    def _keep(self, key: str | None, newest: Charge) -> None:
        """Replace key and newest charge, on the volume first."""
        changed = Ledger(key=key, charges=(*self._ledger.charges[:-1], newest))
        if self._world.rank == 0 and changed != self._ledger:
            write_ledger(self._store, changed)
        self._ledger = changed

    def _opened(self, found: Ledger, step: int, planned: int) -> tuple[Ledger, int]:
        """Return the ledger with which an attempt begins, written, and the last step that the budget allows."""
        if step > found.last:
            raise ConfigError(
                f"{_FIELD}: the ledger beside the checkpoints accounts for {found.last} steps, but the checkpoint has "
                f"{step}; restore privacy.json, or start another run: another name, or another spec.checkpoint volume"
            )
        # Rule 1: a run that is complete spends nothing.
        if step >= planned:
            return found, planned
        # Rule 2: the same configuration continues with its key, or has reached its end and needs none.
        newest = found.charges[-1] if found.charges else None
        if newest is not None and newest.configuration == self._configuration and newest.first <= step + 1:
            most = planned - newest.first + 1
            noise = newest.noise_multiplier
            allowed = (
                newest.last - newest.steps + affordable_steps(found.charges[:-1], self._rate, noise, self._target, most)
            )
            if found.key is not None or step >= allowed:
                return found, allowed
        # Rule 3: another configuration, or one whose key is gone, begins with a key of its own behind all charges.
        before = tuple(charge for charge in found.charges if charge.steps)
        noise = self._noise(before, planned - step)
        allowed = step + affordable_steps(before, self._rate, noise, self._target, planned - step)
        if allowed == step:
            raise ConfigError(self._explain_spent(before, noise))
        charge = Charge(
            configuration=self._configuration,
            first=step + 1,
            steps=0,
            sample_rate=self._rate,
            noise_multiplier=noise,
        )
        ledger = Ledger(key=os.urandom(KEY_BYTES).hex(), charges=(*before, charge))
        write_ledger(self._store, ledger)
        return ledger, allowed

    def _noise(self, before: tuple[Charge, ...], steps: int) -> float:
        if self._privacy.noise_multiplier is not None:
            return self._privacy.noise_multiplier
        noise = smallest_noise(before, self._rate, steps, self._target)
        if noise is None:
            raise ConfigError(self._explain_spent(before, None))
        return noise

    def _explain_spent(self, before: tuple[Charge, ...], noise: float | None) -> str:
        used, limit = epsilon_of(before, self._target.delta), self._target.epsilon
        fix = f"raise {_FIELD}.epsilon"
        if noise is not None:
            fix += " or noiseMultiplier"
        if not before:
            return f"{_FIELD}.epsilon: {limit:g} does not allow a single step with this noise; {fix}"
        return (
            f"{_FIELD}.epsilon: the budget of {limit:g} is spent: earlier steps cost {used:.4g}, and one more would "
            f"exceed it; {fix}, or end the run here (spec.trainer.stop)"
        )


def configuration_digest(config: RunConfig, data: Sequence[int | None]) -> str:
    """Return a digest of everything that the steps of a run follow from, besides key and layout."""
    fields = {name: value for name, value in config.to_dict().items() if name not in _WITHOUT_EFFECT}
    fields["health"] = config.health.bad_steps.to_dict()
    trainer = {name: value for name, value in fields["trainer"].items() if name not in _WITHOUT_EFFECT_IN_TRAINER}
    trainer["batch"] = {"global": config.trainer.batch.global_}
    content = json.dumps([{**fields, "trainer": trainer}, list(data)], sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()[:32]
