"""What ends a run and is no fault of the code: it shows only inside a worker, and needs no traceback."""


class ConfigError(ValueError):
    """The job can never work as it is configured, so that no restart helps.

    The message names the field, the rule and the fix. The worker ends with EXIT_INVALID_CONFIG and without a
    traceback.
    """


class BadSteps(ArithmeticError):
    """Steps give no gradient that can be followed, and spec.health.badSteps wants the attempt to fail.

    The worker ends with EXIT_BAD_STEPS and without a traceback.
    """

    def __init__(self, message: str, *, elsewhere: bool) -> None:
        """`elsewhere`: what is no number came from other ranks."""
        super().__init__(message)
        self.elsewhere = elsewhere
