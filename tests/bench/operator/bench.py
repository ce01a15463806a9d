"""What the operator costs at scale, beside a plain client that creates the same pods: `make bench-operator`.

The control plane is real, the nodes are simulated by KWOK, and all programs share this machine. Each round has an
operator of its own; rounds of the operator and of the plain client take turns, and the median counts.
"""

import argparse
import asyncio
import json
import statistics
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from tests.bench.operator import measure
from tests.bench.operator.measure import Bare, Crash, ManyJobs, OneJob
from tests.bench.operator.simulated import PODS_PER_NODE, add_nodes, simulated_cluster
from tests.bench.trainer.table import HEADER, Row, line, make_row
from tests.cluster import Cluster
from tests.integration.conftest import install_crd
from tests.support.kube import connect
from tests.support.operator import operating

R = TypeVar("R")
S = TypeVar("S")


class Result:
    """All measurements of a run."""

    def __init__(self) -> None:
        self.bare: list[Bare] = []
        self.job: list[OneJob] = []
        self.many: list[ManyJobs] = []
        self.crash: list[Crash] = []
        self.large: list[OneJob] = []


def _row(
    case: str,
    values: Sequence[R],
    of: Callable[[R], float],
    unit: str,
    reference: str = "",
    others: Sequence[S] = (),
    of_other: Callable[[S], float] = lambda _: 0.0,
) -> Row:
    """Return a row with the median of a figure over the rounds, and that of another one."""
    other = statistics.median(map(of_other, others)) if others else None
    return make_row(case, statistics.median(map(of, values)), unit, reference, other)


async def run(cluster: Cluster, given: argparse.Namespace) -> Result:
    """Measure everything on a cluster without nodes."""
    result = Result()
    largest = max(given.pods, given.large, given.jobs * given.replicas, given.group)
    async with connect(cluster.kubeconfig) as api:
        # Nodes that are half full, as in most clusters.
        await add_nodes(api, -(-2 * largest // PODS_PER_NODE) if given.large <= given.pods else -(-largest // 100))
        await measure.bare_pods(api, min(100, given.pods))  # caches of the control plane are warm
        for turn in range(given.rounds):
            result.bare.append(await measure.bare_pods(api, given.pods))
            with tempfile.TemporaryDirectory() as folder:
                async with operating(cluster.environment, Path(folder) / "log") as operator:
                    result.job.append(await measure.one_job(api, operator, given.pods))
                async with operating(cluster.environment, Path(folder) / "log") as operator:
                    result.many.append(await measure.many_jobs(api, operator, given.jobs, given.replicas))
                    result.crash.append(await measure.crash(api, operator, given.group))
                if given.large and turn == 0:
                    async with operating(cluster.environment, Path(folder) / "log") as operator:
                        result.large.append(await measure.one_job(api, operator, given.large))
            print(f"round {turn + 1}: {result.bare[-1]}\n  {result.job[-1]}\n  {result.many[-1]}\n  {result.crash[-1]}")
    return result


def rows(result: Result, given: argparse.Namespace) -> list[Row]:
    """Return the table."""
    bare, job, many, crash = result.bare, result.job, result.many, result.crash
    one, small, group = f"one job, {given.pods:,} pods", f"{given.jobs} jobs", f"a crash of {given.group} pods"
    table = [
        _row(f"{one}: all exist", job, lambda r: r.exist, "s", "bare pods", bare, lambda r: r.exist),
        _row(f"{one}: Running is True", job, lambda r: r.running, "s", "its last pod runs", job, lambda r: r.scheduled),
        _row(f"{one}: last pod runs", job, lambda r: r.scheduled, "s", "bare pods run", bare, lambda r: r.run),
        _row(f"{one}: CPU time", job, lambda r: r.cost.cpu, "s"),
        _row(f"{one}: memory", job, lambda r: r.cost.rss, "MB"),
        _row(f"{one}: writes of the status", job, lambda r: r.cost.status_writes, ""),
        _row(f"{small}: Running is True", many, lambda r: r.running, "s", "last pod runs", many, lambda r: r.scheduled),
        _row(f"{small}: CPU time", many, lambda r: r.cost.cpu, "s"),
        _row(f"{small}: writes of the status", many, lambda r: r.cost.status_writes, ""),
        _row(f"{group}: Running again", crash, lambda r: r.recovered, "s"),
        _row(f"{group}: deletions", crash, lambda r: r.deletions, "", "pods", [given.group], float),
    ]
    large, name = result.large, f"one job, {given.large:,} pods"
    if large:
        table += [
            _row(f"{name}: all exist", large, lambda r: r.exist, "s"),
            _row(
                f"{name}: Running is True",
                large,
                lambda r: r.running,
                "s",
                "last pod runs",
                large,
                lambda r: r.scheduled,
            ),
            _row(f"{name}: CPU time per pod", large, lambda r: 1000 * r.cost.cpu / given.large, "ms"),
            _row(f"{name}: memory", large, lambda r: r.cost.rss, "MB"),
        ]
    return table


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Return the options."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.operator", description=__doc__)
    parser.add_argument("--pods", type=int, default=1000, help="pods of the one job")
    parser.add_argument("--jobs", type=int, default=200, help="number of small jobs")
    parser.add_argument("--replicas", type=int, default=2, help="pods of each small job")
    parser.add_argument("--group", type=int, default=100, help="pods of the group that crashes")
    parser.add_argument("--large", type=int, default=4000, help="pods of the large job, which runs once; 0: none")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("build/bench/operator.json"))
    return parser.parse_args(arguments)


def main() -> None:
    """Run all of it, print the table, and write build/bench/operator.json."""
    given = parse()
    with simulated_cluster() as cluster:
        install_crd(cluster)
        table = rows(asyncio.run(run(cluster, given)), given)
    given.out.parent.mkdir(parents=True, exist_ok=True)
    given.out.write_text(json.dumps(table, indent=2) + "\n")
    print("\n".join([HEADER, *map(line, table)]))


if __name__ == "__main__":
    main()
