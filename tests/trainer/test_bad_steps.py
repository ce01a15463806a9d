"""Bad steps: all ranks skip the same ones, roll back together, or fail."""

import json
import warnings
from pathlib import Path
from statistics import median
from typing import Any

import pytest
import torch

from tests.e2e.faults.table import SPOIL_GRADIENTS
from tests.support.run_config import make_config
from tests.trainer.layouts import FSDP, SERVER, Layout, pipe
from tests.trainer.pods import ENTRY, Pod, Starter, finish
from trainyard.optimizers import OPTIMIZERS, OptimizerName
from trainyard.protocol import constants
from trainyard.resource.health import BadStepPolicy
from trainyard.resource.optimization import Optimizer
from trainyard_trainer.bad_steps import nonfinite_score, nonfinite_sources
from trainyard_trainer.checkpoint import catalog
from trainyard_trainer.optim.guard import MAX_ROLLBACKS, MIN_GOOD_STEPS, SPIKE_WINDOW, BadStepCounter, GradientGuard
from trainyard_trainer.optim.update import LocalUpdate
from trainyard_trainer.runtime.step_agreement import StepAgreement
from trainyard_trainer.runtime.world import World

NAN = float("nan")
TOLERANCE = 1e-5
"""Relative; fp32 sums in another order."""
FAULTS = "tests.trainer.faults"
transformer = {"layers": 4, "heads": 8, "kvHeads": 4}
ALONE = Layout(1, {})
LAYOUTS = [
    Layout(2, {}),
    Layout(2, {"data": FSDP}),
    Layout(2, {"tensor": 2}),
    Layout(2, {"pipeline": pipe(2)}),
    Layout(2, {"data": SERVER}),
]


def run(
    start: Starter,
    entry: str,
    layout: Layout = ALONE,
    *,
    folder: Path | None = None,
    bad: dict[str, Any] | None = None,
    steps: int = 8,
    every: int = 1,
) -> Pod:
    """Finish a run with all ranks in one pod, and the parameter server, if it has one, in another."""
    checkpoint = {"everySteps": 2, "async": False} if folder else None
    settings: dict[str, Any] = {"model": transformer, "stop": {"steps": steps}, "optimizer": {"eps": 1e-4}}
    settings |= {"schedule": {"name": "constant"}, "logEverySteps": every}
    config = make_config(layout.processes, layout.parallelism, checkpoint=checkpoint, **settings)
    if bad:
        config = config.replace(health=config.health.replace(bad_steps=BadStepPolicy.model_validate(bad)))
    env = {constants.ENV_CHECKPOINTS: str(folder)} if folder else {}
    pods = start(config, 1, layout.processes, entry, env)
    finish(pods, 90)
    return pods[0]


def losses(pod: Pod) -> list[tuple[int, float]]:
    assert pod.reports, pod.stderr
    return [(r["step"], r["loss"]) for r in pod.reports]


def assert_equal(found: list[tuple[int, float]], expected: list[tuple[int, float]]) -> None:
    assert [step for step, _ in found] == [step for step, _ in expected]
    assert [loss for _, loss in found] == pytest.approx([loss for _, loss in expected], rel=1e-5)


def assert_same_parameters(found: Pod, expected: Pod, tolerance: float) -> None:
    """Compare the final parameters of two runs by the relative norm of their difference."""
    actual, reference = parameters(found), parameters(expected)
    assert actual.keys() == reference.keys()
    for name, value in reference.items():
        assert (actual[name] - value).norm() <= tolerance * value.norm(), name


def parameters(pod: Pod) -> dict[str, torch.Tensor]:
    files = list(pod.folder.glob("parameters-*.pt"))
    assert files, pod.stderr
    return {name: value for file in files for name, value in torch.load(file).items()}


def samples(pod: Pod, rank: int) -> list[int]:
    read = json.loads((pod.folder / f"samples-{rank}.json").read_text())
    return [sample for _, _, numbers in read for sample in numbers]


