"""Random lives of a job: whatever happens, in whatever order, the rules that keep a job correct hold.

The real reconciler, cache and plan run against `tests.support.world`, which judges each write. Every random life
ends with a time in which nothing goes wrong any more: then the job must finish.
"""

from dataclasses import replace
from datetime import datetime
from typing import Any
from unittest.mock import patch

import pytest
from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule, run_state_machine_as_test

from tests.builders import elastic, last_words, served
from tests.support import kubelet
from tests.support.simulation import Simulation
from tests.support.world import World, WorldBackend
from trainyard.protocol.progress import Progress
from trainyard.resource.job import TrainingJob
from trainyard.resource.status import Reason, TrainingJobStatus
from trainyard_operator.lifecycle.actions import DeleteWorkers, OrderWorkers, Plan
from trainyard_operator.lifecycle.diagnosis import Diagnosis, diagnose
from trainyard_operator.lifecycle.goodput import account
from trainyard_operator.lifecycle.observation import Observation, Obstacle, Pod, WorkerState, observe_worker
from trainyard_operator.lifecycle.plan import plan

which = st.integers(0, 9)
few = st.integers(1, 4)
often = st.sampled_from([True, True, False])
seldom = st.sampled_from([False, False, False, True])

RULES: list[list[dict[str, Any]]] = [
    [],
    [{"onExitCodes": [137], "action": "RestartIgnoringLimit"}],
    [{"onReasons": ["Oops"], "action": "Fail"}, {"onReasons": ["Evicted", "Deleted"], "action": "Restart"}],
]


