"""When alerts on a job's life fire, and when they must not."""

from tests.monitoring.promtool import JOB, RUNS, Case, conditions, pace, worker

PENDING = f"trainyard_job_pending_seconds{{{JOB}}}"
RESTARTS = f'trainyard_job_restarts_total{{{JOB},counted="true",instance="op"}}'
FAILURE = f'trainyard_job_last_failure_timestamp_seconds{{{JOB},reason="OOMKilled"}}'

STRAGGLER = [
    Case(
        "a slow rank, and a scrape that fails",
        "TrainyardStraggler",
        RUNS | worker("trainyard_straggler_ratio", "_x10 1.75x3 stale 1.75x16 stale", 'rank="3"'),
        {17: "Rank 3 of ml/llama takes 1.75 times as long as the median rank for the same computation."},
        [9, 14, 35],
        {"namespace": "ml", "job_name": "llama", "rank": "3"},
    ),
    Case(
        "slow for a moment",
        "TrainyardStraggler",
        RUNS | worker("trainyard_straggler_ratio", "_x10 1.75 stale", 'rank="3"'),
        {},
        [12, 15, 18],
    ),
    Case(
        "the group is being replaced",
        "TrainyardStraggler",
        conditions(Running="1x14 0x60") | worker("trainyard_straggler_ratio", "_x10 1.75x4 stale", 'rank="3"'),
        {},
        [16, 17, 18],
    ),
]

_OOM = "; reason of the last failure: OOMKilled."
STORM = [
    Case(
        "three in an hour, and a scrape that fails",
        "TrainyardRestartStorm",
        RUNS | {RESTARTS: "0x10 1x5 2x5 3x3 stale 3x200", FAILURE: "1300x300"},
        dict.fromkeys((25, 26, 27), "ml/llama was restarted 3 times within 1h" + _OOM),
        [10, 18, 90],
    ),
    Case("slowly", "TrainyardRestartStorm", RUNS | {RESTARTS: "0x10 1x50 2x50 3x50 4x50"}, {}, list(range(0, 200, 10))),
    Case(
        "a new operator begins at the count of the old one",
        "TrainyardRestartStorm",
        RUNS | {RESTARTS: "7x20 stale", RESTARTS.replace('"op"', '"new"'): "_x22 7x60"},
        {},
        [21, 22, 23, 24, 40],
    ),
    Case("created again under the same name", "TrainyardRestartStorm", RUNS | {RESTARTS: "5x20 0x60"}, {}, [21, 40]),
    Case("seen for the first time", "TrainyardRestartStorm", RUNS | {RESTARTS: "_x20 9x60"}, {}, [21, 40]),
    Case(
        "it has failed: that is told already",
        "TrainyardRestartStorm",
        conditions(Running="1x21 0x60", Failed="0x21 1x60") | {RESTARTS: "0x10 1x5 2x5 3x200"},
        {},
        [25, 40],
    ),
]


WAITING = [
    Case(
        "no room",
        "TrainyardJobPendingTooLong",
        conditions() | {PENDING: "0+60x60 0x20"},
        {30: "ml/llama should be running, but has not had all of its workers for 30m 0s."},
        [15, 20, 25, 70],
    ),
    Case("it starts in time", "TrainyardJobPendingTooLong", RUNS | {PENDING: "0+60x22 0x60"}, {}, [21, 25, 30]),
    Case(
        "a new operator says so, too",
        "TrainyardJobPendingTooLong",
        conditions() | {PENDING: "0+60x30 stale 1920+60x30"},
        {31: "ml/llama should be running, but has not had all of its workers for 30m 0s."},
    ),
]

_SAVED = "trainyard_checkpoint_step"
_STEPS = worker("trainyard_steps_total", "0+60x2000")


def _stale(age: str) -> str:
    return (
        f"A crash of ml/llama would lose {age} of training: more than 3 of its usual intervals between checkpoints"
        " (or more than 4h, where none is known)."
    )


