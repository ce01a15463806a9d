"""Attention that does not cross documents which share a sample (packing).

On a CPU a mask [B, 1, T, T] is given to the same kernel. On a GPU such a mask would rule out the fast kernels, and take
memory in proportion to T x T: there FlexAttention (Dong et al., 2024) is compiled for the mask, and skips blocks of it
that are empty, so that the cost falls with the length of the documents.
"""

from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def document_mask(documents_BT: Tensor) -> Any:
    """Return a mask by which each position attends to itself and to earlier ones of its own document.

    Args:
        documents_BT: number of the document of each position, which never falls along a sample.
    """
    if documents_BT.device.type == "cpu":
        same_BTT = documents_BT.unsqueeze(2) == documents_BT.unsqueeze(1)
        return same_BTT.tril().unsqueeze(1)
    from torch.nn.attention.flex_attention import create_block_mask

    def allowed(b: Tensor, _h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return (q >= k) & (documents_BT[b, q] == documents_BT[b, k])

    samples, positions = documents_BT.shape
    return create_block_mask(allowed, samples, None, positions, positions, device=documents_BT.device)


def masked_attention(q_BHTE: Tensor, k_BKTE: Tensor, v_BKTE: Tensor, mask: Any, *, grouped: bool) -> Tensor:
    """Return attention with a mask of `document_mask`; `grouped`: there are fewer key and value heads than queries."""
    if isinstance(mask, Tensor):
        return F.scaled_dot_product_attention(q_BHTE, k_BKTE, v_BKTE, attn_mask=mask, enable_gqa=grouped)
    y_BHTE: Tensor = _flex_attention()(q_BHTE, k_BKTE, v_BKTE, block_mask=mask, enable_gqa=grouped)
    return y_BHTE


@cache
def _flex_attention() -> Any:
    """Return FlexAttention, compiled: it is a loop over blocks in Python otherwise."""
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention)
