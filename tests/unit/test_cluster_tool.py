"""The tool for test clusters, without a cluster."""

from tests.cluster import Profile


def test_import() -> None:
    assert Profile("node") is Profile.NODE
