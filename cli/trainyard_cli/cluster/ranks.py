"""Metrics of a job's ranks, read from the pods' metrics pages."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

from trainyard.protocol import constants, worker_metrics
from trainyard.resource.job import TrainingJob
from trainyard_cli.cluster.client import Body, Cluster
from trainyard_cli.cluster.errors import ClusterError
from trainyard_cli.cluster.pods import pod_state

PARALLEL_READS = 16
"""Pages that are read in parallel."""
MAX_PODS = 64
"""Pods whose pages are read; larger jobs are for dashboards."""


@dataclass(slots=True)
class RankView:
    """Metrics of one rank."""

    rank: int
    pod: str
    node: str
    state: str
    last_step: float | None = None
    """Unix time, in seconds, at which the rank's pod finished its last step."""
    compute: float | None = None
    """Seconds that the rank takes for a computation that is the same on all ranks (spec.health.straggler)."""
    straggler: float | None = None
    """Computation time relative to the median rank, if the rank is a straggler."""
    memory: dict[str, float] = field(default_factory=dict)
    """Bytes by kind of memory."""


@dataclass(slots=True)
class JobView:
    """Metrics of all ranks of a job, and how the time of a step is divided."""

    ranks: list[RankView]
    omitted_pods: int
    """Number of pods whose pages were not read."""
    phases: dict[str, float]
    """Mean seconds of a step by phase in this attempt; empty before the first step."""
    parts: dict[str, float] = field(default_factory=dict)
    """Shares of computation, communication and their overlap in the last sampled step."""
    problem: str = ""
    """Reason why a page could not be read; empty if all could."""


def read_ranks(cluster: Cluster, job: TrainingJob) -> JobView:
    """Read the metrics pages of the job's pods; ranks of a page that cannot be read have no metrics."""
    pods = cluster.list_pods(job.metadata.name)
    selected = pods[:MAX_PODS]
    with ThreadPoolExecutor(PARALLEL_READS) as readers:
        results = list(readers.map(lambda pod: _read_samples(cluster, pod), selected))
    pages = [result if isinstance(result, list) else [] for result in results]
    problem = next((result for result in results if isinstance(result, str)), "")
    ranks = {rank.rank: rank for pod in selected for rank in _ranks_of(job, pod)}
    totals: dict[str, float] = {}
    parts: dict[str, float] = {}
    steps = 0.0
    for pod, page in zip(selected, pages, strict=True):
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
    return JobView([ranks[number] for number in sorted(ranks)], len(pods) - len(selected), phases, parts, problem)


def _ranks_of(job: TrainingJob, pod: Body) -> Iterator[RankView]:
    spec = job.effective_job.spec
    index = int(pod["metadata"]["labels"][constants.LABEL_INDEX])
    is_server = spec.is_parameter_server(index)
    first = spec.world_size if is_server else index * spec.procs_per_worker
    for local_rank in range(1 if is_server else spec.procs_per_worker):
        yield RankView(first + local_rank, *pod_state(pod))


def _read_samples(cluster: Cluster, pod: Body) -> list[Sample] | str:
    """Return the samples of a pod's page, or the reason why it cannot be read."""
    # A pod that does not run has no page yet, or no longer.
    if (pod.get("status") or {}).get("phase") != "Running":
        return []
    if constants.ANNOTATION_PORT not in (pod["metadata"].get("annotations") or {}):
        return "the program serves no metrics, see spec.metrics"
    try:
        page = cluster.read_metrics(pod)
        return [sample for family in text_string_to_metric_families(page) for sample in family.samples]
    except ClusterError as error:
        return str(error)
    except (ValueError, IndexError):
        return f"the metrics page of pod {pod['metadata']['name']} is not in the Prometheus text format"
