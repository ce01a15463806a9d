"""Errors that end a run without a fault in the code, so that they need no traceback."""


class ConfigError(ValueError):
    """The job can never work as it is configured, so a restart does not help.

    The message names the field, the rule and the fix. The worker exits with EXIT_INVALID_CONFIG.
    """


class FinalCheckpointFailed(Exception):
    """The state at the end of the training could not be saved, although the save was tried repeatedly.

    The worker exits with EXIT_FINAL_CHECKPOINT_FAILED.
    """

    def __init__(self, message: str, *, on_other_ranks: bool) -> None:
        """`on_other_ranks`: another rank has failed to save, and only that one knows why."""
        super().__init__(message)
        self.on_other_ranks = on_other_ranks


class ExportFailed(Exception):
    """The training is complete and saved, but its weights could not be exported; the next attempt exports them again.

    The worker exits with code 1, so that restarts are counted.
    """

    def __init__(self, message: str, *, on_other_ranks: bool) -> None:
        """`on_other_ranks`: another rank has failed to write, and only that one knows why."""
        super().__init__(message)
        self.on_other_ranks = on_other_ranks


class BadSteps(ArithmeticError):
    """Gradients are not finite or spike, and spec.health.badSteps demands that the attempt fails.

    The worker exits with EXIT_BAD_STEPS.
    """

    def __init__(self, message: str, *, on_other_ranks: bool) -> None:
        """`on_other_ranks`: the NaN or Inf came from other ranks."""
        super().__init__(message)
        self.on_other_ranks = on_other_ranks
