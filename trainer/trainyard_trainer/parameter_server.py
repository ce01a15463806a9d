"""The parameter server and its workers: the classic form of distributed gradient descent (Li et al., 2014).

Each worker computes the gradient of its own samples and sends it to the server. The server adds the gradients in the
order of the ranks, applies the sum, and sends the new parameters to every worker. This is synchronous, so a step equals
that of a single process. Gradients and parameters travel as one flat float32 vector [parameters] over gloo, so that the
server needs no GPU.
"""

from collections.abc import Mapping
from enum import IntEnum
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from trainyard.resource.optimization import Optimizer
from trainyard_trainer.checkpoint.manifest import Manifest
from trainyard_trainer.checkpoint.storage import FAILURES, load, save, saved_shapes
from trainyard_trainer.checkpoint.writer import CheckpointWriter
from trainyard_trainer.optim.guard import GradientGuard
from trainyard_trainer.optim.state import Shape, Tensors, model_tensors
from trainyard_trainer.optim.update import LocalUpdate, Named
from trainyard_trainer.runtime import heartbeat
from trainyard_trainer.runtime.heartbeat import Phase
from trainyard_trainer.runtime.object_store import Location
from trainyard_trainer.runtime.step_agreement import StepAgreement
from trainyard_trainer.runtime.world import World

Shapes = list[tuple[str, Shape]]


class Command(IntEnum):
    """What the server does next; rank 0 sends it together with a learning rate."""

    STEP = 0
    """Apply the gradients that all workers send next."""
    SAVE = 1
    """Write a checkpoint; its root folder and manifest follow."""
    END = 2
    """Leave the loop."""
    ROLL_BACK = 3
    """Load a checkpoint; its folder follows."""


class FlatParameters:
    """Parameters and their gradients as views into two vectors [parameters], which are sent without a copy."""

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
    """The update of a worker: it sends its gradients to the server and receives new parameters."""

    def __init__(self, named: Named, world: World, agreement: StepAgreement) -> None:
        named = list(named)
        self._named = named
        self._flat = FlatParameters(named)
        self._world = world
        self._agreement = agreement
        self._server = world.size

    def begin(self, folder: Location | None) -> None:
        """Send the initial parameters to the server, and the checkpoint that holds the state of its optimizer."""
        if self._world.rank == 0:
            shapes: Shapes = [(name, tuple(parameter.shape)) for name, parameter in self._named]
            dist.send_object_list([shapes, folder], self._server)
            dist.send(self._flat.parameters.cpu(), self._server)

    def tensors(self) -> Tensors:
        """Return nothing: the server holds the state of the optimizer."""
        return {}

    def prepare(self, saved: Mapping[str, Shape]) -> None:
        """Do nothing: the server holds the state of the optimizer."""

    def after_rollback(self, folder: Location) -> None:
        """Have the server load the checkpoint, too, since it holds parameters and optimizer state of its own."""
        self._send_command(Command.ROLL_BACK)
        if self._world.rank == 0:
            dist.send_object_list([folder], self._server)

    def step(self, learning_rate: float) -> tuple[Tensor, Tensor]:
        """Send gradients, and receive parameters and the outcome; the learning rate of rank 0 counts."""
        self._send_command(Command.STEP, learning_rate)
        dist.send(self._flat.gradients.cpu(), self._server)
        self._flat.gradients.zero_()
        if self._flat.parameters.device.type == "cpu":
            dist.recv(self._flat.parameters, self._server)
        else:
            arriving = torch.empty_like(self._flat.parameters, device="cpu")
            dist.recv(arriving, self._server)
            self._flat.parameters.copy_(arriving)
        outcome = torch.zeros(2)
        dist.recv(outcome, self._server)
        norm, applied = outcome.to(self._world.device)
        # The server has decided for all; the exchange is for the requests of the ranks.
        return norm, ~self._agreement.any_bad(applied == 0)

    def save(self, root: Location, manifest: Manifest) -> None:
        """Have the server write a checkpoint, and wait for it; called on rank 0 only.

        Raises:
            OSError: the checkpoint could not be written.
        """
        self._send_command(Command.SAVE)
        dist.send_object_list([root, manifest], self._server)
        (problem,) = _receive_objects(1, self._server)
        if problem is not None:
            raise OSError(problem)

    def close(self) -> None:
        """Have the server end, since the training has finished."""
        self._send_command(Command.END)

    def _send_command(self, command: Command, learning_rate: float = 0.0) -> None:
        if self._world.rank == 0:
            dist.send(torch.tensor([command, learning_rate], dtype=torch.float64), self._server)


class ParameterServer:
    """The server. All it knows of the model are the names and shapes of its parameters."""

    def __init__(self, config: Optimizer, world: World, guard: GradientGuard) -> None:
        self._workers = range(world.size)
        shapes, folder = _receive_objects(2, source=0)
        self._named = [(name, nn.Parameter(torch.empty(shape))) for name, shape in shapes]
        self._flat = FlatParameters(self._named)
        self._received = torch.empty_like(self._flat.gradients)
        dist.recv(self._flat.parameters, 0)
        self._guard = guard
        self._update = LocalUpdate(self._named, config, None, guard)
        if folder is not None:
            self._update.prepare(saved_shapes(folder))
            load(folder, self._update.tensors(), group=None)
        self.step = 0
        """Optimizer steps done, including those of earlier attempts."""
        if folder is not None:
            self._restore(Manifest.read(folder))

    def serve(self) -> bool:
        """Carry out one command. Returns False when the workers are done."""
        heartbeat.beat(Phase.WAIT_FOR_WORKERS, self.step)
        received = torch.zeros(2, dtype=torch.float64)
        dist.recv(received, 0)
        match Command(int(received[0])):
            case Command.STEP:
                self._step(received[1].item())
            case Command.SAVE:
                self._save()
            case Command.ROLL_BACK:
                self._roll_back()
            case Command.END:
                return False
        return True

    def _step(self, learning_rate: float) -> None:
        """Add up the gradients of the workers, apply them, and send parameters and outcome back."""
        for worker in self._workers:
            dist.recv(self._received, worker)
            self._flat.gradients.add_(self._received)
        heartbeat.beat(Phase.SERVER_UPDATE)
        norm, applied = self._update.apply_gradients(learning_rate)
        self._flat.gradients.zero_()
        heartbeat.beat(Phase.WAIT_FOR_WORKERS)
        for worker in self._workers:
            dist.send(self._flat.parameters, worker)
            dist.send(torch.stack([norm, applied.float()]), worker)
        self.step += 1

    def _roll_back(self) -> None:
        (folder,) = _receive_objects(1, source=0)
        heartbeat.beat(Phase.CHECKPOINT)
        load(folder, self._tensors(), group=None)
        self._restore(Manifest.read(folder))

    def _restore(self, manifest: Manifest) -> None:
        self.step = manifest.step
        self._guard.restore(manifest.norms)

    def _save(self) -> None:
        root, manifest = _receive_objects(2, source=0)
        heartbeat.beat(Phase.CHECKPOINT)
        problem = None
        try:
            save(CheckpointWriter(root, manifest.replace(norms=self._guard.norms)), self._tensors(), group=None)
        except FAILURES as error:
            problem = str(error).splitlines()[0]
        dist.send_object_list([problem], 0)

    def _tensors(self) -> Tensors:
        return model_tensors(self._named) | self._update.tensors()


def _receive_objects(count: int, source: int) -> list[Any]:
    """Receive objects that another rank has sent together."""
    objects: list[Any] = [None] * count
    dist.recv_object_list(objects, source)
    return objects
