"""The parameter server and its workers: the classic form of distributed gradient descent (Li et al., 2014).

Each worker computes the gradient of its own samples and sends it to the server. The server adds them up in order of
rank, follows the sum, and sends the new parameters to every worker: synchronously, so that a step is the same as on
one process. All of it is one flat vector of float32 [parameters], over gloo, so that the server needs no GPU.
"""

import torch
import torch.distributed as dist
from torch import Tensor, nn

from trainyard.optimization import Optimizer
from trainyard_trainer.update import LocalUpdate, Named
from trainyard_trainer.world import World

Shapes = list[tuple[str, tuple[int, ...]]]


class Flat:
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
        self._flat = Flat(named)
        self._world = world
        self._server = world.size
        self._norm = torch.zeros(1)
        if world.rank == 0:
            shapes: list[Shapes] = [[(name, tuple(parameter.shape)) for name, parameter in named]]
            dist.send_object_list(shapes, self._server)
            dist.send(self._flat.parameters.cpu(), self._server)

    def step(self, learning_rate: float) -> Tensor:
        """One round trip; `learning_rate` is rank 0's to tell."""
        self._announce(learning_rate)
        dist.send(self._flat.gradients.cpu(), self._server)
        self._flat.gradients.zero_()
        if self._flat.parameters.device.type == "cpu":
            dist.recv(self._flat.parameters, self._server)
        else:
            arriving = torch.empty_like(self._flat.parameters, device="cpu")
            dist.recv(arriving, self._server)
            self._flat.parameters.copy_(arriving)
        dist.recv(self._norm, self._server)
        return self._norm.squeeze()

    def close(self) -> None:
        """Tell the server that the training is over."""
        self._announce(-1.0)

    def _announce(self, learning_rate: float) -> None:
        if self._world.rank == 0:
            dist.send(torch.tensor([learning_rate], dtype=torch.float64), self._server)


class ParameterServer:
    """The server's part. It knows nothing of the model but the names and shapes of its parameters."""

    def __init__(self, config: Optimizer, world: World) -> None:
        self._workers = range(world.size)
        shapes: list[Shapes] = [[]]
        dist.recv_object_list(shapes, 0)
        named = [(name, nn.Parameter(torch.empty(shape))) for name, shape in shapes[0]]
        self._flat = Flat(named)
        self._arriving = torch.empty_like(self._flat.gradients)
        dist.recv(self._flat.parameters, 0)
        self._update = LocalUpdate(named, config, mesh=None)
        self.step = 0
        """Updates done."""

    def serve(self) -> bool:
        """One step of all workers. Returns False when they are done."""
        learning_rate = torch.zeros(1, dtype=torch.float64)
        dist.recv(learning_rate, 0)
        if learning_rate < 0:
            return False
        for worker in self._workers:
            dist.recv(self._arriving, worker)
            self._flat.gradients.add_(self._arriving)
        norm = self._update.follow(learning_rate.item())
        self._flat.gradients.zero_()
        for worker in self._workers:
            dist.send(self._flat.parameters, worker)
            dist.send(norm.view(1), worker)
        self.step += 1
        return True
