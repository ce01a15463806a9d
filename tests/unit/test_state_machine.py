"""Random lifecycles of a job: the rules that keep a job correct hold for all events in any order.

The real reconciler, cache and plan run against `tests.support.fake_cluster`, which checks each write. Every random
lifecycle ends with a time in which nothing goes wrong any more: then the job must finish.
"""

from dataclasses import replace
from datetime import datetime
from typing import Any
from unittest.mock import patch

import pytest
from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule, run_state_machine_as_test

from tests.builders import elastic, served, termination_message
from tests.support import kubelet
from tests.support.fake_cluster import FakeCluster, FakeClusterBackend
from tests.support.simulation import Simulation
from trainyard.protocol.progress import Progress
from trainyard.resource.job import TrainingJob
from trainyard.resource.restart import RestartPolicy
from trainyard.resource.status import Reason, TrainingJobStatus
from trainyard_operator.lifecycle.actions import DeleteWorkers, Plan, ReleaseWorkers, RestartInPlace
from trainyard_operator.lifecycle.containers import SchedulingBlocker
from trainyard_operator.lifecycle.diagnosis import Diagnosis, diagnose
from trainyard_operator.lifecycle.goodput import account_time
from trainyard_operator.lifecycle.observation import Observation, Pod, WorkerState, observe_pod
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
PATIENCE: list[dict[str, Any]] = [{}, {}, {"maxDisruptions": 2}]


