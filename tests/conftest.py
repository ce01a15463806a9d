"""Hooks of all tests: how examples are drawn, what runs side by side, what a skip means, how long each folder took."""

import os
import signal
import sys
from collections import defaultdict
from collections.abc import Generator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from xdist.remote import Producer
from xdist.scheduler import LoadScopeScheduling

# A shell ignores Ctrl-C for what it runs in the background, and the programs under test would inherit that.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
# pytest-xdist sets it, but what is not printed to a terminal has no width.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.pop("COLUMNS", None)

CI = bool(os.environ.get("CI"))
EXAMPLES = os.environ.get("TRAINYARD_TEST_EXAMPLES")
"""Examples of each property test, drawn at random; without it 60, in CI the same ones each time."""

# In CI the same examples each time: a red build must mean a new defect, not a lucky draw.
settings.register_profile(
    "trainyard",
    deadline=None,
    max_examples=int(EXAMPLES or 60),
    derandomize=CI and not EXAMPLES,
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("trainyard")

WAITING = ("conformance", "integration", "e2e")
"""Folders whose tests mostly wait: for an API server, leases, terminations, the windows of an alert. With `-n 2` one
process begins with them, beside another one with tests that compute."""

BUILD_SECONDS = 1800
"""Timeout of a test that may have to wait until Kubernetes and the images are built, on a busy machine."""


class TwoKinds(LoadScopeScheduling):
    """Runs all tests that wait in one process, and each file of the others in the process that has time for it."""

    def _split_scope(self, nodeid: str) -> str:
        """Return the name of the group to which a test belongs."""
        return "waiting" if _folder(nodeid) in WAITING else nodeid.partition("::")[0]


def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> TwoKinds:
    """Return the scheduler for several processes."""
    return TwoKinds(config, log)


@pytest.hookimpl(trylast=True)  # after the folders have marked theirs
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Give the first test that needs a cluster of some kind the time to build one.

    Of several processes, one begins with the tests that wait; a single process begins with the quick ones.
    """
    if "PYTEST_XDIST_WORKER" in os.environ:
        items.sort(key=lambda item: _folder(item.nodeid) not in WAITING)
    for kind in WAITING:
        first = next((item for item in items if _folder(item.nodeid) == kind and _needs_cluster(item)), None)
        if first is not None:
            first.add_marker(pytest.mark.timeout(BUILD_SECONDS), append=False)  # before a timeout of its own


def _needs_cluster(item: pytest.Item) -> bool:
    clusters = {"cluster", "own_cluster", "outcomes"}
    return isinstance(item, pytest.Function) and not clusters.isdisjoint(item.fixturenames)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Give way to the waiting tests, if these run in another process: their time counts, that of a computing one not.

    The pods and the control plane are in no test's process, so they come before the computing tests as well.
    """
    if "PYTEST_XDIST_WORKER" in os.environ and _folder(item.nodeid) not in WAITING:
        os.nice(max(0, 19 - os.nice(0)))


def _folder(nodeid: str) -> str:
    """Return the folder of a test below tests/."""
    return Path(nodeid).parts[1]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """With CI=true turn a skip into a failure: what is skipped there is tested nowhere.

    Tests marked `extended` are deselected rather than skipped, so this does not concern them.
    """
    report = yield
    if CI and report.skipped and not hasattr(report, "wasxfail"):
        where, _, why = report.longrepr if isinstance(report.longrepr, tuple) else (item.path, 0, report.longrepr)
        report.outcome = "failed"
        report.longrepr = f"{where}: {why} (CI=true: what is skipped here would be tested nowhere)"
    return report


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Name a failed test at once: a run that is cut short has no summary, and an hour is long to wait for it."""
    if report.failed and "PYTEST_XDIST_WORKER" not in os.environ:
        crash = getattr(report.longrepr, "reprcrash", None)
        first = str(crash.message if crash else report.longrepr).partition("\n")[0]
        print(f"\n{report.when} of {report.nodeid} failed: {first}", file=sys.stderr, flush=True)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print how many seconds the tests of each folder took; build/tests.xml has those of each test."""
    seconds: dict[str, float] = defaultdict(float)
    for reports in terminalreporter.stats.values():
        for report in reports:
            if isinstance(report, pytest.TestReport):
                seconds[_folder(report.nodeid)] += report.duration
    if seconds:
        listed = ", ".join(f"{folder} {took:.0f}" for folder, took in seconds.items())
        terminalreporter.write_line(f"seconds by folder: {listed}")
