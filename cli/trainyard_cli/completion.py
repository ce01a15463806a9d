"""`kubectl_complete-trainyard`: called by kubectl to complete `kubectl trainyard ...`."""

import os
import shlex
import sys

from trainyard_cli.main import app


def main() -> None:
    """Print the completions of the last argument, one a line, in the form that kubectl expects.

    The last line is kubectl's directive: 4 means that file names are not completed.
    """
    words = ["trainyard", *sys.argv[1:]]
    os.environ |= {
        "_TRAINYARD_COMPLETE": "complete_bash",
        "COMP_WORDS": shlex.join(words[:-1]) + " " + words[-1],
        "COMP_CWORD": str(len(words) - 1),
    }
    try:
        app(prog_name="trainyard")
    except SystemExit:  # typer ends every completion this way
        print(":4")


if __name__ == "__main__":
    main()