class JobLifecycleMachine(RuleBasedStateMachine):
    """One random lifecycle."""

    simulation: type[Simulation] = Simulation

    @initialize(
        replicas=st.integers(1, 3),
        limit=st.integers(0, 3),
        wait=st.sampled_from([0, 1, 30]),
        rests=seldom,
        serves=st.booleans(),
        rules=st.sampled_from(RULES),
        patience=st.sampled_from(PATIENCE),
        runs=often,
    )
    def begin(
        self,
        replicas: int,
        limit: int,
        wait: int,
        rests: bool,
        serves: bool,
        rules: list[dict[str, Any]],
        patience: dict[str, Any],
        runs: bool,
    ) -> None:
        policy = {"maxRestarts": limit, "backoff": {"initialSeconds": wait}, "rules": rules, **patience}
        program = {**served(), "health": {"startupTimeoutSeconds": 100}} if serves else {}
        self.life = self.simulation(replicas=replicas, restartPolicy=policy, suspend=rests, **program)
        self.life.run_smoothly(20 if runs else 0)  # more can happen to a running job than to a new one

    def teardown(self) -> None:
        try:
            self.life.run_to_the_end()
        finally:
            self.life.close()

    @property
    def cluster(self) -> FakeCluster:
        return self.life.cluster

    def pods(self, *states: str, placeholders: bool = False) -> list[str]:
        """Return the names of the pods in one of these states that are not being deleted."""
        workers = map(observe_pod, self.cluster.pods.values())
        return [
            w.name
            for w in workers
            if w.state in states and not w.terminating and (placeholders or not w.is_placeholder)
        ]

    def restartable(self) -> list[str]:
        """Return the names of the running pods whose launcher accepts restart requests."""
        launchers = self.cluster.launchers
        return [n for n in self.pods("Running") if self.cluster.pods[n]["metadata"]["uid"] in launchers]

    # --- the operator ---------------------------------------------------------------------------------------

    @rule(jobs=st.integers(0, 3), pods=st.integers(0, 6), times=few)
    def watch_and_reconcile(self, jobs: int, pods: int, times: int) -> None:
        self.life.deliver(jobs=jobs, pods=pods)
        for _ in range(times):
            self.life.reconcile()

    @rule(rounds=st.integers(1, 20))
    def nothing_goes_wrong(self, rounds: int) -> None:
        self.life.run_smoothly(rounds)

    @rule(times=few)
    def reconcile(self, times: int) -> None:
        for _ in range(times):
            self.life.reconcile()

    @rule(writes=st.integers(1, 9))
    def crash_soon(self, writes: int) -> None:
        self.cluster.writes_until_crash = writes

    @rule()
    def crash_now(self) -> None:
        self.life.start_operator()

    @rule()
    def resync(self) -> None:
        self.life.resync()

    @rule(seconds=st.sampled_from([0.5, 1, 3, 10, 101, 1000]), times=st.integers(0, 2))
    def time_passes(self, seconds: float, times: int) -> None:
        self.cluster.pass_time(seconds)
        for _ in range(times):
            self.life.reconcile()

    # --- the cluster ----------------------------------------------------------------------------------------

    @rule(on=seldom)
    def quota(self, on: bool) -> None:
        self.cluster.quota_exceeded = on

    @rule(on=seldom)
    def api_server_is_silent(self, on: bool) -> None:
        self.cluster.unavailable = on

    @precondition(lambda self: self.pods("Pending", placeholders=True))
    @rule(count=few)
    def pods_start(self, count: int) -> None:
        for name in self.pods("Pending", placeholders=True)[:count]:
            self.cluster.set_pod(name, kubelet.running(self.cluster.now))

    @precondition(lambda self: self.pods("Pending"))
    @rule(which=which)
    def pod_cannot_start(self, which: int) -> None:
        names = self.pods("Pending")
        self.cluster.set_pod(names[which % len(names)], kubelet.waiting("ImagePullBackOff"))

    @precondition(lambda self: self.pods("Running"))
    @rule(count=few, sidecar=st.booleans())
    def pods_succeed(self, count: int, sidecar: bool) -> None:
        status = kubelet.ended(self.cluster.now, 0)
        for name in self.pods("Running")[:count]:
            self.cluster.set_pod(name, kubelet.beside_sidecar(status) if sidecar else status)

    @precondition(lambda self: self.pods("Pending"))
    @rule(which=which, code=st.sampled_from([1, 3]))
    def init_container_fails(self, which: int, code: int) -> None:
        names = self.pods("Pending")
        name = names[which % len(names)]
        self.cluster.failed.add(self.cluster.running_attempt(name))
        self.cluster.set_pod(name, kubelet.init_failed(self.cluster.now, code))

    @precondition(lambda self: self.pods("Running"))
    @rule(which=which)
    def pod_exceeds_its_own_limit(self, which: int) -> None:
        names = self.pods("Running")
        name = names[which % len(names)]
        self.cluster.failed.add(self.cluster.running_attempt(name))
        self.cluster.set_pod(name, kubelet.over_its_limit(self.cluster.now))

    @precondition(lambda self: self.pods("Running"))
    @rule(
        which=which,
        code=st.sampled_from([1, 78, 137]),
        peer_lost=st.booleans(),
        has_message=st.booleans(),
        noticed=st.booleans(),
    )
    def pod_fails(self, which: int, code: int, peer_lost: bool, has_message: bool, noticed: bool) -> None:
        names = self.pods("Running")
        words = termination_message(rank=0, exception="Oops", peer_lost=peer_lost) if has_message else "Traceback"
        self.cluster.fail_pod(names[which % len(names)], code, words)
        if noticed:
            self.life.deliver(jobs=9, pods=9)
            self.life.reconcile()

    @precondition(lambda self: self.restartable())
    @rule(which=which, code=st.sampled_from([1, 79, 137]), peer_lost=st.booleans(), times=st.integers(0, 3))
    def processes_fail(self, which: int, code: int, peer_lost: bool, times: int) -> None:
        names = self.restartable()
        words = termination_message(rank=0, exception="Oops", peer_lost=peer_lost)
        self.cluster.fail_inside(names[which % len(names)], code, words)
        for _ in range(times):
            self.life.deliver(jobs=9, pods=9)
            self.life.reconcile()

    @precondition(lambda self: self.restartable())
    @rule(which=which, on=seldom)
    def launcher_is_unresponsive(self, which: int, on: bool) -> None:
        names = self.restartable()
        self.cluster.unresponsive = {names[which % len(names)]} if on else set()

    @precondition(lambda self: any(map(self.cluster.awaits_restart, self.pods("Running"))))
    @rule()
    def launcher_stops_waiting(self) -> None:
        self.cluster.release(next(filter(self.cluster.awaits_restart, self.pods("Running"))))

    @precondition(lambda self: self.pods("Running"))
    @rule(
        steps=st.integers(1, 50),
        start=st.sampled_from([0, 0, 30]),
        stall=st.sampled_from([0, 0.7, 20]),
        observation=often,
        seconds=st.sampled_from([0, 0, 101]),
    )
    def group_trains(self, steps: int, start: int, stall: float, observation: bool, seconds: float) -> None:
        attempt = self.cluster.running_attempt(self.pods("Running")[0])
        self.cluster.train(attempt, steps, start=start, stall=stall)
        if observation:
            self.life.poll_progress()
        self.cluster.pass_time(seconds)
        self.life.reconcile()

    @precondition(lambda self: self.pods("Running"))
    @rule(steps=st.integers(1, 50), seconds=st.sampled_from([0, 101]))
    def group_trains_without_an_operator(self, steps: int, seconds: float) -> None:
        self.cluster.train(self.cluster.running_attempt(self.pods("Running")[0]), steps, start=0, stall=0)
        self.cluster.pass_time(seconds)
        self.life.start_operator()
        self.life.reconcile()

    @rule(seconds=st.sampled_from([0, 5, 101]))
    def page_is_read(self, seconds: float) -> None:
        self.cluster.pass_time(seconds)
        self.life.poll_progress()
        self.life.reconcile()

    @precondition(lambda self: self.pods("Pending", "Running", placeholders=True))
    @rule(which=which, how=st.sampled_from(["evicted", "preempted", "refused", "deleted", "vanished"]))
    def pod_is_removed(self, which: int, how: str) -> None:
        names = self.pods("Pending", "Running", placeholders=True)
        name = names[which % len(names)]
        if how == "evicted":
            self.cluster.set_pod(name, kubelet.evicted())
        elif how == "preempted":
            self.cluster.set_pod(name, kubelet.disrupted(kubelet.ended(self.cluster.now, 137)))
        elif how == "refused":
            self.cluster.set_pod(name, kubelet.refused())
        elif how == "deleted":
            self.cluster.mark_deleted(name)
        else:
            self.cluster.remove_pod(name)

    @precondition(lambda self: self.pods("Pending", "Running", placeholders=True))
    @rule(which=which)
    def node_is_lost(self, which: int) -> None:
        names = self.pods("Pending", "Running", placeholders=True)
        self.cluster.lose_node(names[which % len(names)])

    @precondition(lambda self: self.pods("Succeeded", "Failed"))
    @rule(count=few, noticed=often)
    def ended_pods_are_collected(self, count: int, noticed: bool) -> None:
        if noticed:
            self.life.run_smoothly(5)
        for name in self.pods("Succeeded", "Failed")[:count]:
            self.cluster.remove_pod(name)

    @rule(count=few)
    def deletions_end(self, count: int) -> None:
        workers = map(observe_pod, self.cluster.pods.values())
        going = [w.name for w in workers if w.terminating and w.uid not in self.cluster.lost]
        for name in going[:count]:
            self.cluster.remove_pod(name)

    # --- the user -------------------------------------------------------------------------------------------

    @rule(suspend=seldom)
    def user_suspends_or_resumes(self, suspend: bool) -> None:
        self.cluster.edit(suspend=suspend)

    @rule(replicas=st.integers(1, 3))
    def user_scales(self, replicas: int) -> None:
        assert self.cluster.job is not None
        least = self.cluster.job.spec.elastic.min_replicas if self.cluster.job.spec.elastic else 1
        self.cluster.edit(replicas=max(least, replicas))


