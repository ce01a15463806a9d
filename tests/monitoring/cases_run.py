"""Alerts on how a job trains: when they fire, and when they must not."""

from tests.monitoring.promtool import JOB, RUNS, Case, conditions, pace, worker

NEW = f'{JOB},pod="llama-2-0",instance="10.0.0.2:9400"'
"""Rank 0 of the next attempt, in another pod."""
LAST_STEP = "trainyard_last_step_timestamp_seconds"

_stops_at_20 = worker(LAST_STEP, "0+60x20 1200x60")


def _stalled(age: str) -> str:
    return f"ml/llama runs, but its last step was {age} ago: more than 15m, and more than 20 of its usual steps."


STALLED = [
    Case("no step for long", "TrainyardJobStalled", RUNS | pace(1) | _stops_at_20, {38: _stalled("18m 0s")}, [20, 36]),
    Case(
        "your own program does not report step times",
        "TrainyardJobStalled",
        RUNS | _stops_at_20,
        {38: _stalled("18m 0s")},
        [20, 36],
    ),
    Case(
        "steps of a minute may take longer",
        "TrainyardJobStalled",
        RUNS | pace(60) | _stops_at_20,
        {43: _stalled("23m 0s")},
        [38, 41],
    ),
    Case(
        "it steps again",
        "TrainyardJobStalled",
        RUNS | pace(1) | worker(LAST_STEP, "0+60x20 1200x20 2460+60x20"),
        {40: _stalled("20m 0s")},
        [42, 60],
    ),
    Case(
        "a stopped process answers no scrape",
        "TrainyardJobStalled",
        RUNS | pace(1, "x20 stale") | worker(LAST_STEP, "0+60x20 stale"),
        {38: _stalled("18m 0s")},
        [36],
    ),
    Case(
        "the operator restarts, and a scrape fails",
        "TrainyardJobStalled",
        conditions(Progressing="1x37 stale 1x60") | pace(1) | _stops_at_20,
        {38: _stalled("18m 0s"), 39: _stalled("19m 0s")},
    ),
    Case(
        "suspended",
        "TrainyardJobStalled",
        conditions(Running="1x20 0x60", Progressing="1x20 0x60", Suspended="0x20 1x60") | pace(1) | _stops_at_20,
        {},
        [38, 60],
    ),
    Case(
        "finished",
        "TrainyardJobStalled",
        conditions(Running="1x20 0x60", Progressing="1x20 0x60", Succeeded="0x20 1x60") | pace(1) | _stops_at_20,
        {},
        [38, 60],
    ),
    Case("it waits for the first step", "TrainyardJobStalled", conditions(Running="1x200"), {}, [38, 199]),
    Case(
        "the next attempt compiles for half an hour",
        "TrainyardJobStalled",
        conditions(Running="1x20 0x2 1x60", Progressing="1x20 0x30 1x60")
        | pace(1)
        | worker(LAST_STEP, "0+60x20 stale")
        | worker(LAST_STEP, "_x51 3060+60x40", pod=NEW),
        {},
        list(range(22, 80, 2)),
    ),
    Case(
        "another pod still steps",
        "TrainyardJobStalled",
        RUNS | pace(1) | _stops_at_20 | worker(LAST_STEP, "0+60x80", pod=NEW),
        {},
        [38, 60],
    ),
]

NON_FINITE = [
    Case(
        "three in half an hour",
        "TrainyardNonFiniteSteps",
        RUNS | worker("trainyard_nonfinite_steps_total", "0x20 1 2 3x60"),
        {
            25: "ml/llama had 3 steps with a NaN or Inf gradient within 30m. They were skipped; too many"
            " consecutive ones end the attempt."
        },
        [20, 21, 60],
    ),
    Case(
        "two", "TrainyardNonFiniteSteps", RUNS | worker("trainyard_nonfinite_steps_total", "0x20 1 2x60"), {}, [23, 40]
    ),
    Case(
        "two, in a pod that is scraped twice",
        "TrainyardNonFiniteSteps",
        RUNS
        | worker("trainyard_nonfinite_steps_total", "0x20 1 2x60", 'job="a"')
        | worker("trainyard_nonfinite_steps_total", "0x20 1 2x60", 'job="b"'),
        {},
        [23, 40],
    ),
    Case(
        "a new attempt counts from 0",
        "TrainyardNonFiniteSteps",
        RUNS | worker("trainyard_nonfinite_steps_total", "0x20 1 2 0x60"),
        {},
        [23, 40],
    ),
    Case(
        "the job ended",
        "TrainyardNonFiniteSteps",
        conditions(Running="1x24 0x60", Succeeded="0x24 1x60")
        | worker("trainyard_nonfinite_steps_total", "0x20 1 2 3x2 stale"),
        {},
        [26, 40],
    ),
]


