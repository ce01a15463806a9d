"""`spec.checkpoint`: where the state of a run is saved, and how often."""

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from trainyard.base import PART_OF_POD, ApiModel, Positive, Rule
from trainyard.resource.urls import url_rule

DEFAULT_EVERY_SECONDS = 600
"""Seconds between checkpoints if neither everySteps nor everySeconds is given."""
DEFAULT_KEEP = 2
"""Number of checkpoints that are kept by default."""

_VOLUME_SOURCES = (
    *("awsElasticBlockStore", "azureDisk", "azureFile", "cephfs", "cinder", "csi", "emptyDir", "ephemeral", "fc"),
    *("flexVolume", "gcePersistentDisk", "glusterfs", "hostPath", "iscsi", "nfs", "persistentVolumeClaim"),
    *("portworxVolume", "quobyte", "rbd", "scaleIO", "storageos", "vsphereVolume"),
)
"""Writable volume sources of core/v1. They are declared so that the API server compares them completely (see
`trainyard.resource.immutability`). Other sources are accepted, but replacing one of them by another goes unnoticed."""

VolumeSource = Annotated[
    dict[str, Any],
    Field(
        json_schema_extra={
            PART_OF_POD: True,
            "x-kubernetes-preserve-unknown-fields": True,
            "properties": {
                name: {
                    "type": "object",
                    "description": f"Volume source {name}, as in a pod.",
                    "x-kubernetes-preserve-unknown-fields": True,
                }
                for name in _VOLUME_SOURCES
            },
        }
    ),
]

AccessMode = Literal["ReadWriteOnce", "ReadOnlyMany", "ReadWriteMany", "ReadWriteOncePod"]


class Claim(ApiModel):
    """A PersistentVolumeClaim that the operator creates. It has the name of the job."""

    size: Annotated[str, Field(max_length=32, pattern=r"^[1-9][0-9]*(\.[0-9]+)?(Ki|Mi|Gi|Ti|Pi|k|M|G|T|P)?$")]
    """Storage that is requested, for example 500Gi. One checkpoint with AdamW takes 12 bytes per parameter, and `keep`
    of them exist at a time, for a moment one more."""
    storage_class_name: Annotated[str, Field(min_length=1, max_length=253)] | None = None
    """Name of the StorageClass. Defaults to the default class of the cluster."""
    access_modes: Annotated[tuple[AccessMode, ...], Field(min_length=1, max_length=4)] = ("ReadWriteMany",)
    """Access modes that are requested. Workers on several nodes need ReadWriteMany, which is the default."""
    retain: bool = False
    """Whether the claim is kept when the job is deleted, so that a later job of the same name resumes from its
    checkpoints. Defaults to false: the claim is deleted with the job."""


class Checkpoint(ApiModel):
    """Where and how often the state of the run is saved. A run resumes from the newest complete checkpoint after a
    failure or a suspension, also with another number of workers or another parallelism.
    """

    volume: VolumeSource | None = None
    """Source of the volume, as in a pod but without the name, for example {persistentVolumeClaim: {claimName: shared}};
    give one of volume, claim and url. Each job uses a folder of its own name in the volume and resumes from the
    checkpoints that it finds there. Sources that are not listed here are accepted, but the API server does not notice
    when one of them is replaced by another while the job is active."""
    claim: Claim | None = None
    """A PersistentVolumeClaim that the operator creates for this job; give one of claim, volume and url."""
    url: Annotated[str, Field(min_length=1, max_length=1024)] | None = None
    """URL of a folder in an object store, for example s3://bucket/runs; give one of url, volume and claim. s3: S3 and
    what has its interface, gs: Google Cloud Storage, az: Azure Blob Storage. Each job uses the folder NAMESPACE/NAME in
    it. Credentials come from a Secret, as environment variables of the worker: AWS_ACCESS_KEY_ID,
    AWS_SECRET_ACCESS_KEY, AWS_REGION and AWS_ENDPOINT_URL; GOOGLE_APPLICATION_CREDENTIALS; AZURE_STORAGE_ACCOUNT_NAME
    and AZURE_STORAGE_ACCOUNT_KEY."""
    every_steps: Positive | None = None
    """Number of optimizer steps between checkpoints. May be combined with everySeconds: then a checkpoint is saved when
    either is due. Only with trainer."""
    every_seconds: Positive | None = None
    """Time in seconds between checkpoints. Defaults to 600 if everySteps is absent, too. Only with trainer."""
    keep: Annotated[int, Field(ge=1, le=1000)] | None = None
    """Number of checkpoints that are kept; older ones are deleted. Defaults to 2, so that the run survives a damaged
    checkpoint. Only with trainer."""
    async_: Annotated[bool | None, Field(alias="async")] = None
    """Whether training continues while a checkpoint is written, which needs host memory for a second copy of the state.
    With false training waits until the checkpoint is complete. Defaults to true. Only with trainer."""

    cel_rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            "[has(self.volume), has(self.claim), has(self.url)].filter(given, given).size() == 1",
            "spec.checkpoint: exactly one of volume, claim and url must be given; add one, or remove the others",
        ),
        url_rule("url", "spec.checkpoint.url", required=True),
    )


class CheckpointConfig(ApiModel):
    """`spec.checkpoint` as the trainer reads it: all defaults filled in."""

    every_steps: int | None = None
    """Optimizer steps between checkpoints; None: not by steps."""
    every_seconds: int | None = None
    """Seconds between checkpoints; None: not by time."""
    keep: int
    """Number of checkpoints that are kept."""
    async_: Annotated[bool, Field(alias="async")]
    """Whether training continues while a checkpoint is written."""


def checkpoint_config(spec: Checkpoint | None) -> CheckpointConfig | None:
    """Return the trainer's configuration for `spec.checkpoint`, with defaults; None for a job without checkpoints."""
    if spec is None:
        return None
    has_interval = spec.every_steps is not None or spec.every_seconds is not None
    return CheckpointConfig(
        every_steps=spec.every_steps,
        every_seconds=spec.every_seconds if has_interval else DEFAULT_EVERY_SECONDS,
        keep=DEFAULT_KEEP if spec.keep is None else spec.keep,
        async_=spec.async_ is not False,
    )
