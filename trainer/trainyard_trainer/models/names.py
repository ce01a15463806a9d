"""Names of parameters here and in Hugging Face checkpoints."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class HuggingFaceNames:
    """A two-way map of parameter names of one model family."""

    architecture: str
    """Class of transformers whose checkpoints have these names."""
    outer: Mapping[str, str]
    """Parameters outside of the blocks: name here, name there."""
    block: Mapping[str, str]
    """Parameters of a block: name here after `blocks.N.`, name there after `model.layers.N.`."""
    experts: Mapping[str, str] = field(default_factory=dict)
    """Stacks of experts of a block: name here after `blocks.N.`, name there of one expert, {} being its number. There
    each expert has its own matrix [out, in]; here they are one stack [experts, in, out]."""

    def to_hugging_face(self, name: str, experts: int = 0) -> list[str]:
        """Return the names there of a parameter: one, or for a stack one for each of the `experts`, in their order.

        Raises:
            KeyError: the family has no such parameter.
        """
        found = re.fullmatch(r"blocks\.(\d+)\.(.+)", name)
        if found is None:
            return [self.outer[name]]
        prefix, inner = f"model.layers.{found[1]}.", found[2]
        if inner in self.experts:
            return [prefix + self.experts[inner].format(expert) for expert in range(experts)]
        return [prefix + self.block[inner]]

    def from_hugging_face(self, name: str) -> tuple[str, int | None]:
        """Return the name here of a parameter, and the number of its expert if it is one of a stack.

        Raises:
            KeyError: the family has no such parameter.
        """
        outer = {there: here for here, there in self.outer.items()}
        found = re.fullmatch(r"model\.layers\.(\d+)\.(.+)", name)
        if found is None:
            return outer[name], None
        prefix, inner = f"blocks.{found[1]}.", found[2]
        for here, there in self.experts.items():
            expert = re.fullmatch(re.escape(there).replace(r"\{\}", r"(\d+)"), inner)
            if expert is not None:
                return prefix + here, int(expert[1])
        block = {there: here for here, there in self.block.items()}
        return prefix + block[inner], None