class Life(RuleBasedStateMachine):
    """One random life."""

    simulation: type[Simulation] = Simulation

    @initialize(
        replicas=st.integers(1, 3),
        limit=st.integers(0, 3),
        wait=st.sampled_from([0, 1, 30]),
        rests=seldom,
        serves=st.booleans(),
        rules=st.sampled_from(RULES),
        runs=often,
    )
    def begin(
        self, replicas: int, limit: int, wait: int, rests: bool, serves: bool, rules: list[dict[str, Any]], runs: bool
    ) -> None:
        policy = {"maxRestarts": limit, "backoff": {"initialSeconds": wait}, "rules": rules}
        program = {**served(), "health": {"startupTimeoutSeconds": 100}} if serves else {}
        self.life = self.simulation(replicas=replicas, restartPolicy=policy, suspend=rests, **program)
        self.life.run_smoothly(20 if runs else 0)  # what a running job can meet is more than what a new one can

    def teardown(self) -> None:
        try:
            self.life.run_to_the_end()
        finally:
            self.life.close()

    @property
    def world(self) -> World:
        return self.life.world

    def pods(self, *states: str, placeholders: bool = False) -> list[str]:
        """Names of the pods in one of these states that are not being deleted."""
        workers = map(observe_worker, self.world.pods.values())
        return [
            w.name for w in workers if w.state in states and not w.terminating and (placeholders or not w.placeholder)
        ]

    def takers(self) -> list[str]:
        """Names of the running pods that take orders."""
        launchers = self.world.launchers
        return [n for n in self.pods("Running") if self.world.pods[n]["metadata"]["uid"] in launchers]

    # --- the operator ---------------------------------------------------------------------------------------

    @rule(jobs=st.integers(0, 3), pods=st.integers(0, 6), times=few)
    def watch_and_look(self, jobs: int, pods: int, times: int) -> None:
        self.life.deliver(jobs=jobs, pods=pods)
        for _ in range(times):
            self.life.look()

    @rule(rounds=st.integers(1, 20))
    def all_goes_well(self, rounds: int) -> None:
        self.life.run_smoothly(rounds)

    @rule(times=few)
    def look(self, times: int) -> None:
        for _ in range(times):
            self.life.look()

    @rule(writes=st.integers(1, 9))
    def crash_soon(self, writes: int) -> None:
        self.world.fuse = writes

    @rule()
    def crash_now(self) -> None:
        self.life.start_operator()

    @rule()
    def resync(self) -> None:
        self.life.resync()

    @rule(seconds=st.sampled_from([0.5, 1, 3, 10, 101, 1000]), times=st.integers(0, 2))
    def time_passes(self, seconds: float, times: int) -> None:
        self.world.pass_time(seconds)
        for _ in range(times):
            self.life.look()

    # --- the cluster ----------------------------------------------------------------------------------------

    @rule(on=seldom)
    def quota(self, on: bool) -> None:
        self.world.quota = on

    @rule(on=seldom)
    def api_server_is_silent(self, on: bool) -> None:
        self.world.silent = on

    @precondition(lambda self: self.pods("Pending", placeholders=True))
    @rule(count=few)
    def pods_start(self, count: int) -> None:
        for name in self.pods("Pending", placeholders=True)[:count]:
            self.world.set_pod(name, kubelet.running(self.world.now))

    @precondition(lambda self: self.pods("Pending"))
    @rule(which=which)
    def pod_cannot_start(self, which: int) -> None:
        names = self.pods("Pending")
        self.world.set_pod(names[which % len(names)], kubelet.waiting("ImagePullBackOff"))

    @precondition(lambda self: self.pods("Running"))
    @rule(count=few)
    def pods_succeed(self, count: int) -> None:
        for name in self.pods("Running")[:count]:
            self.world.set_pod(name, kubelet.ended(self.world.now, 0))

    @precondition(lambda self: self.pods("Running"))
    @rule(
        which=which,
        code=st.sampled_from([1, 78, 137]),
        peer_lost=st.booleans(),
        speaks=st.booleans(),
        noticed=st.booleans(),
    )
    def pod_fails(self, which: int, code: int, peer_lost: bool, speaks: bool, noticed: bool) -> None:
        names = self.pods("Running")
        words = last_words(rank=0, exception="Oops", peer_lost=peer_lost) if speaks else "Traceback"
        self.world.fail_pod(names[which % len(names)], code, words)
        if noticed:
            self.life.deliver(jobs=9, pods=9)
            self.life.look()

    @precondition(lambda self: self.takers())
    @rule(which=which, code=st.sampled_from([1, 79, 137]), peer_lost=st.booleans(), times=st.integers(0, 3))
    def processes_fail(self, which: int, code: int, peer_lost: bool, times: int) -> None:
        names = self.takers()
        words = last_words(rank=0, exception="Oops", peer_lost=peer_lost)
        self.world.fail_inside(names[which % len(names)], code, words)
        for _ in range(times):
            self.life.deliver(jobs=9, pods=9)
            self.life.look()

    @precondition(lambda self: self.takers())
    @rule(which=which, on=seldom)
    def launcher_is_deaf(self, which: int, on: bool) -> None:
        names = self.takers()
        self.world.deaf = {names[which % len(names)]} if on else set()

    @precondition(lambda self: any(map(self.world.is_held, self.pods("Running"))))
    @rule()
    def launcher_waits_no_longer(self) -> None:
        self.world.release(next(filter(self.world.is_held, self.pods("Running"))))

    @precondition(lambda self: self.pods("Running"))
    @rule(
        steps=st.integers(1, 50),
        start=st.sampled_from([0, 0, 30]),
        stall=st.sampled_from([0, 0.7, 20]),
        seen=often,
        seconds=st.sampled_from([0, 0, 101]),
    )
    def group_trains(self, steps: int, start: int, stall: float, seen: bool, seconds: float) -> None:
        attempt = self.world.runs(self.pods("Running")[0])
        self.world.train(attempt, steps, start=start, stall=stall)
        if seen:
            self.life.read_page()
        self.world.pass_time(seconds)
        self.life.look()

    @precondition(lambda self: self.pods("Running"))
    @rule(steps=st.integers(1, 50), seconds=st.sampled_from([0, 101]))
    def group_trains_without_an_operator(self, steps: int, seconds: float) -> None:
        self.world.train(self.world.runs(self.pods("Running")[0]), steps, start=0, stall=0)
        self.world.pass_time(seconds)
        self.life.start_operator()
        self.life.look()

    @rule(seconds=st.sampled_from([0, 5, 101]))
    def page_is_read(self, seconds: float) -> None:
        self.world.pass_time(seconds)
        self.life.read_page()
        self.life.look()

    @precondition(lambda self: self.pods("Pending", "Running", placeholders=True))
    @rule(which=which, how=st.sampled_from(["evicted", "preempted", "deleted", "vanished"]))
    def pod_is_taken_away(self, which: int, how: str) -> None:
        names = self.pods("Pending", "Running", placeholders=True)
        name = names[which % len(names)]
        if how == "evicted":
            self.world.set_pod(name, kubelet.evicted())
        elif how == "preempted":
            self.world.set_pod(name, kubelet.disrupted(kubelet.ended(self.world.now, 137)))
        elif how == "deleted":
            self.world.mark_deleted(name)
        else:
            self.world.remove_pod(name)

    @precondition(lambda self: self.pods("Pending", "Running", placeholders=True))
    @rule(which=which)
    def node_is_lost(self, which: int) -> None:
        names = self.pods("Pending", "Running", placeholders=True)
        self.world.lose_node(names[which % len(names)])

    @rule(count=few)
    def deletions_end(self, count: int) -> None:
        workers = map(observe_worker, self.world.pods.values())
        going = [w.name for w in workers if w.terminating and w.uid not in self.world.lost]
        for name in going[:count]:
            self.world.remove_pod(name)

    # --- the user -------------------------------------------------------------------------------------------

    @rule(suspend=seldom)
    def user_suspends_or_resumes(self, suspend: bool) -> None:
        self.world.edit(suspend=suspend)

    @rule(replicas=st.integers(1, 3))
    def user_scales(self, replicas: int) -> None:
        assert self.world.job is not None
        least = self.world.job.spec.elastic.min_replicas if self.world.job.spec.elastic else 1
        self.world.edit(replicas=max(least, replicas))


