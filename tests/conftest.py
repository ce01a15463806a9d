"""What all tests share: how examples are drawn, and what happens where a machine lacks something."""

import os
from collections.abc import Generator

import pytest
from hypothesis import HealthCheck, settings

CI = bool(os.environ.get("CI"))

# In CI the same examples each time: a red build must mean a new defect, not a lucky draw.
settings.register_profile(
    "trainyard",
    deadline=None,
    max_examples=60,
    derandomize=CI,
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("trainyard")

BUILD_SECONDS = 1800
"""In which Kubernetes and the images are built from nothing, on a machine that is busy with other things, too."""


@pytest.hookimpl(trylast=True)  # after the folders have marked theirs
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The first test that needs a cluster of some kind may take as long as it takes to build one."""
    for kind in ("integration", "e2e"):
        first = next((item for item in items if item.get_closest_marker(kind)), None)
        if first is not None:
            first.add_marker(pytest.mark.timeout(BUILD_SECONDS))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """With CI=true a skipped test is a failed one: a part that nobody can run there is a part that nobody tests."""
    report = yield
    if CI and report.skipped and not hasattr(report, "wasxfail"):
        where, _, why = report.longrepr if isinstance(report.longrepr, tuple) else (item.path, 0, report.longrepr)
        report.outcome = "failed"
        report.longrepr = f"{where}: {why} (CI=true: what is skipped here would be tested nowhere)"
    return report
