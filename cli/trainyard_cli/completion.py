"""`kubectl_complete-trainyard`: kubectl runs it to complete `kubectl trainyard ...`."""

import os
import shlex
import sys

from trainyard_cli.main import app


def main() -> None:
    """Print what may stand in place of the last argument, one word a line, as the completion of bash gets it.

    The last line is for kubectl, as its own completion has it: 4 means that no file names belong there.
    """
    words = ["trainyard", *sys.argv[1:]]
    os.environ |= {
        "_TRAINYARD_COMPLETE": "complete_bash",
        "COMP_WORDS": shlex.join(words[:-1]) + " " + words[-1],
        "COMP_CWORD": str(len(words) - 1),
    }
    try:
        app(prog_name="trainyard")
    except SystemExit:  # how it ends in any case
        print(":4")


if __name__ == "__main__":
    main()
