"""Alerts on the operator: when they fire, and when they must not."""

from tests.monitoring.promtool import Case

DEPTH = 'trainyard_operator_queue_depth{namespace="system",instance="a"}'
OTHER = 'trainyard_operator_queue_depth{namespace="team",instance="b"}'
STALLED = 'trainyard_operator_queue_stalled_seconds{namespace="system",instance="a"}'

DOWN = [
    Case(
        "gone",
        "TrainyardOperatorDown",
        {DEPTH: "0x20 stale", OTHER: "0x300"},
        {
            30: "No operator in namespace system has been scraped for 5m. Running pods continue; nothing is"
            " started, restarted or cleaned up, and most alerts on its jobs cannot fire."
        },
        [20, 25, 90],
        {"namespace": "system"},
    ),
    Case(
        "upgraded: another pod",
        "TrainyardOperatorDown",
        {DEPTH: "0x20 stale", DEPTH.replace('"a"', '"c"'): "_x23 0x100"},
        {},
        [22, 30, 60],
    ),
    Case(
        "the leader is gone, and a standby replica answers",
        "TrainyardOperatorDown",
        {DEPTH: "0x20 stale", DEPTH.replace('"a"', '"b"'): "0x100"},
        {},
        [22, 30, 60],
    ),
    Case("scrapes fail for a moment", "TrainyardOperatorDown", {DEPTH: "0x20 stale _x3 0x60"}, {}, [22, 24, 26, 40]),
]
ABSENT = [
    Case(
        "never seen",
        "TrainyardOperatorAbsent",
        {OTHER: "_x10 0x20"},
        {
            7: "Prometheus has scraped no Trainyard operator for 1h, although its rules are installed: none is"
            " running, or none is scraped."
        },
        [4, 12],
        {},
    ),
    Case(
        "gone for less than an hour, which is told by name",
        "TrainyardOperatorAbsent",
        {DEPTH: "0x20 stale"},
        {},
        [30, 70],
    ),
]
LEADER, SPARE = (f'trainyard_operator_leader{{namespace="system",pod="{pod}"}}' for pod in "ab")
ELSEWHERE = 'trainyard_operator_leader{namespace="team",pod="c"}'
NO_LEADER = [
    Case(
        "the leader is gone and the standby takes over much later; another namespace has a leader",
        "TrainyardOperatorNoLeader",
        {LEADER: "1x10 stale", SPARE: "0x29 1x20", ELSEWHERE: "1x60"},
        {
            14: "Operators in namespace system respond, but for 2m none of them has held the lease. Running pods"
            " continue; nothing is started, restarted or cleaned up, and most alerts on its jobs cannot fire."
        },
        [10, 12, 30, 40],
        {"namespace": "system"},
    ),
    Case("a leader and a standby replica", "TrainyardOperatorNoLeader", {LEADER: "1x60", SPARE: "0x60"}, {}, [5, 50]),
    Case(
        "a failover or an upgrade, with one scrape without a leader",
        "TrainyardOperatorNoLeader",
        {LEADER: "1x10 stale", SPARE: "0x11 1x40"},
        {},
        [11, 12, 13, 14, 30],
    ),
    Case(
        "the only operator restarts and waits for its lease first",
        "TrainyardOperatorNoLeader",
        {LEADER: "1x10 stale 0 1x40"},
        {},
        [11, 12, 13, 14, 30],
    ),
    Case(
        "scrapes of the leader fail for a moment",
        "TrainyardOperatorNoLeader",
        {LEADER: "1x10 stale 1x40", SPARE: "0x60"},
        {},
        [11, 12, 13, 14, 30],
    ),
    Case(
        "no operator answers, which is another alert",
        "TrainyardOperatorNoLeader",
        {LEADER: "1x10 stale", SPARE: "0x10 stale"},
        {},
        [12, 14, 20],
    ),
]
STUCK = [
    Case(
        "it is stuck until the kubelet restarts it",
        "TrainyardOperatorQueueStuck",
        {STALLED: "0x10 100 0x60"},
        {
            14: "Jobs waited for the operator in namespace system for 1m 40s within the last 10m, and no job"
            " was reconciled. Either the API server does not respond, or the operator hangs; the kubelet restarts an"
            " operator that has hung for 120 s."
        },
        [10, 25],
        {"namespace": "system"},
    ),
    Case("a slow request", "TrainyardOperatorQueueStuck", {STALLED: "0x10 60 0x60"}, {}, [11, 15]),
]

FAILURES = 'trainyard_operator_part_failures_total{namespace="system",instance="a",part="progress"}'
PARTS = [
    Case(
        "a part fails twice and is restarted",
        "TrainyardOperatorPartFailing",
        {FAILURES: "0x10 1 2x60"},
        {
            14: "Within the last 15m, the part progress of the operator in namespace system failed 2 times. It was"
            " restarted, and the other parts continue; its log has the traceback."
        },
        [5, 10, 40],
        {"namespace": "system", "part": "progress"},
    ),
    Case("nothing fails", "TrainyardOperatorPartFailing", {FAILURES: "0x60"}, {}, [5, 30, 60]),
]

CASES = [*DOWN, *ABSENT, *NO_LEADER, *STUCK, *PARTS]
