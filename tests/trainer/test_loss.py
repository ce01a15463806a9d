"""The cross-entropy in chunks against torch's: values, gradients, and the memory that it takes."""

import warnings
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from trainyard_trainer.data.samples import IGNORED
from trainyard_trainer.parallel import loss
from trainyard_trainer.parallel.loss import TokenLosses

B, T, V = 3, 7, 50


def make(dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Logits of a linear layer without gradients of its own, some of them large, and targets, some of them ignored."""
    generator = torch.Generator().manual_seed(0)
    logits = (30 * torch.randn(B, T, V, generator=generator)).to(dtype)
    targets = torch.randint(0, V, (B, T), generator=generator)
    targets[0, 2:5] = IGNORED
    return logits, targets


def torchs(logits: Tensor, targets: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    logits = logits.clone().requires_grad_()
    value = F.cross_entropy(logits.flatten(0, -2).float(), targets.flatten(), ignore_index=IGNORED, reduction="sum")
    (value * scale).backward()  # type: ignore[no-untyped-call]
    assert logits.grad is not None
    return value.detach(), logits.grad


def ours(losses: TokenLosses, logits: Tensor, targets: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    leaf = logits.clone().requires_grad_()
    value = losses(leaf * 1, targets)  # the backward pass overwrites what it is given, so that a leaf is not possible
    (value * scale).backward()  # type: ignore[no-untyped-call]
    assert leaf.grad is not None
    return value.detach(), leaf.grad


@pytest.mark.parametrize("chunk", [1, 4 * V, 10_000])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_value_and_gradient_are_those_of_torch(monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, chunk: int) -> None:
    monkeypatch.setattr(loss, "CHUNK", chunk)
    logits, targets = make(dtype)
    found, expected = ours(TokenLosses(compiled=False), logits, targets, 0.01), torchs(logits, targets, 0.01)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5 if dtype == torch.float32 else 8e-3, atol=1e-7)


def test_compiled_gradient_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loss, "CHUNK", 4 * V)  # the last chunk is smaller than the others
    logits, targets = make(torch.bfloat16)
    with warnings.catch_warnings(action="ignore"):  # of torch, about what it does while it traces
        found = ours(TokenLosses(compiled=True), logits, targets, 0.01)[1]
    expected = ours(TokenLosses(compiled=False), logits, targets, 0.01)[1]
    torch.testing.assert_close(found, expected, rtol=8e-3, atol=1e-7)


def test_rows_of_a_table() -> None:
    logits, targets = make(torch.float32)
    flat = logits.flatten(0, 1), targets.flatten()
    assert ours(TokenLosses(compiled=False), *flat, 1.0)[0] == pytest.approx(torchs(*flat, 1.0)[0].item())


def test_rows_without_a_target_have_no_gradient() -> None:
    logits, targets = make(torch.float32)
    _, gradient = ours(TokenLosses(compiled=False), logits, torch.full_like(targets, IGNORED), 1.0)
    assert not gradient.any()


class Largest(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Bytes of the largest tensor that is made, views and results in the memory of an argument aside."""

    bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        known = {t.untyped_storage().data_ptr() for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)}
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor) and tensor.untyped_storage().data_ptr() not in known:
                self.bytes = max(self.bytes, tensor.numel() * tensor.element_size())
        return result


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_no_second_tensor_has_the_size_of_the_logits(monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype) -> None:
    monkeypatch.setattr(loss, "CHUNK", 32 * 1024)
    logits = torch.randn(512, 1024).to(dtype).requires_grad_() * 1
    targets = torch.randint(0, 1024, (512,))
    with Largest() as largest:  # type: ignore[no-untyped-call]
        (gradient,) = torch.autograd.grad(TokenLosses(compiled=False)(logits, targets), logits)
    assert gradient.data_ptr() == logits.data_ptr()
    assert largest.bytes <= 4 * loss.CHUNK < logits.numel() * logits.element_size() / 2