def _run(metric: str, values: str, pod: str | None = None, size: int = 2) -> dict[str, str]:
    place = {} if pod is None else {"pod": pod}
    labels = f'model="llama",mesh="2 data",device="cuda",world_size="{size}",version="1"'
    return worker(metric, values, **place) | worker("trainyard_run_info", "1x2000", labels, **place)


_DIVERGED = (
    "The loss of ml/llama was 5.000 on average over 10m: above 1.3 times its lowest such mean of the last 6h, plus 0.2."
)
DIVERGING = [
    Case(
        "it rises and stays",
        "TrainyardLossDiverging",
        RUNS | _run("trainyard_loss", "3x60 5x100 3x60") | worker("trainyard_steps_total", "0+10x2000"),
        {90: _DIVERGED},
        [60, 75, 185],
    ),
    Case(
        "a program of one's own",
        "TrainyardLossDiverging",
        RUNS | worker("trainyard_loss", "3x60 5x100") | worker("trainyard_steps_total", "0+10x2000"),
        {90: _DIVERGED},
        [60, 75],
    ),
    Case(
        "noise",
        "TrainyardLossDiverging",
        RUNS
        | _run("trainyard_loss", "3 3.6 3.2 3.8 3 3.9 3.1 3 3.6 3.2 3.8 3 3.9 3.1 3.3x200")
        | worker("trainyard_steps_total", "0+10x2000"),
        {},
        [20, 40, 100],
    ),
    Case(
        "near zero a ratio says little",
        "TrainyardLossDiverging",
        RUNS | _run("trainyard_loss", "0.01x60 0.1x100") | worker("trainyard_steps_total", "0+10x2000"),
        {},
        [90, 120],
    ),
    Case(
        "started again, without a checkpoint",
        "TrainyardLossDiverging",
        RUNS | _run("trainyard_loss", "3x60 10-0.1x100") | worker("trainyard_steps_total", "0+10x60 0+10x55"),
        {},
        [80, 90, 115],
    ),
    Case(
        "suspended",
        "TrainyardLossDiverging",
        conditions(Running="1x70 0x200", Suspended="0x70 1x200")
        | _run("trainyard_loss", "3x60 5x200")
        | worker("trainyard_steps_total", "0+10x2000"),
        {},
        [90, 120],
    ),
]


def _speed(values: str, size: int = 2, pod: str | None = None) -> dict[str, str]:
    place = {} if pod is None else {"pod": pod}
    totals = worker("trainyard_flops_total", "6000+6000x2000", **place) | worker(
        "trainyard_tokens_total", "6+6x2000", **place
    )
    return _run("trainyard_tokens_per_second", values, pod, size) | totals


_SLOW = "ml/llama trains at 60% of its usual throughput of the last 6h, on the same layout and devices."
SLOW = [
    Case("slower", "TrainyardThroughputDropped", RUNS | _speed("100x90 60x50 100x50"), {120: _SLOW}, [90, 100, 150]),
    Case("a little slower", "TrainyardThroughputDropped", RUNS | _speed("100x90 75x100"), {}, [120, 150]),
    Case(
        "the first report of an attempt",
        "TrainyardThroughputDropped",
        RUNS | _speed("100x90 10x3 100x60"),
        {},
        [95, 110],
    ),
    Case("just begun", "TrainyardThroughputDropped", RUNS | _speed("100x10 60x19"), {}, [20, 29]),
    Case(
        "it has shrunk to half (spec.elastic)",
        "TrainyardThroughputDropped",
        RUNS | _speed("100x90 stale") | _speed("_x91 50x100", size=1, pod=NEW),
        {},
        [110, 120, 150],
    ),
    Case(
        "suspended soon after it had slowed down",
        "TrainyardThroughputDropped",
        conditions(Progressing="1x101 0x60", Suspended="0x101 1x60") | _speed("100x90 10x11 stale"),
        {},
        [108, 109, 110, 111, 112],
    ),
    Case(
        "suspended meanwhile, and slow in the first minutes",
        "TrainyardThroughputDropped",
        conditions(Running="1x90 0x60 1x90", Progressing="1x90 0x62 1x90", Suspended="0x90 1x60 0x90")
        | _speed("100x90 stale _x60 20x5 100x80"),
        {},
        list(range(91, 200, 3)),
    ),
]

CASES = [*STALLED, *NON_FINITE, *DIVERGING, *SLOW]
