"""The account of a privacy budget: what steps cost, and that nothing is spent twice or unnoticed."""

import json
import warnings
from typing import Any

import pytest
import torch
from opacus.accountants import RDPAccountant
from opacus.accountants.utils import get_noise_multiplier

from tests.trainer.private import private
from trainyard.config import RunConfig
from trainyard_trainer.privacy.accountant import Target, affordable_steps, epsilon_of, smallest_noise
from trainyard_trainer.privacy.budget import CHARGED_AHEAD, Budget, configuration_digest
from trainyard_trainer.privacy.ledger import LEDGER_FILE, Charge, Ledger, read_ledger
from trainyard_trainer.runtime.errors import ConfigError
from trainyard_trainer.runtime.world import World

DELTA = 1e-6
SAMPLES = 1797
ALONE = World(0, 0, 1, 1, torch.device("cpu"))


class Memory:
    """A store of files, which can refuse to write."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.full = False

    def read(self, name: str) -> bytes | None:
        return self.files.get(name)

    def replace(self, name: str, content: bytes) -> None:
        if self.full:
            raise OSError(28, "No space left on device")
        self.files[name] = content


def charge(steps: int, rate: float = 0.02, noise: float = 1.0, first: int = 1) -> Charge:
    return Charge(configuration="a", first=first, steps=steps, sample_rate=rate, noise_multiplier=noise)


def opacus(*charges: Charge) -> float:
    accountant = RDPAccountant()
    accountant.history = [(c.noise_multiplier, c.sample_rate, c.steps) for c in charges]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Optimal order is the", UserWarning)
        return float(accountant.get_epsilon(DELTA))


# --- the accountant ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "charges",
    [
        (charge(1),),
        (charge(1000),),
        (charge(50, noise=4.0), charge(200, rate=0.1, noise=2.5)),
        (charge(10, rate=1.0, noise=5.0),),
    ],
)
def test_epsilon_is_that_of_opacus(charges: tuple[Charge, ...]) -> None:
    assert epsilon_of(charges, DELTA) == pytest.approx(opacus(*charges), rel=1e-12)


@pytest.mark.filterwarnings("ignore:Optimal order is the largest")
def test_small_budgets_are_counted_at_larger_orders() -> None:
    accountant = RDPAccountant()
    accountant.history = [(20.0, 0.02, 50)]
    steps = (charge(50, noise=20.0),)
    assert epsilon_of(steps, DELTA) < accountant.get_epsilon(DELTA) / 2
    assert epsilon_of(steps, DELTA) == pytest.approx(accountant.get_epsilon(DELTA, alphas=range(2, 513)), rel=0.1)


def test_no_steps_cost_nothing() -> None:
    assert epsilon_of((), DELTA) == epsilon_of((charge(0),), DELTA) == 0


@pytest.mark.parametrize("before", [(), (charge(40, rate=0.05, noise=1.2),)])
def test_the_last_affordable_step_is_within_the_budget_and_the_next_is_not(before: tuple[Charge, ...]) -> None:
    steps = affordable_steps(before, 0.02, 1.0, Target(4, DELTA), 10**6)
    assert steps > 10
    assert opacus(*before, charge(steps)) <= 4 < opacus(*before, charge(steps + 1))
    assert affordable_steps(before, 0.02, 1.0, Target(4, DELTA), steps - 3) == steps - 3
    assert affordable_steps((charge(10**6),), 0.02, 1.0, Target(4, DELTA), 50) == 0


@pytest.mark.parametrize("before", [(), (charge(40, rate=0.05, noise=1.2),)])
@pytest.mark.parametrize(("epsilon", "steps"), [(2.5, 100), (8, 1000), (1000, 10)])
def test_the_smallest_noise_makes_the_budget_last(before: tuple[Charge, ...], epsilon: float, steps: int) -> None:
    noise = smallest_noise(before, 0.02, steps, Target(epsilon, DELTA))
    assert noise is not None
    assert opacus(*before, charge(steps, noise=noise)) <= epsilon < opacus(*before, charge(steps, noise=noise - 2e-4))


@pytest.mark.filterwarnings("ignore:Optimal order is the")
def test_the_smallest_noise_is_that_of_opacus() -> None:
    theirs = get_noise_multiplier(
        target_epsilon=3, target_delta=DELTA, sample_rate=0.02, steps=500, epsilon_tolerance=1e-3
    )
    assert smallest_noise((), 0.02, 500, Target(3, DELTA)) == pytest.approx(theirs, rel=1e-3)


def test_no_noise_brings_back_a_budget_that_is_spent() -> None:
    assert smallest_noise((charge(10**5),), 0.02, 1, Target(1, DELTA)) is None


# --- the ledger -------------------------------------------------------------------------------------------------------


def opened(config: RunConfig, store: Memory, step: int, planned: int = 400) -> tuple[Budget, int]:
    budget = Budget(config, SAMPLES, (7, None), store, ALONE)
    return budget, budget.begin(step, planned)


def made(budget: Budget, first: int, last: int) -> None:
    for step in range(first, last + 1):
        budget.charge(step)


def test_a_step_is_charged_before_it_is_made() -> None:
    store = Memory()
    budget, total = opened(private(), store, 0)
    assert total == 400
    assert read_ledger(store).last == 0
    budget.charge(1)
    assert read_ledger(store).last == CHARGED_AHEAD
    store.full = True
    made(budget, 2, CHARGED_AHEAD)
    with pytest.raises(OSError, match="No space left"):
        budget.charge(CHARGED_AHEAD + 1)
    assert budget.epsilon(CHARGED_AHEAD) == pytest.approx(epsilon_of(read_ledger(store).charges, DELTA))
    store.full = False
    made(budget, CHARGED_AHEAD + 1, 400)
    assert read_ledger(store).last == 400


def test_an_attempt_with_the_same_configuration_has_the_same_key_and_pays_nothing_twice() -> None:
    store = Memory()
    first, _ = opened(private(), store, 0)
    made(first, 1, 120)
    again, _ = opened(private(ranks=2, logEverySteps=7, batch={"global": 32, "micro": 1}), store, 50)
    made(again, 51, 120)
    assert again.key == first.key
    assert len(again.key) == 32
    assert again.epsilon(120) == first.epsilon(120) == pytest.approx(opacus(charge(120, rate=32 / SAMPLES)))
    assert len(read_ledger(store).charges) == 1


@pytest.mark.parametrize(
    "changes",
    [
        {"optimizer": {"learningRate": 0.02}},
        {"privacy": {"maxGradNorm": 2}},
        {"privacy": {"noiseMultiplier": 1.5}},
        {"batch": {"global": 16}},
        {"stop": {"steps": 500}},
    ],
)
def test_an_attempt_with_another_configuration_has_another_key_and_pays_for_its_steps(changes: dict[str, Any]) -> None:
    """The same noise on other gradients would give both away."""
    store = Memory()
    first, _ = opened(private(), store, 0)
    made(first, 1, 120)
    other, _ = opened(private(**changes), store, 50)
    assert other.key != first.key
    made(other, 51, 60)
    charges = read_ledger(store).charges
    assert [(c.first, c.steps) for c in charges] == [(1, 200), (51, CHARGED_AHEAD)]
    spent = other.spent(60)
    assert [(c.first, c.steps) for c in spent.charges] == [(1, 200), (51, 10)]
    assert spent.epsilon == pytest.approx(opacus(*spent.charges))
    assert spent.epsilon > first.epsilon(200)


def test_other_data_have_another_key() -> None:
    config = private()
    digests = {configuration_digest(config, data) for data in ((7, None), (8, None), (7, 1))}
    assert len(digests) == 3


def test_a_stop_charges_for_the_steps_that_were_made() -> None:
    store = Memory()
    budget, _ = opened(private(), store, 0)
    made(budget, 1, 30)
    budget.close(30, complete=False)
    ledger = read_ledger(store)
    assert (ledger.last, ledger.key) == (30, budget.key.hex())
    again, total = opened(private(), store, 30)
    assert (again.key, total) == (budget.key, 400)
    assert again.epsilon(30) == pytest.approx(opacus(charge(30, rate=32 / SAMPLES)))


def test_the_key_is_erased_when_nothing_needs_it_any_more() -> None:
    store = Memory()
    budget, _ = opened(private(), store, 0, planned=30)
    made(budget, 1, 30)
    budget.close(30, complete=True)
    assert read_ledger(store).key is None
    assert b"key" not in store.files[LEDGER_FILE]
    again, total = opened(private(), store, 30, planned=30)
    assert (total, again.key, again.reason_to_stop()) == (30, b"", None)
    # An older checkpoint, as the newest is damaged: the same steps, with another key, so they are paid for.
    older, _ = opened(private(), store, 20, planned=30)
    made(older, 21, 30)
    assert len(older.key) == 32
    assert [(c.first, c.steps) for c in read_ledger(store).charges] == [(1, 30), (21, 10)]


def test_attempts_that_make_no_step_leave_no_trace() -> None:
    """An evaluation has ended the training, and its pod is started again."""
    store = Memory()
    budget, _ = opened(private(), store, 0)
    made(budget, 1, 30)
    budget.close(30, complete=True)
    for _ in range(3):
        again, _ = opened(private(), store, 30)
        again.close(30, complete=True)
    assert [(c.first, c.steps) for c in read_ledger(store).charges] == [(1, 30), (31, 0)]
    assert read_ledger(store).key is None


@pytest.mark.parametrize("complete", [False, True])
def test_a_ledger_that_cannot_be_closed_is_worth_a_warning(complete: bool, caplog: pytest.LogCaptureFixture) -> None:
    store = Memory()
    budget, _ = opened(private(), store, 0, planned=30)
    made(budget, 1, 10)
    store.full = True
    budget.close(10, complete=complete)
    consequence = "it still has the secret key" if complete else "it charges more steps than made"
    assert f"privacy.json could not be written: [Errno 28] No space left on device; {consequence}" in caplog.text
    assert read_ledger(store).last == 30


def test_the_budget_ends_the_training() -> None:
    store = Memory()
    budget, total = opened(private(privacy={"epsilon": 2}), store, 0)
    expected = affordable_steps((), 32 / SAMPLES, 1.0, Target(2, DELTA), 400)
    assert total == expected < 400
    made(budget, 1, total)
    assert read_ledger(store).last == total, "no step is charged that is not made"
    assert budget.epsilon(total) <= 2
    assert budget.reason_to_stop() == (
        f"the privacy budget ends the training after step {total}: one more step would exceed "
        "spec.trainer.privacy.epsilon 2"
    )
    budget.close(total, complete=True)
    # A pod that is started once more has nothing left to do.
    again, same = opened(private(privacy={"epsilon": 2}), store, total)
    assert (same, again.reason_to_stop()) == (total, budget.reason_to_stop())
    # A larger budget lasts longer.
    longer, more = opened(private(privacy={"epsilon": 2.5}), store, total)
    assert total < more < 400
    assert longer.epsilon(more) <= 2.5


def test_a_budget_that_is_spent_is_refused() -> None:
    store = Memory()
    budget, total = opened(private(privacy={"epsilon": 2}), store, 0)
    made(budget, 1, total)
    budget.close(total, complete=True)
    with pytest.raises(ConfigError) as error:
        opened(private(privacy={"epsilon": 2}, stop={"steps": 900}), store, total, planned=900)
    assert str(error.value) == (
        f"spec.trainer.privacy.epsilon: the budget of 2 is spent: earlier steps cost {budget.epsilon(total):.4g}, and "
        "one more would exceed it; raise spec.trainer.privacy.epsilon or noiseMultiplier, or end the run here "
        "(spec.trainer.stop)"
    )
    with pytest.raises(
        ConfigError, match=r"the budget of 1 is spent: earlier steps cost 1.9.*raise spec.trainer.priva"
    ):
        opened(private(privacy={"epsilon": 1, "noiseMultiplier": None}), store, total)


def test_a_budget_that_allows_no_step_is_refused() -> None:
    with pytest.raises(ConfigError) as error:
        opened(private(privacy={"epsilon": 0.01}), Memory(), 0)
    assert str(error.value) == (
        "spec.trainer.privacy.epsilon: 0.01 does not allow a single step with this noise; raise "
        "spec.trainer.privacy.epsilon or noiseMultiplier"
    )


def test_without_a_noise_multiplier_the_budget_lasts_until_the_end() -> None:
    store, config = Memory(), private(privacy={"epsilon": 3, "noiseMultiplier": None})
    budget, total = opened(config, store, 0)
    assert (total, budget.reason_to_stop()) == (400, None)
    assert 2.99 < budget.epsilon(0) + epsilon_of((charge(400, 32 / SAMPLES, budget.noise_multiplier),), DELTA) <= 3
    made(budget, 1, 100)
    # The same configuration keeps its noise, and another one chooses it for what is left.
    again, _ = opened(config, store, 60)
    assert again.noise_multiplier == budget.noise_multiplier
    longer = private(privacy={"epsilon": 3, "noiseMultiplier": None}, stop={"steps": 1000})
    other, total = opened(longer, store, 100, planned=1000)
    assert total == 1000
    assert other.noise_multiplier > budget.noise_multiplier
    made(other, 101, 1000)
    assert 2.99 < other.epsilon(1000) <= 3


def test_steps_that_no_ledger_accounts_for_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"accounts for 0 steps, but the checkpoint has 50; restore privacy.json"):
        opened(private(), Memory(), 50)


@pytest.mark.parametrize(
    "content",
    [b"", b"[]", b"{}", b'{"format": 2}', b'{"format": 1, "key": "ab"}', b'{"format": 1, "charges": [{"steps": 1}]}'],
)
def test_a_damaged_ledger_is_refused(content: bytes) -> None:
    store = Memory()
    store.files[LEDGER_FILE] = content
    with pytest.raises(
        ConfigError, match=r"privacy.json beside the checkpoints cannot be read \(.*restore it, or start"
    ):
        opened(private(), store, 0)


def test_a_ledger_is_read_as_it_was_written() -> None:
    store = Memory()
    budget, _ = opened(private(), store, 0)
    made(budget, 1, 5)
    content = json.loads(store.files[LEDGER_FILE])
    assert content["format"] == 1
    assert Ledger.model_validate({k: v for k, v in content.items() if k != "format"}) == read_ledger(store)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"privacy": {"delta": 1 / SAMPLES}},
            r"privacy.delta: 0.000556\d* must be below 1 / 1797, the number of train",
        ),
        ({"batch": {"global": 1800}}, "batch.global: 1800 is larger than the number of training samples, 1797"),
    ],
)
def test_a_budget_that_does_not_fit_the_data_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Budget(private(**changes), SAMPLES, (7, None), Memory(), ALONE)