class RestartRulesMachine(JobLifecycleMachine):
    """One random lifecycle of a running job with a rule that makes some failures not count."""

    @initialize(replicas=st.integers(1, 3), limit=st.integers(1, 3))
    def begin(self, replicas: int, limit: int) -> None:
        policy = {"maxRestarts": limit, "backoff": {"initialSeconds": 0}, "rules": RULES[1]}
        self.life = self.simulation(replicas=replicas, restartPolicy=policy)
        self.life.run_smoothly(20)


class DisruptionMachine(JobLifecycleMachine):
    """One random lifecycle of a running job that few disruptions may hit."""

    @initialize(replicas=st.integers(1, 3), limit=st.integers(0, 1))
    def begin(self, replicas: int, limit: int) -> None:
        policy = {"maxRestarts": 0, "maxDisruptions": limit, "backoff": {"initialSeconds": 0}}
        self.life = self.simulation(replicas=replicas, restartPolicy=policy)
        self.life.run_smoothly(20)


class ElasticLifecycleMachine(JobLifecycleMachine):
    """One random lifecycle of an elastic group that starts with less capacity than it needs."""

    @initialize(
        replicas=st.integers(2, 3),
        least=st.integers(1, 2),
        unschedulable=st.integers(0, 3),
        serves=st.booleans(),
        runs=often,
    )
    def begin(self, replicas: int, least: int, unschedulable: int, serves: bool, runs: bool) -> None:
        program = elastic(least) | (served() if serves else {})
        self.life = self.simulation(replicas=replicas, **program)
        for _ in range(3):
            self.life.reconcile()
        self.pods_are_unschedulable(unschedulable, 61)
        self.life.run_smoothly(20 if runs else 0)

    @rule(count=few, seconds=st.sampled_from([0, 61, 61]))
    def pods_are_unschedulable(self, count: int, seconds: float) -> None:
        names = self.pods("Pending", placeholders=True)
        for name in names[max(0, len(names) - count) :]:
            self.cluster.set_pod(name, kubelet.unschedulable())
        for passing in (0, seconds):
            self.cluster.pass_time(passing)
            self.life.deliver(jobs=9, pods=9)
            self.life.reconcile()

    @rule(rounds=few)
    def capacity_is_probed(self, rounds: int) -> None:
        self.life.run_smoothly(20)
        self.cluster.pass_time(61)
        self.life.run_smoothly(rounds)


