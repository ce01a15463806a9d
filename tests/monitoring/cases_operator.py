"""When alerts on the operator fire, and when they must not."""

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
            30: "The operator in namespace system has not been scraped for 5m. Pods that run go on; nothing is"
            " started, restarted"
            " or cleaned up, and most alerts on its jobs are blind."
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
    Case("scrapes fail for a moment", "TrainyardOperatorDown", {DEPTH: "0x20 stale _x3 0x60"}, {}, [22, 24, 26, 40]),
]
ABSENT = [
    Case(
        "never seen",
        "TrainyardOperatorAbsent",
        {OTHER: "_x10 0x20"},
        {
            7: "Prometheus has seen no operator of Trainyard for 1h, though it has its rules: none runs, or"
            " none is scraped."
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
STUCK = [
    Case(
        "it stands still until the kubelet restarts it",
        "TrainyardOperatorQueueStuck",
        {STALLED: "0x10 100 0x60"},
        {
            14: "Jobs waited for the operator in namespace system for 1m 40s within the last 10m, and none was"
            " dealt with. Either the API server does not answer, or the operator hangs; the kubelet restarts one that"
            " has hung for 120 s."
        },
        [10, 25],
        {"namespace": "system"},
    ),
    Case("a slow request", "TrainyardOperatorQueueStuck", {STALLED: "0x10 60 0x60"}, {}, [11, 15]),
]

CASES = [*DOWN, *ABSENT, *STUCK]