@pytest.fixture(scope="module")
def reference(start: Starter) -> Pod:
    """One process that skips the fourth step."""
    return run(start, f"{FAULTS}:skip_step_4")


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_a_nan_on_one_rank_is_skipped_on_all(start: Starter, reference: Pod, layout: Layout) -> None:
    pod = run(start, f"{FAULTS}:nan_at_samples_24", layout)
    assert_equal(losses(pod), losses(reference))
    assert_same_parameters(pod, reference, TOLERANCE)
    (message,) = [json.loads(line)["message"] for line in pod.stdout.splitlines() if "skipped the step" in line]
    assert message.startswith("step 4: the norm of the gradient is ")
    assert message.endswith("; skipped the step (1 in a row, limit 5)")
    assert pod.word is not None
    assert pod.word.progress is not None
    assert (pod.word.progress.skipped_steps, pod.word.progress.last_skipped_step) == (1, 4)


def test_on_the_same_layout_the_parameters_are_equal(start: Starter, reference: Pod) -> None:
    pod = run(start, f"{FAULTS}:nan_at_samples_24")
    assert_same_parameters(pod, reference, 1e-6)


def test_the_reference_differs_from_a_run_that_skips_nothing(start: Starter, reference: Pod) -> None:
    without_fault, expected = losses(run(start, ENTRY)), losses(reference)
    assert_equal(without_fault[:4], expected[:4])
    assert without_fault[5][1] != pytest.approx(expected[5][1], rel=1e-4)


@pytest.mark.parametrize(
    ("action", "limit", "step", "fault", "layout"),
    [
        ("Skip", 2, 6, "nan_from_samples_32_on", Layout(2, {})),  # the gradient is NaN on rank 1 only
        ("Fail", 5, 5, "nan_loss_from_samples_32_on", Layout(2, {"data": FSDP})),  # the gradient is NaN on all ranks
    ],
)
def test_an_attempt_fails_and_names_the_rank(
    start: Starter, action: str, limit: int, step: int, fault: str, layout: Layout
) -> None:
    bad = {"action": action, "limit": limit}
    pod = run(start, f"{FAULTS}:{fault}", layout, bad=bad)
    assert pod.wait(1) == constants.EXIT_BAD_STEPS, pod.stderr
    assert pod.word is not None
    assert (pod.word.exception, pod.word.step, pod.word.rank) == ("BadSteps", step, 1)
    assert pod.word.message.startswith(f"step {step}: the norm of the gradient is nan, which came from rank 1 (")
    assert pod.word.message.endswith(f"spec.health.badSteps.action is {action}")
    assert "Traceback" not in pod.stderr


@pytest.mark.parametrize("layout", [Layout(2, {"data": FSDP}), Layout(2, {"data": SERVER})], ids=str)
def test_rollback_continues_from_the_checkpoint_with_other_samples(
    start: Starter, tmp_path: Path, layout: Layout
) -> None:
    """A checkpoint is due after step 6, but that step is bad, so it would be useless for a rollback."""
    bad = {"action": "Rollback", "limit": 3}
    entry = f"{FAULTS}:nan_at_samples_32_to_55"
    pod = run(start, entry, layout, folder=tmp_path / "rollback", bad=bad)
    steps = [step for step, _ in losses(pod)]
    assert steps == [1, 2, 3, 4, 5, 6, 5, 6, 7, 8], "the last bad step is not reported: the run is back at step 4"
    assert "rolled back to step 4; the samples consumed since then are not repeated" in pod.stdout
    consumed = [sample for rank in range(2) for sample in samples(pod, rank)]
    assert len(consumed) == len(set(consumed)) == (4 + 3 + 4) * 8
    assert pod.word is not None
    assert pod.word.progress is not None
    assert (pod.word.progress.skipped_steps, pod.word.progress.rollbacks) == (3, 1)
    # The reference, made by hand: four steps, then the rest as if samples 32 to 55 had been consumed.
    reference = tmp_path / "reference"
    run(start, ENTRY, layout, folder=reference, steps=4)
    manifest = next(reference.glob("step-00000004/manifest.json"))
    content = json.loads(manifest.read_text())
    assert content["samples"] == 32
    manifest.write_text(json.dumps({**content, "samples": 56}))
    by_hand = run(start, f"{FAULTS}:audit", layout, folder=reference)
    assert_equal(losses(pod)[-4:], losses(by_hand))
    assert_same_parameters(pod, by_hand, 1e-6)