STALE = [
    Case(
        "late by its own measure",
        "TrainyardCheckpointStale",
        RUNS | pace(1) | _STEPS | worker(_SAVED, "_x10 600x9 1200x9 1800x9 2400x80 7200x20"),
        {80: _stale("40m 0s")},
        [40, 70, 125],
    ),
    Case(
        "its intervals are long",
        "TrainyardCheckpointStale",
        RUNS | pace(1) | _STEPS | worker(_SAVED, "_x200 12000x199 24000x299 42000x10"),
        {},
        [199, 399, 690],
    ),
    Case(
        "a little late",
        "TrainyardCheckpointStale",
        RUNS | pace(1) | _STEPS | worker(_SAVED, "_x10 600x9 1200x9 1800x33 3900x30"),
        {},
        [60, 63, 65, 70],
    ),
    Case(
        "one checkpoint, and none for long",
        "TrainyardCheckpointStale",
        RUNS | pace(1) | _STEPS | worker(_SAVED, "_x10 600x500"),
        {260: _stale("4h 10m 0s")},
        [100, 240],
    ),
    Case("no checkpoints are asked for", "TrainyardCheckpointStale", RUNS | pace(1) | _STEPS, {}, [100, 400]),
    Case(
        "suspended for hours, then resumed",
        "TrainyardCheckpointStale",
        conditions(Running="1x40 0x400 1x100", Suspended="0x40 1x400 0x100")
        | pace(1)
        | worker("trainyard_steps_total", "0+60x40 stale _x400 2400+60x60")
        | worker(_SAVED, "_x10 600x9 1200x9 1800x9 2400 stale _x400 2400x9 3000x9 3600x30"),
        {},
        [60, 300, 445, 450, 460],
    ),
    Case(
        "a crash takes it back to the checkpoint",
        "TrainyardCheckpointStale",
        RUNS
        | pace(1)
        | worker("trainyard_steps_total", "0+60x39 1800+60x40")
        | worker(_SAVED, "_x10 600x9 1200x9 1800x19 2400x9 3000x9"),
        {},
        [40, 45, 50, 60],
    ),
]

UNSAVED = [
    Case(
        "the volume is full",
        "TrainyardCheckpointFailing",
        RUNS | worker("trainyard_checkpoint_failures_total", "0x10 1x9 2x100"),
        {
            25: "ml/llama failed to write 2 of its checkpoints within 30m. Training continues, but its"
            " progress is not saved."
        },
        [10, 60],
    ),
    Case(
        "in a pod that is scraped twice",
        "TrainyardCheckpointFailing",
        RUNS
        | worker("trainyard_checkpoint_failures_total", "0x10 1x100", 'job="a"')
        | worker("trainyard_checkpoint_failures_total", "0x10 1x100", 'job="b"'),
        {
            15: "ml/llama failed to write 1 of its checkpoints within 30m. Training continues, but its"
            " progress is not saved."
        },
    ),
    Case(
        "it saves",
        "TrainyardCheckpointFailing",
        RUNS | worker("trainyard_checkpoint_failures_total", "0x100"),
        {},
        [50],
    ),
    Case(
        "it had failed to, in an attempt before the first scrape",
        "TrainyardCheckpointFailing",
        RUNS | worker("trainyard_checkpoint_failures_total", "_x10 2x100"),
        {},
        [12, 30],
    ),
    Case(
        "suspended",
        "TrainyardCheckpointFailing",
        conditions(Suspended="0x12 1x60", Running="1x12 0x60")
        | worker("trainyard_checkpoint_failures_total", "0x10 1x2 stale"),
        {},
        [13, 20],
    ),
]

ENDED = [
    Case(
        "for good",
        "TrainyardJobFailed",
        conditions(Running="1x10 0x2000", Failed="0x10 1x2000") | {FAILURE: "_x10 600x2000"},
        {11: "ml/llama has failed" + _OOM + " It no longer runs any pods."},
        [10, 1460],
    ),
    Case("it succeeded", "TrainyardJobFailed", conditions(Succeeded="0x10 1x100"), {}, [11, 50]),
    Case("it is being restarted", "TrainyardJobFailed", conditions(Restarting="0x10 1x100"), {}, [11, 50]),
    Case("deleted", "TrainyardJobFailed", conditions(Failed="0x10 1x10 stale"), {}, [24, 30]),
]

CASES = [*STRAGGLER, *STORM, *WAITING, *STALE, *UNSAVED, *ENDED]
