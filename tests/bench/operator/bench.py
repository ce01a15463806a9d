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


class Result:
    """All measurements of a run."""

    def __init__(self) -> None:
        self.bare: list[Bare] = []
        self.job: list[OneJob] = []
        self.many: list[ManyJobs] = []
        self.crash: list[Crash] = []
        self.large: list[OneJob] = []


def _median(values: Sequence[R], of: Callable[[R], float]) -> float:
    return statistics.median(of(value) for value in values)


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
    pods = f"one job, {given.pods:,} pods"
    table = [
        make_row(f"{pods}: all exist", _median(job, lambda r: r.exist), "s", "bare pods", _median(bare, lambda r: r.exist)),
        make_row(
            f"{pods}: Running is True", _median(job, lambda r: r.running), "s", "its last pod runs",
            _median(job, lambda r: r.scheduled),
        ),
        make_row(
            f"{pods}: last pod runs", _median(job, lambda r: r.scheduled), "s", "bare pods run", _median(bare, lambda r: r.run)
        ),
        make_row(f"{pods}: CPU time", _median(job, lambda r: r.cost.cpu), "s", "", None),
        make_row(f"{pods}: memory", _median(job, lambda r: r.cost.rss), "MB", "", None),
        make_row(f"{pods}: writes of the status", _median(job, lambda r: r.cost.status_writes), "", "", None),
        make_row(
            f"{given.jobs} jobs x {given.replicas} pods: all Running", _median(many, lambda r: r.running), "s",
            "the last pod runs", _median(many, lambda r: r.scheduled),
        ),
        make_row(f"{given.jobs} jobs: CPU time", _median(many, lambda r: r.cost.cpu), "s", "", None),
        make_row(f"{given.jobs} jobs: writes of the status", _median(many, lambda r: r.cost.status_writes), "", "", None),
        make_row(f"a crash of {given.group} pods: Running again", _median(crash, lambda r: r.recovered), "s", "", None),
        make_row(
            f"a crash of {given.group} pods: deletions", _median(crash, lambda r: r.deletions), "", "pods", given.group
        ),
    ]  # fmt: skip
    for large in result.large:
        name = f"one job, {given.large:,} pods"
        table += [
            make_row(f"{name}: all exist", large.exist, "s", "", None),
            make_row(f"{name}: Running is True", large.running, "s", "its last pod runs", large.scheduled),
            make_row(f"{name}: CPU time per pod", 1000 * large.cost.cpu / given.large, "ms", "", None),
            make_row(f"{name}: memory", large.cost.rss, "MB", "", None),
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