def test_a_rollback_that_is_noticed_one_step_later_has_the_same_outcome(start: Starter, tmp_path: Path) -> None:
    """Without a report of each step the host looks at a step when the next one is under way already."""
    bad = {"action": "Rollback", "limit": 3}
    entry = f"{FAULTS}:nan_at_samples_32_to_55"
    reported, sparse = (
        run(start, entry, Layout(2, {"data": FSDP}), folder=tmp_path / str(every), bad=bad, every=every)
        for every in (1, 100)
    )
    assert [step for step, _ in losses(sparse)] == [1, 8]
    assert "rolled back to step 4; the samples consumed since then are not repeated" in sparse.stdout
    assert losses(sparse)[-1] == losses(reported)[-1]
    assert_same_parameters(sparse, reported, 0.0)
    assert sparse.word is not None
    assert sparse.word.progress is not None
    assert (sparse.word.progress.skipped_steps, sparse.word.progress.rollbacks) == (3, 1)


def test_rollbacks_that_do_not_help_end(start: Starter, tmp_path: Path) -> None:
    bad = {"action": "Rollback", "limit": 1}
    pod = run(start, f"{FAULTS}:nan_from_samples_32_on", Layout(2, {}), folder=tmp_path, bad=bad)
    assert pod.wait(1) == constants.EXIT_BAD_STEPS, pod.stderr
    assert pod.stdout.count("rolled back to step 4") == MAX_ROLLBACKS


def test_a_run_that_ended_amid_bad_steps_continues_to_count_and_rolls_back_to_before_them(
    start: Starter, tmp_path: Path
) -> None:
    fault = f"{FAULTS}:nan_from_samples_32_on"
    pod = run(start, fault, folder=tmp_path, bad={"limit": 5})
    assert pod.wait(1) == 0, pod.stderr
    assert catalog.complete_steps(tmp_path) == [8, 4], "none was written after step 6"
    pod = run(start, fault, folder=tmp_path, bad={"action": "Rollback", "limit": 5}, steps=9)
    assert "resumed after step 8" in pod.stdout
    assert "step 9: the norm of the gradient is nan; skipped the step (5 in a row, limit 5)" in pod.stdout
    assert "rolled back to step 4" in pod.stdout


def test_a_spike_is_skipped_on_all_ranks(start: Starter) -> None:
    bad = {"spikeFactor": 1000}
    pod = run(start, f"{FAULTS}:spike_at_samples_200", Layout(2, {}), bad=bad, steps=28)
    assert pod.wait(1) == 0, pod.stderr
    (line,) = [line for line in pod.stdout.splitlines() if "skipped the step" in line]
    assert "step 26: the norm" in line


# --- the rules by themselves ------------------------------------------------------------------------------------------


def make_guard(**policy: float) -> GradientGuard:
    return GradientGuard(BadStepPolicy.model_validate(policy), agreement=None)


def is_good(guard: GradientGuard, norm: float) -> bool:
    return bool(guard.check(torch.tensor(norm)))


@pytest.mark.parametrize("norm", [float("nan"), float("inf")])
def test_norms_that_are_not_finite_are_bad_and_do_not_count(norm: float) -> None:
    guard = make_guard(spike_factor=2.0)
    for _ in range(MIN_GOOD_STEPS):
        assert is_good(guard, 1.0)
        assert not is_good(guard, norm)
    assert is_good(guard, 1.9)


def test_a_spike_is_measured_against_the_median_of_good_steps() -> None:
    guard = make_guard(spike_factor=3.0)
    assert [is_good(guard, norm) for norm in (1.0, 100.0)] == [True, True], "too few good steps"
    for _ in range(MIN_GOOD_STEPS):
        assert is_good(guard, 1.0)
    assert not is_good(guard, 3.1)
    assert not is_good(guard, 3.1), "a spike does not move the median"
    assert is_good(guard, 2.9)