class RuledLife(Life):
    """One random life of a running job with a rule that makes some failures free."""

    @initialize(replicas=st.integers(1, 3), limit=st.integers(1, 3))
    def begin(self, replicas: int, limit: int) -> None:
        policy = {"maxRestarts": limit, "backoff": {"initialSeconds": 0}, "rules": RULES[1]}
        self.life = self.simulation(replicas=replicas, restartPolicy=policy)
        self.life.run_smoothly(20)


class ElasticLife(Life):
    """One random life of a group that begins with less room than it wants, or hardly any time to find it."""

    @initialize(
        replicas=st.integers(2, 3), least=st.integers(1, 2), short=st.integers(0, 3), serves=st.booleans(), runs=often
    )
    def begin(self, replicas: int, least: int, short: int, serves: bool, runs: bool) -> None:
        program = elastic(least) | (served() if serves else {})
        self.life = self.simulation(replicas=replicas, **program)
        for _ in range(3):
            self.life.look()
        self.pods_find_no_room(short, 61)
        self.life.run_smoothly(20 if runs else 0)

    @rule(count=few, seconds=st.sampled_from([0, 61, 61]))
    def pods_find_no_room(self, count: int, seconds: float) -> None:
        names = self.pods("Pending", placeholders=True)
        for name in names[max(0, len(names) - count) :]:
            self.world.set_pod(name, kubelet.unschedulable())
        for passing in (0, seconds):
            self.world.pass_time(passing)
            self.life.deliver(jobs=9, pods=9)
            self.life.look()

    @rule(rounds=few)
    def room_is_sought(self, rounds: int) -> None:
        self.life.run_smoothly(20)
        self.world.pass_time(61)
        self.life.run_smoothly(rounds)


def test_random_lives() -> None:
    run_state_machine_as_test(Life, settings=settings(max_examples=150, stateful_step_count=40))


