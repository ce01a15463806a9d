"""What tests and the command line call."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.cluster.images import TARGETS, image_store, reference
from tests.cluster.model import Cluster, Profile, Request
from tests.cluster.paths import REPOSITORY
from tests.cluster.progress import say, step
from tests.cluster.providers import choose

DEFAULT_NAME = "default"


def up(profile: Profile = Profile.NODE, *, name: str = DEFAULT_NAME) -> Cluster:
    """Return a healthy cluster: at once if there is one, else repaired, else new.

    Raises ClusterError, with the end of the log of whatever is not healthy.
    """
    return choose(profile).up(Request(profile, name))


def prepare() -> None:
    """Compile the programs and build the images of a cluster with a node, so that `up` and `build_images` find both.

    Tests that need them meanwhile wait for the locks that this holds. Raises ClusterError.
    """
    choose(Profile.NODE).prepare(Request(Profile.NODE, DEFAULT_NAME))
    build_images(None)


def down(profile: Profile = Profile.NODE, *, name: str = DEFAULT_NAME, purge: bool = False) -> None:
    """Remove the cluster, if there is one; with `purge`, remove the caches it was made from too.

    A cluster of the user's own (TRAINYARD_TEST_KUBECONFIG) is left alone.
    """
    choose(profile).down(Request(profile, name), purge=purge)


def status(profile: Profile = Profile.NODE, *, name: str = DEFAULT_NAME) -> Mapping[str, str]:
    """The parts of the cluster and how each of them is; empty if there is no cluster."""
    return choose(profile).status(Request(profile, name))


def build_images(
    cluster: Cluster | None,
    targets: Sequence[str] = TARGETS,
    *,
    dockerfile: Path = REPOSITORY / "Dockerfile",
    context: Path = REPOSITORY,
) -> dict[str, str]:
    """Build targets of the Dockerfile and load them into the cluster, as far as they have changed.

    Returns what each target's image is called in the cluster.
    """
    store = image_store()
    references = {target: reference(target) for target in targets}
    for target, name in references.items():
        store.build(dockerfile, context, target, name)
        if cluster is not None:
            with step(f"loading {name}"):
                if not cluster.load_built(store, name):
                    say(f"{name} is loaded already")
    return references
