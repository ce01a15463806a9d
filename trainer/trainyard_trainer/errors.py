"""Mistakes in a job's configuration that show only inside a worker."""


class ConfigError(ValueError):
    """The job can never work as it is configured, so that no restart helps.

    The message names the field, the rule and the fix. The worker ends with EXIT_INVALID_CONFIG and without a
    traceback.
    """