def test_random_elastic_lives() -> None:
    run_state_machine_as_test(ElasticLife, settings=settings(max_examples=150, stateful_step_count=40))


# --- the machine itself: it catches an operator that breaks a rule ---------------------------------------------


class Forgetful(Simulation):
    """Does not see pods of earlier attempts."""

    def decide(self, seen: Observation) -> Plan:
        current = tuple(w for w in seen.workers if w.attempt >= seen.job.status.attempt)
        return plan(replace(seen, workers=current))


class BlindBackend(WorldBackend):
    async def list_pods(self, job: TrainingJob) -> list[Pod]:
        return []


class ForgetfulAndBlind(Forgetful):
    """Nor does it look at the world before it creates pods."""

    backend = BlindBackend


class Hasty(Simulation):
    """Acts upon a decision that is not written down."""

    def decide(self, seen: Observation) -> Plan:
        first = plan(seen)
        if first.wake_after != 0:
            return first
        return replace(first, actions=plan(replace(seen, job=seen.job.replace(status=first.status))).actions)


class Spendthrift(Simulation):
    """Allows itself one restart more than the user does."""

    def decide(self, seen: Observation) -> Plan:
        spec = seen.job.spec
        policy = spec.restart_policy.replace(max_restarts=spec.restart_policy.max_restarts + 1)
        return plan(replace(seen, job=seen.job.replace(spec=spec.replace(restart_policy=policy))))


class Unjust(Simulation):
    """Charges evictions to the user."""

    def decide(self, seen: Observation) -> Plan:
        def charge(*args: Any) -> Diagnosis | None:
            found = diagnose(*args)
            return found and replace(found, counts=True)

        with patch("trainyard_operator.lifecycle.plan.diagnose", charge):
            return plan(seen)


class Lawless(Simulation):
    """Does not read the user's rules."""

    def decide(self, seen: Observation) -> Plan:
        spec = seen.job.spec
        policy = spec.restart_policy.replace(rules=())
        return plan(replace(seen, job=seen.job.replace(spec=spec.replace(restart_policy=policy))))


class Suspicious(Simulation):
    """Takes it that no step is made where none is known."""

    def decide(self, seen: Observation) -> Plan:
        nothing = Progress(attempt=seen.job.status.attempt, updated_at=seen.now)
        return plan(replace(seen, progress=seen.progress or nothing))


class Clockless(Simulation):
    """Accounts for time from when its process began, and not from the status."""

    def decide(self, seen: Observation) -> Plan:
        def forget(job: TrainingJob, after: TrainingJobStatus, now: datetime) -> TrainingJobStatus:
            goodput = job.status.goodput and job.status.goodput.replace(accounted_at=now)
            return account(job.replace(status=job.status.replace(goodput=goodput)), after, now)

        with patch("trainyard_operator.lifecycle.plan.account", forget):
            return plan(seen)


class Boastful(Simulation):
    """Says Running as soon as the pods exist."""

    def decide(self, seen: Observation) -> Plan:
        early = [replace(w, state=WorkerState.RUNNING) if w.state is WorkerState.PENDING else w for w in seen.workers]
        return plan(replace(seen, workers=tuple(early)))


class Sleepy(Simulation):
    """Sets no alarm clock for the end of a wait."""

    def decide(self, seen: Observation) -> Plan:
        step = plan(seen)
        return step if step.wake_after == 0 else replace(step, wake_after=None)


class Impatient(Simulation):
    """Deletes by force what is merely slow to end."""

    def decide(self, seen: Observation) -> Plan:
        step = plan(seen)
        going = tuple(w for w in seen.workers if w.terminating and w.attempt < seen.job.status.attempt)
        return replace(step, actions=(DeleteWorkers(going, force=True),)) if going and not step.actions else step


class Patient(Simulation):
    """Waits for the kubelet of a lost node."""

    def decide(self, seen: Observation) -> Plan:
        step = plan(seen)
        actions = tuple(a for a in step.actions if not (isinstance(a, DeleteWorkers) and a.force))
        return replace(step, actions=actions)


