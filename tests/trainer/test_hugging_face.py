"""Llama 3, Qwen 3 and Mixtral: from the parameters of a Hugging Face checkpoint, the logits that transformers gives."""

import json

import pytest
import torch
from torch import Tensor

from tests.trainer.hugging_face import FILE, MODELS, POSITIONS, TOKENS, checkpoint
from trainyard.models import FAMILIES as FAMILY_TYPES
from trainyard.models.family import DataShape
from trainyard_trainer.models import FAMILIES
from trainyard_trainer.models.family import Model

LOGITS = json.loads(FILE.read_text())
SHAPE = DataShape(23, 48, None, None)


def build(name: str) -> Model:
    """Return a model with the parameters of its checkpoint."""
    sizes = MODELS[name]
    config = FAMILY_TYPES[sizes["name"]].config.model_validate(sizes)
    family = FAMILIES[sizes["name"]]
    model = family.build(config, SHAPE, range(config.layers))
    model.set_positions(0, 48, torch.device("cpu"))
    assert family.hugging_face is not None
    names = family.hugging_face(config)
    _, saved = checkpoint(sizes)
    for here, parameter in model.named_parameters():
        parts = [saved.pop(there) for there in names.to_hugging_face(here, config.to_dict().get("experts", 0))]
        # Experts: one matrix [out, in] each there, a stack [experts, in, out] here.
        values: Tensor = torch.stack([part.T for part in parts]) if parameter.ndim == 3 else parts[0]
        with torch.no_grad():
            parameter.copy_(values)
    assert not saved, "the checkpoint has parameters without a counterpart"
    return model


@pytest.mark.parametrize("name", MODELS)
def test_logits_are_those_of_transformers(name: str) -> None:
    found = build(name)(TOKENS)[0, POSITIONS]
    torch.testing.assert_close(found, torch.tensor(LOGITS[name]), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("llama", {"ropeTheta": 20_000.0}),
        ("llama", {"normEps": 1e-3}),
        ("llama 3.2", {"ropeScaling": {"type": "none"}}),
        ("llama 3.2", {"ropeScaling": {"type": "llama3", "factor": 8.0, "originalLength": 32}}),
        ("llama, yarn", {"ropeScaling": {"type": "linear", "factor": 4.0}}),
        ("qwen3", {"ropeTheta": 2e6}),
    ],
)
def test_each_number_of_a_shape_matters(name: str, change: dict[str, object]) -> None:
    """The counter-example: with one number changed the logits differ by more than the tolerance."""
    whole = MODELS[name]
    try:
        MODELS[name] = {**whole, **change}
        found = build(name)(TOKENS)[0, POSITIONS]
    finally:
        MODELS[name] = whole
    assert (found - torch.tensor(LOGITS[name])).abs().max() > 1e-3
