"""From weights to an API on a real node: a job exports to a claim, and a server that waits for it answers.

Job and server are those of the samples; the model is a small one. The NetworkPolicy is accepted by the API server, but
nothing on this node enforces it.
"""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.e2e.corpus import corpus_claim
from tests.e2e.fetch import Fetcher, fetcher_in
from tests.e2e.namespace import Body, Namespace, Record, eventually, is_ready
from tests.e2e.node_faults import NodeFaults
from tests.support.corpus import ENDS, VOCABULARY, write_model
from tests.support.samples import FOLDER, sample

pytestmark = pytest.mark.e2e

JOB, SERVER = "llama-chat-lora", "llama-chat"
NAME, SERVICE = "app.kubernetes.io/name", "kubernetes.io/service-name"
STEPS = 60
QUESTION = "What is 2 + 2?"
TOKENS = 16
"""Tokens of a text at most."""
IMAGE = "REGISTRY/trainyard-trainer:0.1.0"

# Asks in the words of OpenAI's library, and prints all answers as one line of JSON.
CLIENT = f"""
import json
from openai import OpenAI
client = OpenAI(base_url="http://{SERVER}/v1", api_key="none", max_retries=0)
[model] = [model.id for model in client.models.list()]
limits = {{"model": model, "max_tokens": {TOKENS}, "temperature": 0}}
drawn = client.completions.create(prompt="{QUESTION}", **{{**limits, "temperature": 2}})
chat = {{"messages": [{{"role": "user", "content": "{QUESTION}"}}], **limits}}
text = client.completions.create(prompt="{QUESTION}", **limits)
answer = client.chat.completions.create(**chat)
parts = [part.choices[0] for part in client.chat.completions.create(stream=True, **chat)]
print(json.dumps({{
    "model": model,
    "text": text.choices[0].text,
    "drawn": drawn.choices[0].text,
    "answer": [answer.choices[0].message.content, answer.choices[0].finish_reason],
    "streamed": [[part.delta.content or "" for part in parts], parts[-1].finish_reason],
}}))
"""


def manifests(image: str) -> list[Body]:
    """Return the objects of the sample with an image of this node, and a pod from which a client asks."""
    text = (FOLDER / "serve.yaml").read_text("utf-8")
    assert text.count(IMAGE) == 2
    bodies = list(yaml.safe_load_all(text.replace(IMAGE, image)))
    pod = bodies[0]["spec"]["template"]["spec"]
    container = {
        "name": "client",
        "image": image,
        "command": ["sleep", "infinity"],
        "securityContext": pod["containers"][0]["securityContext"],
    }
    spec = {"securityContext": pod["securityContext"], "containers": [container], "terminationGracePeriodSeconds": 0}
    return [*bodies, {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "client"}, "spec": spec}]


def job() -> Body:
    """Return the sample for a small model, which learns fast that an answer is short."""
    body = sample(JOB, steps=STEPS)
    body["spec"]["workers"]["resources"]["requests"]["memory"] = "1Gi"
    body["spec"]["trainer"]["data"]["vocabSize"] = VOCABULARY
    body["spec"]["trainer"]["optimizer"]["learningRate"] = 0.02
    return body


def ready_addresses(slices: list[Body]) -> list[str]:
    """Return the addresses to which a Service sends requests."""
    endpoints = [endpoint for each in slices for endpoint in each.get("endpoints") or ()]
    return [address for one in endpoints if one["conditions"].get("ready") for address in one["addresses"]]


def models_when_ready(namespace: Namespace, fetcher: Fetcher) -> list[Body]:
    """Return the list of models that the server gives at the moment at which its Service sends it requests."""

    def ready() -> str | None:
        return next(iter(ready_addresses(namespace.objects("endpointslices", f"{SERVICE}={SERVER}"))), None)

    address = eventually("an endpoint", ready, timeout=180)
    models: list[Body] = fetcher.get_json(f"http://{address}:8000/v1/models")["data"]
    return models


def answers_of_transformers(folder: Path) -> tuple[str, str]:
    """Return what follows the question in greedy decoding: as plain text, and as a chat."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    model: Any = AutoModelForCausalLM.from_pretrained(folder)

    def follow(text: str) -> str:
        tokens = tokenizer(text, return_tensors="pt", return_token_type_ids=False)
        found = model.generate(**tokens, max_new_tokens=TOKENS, do_sample=False)[0]
        return str(tokenizer.decode(found[tokens["input_ids"].shape[1] :], skip_special_tokens=True))

    messages = [{"role": "user", "content": QUESTION}]
    return follow(QUESTION), follow(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))


def check_order(slices: Record, pods: Record, exported: float) -> None:
    """Check that the server has waited for the export, and has had no requests before it listened."""

    def starting(pod: Body) -> bool:
        states = pod["status"].get("containerStatuses") or ()
        running = label(pod, NAME) == SERVER and any("running" in one["state"] for one in states)
        return running and not is_ready(pod)

    started = pods.when(starting)
    # The Service of the job's workers has slices too.
    ready = slices.when(lambda each: label(each, SERVICE) == SERVER and bool(ready_addresses([each])))
    assert started is not None, "it runs before it is ready"
    assert ready is not None
    assert exported < started < ready


def label(body: Body, name: str) -> str | None:
    """Return a label of an object; None if it has none of that name."""
    found: str | None = body["metadata"].get("labels", {}).get(name)
    return found


def test_an_exported_model_is_served(
    namespace: Namespace, node_faults: NodeFaults, trainer_image: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """The texts are those of transformers' own greedy decoding of the exported folder."""
    with (
        corpus_claim(namespace, node_faults, write_model, JOB) as corpus,
        namespace.record("endpointslices") as slices,
        namespace.record("pods") as pods,
        fetcher_in(namespace.cluster) as fetcher,
    ):
        namespace.apply(job(), *manifests(trainer_image))
        namespace.await_phase(JOB, "Succeeded", timeout=180)
        models = models_when_ready(namespace, fetcher)
        exported = corpus / "exported"
        check_order(slices, pods, (exported / "config.json").stat().st_ctime)
        assert [(model["id"], model["status"]) for model in models] == [("/models/exported", {"value": "loaded"})]
        namespace.kubectl("rollout", "status", f"deployment/{SERVER}", "--timeout=20s")
        said = json.loads(namespace.kubectl("exec", "client", "--", "python", "-c", CLIENT))
        text, answer = answers_of_transformers(exported)
        assert json.loads((exported / "generation_config.json").read_text())["eos_token_id"] == ENDS
    assert said["model"] == "/models/exported"
    assert said["text"] == text != said["drawn"]
    assert said["answer"] == [answer, "stop"], "the chat template ends an answer with a token of its own"
    assert ["".join(said["streamed"][0]), said["streamed"][1]] == said["answer"]
    peak = namespace.kubectl("exec", f"deployment/{SERVER}", "--", "grep", "VmHWM", "/proc/1/status")
    with capsys.disabled():
        print(f"\nserved: {answer!r}, peak memory of the server: {int(peak.split()[1]) / 2**20:.2f} GiB")
