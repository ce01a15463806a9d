"""`spec.checkpoint`: where the state of a run is kept, and how often it is written."""

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from trainyard.base import ApiModel, Positive, Rule

DEFAULT_EVERY_SECONDS = 600
DEFAULT_KEEP = 2

_VOLUME_SOURCES = (
    *("awsElasticBlockStore", "azureDisk", "azureFile", "cephfs", "cinder", "csi", "emptyDir", "ephemeral", "fc"),
    *("flexVolume", "gcePersistentDisk", "glusterfs", "hostPath", "iscsi", "nfs", "persistentVolumeClaim"),
    *("portworxVolume", "quobyte", "rbd", "scaleIO", "storageos", "vsphereVolume"),
)
"""Writable volume sources of core/v1. They are declared so that the API server compares them completely when it checks
that they are not changed (see `trainyard.resource.immutability`); other sources pass, too."""

VolumeSource = Annotated[
    dict[str, Any],
    Field(
        json_schema_extra={
            "x-kubernetes-preserve-unknown-fields": True,
            "properties": {
                name: {
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
    """A PersistentVolumeClaim, named as the job, that the operator makes."""

    size: Annotated[str, Field(max_length=32, pattern=r"^[1-9][0-9]*(\.[0-9]+)?(Ki|Mi|Gi|Ti|Pi|k|M|G|T|P)?$")]
    """Storage to ask for, for example 500Gi. A checkpoint of AdamW takes 12 bytes for each parameter."""
    storage_class_name: Annotated[str, Field(min_length=1, max_length=253)] | None = None
    """Class of the storage; the cluster's default if absent."""
    access_modes: Annotated[tuple[AccessMode, ...], Field(min_length=1, max_length=4)] = ("ReadWriteMany",)
    """How it can be mounted. Workers on several nodes need ReadWriteMany."""
    retain: bool = False
    """true: the claim stays when the job is deleted, and a later job of the same name continues from it."""


class Checkpoint(ApiModel):
    """Where the state of the run is kept, so that it goes on after a failure or a suspension, on any layout."""

    volume: VolumeSource | None = None
    """Source of a volume, as in a pod without its name, for example {persistentVolumeClaim: {claimName: shared}}. Each
    job has a folder of its own name in it, and continues from what it finds there."""
    claim: Claim | None = None
    """A claim that the operator makes for this job, instead of volume."""
    every_steps: Positive | None = None
    """Steps from one checkpoint to the next."""
    every_seconds: Positive | None = None
    """Seconds from one checkpoint to the next. With neither everySteps nor everySeconds: 600."""
    keep: Annotated[int, Field(ge=1, le=1000)] | None = None
    """How many checkpoints are kept; 2 if absent, so that a damaged one does not lose the run."""
    async_: Annotated[bool | None, Field(alias="async")] = None
    """true (the default): training goes on while a checkpoint is written. Needs memory for a second copy of the
    state, on the host. false: training waits."""

    cel_rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            "has(self.volume) != has(self.claim)",
            "spec.checkpoint: exactly one of volume and claim must be given; add one or remove the other",
        ),
    )


class CheckpointConfig(ApiModel):
    """The same for the trainer, complete."""

    every_steps: int | None = None
    every_seconds: int | None = None
    keep: int
    async_: Annotated[bool, Field(alias="async")]


def checkpoint_config(spec: Checkpoint | None) -> CheckpointConfig | None:
    """Defaults filled in; None for a job without checkpoints."""
    if spec is None:
        return None
    timed = spec.every_steps is not None or spec.every_seconds is not None
    return CheckpointConfig(
        every_steps=spec.every_steps,
        every_seconds=spec.every_seconds if timed else DEFAULT_EVERY_SECONDS,
        keep=DEFAULT_KEEP if spec.keep is None else spec.keep,
        async_=spec.async_ is not False,
    )
