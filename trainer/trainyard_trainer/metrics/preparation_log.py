"""Progress of the preparation of the data, for those who wait for the first step."""

from trainyard_trainer.metrics.exporter import MetricsExporter
from trainyard_trainer.runtime import log

LOG_SECONDS = 10.0
"""Seconds between two lines of the log."""


class PreparationLog:
    """Shows the progress of the preparation on the metrics page, and from time to time in the log."""

    def __init__(self, exporter: MetricsExporter | None) -> None:
        self._exporter = exporter
        self._logged = 0.0

    def __call__(self, share: float, seconds: float) -> None:
        """Show that a share of the data is prepared, after so many seconds."""
        if self._exporter is not None:
            self._exporter.prepared(share, seconds)
        if seconds - self._logged >= LOG_SECONDS:
            self._logged = seconds
            log.info(f"{share:.1%} of the data is prepared, after {seconds:.0f} s", dataPrepared=round(share, 3))
