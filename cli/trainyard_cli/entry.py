"""Entry points of the console scripts, which every extra installs, although only the extra "cli" can run them."""

import sys
from importlib import import_module

# Not from exit_codes, which imports the resource types and pydantic.
EXIT_BAD_INSTALLATION, EXIT_INTERRUPTED = 2, 130


def main() -> None:
    """Run `trainyard` or `kubectl-trainyard`."""
    _run("trainyard_cli.main")


def complete() -> None:
    """Run `kubectl_complete-trainyard`."""
    _run("trainyard_cli.completion")


def _run(module: str) -> None:
    """Call the module's `main`; without a package of the extra "cli" print one line that names the fix."""
    try:
        function = import_module(module).main
    except KeyboardInterrupt:  # later ones are handled by typer
        sys.exit(EXIT_INTERRUPTED)
    except ModuleNotFoundError as error:
        # A missing module of Trainyard itself is a defect, not an incomplete installation.
        if (error.name or "").startswith("trainyard"):
            raise
        fix = 'install the extra "cli" from a checkout of Trainyard: uv tool install ".[cli]"'
        print(f"error: the package {error.name} is not installed; {fix}", file=sys.stderr)
        sys.exit(EXIT_BAD_INSTALLATION)
    function()