class Forward(Simulation):
    """Starts the attempt after the one that is written down."""

    def decide(self, seen: Observation) -> Plan:
        step = plan(seen)
        further = [replace(a, attempt=a.attempt + 1) for a in step.actions if isinstance(a, OrderWorkers) and a.attempt]
        return replace(step, actions=tuple(further)) if further else step


class Curt(Simulation):
    """Ends pods that wait for orders, though their job goes on."""

    def decide(self, seen: Observation) -> Plan:
        step, held = plan(seen), tuple(w for w in seen.workers if w.held)
        return replace(step, actions=(OrderWorkers(held, None),)) if held and step.wake_after != 0 else step


class Impulsive(Simulation):
    """Takes pods that have not started for pods without room."""

    def decide(self, seen: Observation) -> Plan:
        none = Obstacle(Reason.UNSCHEDULABLE, "no room")
        pending = [replace(w, obstacle=none) if w.state is WorkerState.PENDING else w for w in seen.workers]
        return plan(replace(seen, workers=tuple(pending)))


class Cramped(Simulation):
    """Does not ask how small a group may be."""

    def decide(self, seen: Observation) -> Plan:
        with patch("trainyard_operator.lifecycle.elastic.largest_size", lambda _job, most: most or None):
            return plan(seen)


class Hopeful(Simulation):
    """Takes a placeholder that has been made for one that runs."""

    def decide(self, seen: Observation) -> Plan:
        hoped = [replace(w, state=WorkerState.RUNNING) if w.placeholder else w for w in seen.workers]
        return plan(replace(seen, workers=tuple(hoped)))


class Untidy(Simulation):
    """Leaves placeholders where they are."""

    def decide(self, seen: Observation) -> Plan:
        return plan(replace(seen, workers=tuple(w for w in seen.workers if not w.placeholder)))


class Restless(Simulation):
    """Looks again at once, for no reason."""

    def decide(self, seen: Observation) -> Plan:
        return replace(plan(seen), wake_after=0, actions=())


@pytest.mark.parametrize(
    ("mutant", "verdict"),
    [
        (Forgetful, "asleep in"),
        (ForgetfulAndBlind, "was created while"),
        (Hasty, "acted upon before it was written down"),
        (Spendthrift, "the budget was overdrawn"),
        (Unjust, "not the program's fault"),
        (Suspicious, "taken for one that does not start"),
        (Clockless, "do not add up"),
        (Boastful, "said to run before every worker ran"),
        (Impatient, "s after its grace period"),
        (Patient, "asleep in"),
        (Sleepy, "asleep in"),
        (Forward, "that is not written down"),
        (Curt, "though its job goes on"),
        (Restless, "a busy loop"),
    ],
)
def test_an_operator_that_breaks_a_rule_is_caught(mutant: type[Simulation], verdict: str) -> None:
    catch(Life, mutant, verdict)


def test_an_operator_that_does_not_read_the_rules_is_caught() -> None:
    catch(RuledLife, Lawless, "that a rule makes free")


@pytest.mark.parametrize(
    ("mutant", "verdict"),
    [
        (Impulsive, "made smaller that had room"),
        (Cramped, "made smaller than it may be"),
        (Hopeful, "made larger without room"),
        (Untidy, "still holds pods|asleep in"),
    ],
)
def test_an_operator_that_breaks_a_rule_about_sizes_is_caught(mutant: type[Simulation], verdict: str) -> None:
    catch(ElasticLife, mutant, verdict)


def catch(life: type[Life], mutant: type[Simulation], verdict: str) -> None:
    """The rarest of these faults shows in one life of 300, so that it never escapes 5000."""
    machine = type(mutant.__name__, (life,), {"simulation": mutant})
    found = settings(
        max_examples=5000, stateful_step_count=40, phases=[Phase.generate], derandomize=True, database=None
    )
    with pytest.raises(AssertionError, match=verdict):
        run_state_machine_as_test(machine, settings=found)
