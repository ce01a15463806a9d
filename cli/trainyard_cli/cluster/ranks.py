"""What the metrics pages of a job's pods say of its ranks."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

from trainyard.protocol import constants, worker_metrics
from trainyard.resource.job import TrainingJob
from trainyard_cli.cluster.client import Body, Cluster
from trainyard_cli.cluster.problems import ClusterProblem
from trainyard_cli.cluster.tables import pod_row

AT_A_TIME = 16
"""Pages that are read in parallel."""
MOST_PODS = 64
"""Pods that are looked at; who has more of them looks at dashboards."""


@dataclass(slots=True)
class RankView:
    """One rank."""

    rank: int
    pod: str
    node: str
    state: str
    last_step: float | None = None
    """Time at which its pod last finished a step, in seconds since 1970."""
    compute: float | None = None
    """Seconds that it takes for the same computation as all others (spec.health.straggler)."""
    straggler: float | None = None
    """How many times as long as the median rank it takes, if it is a straggler."""
    memory: dict[str, float] = field(default_factory=dict)
    """Bytes by kind."""


@dataclass(slots=True)
class JobView:
    """All ranks of a job, and where the time of a step goes."""

    ranks: list[RankView]
    hidden: int
    """Pods that were not looked at."""
    phases: dict[str, float]
    """Seconds of a step by phase, the mean of this attempt; empty before the first."""
    parts: dict[str, float] = field(default_factory=dict)
    """Of the last step that was sampled: shares of computation, communication, and both at once."""
    problem: str = ""
    """Why a page could not be read, if one could not."""


def look_at(cluster: Cluster, job: TrainingJob) -> JobView:
    """Read the pages of the pods. One that cannot be read leaves its ranks without figures, and its problem."""
    pods = cluster.pods(job.metadata.name)
    shown = pods[:MOST_PODS]
    with ThreadPoolExecutor(AT_A_TIME) as readers:
        found = list(readers.map(lambda pod: _samples(cluster, pod), shown))
    pages = [one if isinstance(one, list) else [] for one in found]
    problem = next((one for one in found if isinstance(one, str)), "")
    ranks = {rank.rank: rank for pod in shown for rank in _ranks_of(job, pod)}
    totals: dict[str, float] = {}
    parts: dict[str, float] = {}
    steps = 0.0
    for pod, page in zip(shown, pages, strict=True):
        for sample in page:
            rank = ranks.get(int(sample.labels.get("rank", -1)))
            if sample.name == worker_metrics.LAST_STEP_TIME.name:
                for each in _ranks_of(job, pod):
                    ranks[each.rank].last_step = sample.value
            elif sample.name == f"{worker_metrics.STEP_DURATION.name}_sum":
                totals[sample.labels["phase"]] = sample.value
            elif sample.name == f"{worker_metrics.STEP_DURATION.name}_count":
                steps = sample.value
            elif sample.name == worker_metrics.STEP_PART.name:
                parts[sample.labels["part"]] = sample.value
            elif rank is not None and sample.name == worker_metrics.RANK_COMPUTE.name:
                rank.compute = sample.value
            elif rank is not None and sample.name == worker_metrics.STRAGGLER_RATIO.name:
                rank.straggler = sample.value
            elif rank is not None and sample.name == worker_metrics.MEMORY.name:
                rank.memory[sample.labels["kind"]] = sample.value
    phases = {phase: seconds / steps for phase, seconds in totals.items()} if steps else {}
    return JobView([ranks[number] for number in sorted(ranks)], len(pods) - len(shown), phases, parts, problem)


def _ranks_of(job: TrainingJob, pod: Body) -> Iterator[RankView]:
    spec = job.effective_job.spec
    index = int(pod["metadata"]["labels"][constants.LABEL_INDEX])
    serves = spec.is_parameter_server(index)
    first = spec.world_size if serves else index * spec.procs_per_worker
    for local in range(1 if serves else spec.procs_per_worker):
        yield RankView(first + local, *pod_row(pod))


def _samples(cluster: Cluster, pod: Body) -> list[Sample] | str:
    """What a pod's page says, or why it cannot be read."""
    if (pod.get("status") or {}).get("phase") != "Running":
        return []
    if constants.ANNOTATION_PORT not in (pod["metadata"].get("annotations") or {}):
        return "the program serves no metrics, see spec.metrics"
    try:
        page = cluster.metrics(pod)
        return [sample for family in text_string_to_metric_families(page) for sample in family.samples]
    except ClusterProblem as problem:
        return str(problem)
    except (ValueError, IndexError):
        return f"the page of pod {pod['metadata']['name']} is not in the Prometheus text format"
