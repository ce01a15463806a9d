"""Alerts on the operator. While it is down, most alerts on jobs cannot fire: they need its job conditions."""

from trainyard_monitoring.rules import Alert
from trainyard_monitoring.timing import Timing, duration, number

_PRESENCE = "trainyard_operator_queue_depth"
"""A series of every operator. `up` would depend on the name of the scrape job."""


def operator_alerts(timing: Timing) -> list[Alert]:
    """Return the alerts on operators."""
    return [down(timing), absent(timing), no_leader(timing), queue_stuck(timing), part_failing(timing)]


def down(timing: Timing) -> Alert:
    """Alert on a namespace that had an operator and has none now."""
    present = f"count by (namespace) (last_over_time({_PRESENCE}[{duration(timing.operator_memory)}]))"
    return Alert(
        "TrainyardOperatorDown",
        "critical",
        f"{present}\nunless on (namespace) {_PRESENCE}",
        timing.operator_down_for,
        "The Trainyard operator is down",
        "No operator in namespace {{ $labels.namespace }} has been scraped for"
        f" {duration(timing.operator_down_for)}. Running pods continue; nothing is started, restarted or cleaned up,"
        " and most alerts on its jobs cannot fire.",
    )


def absent(timing: Timing) -> Alert:
    """Alert if no operator was scraped for longer than `down` remembers, or ever."""
    window = duration(timing.operator_memory)
    return Alert(
        "TrainyardOperatorAbsent",
        "warning",
        f"absent(last_over_time({_PRESENCE}[{window}]))",
        timing.operator_down_for,
        "No Trainyard operator is scraped",
        f"Prometheus has scraped no Trainyard operator for {window}, although its rules are installed: none"
        " is running, or none is scraped.",
    )


def no_leader(timing: Timing) -> Alert:
    """Alert on operators that respond while none of them is the leader."""
    return Alert(
        "TrainyardOperatorNoLeader",
        "critical",
        "max by (namespace) (trainyard_operator_leader) == 0",
        timing.no_leader_for,
        "No Trainyard operator is the leader",
        "Operators in namespace {{ $labels.namespace }} respond, but for"
        f" {duration(timing.no_leader_for)} none of them has held the lease. Running pods continue; nothing is started,"
        " restarted or cleaned up, and most alerts on its jobs cannot fire.",
    )


def queue_stuck(timing: Timing) -> Alert:
    """Alert on work that waits while nothing is completed, or while the API server does not respond."""
    window = duration(timing.queue_window)
    return Alert(
        "TrainyardOperatorQueueStuck",
        "critical",
        f"max by (namespace) (max_over_time(trainyard_operator_queue_stalled_seconds[{window}]))"
        f" > {number(timing.queue_stalled)}",
        0,
        "The work queue of a Trainyard operator is stuck",
        "Jobs waited for the operator in namespace {{ $labels.namespace }} for"
        f" {{{{ humanizeDuration $value }}}} within the last {window}, and no job was reconciled. Either the API server"
        " does not respond, or the operator hangs; the kubelet restarts an operator that has hung for 120 s.",
    )


def part_failing(timing: Timing) -> Alert:
    """Alert on a part of the operator that fails although nothing outside of it has ended it."""
    window = duration(timing.part_failures_window)
    return Alert(
        "TrainyardOperatorPartFailing",
        "warning",
        f"sum by (namespace, part) (increase(trainyard_operator_part_failures_total[{window}])) > 0",
        0,
        "A part of a Trainyard operator fails",
        f"Within the last {window}, the part {{{{ $labels.part }}}} of the operator in namespace"
        ' {{ $labels.namespace }} failed {{ printf "%.0f" $value }} times. It was restarted, and the other parts'
        " continue; its log has the traceback.",
    )
