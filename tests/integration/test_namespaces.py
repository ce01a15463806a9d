"""An operator of some namespaces, with the rights that the chart gives it there and nowhere else."""

from pathlib import Path

from tests.builders import make_manifest
from tests.cluster import Cluster
from tests.integration.conftest import chart_environment, leave, new_namespace
from tests.support.kube import Api, eventually
from tests.support.operator import operating

OF_NAMESPACES = ("crd.install=false", "userRoles.create=false")


def environment(cluster: Cluster, folder: Path, system: str, *namespaces: str) -> dict[str, str]:
    watched = f"operator.watchNamespaces={{{','.join(namespaces)}}}"
    return chart_environment(cluster, folder, watched, *OF_NAMESPACES, system=system)


async def test_an_operator_of_two_namespaces_serves_these_and_touches_no_other(
    own_cluster: Cluster, own_api: Api, tmp_path: Path
) -> None:
    first, second, other = [await new_namespace(own_api) for _ in range(3)]
    await first.create_job(make_manifest("before"))
    variables = environment(own_cluster, tmp_path, "two-system", first.name, second.name)
    async with operating(variables, tmp_path / "log") as operator:
        await first.has_pods("before-1-0", "before-1-1")  # by its list
        for namespace in (first, second, other):
            await namespace.create_job(make_manifest())
        await first.has_pods("before-1-0", "before-1-1", "job-1-0", "job-1-1")  # by its watch
        await second.has_pods("job-1-0", "job-1-1")
        assert await other.pods() == {}
        assert (await other.job())["status"].get("conditions", []) == []
        assert operator.logged("forbidden") == [], "it asks for nothing that it may not"
        for namespace in (first, second, other):
            await leave(namespace)


async def test_a_namespace_without_a_role_is_named_in_the_log(
    own_cluster: Cluster, own_api: Api, tmp_path: Path
) -> None:
    watched, without = [await new_namespace(own_api) for _ in range(2)]
    variables = environment(own_cluster, tmp_path, "one-system", watched.name)
    variables["TRAINYARD_WATCH_NAMESPACES"] = f"{watched.name},{without.name}"
    async with operating(variables, tmp_path / "log", ready=False) as operator:

        async def check() -> None:
            [line, *_] = operator.logged("cannot list TrainingJobs: ") or [""]
            assert f'in the namespace "{without.name}"' in line

        await eventually(check)
