"""The TrainingJob resource: types, defaults, admission checks and the CRD generator."""

from importlib.metadata import version

__all__ = ["__version__"]

__version__ = version("trainyard-k8s")
"""Version of the distribution that this package is installed from."""
