"""The model card of exported weights (Mitchell et al., 2019): what they are, how they were trained, how to use them."""

from collections.abc import Mapping
from typing import Any

from trainyard.models import FAMILIES as FAMILY_TYPES
from trainyard.resource.export import Dtype
from trainyard_trainer.weights.weights import Weights

CARD = "README.md"


def model_card(weights: Weights, architecture: str, dtype: Dtype) -> str:
    """Return the text of README.md: metadata of the Hugging Face hub, facts, figures, and an example."""
    is_text = FAMILY_TYPES[weights.family].data_source == "text"
    kind = "text-generation" if is_text else "tabular-classification"
    library = "library_name: transformers\n" if is_text else ""
    facts = {"architecture": architecture, "type of the tensors": dtype, **_facts(weights)}
    parts = [
        f"---\n{library}pipeline_tag: {kind}\ntags: [trainyard]\n---\n",
        f"# {_title(weights)}\n",
        _table(("", ""), facts),
    ]
    if figures := _figures(weights):
        parts.append("## Figures at the end of the training\n")
        parts.append(_table(("Figure", "Value"), figures))
    if weights.record is not None:
        parts.append("`run.json` has the complete configuration of the run, and what has changed since its start.\n")
    parts.append("## Use\n")
    parts.append(_TEXT_EXAMPLE if is_text else _TABLE_EXAMPLE)
    return "\n".join(parts)


_TEXT_EXAMPLE = """```python
from transformers import AutoModelForCausalLM, AutoTokenizer

folder = "."  # this folder
tokenizer = AutoTokenizer.from_pretrained(folder)
model = AutoModelForCausalLM.from_pretrained(folder)
inputs = tokenizer("Once", return_tensors="pt")
print(tokenizer.decode(model.generate(**inputs, max_new_tokens=40)[0]))
```
"""
_TABLE_EXAMPLE = """```python
import torch

model = torch.export.load("model.pt2").module()  # in this folder
logits = model(torch.zeros(2, WIDTH))  # rows of features, of the width that config.json says
print(logits.softmax(-1))  # probabilities of the classes
```
"""


def _title(weights: Weights) -> str:
    job = None if weights.record is None else weights.record.config.get("job")
    return f"{weights.family} of the job {job}" if job else f"A {weights.family}"


def _facts(weights: Weights) -> dict[str, Any]:
    sizes = weights.config.to_dict()
    parameters = FAMILY_TYPES[weights.family].parameters(weights.config)
    facts: dict[str, Any] = {"parameters": f"{parameters:,}"}
    facts |= {name: value for name, value in sizes.items() if name != "name" and not isinstance(value, dict)}
    if weights.run is not None:
        facts["run"] = weights.run
    if (record := weights.record) is None:
        return facts
    if record.parent is not None:
        facts["started with the weights of run"] = record.parent
    facts["began"] = f"{record.created:%Y-%m-%d %H:%M} UTC"
    facts["versions"] = ", ".join(f"{name} {version}" for name, version in record.versions.items())
    if record.image is not None:
        facts["image"] = record.image
    facts["samples, and held-out ones among them"] = f"{record.data.samples:,}, {record.data.eval_samples:,}"
    facts["seed"] = record.config.get("trainer", {}).get("seed")
    return facts


def _figures(weights: Weights) -> dict[str, Any]:
    if (manifest := weights.manifest) is None:
        return {}
    figures: dict[str, Any] = {
        "optimizer steps": f"{manifest.step:,}",
        "samples consumed": f"{manifest.samples:,}",
        "tokens consumed": f"{manifest.tokens_consumed:,}",
    }
    if (progress := manifest.progress) is not None:
        figures |= {"training loss": progress.loss, "evaluation loss": progress.eval_loss}
        figures |= {f"evaluation: {name}": value for name, value in (progress.metrics or {}).items() if name != "loss"}
    return {
        name: f"{value:.6g}" if isinstance(value, float) else value
        for name, value in figures.items()
        if value is not None
    }


def _table(head: tuple[str, str], rows: Mapping[str, Any]) -> str:
    lines = [f"| {head[0]} | {head[1]} |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows.items())]
    return "\n".join(lines) + "\n"
