"""Paths that may be URLs of object stores."""

from trainyard.base import Rule

SCHEMES = ("s3", "gs", "az")
"""Schemes of the object stores: S3 and what has its interface, Google Cloud Storage, Azure Blob Storage."""
SECRET_VARIABLES = (
    *("AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AZURE_STORAGE_ACCOUNT_KEY", "AZURE_CLIENT_SECRET"),
    *("AZURE_STORAGE_CONNECTION_STRING", "HF_TOKEN", "WANDB_API_KEY", "MLFLOW_TRACKING_PASSWORD"),
)
"""Environment variables whose values are secret."""
URL_PATTERN = r"^(s3|gs|az)://[A-Za-z0-9][A-Za-z0-9._-]*(/[^@?#\x00-\x20]+)?$"
"""A bucket and a name in it, with no place for credentials."""


def is_url(path: str) -> bool:
    """Return whether a path is the URL of an object store."""
    return "://" in path


def url_rule(field: str, name: str, *, required: bool = False) -> Rule:
    """Return the rule that a path, if it is a URL, is one of an object store and holds no credentials.

    Args:
        field: field of the object that has the rule.
        name: complete name of the field, for the message.
        required: whether a path that is no URL is an error.
    """
    path = "" if required else f" || !self.{field}.contains('://')"
    return Rule(
        f"!has(self.{field}){path} || self.{field}.matches(r'{URL_PATTERN}')",
        f"{name}: a URL must be s3://BUCKET/NAME, gs://BUCKET/NAME or az://CONTAINER/NAME without credentials, which "
        "belong into a Secret (workers.template, env or envFrom); correct it",
    )
