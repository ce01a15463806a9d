"""Images of the project, built with or without a container engine."""

from __future__ import annotations

from tests.cluster.images.buildah import Buildah
from tests.cluster.images.engine import Engine, container_engine
from tests.cluster.model import ImageStore

TARGETS = ("operator", "trainer")
"""The images that the project's Dockerfile makes."""


def image_store() -> ImageStore:
    """Return the store of the container engine if one runs, else this tool's own."""
    engine = container_engine()
    return Engine(engine) if engine else Buildah()


def reference(target: str) -> str:
    """Return the reference of a target's image; no registry serves it, hence localhost."""
    return f"localhost/trainyard-{target}:dev"
