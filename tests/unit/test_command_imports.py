"""The command loads nothing of the trainer before a command needs it."""

import subprocess
import sys


def test_the_command_loads_no_torch() -> None:
    program = "import sys, trainyard_cli.main; sys.exit(any(n in sys.modules for n in ('torch', 'captum', 'kopf')))"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
