"""Entry points of the console scripts, which every extra installs, although only the extra "cli" can run them."""

import sys
from importlib import import_module

EXIT_BAD_INSTALLATION = 2


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
    except ModuleNotFoundError as error:
        # A module of Trainyard's own that is missing is a defect, not an incomplete installation.
        if (error.name or "").startswith("trainyard"):
            raise
        fix = 'install the extra "cli" from a checkout of Trainyard: uv tool install ".[cli]"'
        print(f"error: the package {error.name} is not installed; {fix}", file=sys.stderr)
        sys.exit(EXIT_BAD_INSTALLATION)
    function()