class LimitedLifecycleMachine(ElasticLifecycleMachine):
    """One random lifecycle of a job that may wait and run for a limited time only."""

    @initialize(
        replicas=st.integers(1, 3),
        timeout=st.sampled_from([30, 90]),
        deadline=st.sampled_from([None, 150]),
        clean=st.sampled_from(["Running", "All"]),
        unschedulable=st.integers(0, 3),
        shrinks=seldom,
    )
    def begin(
        self, replicas: int, timeout: int, deadline: int | None, clean: str, unschedulable: int, shrinks: bool
    ) -> None:
        limits = {"schedulingTimeoutSeconds": timeout, "cleanPodPolicy": clean, "activeDeadlineSeconds": deadline}
        program = elastic(1, resizeAfterSeconds=timeout - 1) if shrinks else {}
        self.life = self.simulation(replicas=replicas, **limits, **program)
        for _ in range(3):
            self.life.reconcile()
        self.pods_are_unschedulable(unschedulable, timeout + 1)

    @rule(seconds=st.sampled_from([5, 31, 91]))
    def some_pods_start_and_time_passes(self, seconds: float) -> None:
        for name in self.pods("Pending")[1:]:
            self.cluster.set_pod(name, kubelet.running(self.cluster.now))
        self.life.deliver(jobs=9, pods=9)
        self.life.reconcile()
        self.cluster.pass_time(seconds)
        self.life.reconcile()

    @rule(timeout=st.sampled_from([None, 30, 90]))
    def user_changes_the_timeout(self, timeout: int | None) -> None:
        self.cluster.edit(scheduling_timeout_seconds=timeout)


def test_random_limited_lifecycles() -> None:
    run_state_machine_as_test(LimitedLifecycleMachine, settings=settings(stateful_step_count=40))


def test_random_lifecycles() -> None:
    run_state_machine_as_test(JobLifecycleMachine, settings=settings(stateful_step_count=40))


def test_random_elastic_lifecycles() -> None:
    run_state_machine_as_test(ElasticLifecycleMachine, settings=settings(stateful_step_count=40))


# --- operators that break a rule are caught ---------------------------------------------


class IgnoresEarlierPods(Simulation):
    """Ignores pods of earlier attempts in its cache."""

    def decide(self, observation: Observation) -> Plan:
        current = tuple(w for w in observation.workers if w.attempt >= observation.desired_job.status.attempt)
        return plan(replace(observation, workers=current))


class BackendWithoutPodList(FakeClusterBackend):
    async def list_pods(self, job: TrainingJob, *, other_than: int | None = None) -> list[Pod]:
        return []


class IgnoresEarlierPodsEverywhere(IgnoresEarlierPods):
    """Ignores them in the list before a creation too."""

    backend = BackendWithoutPodList


def with_policy(observation: Observation, policy: RestartPolicy) -> Observation:
    """Return the observation of a job with another restart policy."""
    job = observation.desired_job
    return replace(observation, desired_job=job.replace(spec=job.spec.replace(restart_policy=policy)))


class ActsBeforeRecording(Simulation):
    """Acts on a decision before it is recorded."""

    def decide(self, observation: Observation) -> Plan:
        first = plan(observation)
        if first.wake_after != 0:
            return first
        job = observation.desired_job.replace(status=first.status)
        return replace(first, actions=plan(replace(observation, desired_job=job)).actions)


class ExceedsRestartLimit(Simulation):
    """Allows one restart more than maxRestarts."""

    def decide(self, observation: Observation) -> Plan:
        policy = observation.desired_job.spec.restart_policy
        return plan(with_policy(observation, policy.replace(max_restarts=policy.max_restarts + 1)))


class CountsDisruptions(Simulation):
    """Counts restarts after evictions."""

    def decide(self, observation: Observation) -> Plan:
        def charge(*args: Any) -> Diagnosis | None:
            found = diagnose(*args)
            return found and replace(found, counts=True)

        with patch("trainyard_operator.lifecycle.plan.diagnose", charge):
            return plan(observation)


