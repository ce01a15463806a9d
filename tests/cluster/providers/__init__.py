"""The ways to get a cluster, in the order in which they are tried."""

from __future__ import annotations

from tests.cluster.model import ClusterError, Profile, Provider
from tests.cluster.providers.assets import Assets
from tests.cluster.providers.built import Built
from tests.cluster.providers.existing import Existing
from tests.cluster.providers.kind import Kind

PROVIDERS: tuple[type[Provider], ...] = (Existing, Assets, Kind, Built)


def choose(profile: Profile) -> Provider:
    """Return the first provider that applies."""
    for provider in (make() for make in PROVIDERS):
        if provider.applies(profile):
            return provider
    raise ClusterError("no way to get a cluster here: set TRAINYARD_TEST_KUBECONFIG to one of your own")
