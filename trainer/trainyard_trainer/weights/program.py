"""A model as a program of torch.export: its code and its weights in one file, which needs nothing of Trainyard."""

from pathlib import Path

import torch

from trainyard_trainer.weights.weights import Weights, build_model

PROGRAM = "model.pt2"


def write_program(weights: Weights, path: Path, dtype: torch.dtype) -> None:
    """Write a model that takes features [N, width] and returns logits [N, classes], for any number N of rows.

    Raises:
        WeightsError: the weights are damaged.
        OSError: the storage refuses.
    """
    model = build_model(weights.config).to(dtype).to_empty(device="cpu").eval()
    weights.load(dict(model.named_parameters()))
    width = next(iter(model.parameters())).shape[1]
    # Of one row the exporter would take the number for a constant.
    example = torch.zeros(2, width, dtype=dtype)
    program = torch.export.export(model, (example,), dynamic_shapes={"x": {0: torch.export.Dim("rows")}})
    torch.export.save(program, path)
