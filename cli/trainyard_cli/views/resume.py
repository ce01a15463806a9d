"""What resuming a run with a manifest would change."""

from pathlib import Path

from rich.console import Console
from rich.text import Text

from trainyard.config import RunConfig
from trainyard.manifest import ManifestError
from trainyard.resume import Difference, Effect, refusals
from trainyard.run_record import RUN_FILE, RunRecord, compare_config

_STYLES = {Effect.ALLOWED: "green", Effect.WARNING: "yellow", Effect.REFUSED: "red"}


def read_record(folder: Path) -> RunRecord | None:
    """Return the record of the run in a folder of `trainyard run`, or in a folder of checkpoints; None without one.

    Raises:
        ManifestError: the record cannot be read.
    """
    try:
        return RunRecord.read(folder / "checkpoints") or RunRecord.read(folder)
    except ValueError as error:
        raise ManifestError([str(error)]) from None
    except OSError as error:
        raise ManifestError([f"{folder / RUN_FILE} cannot be read: {error.strerror or error}"]) from None


def print_changes(record: RunRecord, config: RunConfig, console: Console) -> list[Difference]:
    """Print the differences between a run and the configuration that is to resume it, and return them.

    Raises:
        ManifestError: the table of `trainyard.resume` refuses one of them.
    """
    found = compare_config(record, config)
    console.print(f"run {record.id} of {record.created:%Y-%m-%d %H:%M}: " + ("changes" if found else "no changes"))
    for difference in found:
        effect = difference.rule.effect
        console.print(Text.assemble(" ", (str(effect), _STYLES[effect]), f"  {difference}"), soft_wrap=True)
    if problem := refusals(found, f"the run {record.id}"):
        raise ManifestError([problem])
    return found
