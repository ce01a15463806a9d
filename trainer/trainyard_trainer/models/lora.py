"""Low-rank adapters of the matrices of a model (LoRA; Hu et al., 2022), and their files in the format of PEFT.

The names of all other parameters stay as they are: the adapters of `blocks.0.attention.q.weight` are
`blocks.0.attention.q.lora_a` and `blocks.0.attention.q.lora_b`.
"""

import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainyard.resource.lora import Lora
from trainyard_trainer.models.family import Model
from trainyard_trainer.models.initial import Initial
from trainyard_trainer.models.names import HuggingFaceNames

A, B = ".lora_a", ".lora_b"
"""Ends of the names of adapters: [rank, in], and [out, rank]."""
PEFT_WEIGHTS, PEFT_CONFIG = "adapter_model.safetensors", "adapter_config.json"
"""Files of an adapter in the format of PEFT."""
_PEFT_ENDS = {A: ".lora_A.weight", B: ".lora_B.weight"}


class LoraLinear(nn.Linear):
    """A linear layer whose weight [out, in] is frozen, with an adapter beside it."""

    def __init__(self, layer: nn.Linear, lora: Lora) -> None:
        """Put an adapter beside the weight of a layer, which becomes this one's."""
        super().__init__(layer.in_features, layer.out_features, bias=False, device="meta")
        self.weight = layer.weight
        self.scale = lora.scale
        device = layer.weight.device
        self.lora_a = nn.Parameter(torch.empty(lora.rank, layer.in_features, device=device))
        self.lora_b = nn.Parameter(torch.empty(layer.out_features, lora.rank, device=device))

    def forward(self, x: Tensor) -> Tensor:
        # The narrow result is scaled, not the wide one.
        return F.linear(x, self.weight) + F.linear(F.linear(x, self.lora_a) * self.scale, self.lora_b)


def apply_lora(model: nn.Module, blocks: Iterable[nn.Module], lora: Lora, frozen: torch.dtype | None = None) -> None:
    """Put adapters beside the matrices of some blocks, and freeze all other parameters of the model.

    Args:
        model: a model without memory for its parameters.
        blocks: those of its modules whose matrices have adapters.
        lora: rank, scale and matrices.
        frozen: type that holds the frozen parameters; None: the one they have.
    """
    for name, parameter in list(model.named_parameters()):
        parent, _, own = name.rpartition(".")
        held = parameter.to(frozen) if frozen is not None else parameter
        model.get_submodule(parent).register_parameter(own, nn.Parameter(held.detach(), requires_grad=False))
    for block in blocks:
        places = [(holder, name, child) for holder in block.modules() for name, child in holder.named_children()]
        for holder, name, child in places:
            if name in lora.targets and isinstance(child, nn.Linear):
                holder.register_module(name, LoraLinear(child, lora))


def is_adapter(name: str) -> bool:
    """Return whether a parameter of this name is part of an adapter."""
    return name.endswith((A, B))


def initial_with_adapters(model: Model) -> Initial:
    """Return the initial values of a model with adapters, whose products are 0 at first: B is.

    The deviation of A is that of PEFT's uniform distribution (He et al., 2015, with a slope of sqrt(5)).
    """

    def initial(name: str, shape: tuple[int, ...]) -> tuple[float, float]:
        if name.endswith(A):
            return 0.0, 1 / math.sqrt(3 * shape[1])
        return (0.0, 0.0) if name.endswith(B) else model.initial(name, shape)

    return initial


def merge(weight: Tensor, lora_a: Tensor, lora_b: Tensor, lora: Lora) -> Tensor:
    """Return a weight [out, in] with its adapter added, computed in float32, in the type of the weight.

    Args:
        weight: the weight, or some of its rows.
        lora_a: A, [rank, in].
        lora_b: B, [out, rank], or the same rows of it.
        lora: the scale.
    """
    product = lora_b.float() @ lora_a.float()
    return (weight.float() + lora.scale * product).to(weight.dtype)


def peft_name(name: str, names: HuggingFaceNames) -> str:
    """Return the name of an adapter's parameter in a file of PEFT.

    Raises:
        KeyError: the family has no such parameter.
    """
    end = A if name.endswith(A) else B
    (there,) = names.to_hugging_face(f"{name.removesuffix(end)}.weight")
    return f"base_model.model.{there.removesuffix('.weight')}{_PEFT_ENDS[end]}"


def save_peft(folder: Path, adapters: Mapping[str, Tensor], lora: Lora, names: HuggingFaceNames, base: str) -> None:
    """Write adapters as PEFT reads them: `PeftModel.from_pretrained(model, folder)`.

    Args:
        folder: an existing folder.
        adapters: undivided parameters by name.
        lora: rank, alpha and matrices.
        names: names of the family's parameters in Hugging Face checkpoints.
        base: path or name of the model that the adapters belong to.

    Raises:
        OSError: a file cannot be written.
    """
    from safetensors.torch import save_file

    modules = {peft_name(name, names).split(".")[-3] for name in adapters}
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": lora.rank,
        "lora_alpha": lora.alpha,
        "lora_dropout": 0.0,
        "bias": "none",
        "target_modules": sorted(modules),
        "inference_mode": True,
    }
    tensors = {peft_name(name, names): tensor.contiguous() for name, tensor in adapters.items()}
    save_file(tensors, folder / PEFT_WEIGHTS, metadata={"format": "pt"})
    (folder / PEFT_CONFIG).write_text(json.dumps(config, indent=2) + "\n")
    # The library safetensors makes files that only their owner reads.
    (folder / PEFT_WEIGHTS).chmod((folder / PEFT_CONFIG).stat().st_mode)
