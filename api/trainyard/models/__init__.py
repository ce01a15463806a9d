"""The model families: what they are, without torch. `FAMILIES` is the registry.

The fields, the enum and the rules of `spec.trainer.model`, its documentation and the estimates follow from it.
"""

import sys
from typing import Any

from trainyard.models.custom import CustomFamily
from trainyard.models.family import ModelFamily
from trainyard.models.llama import LlamaFamily
from trainyard.models.mlp import MlpFamily
from trainyard.models.moe import MoeFamily

FAMILIES: dict[str, ModelFamily[Any]] = {
    family.name: family for family in (LlamaFamily(), MoeFamily(), MlpFamily(), CustomFamily())
}
"""The families by name, in the order of the documentation."""


def register(family: ModelFamily[Any]) -> None:
    """Add a family of another package; call this before `trainyard.resource` is imported.

    Its types, and so the CRD, are made from the registry when they are imported.

    Raises:
        ValueError: the name is taken.
        RuntimeError: the types were made already, without the family.
    """
    if "trainyard.resource.models" in sys.modules:
        raise RuntimeError(f"model family {family.name}: register it before trainyard.resource is imported")
    if family.name in FAMILIES:
        raise ValueError(f"model family {family.name}: is registered already; choose another name")
    FAMILIES[family.name] = family
