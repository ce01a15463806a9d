"""Alerts on the operator. While it is away no alert on a job can be trusted: most ask it whether the job runs."""

from trainyard_monitoring.rules import Alert
from trainyard_monitoring.timing import Timing, number, span

_SIGN = "trainyard_operator_queue_depth"
"""A series that each operator has, however it is scraped: `up` would need the name of the scrape job."""


def operator_alerts(timing: Timing) -> list[Alert]:
    """Alerts on operators."""
    return [down(timing), absent(timing), no_leader(timing), queue_stuck(timing)]


def down(timing: Timing) -> Alert:
    """There was one in this namespace, and there is none."""
    seen = f"count by (namespace) (last_over_time({_SIGN}[{span(timing.operator_memory)}]))"
    return Alert(
        "TrainyardOperatorDown",
        "critical",
        f"{seen}\nunless on (namespace) {_SIGN}",
        timing.operator_down_for,
        "No Trainyard operator answers",
        "No operator in namespace {{ $labels.namespace }} has been scraped for"
        f" {span(timing.operator_down_for)}. Pods that run go on; nothing is started, restarted or cleaned up, and most"
        " alerts on its jobs are blind.",
    )


def absent(timing: Timing) -> Alert:
    """None was seen for so long that `down` has forgotten it, or ever."""
    window = span(timing.operator_memory)
    return Alert(
        "TrainyardOperatorAbsent",
        "warning",
        f"absent(last_over_time({_SIGN}[{window}]))",
        timing.operator_down_for,
        "No Trainyard operator is scraped",
        f"Prometheus has seen no operator of Trainyard for {window}, though it has its rules: none runs, or none is"
        " scraped.",
    )


def no_leader(timing: Timing) -> Alert:
    """They answer, and each says that another one leads."""
    return Alert(
        "TrainyardOperatorNoLeader",
        "critical",
        "max by (namespace) (trainyard_operator_leader) == 0",
        timing.no_leader_for,
        "No Trainyard operator leads",
        "Operators in namespace {{ $labels.namespace }} answer, but for"
        f" {span(timing.no_leader_for)} none of them has held the lease. Pods that run go on; nothing is started,"
        " restarted or cleaned up, and most alerts on its jobs are blind.",
    )


def queue_stuck(timing: Timing) -> Alert:
    """Work waits, and none is finished; or the API server does not answer, which ends each look, and for nothing."""
    window = span(timing.queue_window)
    return Alert(
        "TrainyardOperatorQueueStuck",
        "critical",
        f"max by (namespace) (max_over_time(trainyard_operator_queue_stalled_seconds[{window}]))"
        f" > {number(timing.queue_stalled)}",
        0,
        "The work queue of a Trainyard operator stands still",
        "Jobs waited for the operator in namespace {{ $labels.namespace }} for"
        f" {{{{ humanizeDuration $value }}}} within the last {window}, and none was dealt with. Either the API server"
        " does not answer, or the operator hangs; the kubelet restarts one that has hung for 120 s.",
    )
