"""`spec.metrics`: where a program of the user's own tells how far it is."""

from typing import Annotated, ClassVar

from pydantic import Field

from trainyard.base import ApiModel, Rule
from trainyard.protocol import constants, launcher_protocol


class Metrics(ApiModel):
    """A page in the Prometheus text format that each worker serves.

    Prometheus finds it by the annotations of the pods and by the port's name, metrics. Of worker 0's page the operator
    reads the figures that have the names of the built-in trainer's (trainyard_steps_total, trainyard_loss, ...) into
    status.progress; `trainyard.reporter` serves such a page.
    """

    port: Annotated[int, Field(ge=1, le=65_535)] = constants.METRICS_PORT
    """Port, which the program also finds in TRAINYARD_METRICS_PORT. `trainyard run` gives it another one, since all
    workers are on one machine then."""
    path: Annotated[str, Field(max_length=1024, pattern=r"^/[A-Za-z0-9._~/-]*$")] = "/metrics"
    """Path of the page."""

    cel_rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            f"!(self.port in [{constants.RENDEZVOUS_PORT}, {launcher_protocol.LAUNCHER_PORT}])",
            f"spec.metrics.port: {constants.RENDEZVOUS_PORT} (rendezvous) and {launcher_protocol.LAUNCHER_PORT} "
            "(launcher) are in use; choose another port",
        ),
    )
