"""`python -m trainyard_trainer.replay FOLDER STEP` in a pod of the trainer image: what the samples of a step did.

Prints what `trainyard explain-step -o json` prints, and exits with 2 if the run cannot be replayed.
"""

import argparse
import json
import sys

from trainyard_trainer.replay.explain_step import explain_step
from trainyard_trainer.runtime.object_store import location


def main() -> None:
    """Explain a step of a run."""
    parser = argparse.ArgumentParser(prog="python -m trainyard_trainer.replay", description=__doc__)
    parser.add_argument("folder", type=location, help="folder of the run's checkpoints, or its URL: /checkpoints/JOB")
    parser.add_argument("step", type=int, help="number of the step, from 1")
    parser.add_argument("--top", type=int, default=10, help="samples whose places and text are looked for")
    arguments = parser.parse_args()
    try:
        found = explain_step(arguments.folder, arguments.step, top=arguments.top)
    except ValueError as error:  # ReplayError, ConfigError
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    print(json.dumps(found.to_dict(), indent=1))


if __name__ == "__main__":
    main()
