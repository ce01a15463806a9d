"""Which tokens of a text decide about the next one.

Letters: B texts, T positions, D width of the embedding, V vocabulary.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from captum.attr import LayerIntegratedGradients
from torch import Tensor, nn

from trainyard_trainer.explanation.attribution import TOLERANCE, until_complete
from trainyard_trainer.models.family import Model
from trainyard_trainer.runtime import heartbeat
from trainyard_trainer.runtime.heartbeat import Phase

AT_ONCE = 16
"""Points of a path that pass through the model at a time."""
MOST_POINTS = 1024
"""Most points of a path: a forward and a backward pass each."""
ALTERNATIVES = 5
"""Most probable tokens that are shown."""


@dataclass(frozen=True)
class Token:
    """A token and its probability."""

    id: int
    text: str
    probability: float


@dataclass(frozen=True)
class TextExplanation:
    """Why a token was predicted. Attributions are for the logarithm of its probability."""

    tokens: list[str]
    """Tokens of the text [T]."""
    weights: list[float]
    """Attribution of each token [T]."""
    predicted: Token
    """The most probable next token."""
    actual: str | None
    """Next token of the data; None if there is none."""
    alternatives: list[Token]
    """The most probable next tokens."""
    difference: float
    """Logarithm of the probability after the text, less that after the baseline."""
    gap: float
    """Sum of the attributions less the difference."""
    points: int
    """Points of the path."""
    sample: int | None
    """Number of the sample in the data; None for a text of the user."""


class TokenExplainer:
    """Explains predictions of the next token; the baseline is as many times the same token, for example the end of a
    document.

    A baseline of zeros would not do: RMSNorm divides by the size of its input, so that the model changes along such a
    path within its first thousandth only.
    """

    def __init__(
        self, model: Model, embedding: nn.Module, text_of: Callable[[int], str], baseline: int, device: torch.device
    ) -> None:
        """Prepare to explain.

        Args:
            model: the model, all of it.
            embedding: its embedding of tokens.
            text_of: returns the text of a token id.
            baseline: id of the token of the baseline.
            device: device of the model.
        """
        self._model, self._embed = model, embedding
        self._text_of, self._baseline, self._device = text_of, baseline, device

    @property
    def baseline(self) -> str:
        """Text of the token of the baseline."""
        return self._text_of(self._baseline)

    def attribute(
        self, ids: Tensor, target: int, documents: Tensor | None = None, position: int = -1
    ) -> tuple[Tensor, float, int]:
        """Return the attribution of each token [T], the gap, and the points of the path.

        Args:
            ids: token ids [T].
            target: id of the token whose probability is explained.
            documents: number of the document of each position [T], if attention must not cross documents.
            position: position after which the token is predicted; the last one by default.
        """
        ids_1T = ids.to(self._device).unsqueeze(0)
        baseline_1T = torch.full_like(ids_1T, self._baseline)
        documents_1T = None if documents is None else documents.to(self._device).unsqueeze(0)

        def log_probability(ids_BT: Tensor, documents_BT: Tensor | None) -> Tensor:
            heartbeat.beat(Phase.EVALUATION)
            logits_BTV = self._model(ids_BT, documents_BT)
            log_p_BV: Tensor = logits_BTV[:, position].float().log_softmax(-1)
            return log_p_BV[:, target]

        method = LayerIntegratedGradients(log_probability, self._embed)

        def attribute(_rows: Tensor, points: int) -> tuple[Tensor, Tensor]:
            values_1TD, gap_1 = method.attribute(
                ids_1T,
                baselines=baseline_1T,
                additional_forward_args=(documents_1T,),
                n_steps=points,
                method="gausslegendre" if points <= 256 else "riemann_middle",
                internal_batch_size=AT_ONCE,
                return_convergence_delta=True,
            )
            return values_1TD.detach().sum(-1), gap_1.detach()

        found = until_complete(attribute, 1, MOST_POINTS)
        return found.values[0].cpu(), float(found.gap[0]), found.points

    @torch.no_grad()
    def predict(self, ids: Tensor, documents: Tensor | None = None) -> list[Token]:
        """Return the most probable tokens after a text [T], the most probable one first."""
        documents_1T = None if documents is None else documents.to(self._device).unsqueeze(0)
        logits_V = self._model(ids.to(self._device).unsqueeze(0), documents_1T)[0, -1].float()
        best = logits_V.softmax(-1).topk(min(ALTERNATIVES, len(logits_V)))
        return [
            Token(number, self._text_of(number), probability)
            for number, probability in zip(best.indices.tolist(), best.values.tolist(), strict=True)
        ]

    def explain(
        self, ids: Tensor, documents: Tensor | None = None, actual: int | None = None, sample: int | None = None
    ) -> TextExplanation:
        """Return the explanation of the most probable token after a text.

        Args:
            ids: token ids of the text [T].
            documents: number of the document of each position [T], if attention must not cross documents.
            actual: the next token of the data.
            sample: number of the sample in the data.
        """
        alternatives = self.predict(ids, documents)
        weights_T, gap, points = self.attribute(ids, alternatives[0].id, documents)
        return TextExplanation(
            tokens=[self._text_of(number) for number in ids.tolist()],
            weights=weights_T.tolist(),
            predicted=alternatives[0],
            actual=None if actual is None else self._text_of(actual),
            alternatives=alternatives,
            difference=float(weights_T.sum()) - gap,
            gap=gap,
            points=points,
            sample=sample,
        )


def tokens_content(texts: Sequence[TextExplanation], baseline: str) -> dict[str, Any]:
    """Return the content of explanation.json; `baseline`: text of the token of the baseline."""
    return {
        "kind": "tokens",
        "method": {
            "baseline": f"the token {baseline!r} at every position",
            "tolerance": TOLERANCE,
            "largestGap": max(abs(text.gap) for text in texts),
        },
        "distance": _by_distance(texts),
        "texts": [asdict(text) for text in texts],
    }


def _by_distance(texts: Sequence[TextExplanation]) -> list[float]:
    """Return the mean share of the absolute attributions by distance: of the last token, the one before it, ..."""
    length = max(len(text.weights) for text in texts)
    sums = torch.zeros(length, dtype=torch.float64)
    for text in texts:
        shares = torch.tensor(text.weights, dtype=torch.float64).abs().flip(0)
        sums[: len(shares)] += shares / shares.sum().clamp(min=1e-12)
    return (sums / len(texts)).tolist()
