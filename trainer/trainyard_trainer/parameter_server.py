"""The parameter server and its workers: the classic form of distributed gradient descent (Li et al., 2014).

Each worker computes the gradient of its own samples and sends it to the server. The server adds them up in order of
rank, follows the sum, and sends the new parameters to every worker: synchronously, so that a step is the same as on
one process. All of it is one flat vector of float32 [parameters], over gloo, so that the server needs no GPU.
"""

from collections.abc import Mapping
from enum import IntEnum
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from trainyard.resource.optimization import Optimizer
from trainyard_trainer.checkpoint import catalog
from trainyard_trainer.checkpoint.storage import FAILURES, load, save, saved_shapes
from trainyard_trainer.checkpoint.writer import CheckpointWriter
from trainyard_trainer.optim.guard import GradientGuard
from trainyard_trainer.optim.state import Shape, Tensors, model_tensors
from trainyard_trainer.optim.update import LocalUpdate, Named
from trainyard_trainer.runtime import heartbeat
from trainyard_trainer.runtime.heartbeat import Phase
from trainyard_trainer.runtime.world import World

Shapes = list[tuple[str, Shape]]


class Command(IntEnum):
    """What rank 0 tells the server to do next."""

    STEP = 0
    """With a learning rate; all workers then send their gradients."""
    SAVE = 1
    END = 2
    ROLL_BACK = 3
    """To a checkpoint; its folder follows."""


class FlatParameters:
    """Parameters and their gradients as views into two vectors, so that each is sent as one, without a copy."""

    def __init__(self, named: Named) -> None:
        named = list(named)
        device = named[0][1].device
        size = sum(parameter.numel() for _, parameter in named)
        self.parameters = torch.empty(size, device=device)
        self.gradients = torch.zeros(size, device=device)
        start = 0
        for _, parameter in named:
            end = start + parameter.numel()
            values = self.parameters[start:end].view_as(parameter)
            parameter.data = values.copy_(parameter.data)
            parameter.grad = self.gradients[start:end].view_as(parameter)
            start = end


class RemoteUpdate:
    """A worker's part: gradients go to the server, parameters come back."""

    def __init__(self, named: Named, world: World) -> None:
        named = list(named)
        self._named = named
        self._flat = FlatParameters(named)
        self._world = world
        self._server = world.size
        self._outcome = torch.zeros(2)
        """Norm of the gradient, and 1 if it was followed."""

    def begin(self, folder: Path | None) -> None:
        """Tell the server what the parameters are, and where the state of its optimizer lies."""
        if self._world.rank == 0:
            shapes: Shapes = [(name, tuple(parameter.shape)) for name, parameter in self._named]
            dist.send_object_list([shapes, folder], self._server)
            dist.send(self._flat.parameters.cpu(), self._server)

    def tensors(self) -> Tensors:
        """It is the server's."""
        return {}

    def prepare(self, saved: Mapping[str, Shape]) -> None:
        pass

    def go_back(self, folder: Path) -> None:
        """The server has a copy of its own."""
        self._order(Command.ROLL_BACK)
        if self._world.rank == 0:
            dist.send_object_list([folder], self._server)

    def step(self, learning_rate: float) -> tuple[Tensor, bool]:
        """One round trip; `learning_rate` is rank 0's to tell."""
        self._order(Command.STEP, learning_rate)
        dist.send(self._flat.gradients.cpu(), self._server)
        self._flat.gradients.zero_()
        if self._flat.parameters.device.type == "cpu":
            dist.recv(self._flat.parameters, self._server)
        else:
            arriving = torch.empty_like(self._flat.parameters, device="cpu")
            dist.recv(arriving, self._server)
            self._flat.parameters.copy_(arriving)
        dist.recv(self._outcome, self._server)
        return self._outcome[0], bool(self._outcome[1])

    def save(self, root: Path, step: int, about: dict[str, Any]) -> None:
        """Have the server write a checkpoint (rank 0), and wait for it.

        Raises:
            OSError: it could not.
        """
        self._order(Command.SAVE)
        dist.send_object_list([root, step, about], self._server)
        answer: list[str | None] = [None]
        dist.recv_object_list(answer, self._server)
        if answer[0] is not None:
            raise OSError(answer[0])

    def close(self) -> None:
        """Tell the server that the training is over."""
        self._order(Command.END)

    def _order(self, order: Command, learning_rate: float = 0.0) -> None:
        if self._world.rank == 0:
            dist.send(torch.tensor([order, learning_rate], dtype=torch.float64), self._server)


class ParameterServer:
    """The server's part. It knows nothing of the model but the names and shapes of its parameters."""

    def __init__(self, config: Optimizer, world: World, guard: GradientGuard) -> None:
        self._workers = range(world.size)
        told: list[Any] = [None, None]
        dist.recv_object_list(told, 0)
        shapes, folder = told
        self._named = [(name, nn.Parameter(torch.empty(shape))) for name, shape in shapes]
        self._flat = FlatParameters(self._named)
        self._arriving = torch.empty_like(self._flat.gradients)
        dist.recv(self._flat.parameters, 0)
        self._update = LocalUpdate(self._named, config, None, guard)
        if folder is not None:
            self._update.prepare(saved_shapes(folder))
            load(folder, self._update.tensors(), group=None)
        self.step: int = 0 if folder is None else catalog.read_manifest(folder)["step"]
        """Updates done, those of earlier attempts too."""

    def serve(self) -> bool:
        """Follow one order. Returns False when the workers are done."""
        heartbeat.beat(Phase.WAIT_FOR_WORKERS, self.step)
        told = torch.zeros(2, dtype=torch.float64)
        dist.recv(told, 0)
        match Command(int(told[0])):
            case Command.STEP:
                self._follow(told[1].item())
            case Command.SAVE:
                self._save()
            case Command.ROLL_BACK:
                self._go_back()
            case Command.END:
                return False
        return True

    def _follow(self, learning_rate: float) -> None:
        for worker in self._workers:
            dist.recv(self._arriving, worker)
            self._flat.gradients.add_(self._arriving)
        heartbeat.beat(Phase.SERVER_UPDATE)
        norm, made = self._update.apply_gradients(learning_rate)
        self._flat.gradients.zero_()
        heartbeat.beat(Phase.WAIT_FOR_WORKERS)
        for worker in self._workers:
            dist.send(self._flat.parameters, worker)
            dist.send(torch.stack([norm, torch.tensor(float(made))]), worker)
        self.step += 1

    def _go_back(self) -> None:
        told: list[Any] = [None]
        dist.recv_object_list(told, 0)
        heartbeat.beat(Phase.CHECKPOINT)
        load(told[0], model_tensors(self._named) | self._update.tensors(), group=None)
        self.step = catalog.read_manifest(told[0])["step"]

    def _save(self) -> None:
        told: list[Any] = [None, None, None]
        dist.recv_object_list(told, 0)
        heartbeat.beat(Phase.CHECKPOINT)
        writer = CheckpointWriter(*told)
        answer = None
        try:
            save(writer, model_tensors(self._named) | self._update.tensors(), group=None)
        except FAILURES as error:
            answer = str(error).splitlines()[0]
        dist.send_object_list([answer], 0)
