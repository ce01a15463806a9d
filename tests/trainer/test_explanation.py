"""Explanations: attributions are complete, unused inputs have none, and they depend on what was learnt."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.support.run_config import make_config
from trainyard.models.llama import LlamaConfig
from trainyard_trainer.data.evaluation_sets import EvaluationSet
from trainyard_trainer.data.table import load_table
from trainyard_trainer.explanation.attribution import TOLERANCE, rank_correlation
from trainyard_trainer.explanation.page import explanation_page
from trainyard_trainer.explanation.samples import Vocabulary, chosen_numbers, explain_rows, token_explainer
from trainyard_trainer.explanation.table import TableExplainer, table_content
from trainyard_trainer.explanation.tokens import TokenExplainer, tokens_content
from trainyard_trainer.models.initial import initialize
from trainyard_trainer.models.llama.model import Llama
from trainyard_trainer.models.mlp.model import Mlp
from trainyard_trainer.runtime.errors import ConfigError

CPU = torch.device("cpu")
SIZES = {"dim": 32, "layers": 2, "heads": 4, "kvHeads": 2, "ffnDim": 64, "vocabSize": 60, "sequenceLength": 32}
SUBJECT = {
    "created": "2030-01-01",
    "weights": {"name": "job", "model": "llama", "step": 7, "run": None},
    "data": {"description": "some text", "samples": "1 sample"},
}


def mlp(seed: int = 0) -> Mlp:
    model = Mlp(12, (32, 32), 5)
    initialize(model, seed, model.initial)
    return model


def rows(count: int = 6) -> Tensor:
    return torch.randn(count, 12, generator=torch.Generator().manual_seed(0))


def llama(seed: int = 0, **changes: Any) -> Llama:
    """A model whose weights are larger than at the start of a training, so that its predictions differ."""
    model = Llama(LlamaConfig.model_validate({**SIZES, **changes}))

    def larger(name: str, shape: tuple[int, ...]) -> tuple[float, float]:
        mean, deviation = model.initial(name, shape)
        return mean, 6 * deviation

    initialize(model, seed, larger)
    return model.eval()


def explainer(model: Llama, baseline: int = 0) -> TokenExplainer:
    assert model.embed is not None
    return TokenExplainer(model, model.embed, lambda number: f"<{number}>", baseline, CPU)


IDS = torch.tensor([5, 17, 3, 44, 9, 28, 31, 2])


def log_probability(model: Llama, ids: Tensor, target: int, position: int = -1) -> float:
    with torch.no_grad():
        return float(model(ids.unsqueeze(0))[0, position].log_softmax(-1)[target])


def test_attributions_of_a_row_sum_to_the_difference_of_its_logit_and_that_of_the_mean_row() -> None:
    model, x = mlp(), rows()
    found = TableExplainer(model).explain(x, torch.zeros(len(x)), range(len(x)))
    with torch.no_grad():
        logits, mean = model(x), model(torch.zeros(1, 12))[0]
    for row, own in zip(found, logits, strict=True):
        difference = float(own[row.predicted] - mean[row.predicted])
        assert row.predicted == int(own.argmax())
        assert sum(row.gradients) == pytest.approx(difference, abs=TOLERANCE)
        assert row.difference == pytest.approx(difference, abs=1e-5)
        assert row.probability == pytest.approx(float(own.softmax(-1).max()), rel=1e-5)


def test_ablation_is_the_decrease_of_the_logit() -> None:
    model, x = mlp(), rows(3)
    classes = torch.tensor([1, 4, 0])
    found = TableExplainer(model).ablation(x, classes)
    for feature in range(12):
        without = x.clone()
        without[:, feature] = 0
        with torch.no_grad():
            decrease = (model(x) - model(without)).gather(1, classes[:, None])[:, 0]
        torch.testing.assert_close(found[:, feature].float(), decrease, atol=1e-5, rtol=1e-4)


def test_a_column_that_the_model_does_not_use_has_no_attribution() -> None:
    model, x = mlp(), rows()
    with torch.no_grad():
        dict(model.named_parameters())["dense.0.weight"][:, 4] = 0
    for row in TableExplainer(model).explain(x, torch.zeros(len(x)), range(len(x))):
        assert row.gradients[4] == 0
        assert abs(row.ablation[4]) < 1e-12
        assert min(abs(value) for i, value in enumerate(row.gradients) if i != 4) > 0


def test_random_weights_give_other_maps_of_a_table() -> None:
    x = rows()
    own = TableExplainer(mlp())
    found = own.explain(x, torch.zeros(len(x)), range(len(x)))
    again = own.explain(x, torch.zeros(len(x)), range(len(x)))
    assert [row.gradients for row in again] == [row.gradients for row in found]
    assert own.similarity_to_random(x, found) < 0.5


def test_attributions_of_tokens_sum_to_the_difference_of_the_log_probabilities() -> None:
    model = llama()
    target = 11
    weights, gap, _ = explainer(model).attribute(IDS, target)
    difference = log_probability(model, IDS, target) - log_probability(model, torch.zeros_like(IDS), target)
    assert abs(difference) > 0.1
    assert float(weights.sum()) == pytest.approx(difference, abs=2 * TOLERANCE)
    assert abs(gap) <= TOLERANCE
    text = explainer(model).explain(IDS, actual=8, sample=3)
    assert text.difference == pytest.approx(sum(text.weights) - text.gap, abs=1e-6)
    best = model(IDS.unsqueeze(0))[0, -1].argmax().item()
    assert (text.predicted.id, text.predicted.text, text.actual) == (best, f"<{best}>", "<8>")


def test_tokens_that_are_not_seen_have_no_attribution() -> None:
    model = llama()
    later, *_ = explainer(model).attribute(IDS, 11, position=4)
    assert later[5:].tolist() == [0, 0, 0]
    assert later[:5].abs().min() > 0
    documents = torch.tensor([0, 0, 0, 1, 1, 1, 1, 1], dtype=torch.int32)
    other, *_ = explainer(model).attribute(IDS, 11, documents)
    assert other[:3].tolist() == [0, 0, 0]
    assert other[3:].abs().min() > 0
    same, *_ = explainer(model, baseline=17).attribute(IDS, 11)
    assert same[1] == 0, "the token of the baseline itself"


def test_random_weights_give_other_maps_of_a_text() -> None:
    first, *_ = explainer(llama(seed=0)).attribute(IDS, 11)
    second, *_ = explainer(llama(seed=1)).attribute(IDS, 11)
    assert rank_correlation(first, first) == pytest.approx(1)
    assert rank_correlation(first, second) < 0.8
    assert (first - second).abs().max() > 0.1


def test_models_with_tied_embeddings_and_norms_of_queries_are_explained() -> None:
    model = llama(tiedEmbeddings=True, qkNorm=True)
    weights, gap, _ = explainer(model).attribute(IDS, 11)
    difference = log_probability(model, IDS, 11) - log_probability(model, torch.zeros_like(IDS), 11)
    assert float(weights.sum()) == pytest.approx(difference, abs=2 * TOLERANCE)
    assert abs(gap) <= TOLERANCE


def test_other_models_are_refused() -> None:
    with pytest.raises(ConfigError, match="a model of the family moe cannot be explained, only llama and mlp can"):
        token_explainer(llama(), "moe", Vocabulary(None, None), CPU)


def test_samples_come_from_each_source() -> None:
    sets = [EvaluationSet("data", numbers) for numbers in (range(10, 20), range(50, 51), range(60, 70), range(3))]
    assert chosen_numbers(sets[:3], 6) == [10, 11, 50, 60, 61]
    assert chosen_numbers(sets[3:], 8) == [0, 1, 2]


def test_page_of_a_text_escapes_its_tokens_and_shows_their_weights() -> None:
    model = llama()
    assert model.embed is not None
    explains = TokenExplainer(model, model.embed, lambda number: "<script>" if number == 17 else "\n", 0, CPU)
    content = tokens_content([explains.explain(IDS, actual=17, sample=1234)], explains.baseline)
    page = explanation_page({**SUBJECT, **content}).content()
    assert "<script>" not in page
    assert "&lt;script&gt;" in page
    assert page.count("rgba(") == len(IDS)
    assert "Sample 1,234." in page
    assert sum(content["distance"]) == pytest.approx(1)


@pytest.mark.parametrize("width", [None, 8])
def test_page_of_a_table_has_a_picture_of_each_class(width: int | None) -> None:
    digits: dict[str, Any] = {
        "model": {"name": "mlp"},
        "data": {"source": "table", "builtin": "digits", "evalFraction": 0.2},
    }
    table = load_table(make_config(1, replace=True, **digits, batch={"global": 32}))
    model = Mlp(64, (16,), 10)
    initialize(model, 0, model.initial)
    found, similarity = explain_rows(model, table, range(1500, 1512), CPU)
    original = found[0].features
    assert np.allclose(original, np.round(original), atol=1e-4), "grey values of the images, not scaled"
    content = table_content(found, similarity, width)
    assert [len(content["overall"][name]) for name in ("gradients", "ablation")] == [64, 64]
    assert sum(entry["count"] for entry in content["classes"]) == 12
    mean = np.mean([row.gradients for row in found if row.predicted == content["classes"][0]["class"]], axis=0)
    assert content["classes"][0]["gradients"] == pytest.approx(mean.tolist(), abs=1e-5)
    page = explanation_page({**SUBJECT, **content}).content()
    assert page.count("<svg") >= 4
    assert "http" not in page.replace("http://www.w3.org", "").replace("https://www.w3.org", "")