class ExceedsDisruptionLimit(Simulation):
    """Allows one disruption more than maxDisruptions."""

    def decide(self, observation: Observation) -> Plan:
        policy = observation.desired_job.spec.restart_policy
        return plan(with_policy(observation, policy.replace(max_disruptions=policy.max_disruptions + 1)))


class IgnoresSidecars(Simulation):
    """Takes a pod whose worker has ended for one that holds nothing any more."""

    def decide(self, observation: Observation) -> Plan:
        return plan(replace(observation, workers=tuple(replace(w, outlived=False) for w in observation.workers)))


class SuspendsEarly(Simulation):
    """Reports Suspended while pods end, and does not list them first."""

    backend = BackendWithoutPodList

    def decide(self, observation: Observation) -> Plan:
        suspends = observation.desired_job.spec.suspend
        return plan(replace(observation, workers=()) if suspends else observation)


class ForgetsSuccesses(Simulation):
    """Takes a pod that has succeeded and was removed for a lost one."""

    def decide(self, observation: Observation) -> Plan:
        job = observation.desired_job
        if job.status.finished:
            return plan(observation)
        forgotten = job.replace(status=job.status.replace(succeeded_indexes=""))
        return plan(replace(observation, desired_job=forgotten))


class IgnoresRestartRules(Simulation):
    """Ignores restartPolicy.rules."""

    def decide(self, observation: Observation) -> Plan:
        spec = observation.desired_job.spec
        policy = spec.restart_policy.replace(rules=())
        return plan(
            replace(observation, desired_job=observation.desired_job.replace(spec=spec.replace(restart_policy=policy)))
        )


class AssumesNoSteps(Simulation):
    """Takes missing progress for the proof that no step was made."""

    def decide(self, observation: Observation) -> Plan:
        nothing = Progress(attempt=observation.desired_job.status.attempt, updated_at=observation.now)
        return plan(replace(observation, progress=observation.progress or nothing))


class AccountsFromProcessStart(Simulation):
    """Accounts for time since its process started instead of since the last status."""

    def decide(self, observation: Observation) -> Plan:
        def forget(job: TrainingJob, after: TrainingJobStatus, now: datetime) -> TrainingJobStatus:
            goodput = job.status.goodput and job.status.goodput.replace(accounted_at=now)
            return account_time(job.replace(status=job.status.replace(goodput=goodput)), after, now)

        with patch("trainyard_operator.lifecycle.plan.account_time", forget):
            return plan(observation)


class ReportsRunningEarly(Simulation):
    """Reports Running as soon as the pods exist."""

    def decide(self, observation: Observation) -> Plan:
        early = [
            replace(w, state=WorkerState.RUNNING) if w.state is WorkerState.PENDING else w for w in observation.workers
        ]
        return plan(replace(observation, workers=tuple(early)))


class SetsNoTimer(Simulation):
    """Sets no timer for the end of a wait."""

    def decide(self, observation: Observation) -> Plan:
        step = plan(observation)
        return step if step.wake_after == 0 else replace(step, wake_after=None)


class DeletesByForceEarly(Simulation):
    """Deletes pods by force before they are overdue."""

    def decide(self, observation: Observation) -> Plan:
        step = plan(observation)
        attempt = observation.desired_job.status.attempt
        going = tuple(w for w in observation.workers if w.terminating and w.attempt < attempt)
        return replace(step, actions=(DeleteWorkers(going, force=True),)) if going and not step.actions else step


class NeverDeletesByForce(Simulation):
    """Waits forever for the kubelet of a lost node."""

    def decide(self, observation: Observation) -> Plan:
        step = plan(observation)
        actions = tuple(a for a in step.actions if not (isinstance(a, DeleteWorkers) and a.force))
        return replace(step, actions=actions)


class StartsLaterAttempt(Simulation):
    """Starts the attempt after the recorded one."""

    def decide(self, observation: Observation) -> Plan:
        step = plan(observation)
        further = [replace(a, attempt=a.attempt + 1) for a in step.actions if isinstance(a, RestartInPlace)]
        return replace(step, actions=tuple(further)) if further else step


class ReleasesWaitingPods(Simulation):
    """Releases pods that await a restart although their job continues."""

    def decide(self, observation: Observation) -> Plan:
        step, waiting = plan(observation), tuple(w for w in observation.workers if w.awaiting_restart)
        return replace(step, actions=(ReleaseWorkers(waiting),)) if waiting and step.wake_after != 0 else step