def test_the_median_on_the_device_is_that_of_the_last_good_norms() -> None:
    """Against the standard library's, with even and odd counts, and after the ring of norms is full."""
    guard, seen = make_guard(spike_factor=1.5), list[float]()
    random = torch.Generator().manual_seed(0)
    for step in range(3 * SPIKE_WINDOW):
        norm = torch.empty(()).log_normal_(generator=random)
        recent = seen[-SPIKE_WINDOW:]
        spike = step > 0 and len(seen) >= MIN_GOOD_STEPS and norm.item() > 1.5 * median(recent)
        assert bool(guard.check(norm)) is not spike, step
        seen += [] if spike else [norm.item()]
        assert guard.norms == tuple(seen[-SPIKE_WINDOW:])


def test_a_guard_that_was_restored_decides_as_before() -> None:
    guard, restored = make_guard(spike_factor=3.0), make_guard(spike_factor=3.0)
    for number in range(130):
        is_good(guard, 1.0 + number / 1000)
    restored.restore(guard.norms)
    assert restored.norms == guard.norms
    for norm in (3.1, 3.3, 1.0, 3.2):
        assert is_good(guard, norm) == is_good(restored, norm)
        assert restored.norms == guard.norms


def test_without_a_factor_nothing_is_a_spike() -> None:
    guard = make_guard()
    assert all(is_good(guard, norm) for norm in [1.0] * 50 + [1e30])


def test_one_rank_that_sees_a_spike_is_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    agreement = StepAgreement(World(0, 0, 1, 1, torch.device("cpu")))
    guard = GradientGuard(BadStepPolicy(spike_factor=3.0), agreement)
    assert is_good(guard, 1.0)
    monkeypatch.setattr(agreement, "any_bad", lambda _: torch.tensor(True))
    assert not is_good(guard, 1.0)
    assert guard.norms == (1.0,)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_bad_step_leaves_parameters_and_state_as_they_are(name: OptimizerName) -> None:
    """Whether the optimizer looks at the flag on the device, as fused ones do, or is not called at all."""
    weight = torch.nn.Parameter(torch.ones(8, 8))
    update = LocalUpdate([("blocks.0.weight", weight)], Optimizer(name=name), None, make_guard())
    for scale in (1.0, 2.0):
        weight.grad = torch.full((8, 8), scale)
        assert update.step(0.1)[1]
    before = {name: value.clone() for name, value in {"weight": weight.detach(), **update.tensors()}.items()}
    weight.grad = torch.full((8, 8), NAN)
    assert not update.step(0.1)[1]
    after = {"weight": weight.detach(), **update.tensors()}
    assert after.keys() == before.keys()
    for key, value in before.items():
        assert torch.equal(after[key], value), key


def test_a_good_step_resets_the_count() -> None:
    counter = BadStepCounter(BadStepPolicy(limit=2))
    assert [counter.record_bad(step, can_roll_back=True) for step in (1, 2)] == ["Skip", "Fail"]
    counter.record_good()
    assert counter.record_bad(4, can_roll_back=True) == "Skip"
    assert (counter.consecutive, counter.skipped, counter.last) == (1, 3, 4)


@pytest.mark.parametrize(
    ("ranks", "expected"),
    [
        ([(2.5, NAN), (NAN, NAN), (2.5, NAN)], [1]),  # it spreads with the gradients, but not with the losses
        ([(2.5, 0.9), (2.5, NAN), (2.5, 0.9)], [1]),  # it appeared after the gradients were summed
        ([(2.5, NAN)] * 3, []),  # in the backward pass: the source is unknown
        ([(2.5, 1e6)] * 3, []),  # a spike
        ([(NAN, NAN)], []),
    ],
)
def test_ranks_that_a_nan_came_from(ranks: list[tuple[float, float]], expected: list[int]) -> None:
    assert nonfinite_sources([nonfinite_score(loss, norm) for loss, norm in ranks]) == expected


def test_the_code_that_end_to_end_tests_inject_spoils_so_many_steps_and_then_removes_itself() -> None:
    """On a node an error in that code would look like a failure of the product."""
    layer = torch.nn.Linear(2, 2)
    guard = GradientGuard(BadStepPolicy(), agreement=None)
    update = LocalUpdate(layer.named_parameters(), Optimizer(), None, guard)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it looks at all objects, and some warn of that
        exec(SPOIL_GRADIENTS.format(steps=2), {})
    applied = []
    for _ in range(3):
        layer(torch.ones(1, 2)).sum().backward()
        applied.append(update.step(0.1)[1])
    assert applied == [False, False, True]
