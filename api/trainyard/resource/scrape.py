"""`spec.metrics`: where a user's own program serves its metrics."""

from typing import Annotated, ClassVar

from pydantic import Field

from trainyard.base import ApiModel, Rule
from trainyard.protocol import constants, launcher_protocol


class Metrics(ApiModel):
    """A page in the Prometheus text format that each worker serves.

    Prometheus finds it by the annotations of the pods and by the name of the container port, metrics. The operator
    reads the page of worker 0 into status.progress, as far as its metrics have the names of the built-in trainer's
    (trainyard_steps_total, trainyard_loss, ...). The Python module trainyard.reporter serves such a page.
    """

    port: Annotated[int, Field(ge=1, le=65_535)] = constants.METRICS_PORT
    """TCP port of the page. The program must take it from the environment variable TRAINYARD_METRICS_PORT: `trainyard
    run` sets another one for each worker, since all workers are on one machine then. Defaults to 9400."""
    path: Annotated[str, Field(max_length=1024, pattern=r"^/[A-Za-z0-9._~/-]*$")] = "/metrics"
    """HTTP path of the page. Defaults to /metrics."""

    cel_rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            f"!(self.port in [{constants.RENDEZVOUS_PORT}, {launcher_protocol.LAUNCHER_PORT}])",
            f"spec.metrics.port: must not be {constants.RENDEZVOUS_PORT} (rendezvous) or "
            f"{launcher_protocol.LAUNCHER_PORT} (launcher); choose another port",
        ),
    )