class ShrinksEarly(Simulation):
    """Takes pods that have not started for unschedulable ones."""

    def decide(self, observation: Observation) -> Plan:
        none = SchedulingBlocker(Reason.UNSCHEDULABLE, "no node")
        pending = [replace(w, blocker=none) if w.state is WorkerState.PENDING else w for w in observation.workers]
        return plan(replace(observation, workers=tuple(pending)))


class IgnoresMinReplicas(Simulation):
    """Ignores minReplicas and the layout."""

    def decide(self, observation: Observation) -> Plan:
        with patch("trainyard_operator.lifecycle.elastic.largest_size", lambda _job, most: most if most > 0 else None):
            return plan(observation)


class TrustsPendingPlaceholders(Simulation):
    """Takes a placeholder that was created for one that runs."""

    def decide(self, observation: Observation) -> Plan:
        hoped = [replace(w, state=WorkerState.RUNNING) if w.is_placeholder else w for w in observation.workers]
        return plan(replace(observation, workers=tuple(hoped)))


class LeavesPlaceholders(Simulation):
    """Never deletes placeholders."""

    def decide(self, observation: Observation) -> Plan:
        return plan(replace(observation, workers=tuple(w for w in observation.workers if not w.is_placeholder)))


class ReconcilesWithoutChange(Simulation):
    """Reconciles again at once without a change."""

    def decide(self, observation: Observation) -> Plan:
        return replace(plan(observation), wake_after=0, actions=())


# Extended: those that only one lifecycle of hundreds shows.
@pytest.mark.parametrize(
    ("mutant", "message"),
    [
        (IgnoresEarlierPods, "asleep in"),
        (IgnoresEarlierPodsEverywhere, "was created while"),
        (ActsBeforeRecording, "acted on before it was recorded"),
        (ExceedsRestartLimit, "the restart limit was exceeded"),
        (CountsDisruptions, "not the program's fault"),
        pytest.param(IgnoresSidecars, "still holds pods", marks=pytest.mark.extended),
        (SuspendsEarly, "reported Suspended while pods exist"),
        (ForgetsSuccesses, "was forgotten|was missed"),
        (AssumesNoSteps, "failed the startup timeout"),
        (AccountsFromProcessStart, "do not add up"),
        (ReportsRunningEarly, "reported Running before every worker ran"),
        (DeletesByForceEarly, "s after its grace period"),
        (NeverDeletesByForce, "asleep in"),
        (SetsNoTimer, "asleep in"),
        pytest.param(StartsLaterAttempt, "that is not recorded", marks=pytest.mark.extended),
        (ReleasesWaitingPods, "although its job continues"),
        (ReconcilesWithoutChange, "a busy loop"),
    ],
)
def test_an_operator_that_breaks_a_rule_is_caught(mutant: type[Simulation], message: str) -> None:
    assert_caught(JobLifecycleMachine, mutant, message)


def test_an_operator_that_exceeds_the_disruption_limit_is_caught() -> None:
    assert_caught(DisruptionMachine, ExceedsDisruptionLimit, "the disruption limit was exceeded")


def test_an_operator_that_ignores_the_rules_is_caught() -> None:
    assert_caught(RestartRulesMachine, IgnoresRestartRules, "that a rule excludes")


# Extended: one that few lifecycles show.
@pytest.mark.parametrize(
    ("mutant", "message"),
    [
        (ShrinksEarly, "shrunk without need"),
        (IgnoresMinReplicas, "shrunk below its minimum"),
        (TrustsPendingPlaceholders, "grown without capacity"),
        pytest.param(LeavesPlaceholders, "still holds pods|asleep in", marks=pytest.mark.extended),
    ],
)
def test_an_operator_that_breaks_a_rule_about_sizes_is_caught(mutant: type[Simulation], message: str) -> None:
    assert_caught(ElasticLifecycleMachine, mutant, message)


def assert_caught(base: type[JobLifecycleMachine], mutant: type[Simulation], message: str) -> None:
    """Check that the machine finds the fault of an operator: the rarest one shows in one lifecycle of 300."""
    machine = type(mutant.__name__, (base,), {"simulation": mutant})
    found = settings(
        max_examples=5000, stateful_step_count=40, phases=[Phase.generate], derandomize=True, database=None
    )
    with pytest.raises(AssertionError, match=message):
        run_state_machine_as_test(machine, settings=found)
