"""Admission without an API server: each fault is refused with a message that names field, rule and fix."""

import json
from typing import Any

import pytest
import yaml

from tests.builders import make_manifest, trainer_spec
from tests.support.faults import FAULTS, RULES, Fault
from trainyard.admission import admit, load_manifest
from trainyard.crd import Schema, openapi_schema
from trainyard.manifest import ManifestError, parse_manifest
from trainyard.resource.job import TrainingJob
from trainyard.resource.status import TrainingJobStatus


def refused(text: str) -> list[str]:
    with pytest.raises(ManifestError) as error:
        load_manifest(text)
    return error.value.problems


@pytest.mark.parametrize("fault", FAULTS, ids=[f.name for f in FAULTS])
def test_each_fault_is_refused_with_exactly_one_message(fault: Fault) -> None:
    assert refused(yaml.safe_dump(fault.manifest())) == [fault.message]


def test_json_is_parsed_like_yaml() -> None:
    manifest = make_manifest(trainer=trainer_spec(optimizer={"eps": 1e-6}))
    assert parse_manifest(json.dumps(manifest)) == parse_manifest(yaml.safe_dump(manifest)) == manifest
    assert refused(json.dumps(FAULTS[0].manifest())) == [FAULTS[0].message]


def test_every_validation_rule_has_a_fault_in_the_table() -> None:
    def rules(schema: Schema) -> list[str]:
        here = [r["message"] for r in schema.get("x-kubernetes-validations", ()) if "oldSelf" not in r["rule"]]
        children = [*schema.get("properties", {}).values(), *([schema["items"]] if "items" in schema else ())]
        return here + [message for child in children for message in rules(child)]

    # Nobody applies a status, so its rules have no faults of users.
    found = {message for message in rules(openapi_schema()) if not message.startswith("status.")}
    assert found == {fault.server or fault.message for fault in RULES}


def test_all_faults_are_reported_at_once() -> None:
    manifest = make_manifest(replicas=0, command="train", workers={"colour": "red"})
    assert len(refused(yaml.safe_dump(manifest))) == 3


def test_a_valid_manifest_is_accepted_and_its_defaults_are_filled_in() -> None:
    job = load_manifest(yaml.safe_dump(make_manifest(trainer=trainer_spec())))
    assert job.spec.trainer is not None
    assert job.spec.trainer.batch.micro == "auto"
    assert job.spec.workers.procs_per_worker == "auto"
    assert job.spec.restart_policy.max_restarts == 3
    assert job.metadata.namespace == "default"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "one TrainingJob is expected, found no object; give a file with one TrainingJob"),
        ("just words", "one TrainingJob is expected, found no object; give a file with one TrainingJob"),
        ("spec: {}", "one TrainingJob is expected, found an object without kind; give a file with one TrainingJob"),
        ("kind: Pod", "one TrainingJob is expected, found kind Pod; give a file with one TrainingJob"),
        (
            "kind: PyTorchJob\n---\nkind: ConfigMap\n---\nkind: PyTorchJob",
            "one TrainingJob is expected, found kinds ConfigMap, PyTorchJob; give a file with one TrainingJob",
        ),
        (
            f"{yaml.safe_dump(make_manifest())}---\n{yaml.safe_dump(make_manifest('other'))}",
            "one TrainingJob is expected, found 2; give a file with one TrainingJob",
        ),
    ],
    ids=["empty", "words", "no kind", "another kind", "other kinds", "two jobs"],
)
def test_a_file_must_hold_one_job(text: str, message: str) -> None:
    assert refused(text) == [message]


def test_objects_of_other_kinds_are_ignored() -> None:
    text = f"kind: ConfigMap\n---\n{yaml.safe_dump(make_manifest())}"
    assert load_manifest(text).metadata.name == "job"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "spec: [1, 2\nkind: x",
            "line 2, column 5: expected ',' or ']', but got ':' (while parsing a flow sequence from line 1)",
        ),
        ("a: b: c", "line 1, column 5: mapping values are not allowed here"),
        ("a: b\nc: \x00", "line 2: the character U+0000 is not allowed; remove it"),
        ("a: *b", "line 1, column 4: found undefined alias 'b'"),
        ("spec: {}\nkind: a\nspec: {}", "line 3, column 1: the key spec is set twice, first in line 1; keep one"),
        ('{"a": {"b": 1,\n "b": 1}}', "line 2, column 2: the key b is set twice, first in line 1; keep one"),
        ("a: 2030-99-99", "month must be in 1..12"),
        ("[" * 5000, "line 1, column 101: nested more than 100 levels deep"),
        ("a: &b [*b]", "line 1, column 8: an alias of a node that contains it"),
    ],
    ids=[
        "syntax",
        "two colons",
        "control character",
        "alias",
        "duplicate key",
        "duplicate in JSON",
        "date",
        "depth",
        "cycle",
    ],
)
def test_invalid_yaml_is_refused_with_its_place(text: str, message: str) -> None:
    assert refused(text) == [f"not valid YAML: {message}"]


def test_deep_nesting_through_aliases_is_refused() -> None:
    chain = [f"a{n}: &a{n} {'[' * 90}{f'*a{n - 1}' if n else 1}{']' * 90}" for n in range(15)]
    assert refused("\n".join([*chain, yaml.safe_dump(make_manifest())])) == [
        "the manifest is nested too deeply; remove the superfluous levels"
    ]


def test_merge_keys_override_what_they_merge() -> None:
    text = f"x: &x {{args: [a], image: b}}\n{yaml.safe_dump(make_manifest())}".replace("spec:", "spec:\n  <<: *x")
    with pytest.raises(ManifestError, match="x: unknown field"):
        load_manifest(text)
    job = admit({k: v for k, v in parse_manifest(text).items() if k != "x"})
    assert (job.spec.args, job.spec.image) == (("a",), make_manifest()["spec"]["image"])


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"kind": "TrainingJob", "metadata": {"name": "job"}}, "spec: is required; add it"),
        (
            {"kind": "TrainingJob", "metadata": {"name": "job"}, "spec": {}},
            "spec: exactly one of command (your own program) and trainer (the built-in one) must be given; "
            "add one or remove the other",
        ),
        ({**make_manifest(), "metadata": {}}, "metadata.name: is required; add it"),
        ({**make_manifest(), "spec": None}, "spec: must be an object, not None"),
        ({**make_manifest(), "spec": [1]}, "spec: must be an object, not [1]"),
        (
            {**make_manifest(), "apiVersion": "trainyard.dev/v2"},
            "apiVersion: must be 'trainyard.dev/v1alpha1', not 'trainyard.dev/v2'",
        ),
    ],
    ids=["no spec", "empty spec", "no name", "null spec", "list for spec", "other version"],
)
def test_an_invalid_top_level_field_is_refused(body: dict[str, object], message: str) -> None:
    with pytest.raises(ManifestError) as error:
        admit(body)
    assert error.value.problems == [message]


TEMPLATE = {"template": {"spec": {"nodeSelector": {"a": "b"}}}}
ACTIVE = {"attempt": 1}
SUSPENDED: dict[str, Any] = {
    "attempt": 1,
    "conditions": [
        {"type": "Suspended", "status": "True", "reason": "Suspended", "lastTransitionTime": "2030-01-01T00:00:00Z"}
    ],
}


@pytest.mark.parametrize(
    ("status", "change", "accepted"),
    [
        ({}, {"image": "other"}, True),
        (ACTIVE, {"image": "other"}, False),
        (ACTIVE, {"metrics": {}}, False),
        (ACTIVE, {"workers": {"replicas": 2, "template": {"spec": {"hostNetwork": True}}}}, False),
        (ACTIVE, {"workers": {"replicas": 3}, "suspend": True, "restartPolicy": {"maxRestarts": 9}}, True),
        (SUSPENDED, {"image": "other"}, True),
    ],
    ids=["not started", "image", "metrics", "pod template", "mutable fields", "suspended"],
)
def test_an_update_is_checked_against_the_stored_job(
    status: dict[str, Any], change: dict[str, Any], accepted: bool
) -> None:
    manifest = make_manifest(workers=TEMPLATE if "workers" in change and not accepted else {})
    old = TrainingJob.from_dict({**manifest, "status": status})
    body = {**manifest, "status": status, "spec": {**manifest["spec"], **change}}
    assert admit(body).spec != old.spec, "without the stored job there is nothing to compare with"
    if accepted:
        assert admit(body, old=old).spec != old.spec
        return
    with pytest.raises(ManifestError) as error:
        admit(body, old=old)
    assert error.value.problems == [
        "spec: only suspend, activeDeadlineSeconds, schedulingTimeoutSeconds, cleanPodPolicy, ttlSecondsAfterFinished, "
        "workers.replicas and restartPolicy may change while the job is active; set suspend: true, wait for the "
        "condition Suspended, change it, set suspend: false"
    ]


@pytest.mark.parametrize("kind", ["Succeeded", "Failed"])
@pytest.mark.parametrize("attempt", [0, 1])
def test_a_job_that_has_ended_cannot_be_changed(kind: str, attempt: int) -> None:
    condition = {**SUSPENDED["conditions"][0], "type": kind}
    manifest = make_manifest()
    old = TrainingJob.from_dict({**manifest, "status": {"attempt": attempt, "conditions": [condition]}})
    with pytest.raises(ManifestError) as error:
        admit({**manifest, "spec": {**manifest["spec"], "image": "other"}}, old=old)
    assert error.value.problems == [
        "spec: the job has ended, and a change would have no effect; delete it and create it again"
    ]


@pytest.mark.parametrize(
    ("before", "after"),
    [(None, "trainyard.dev/operator"), ("example.com/a", None), ("example.com/a", "example.com/b")],
)
@pytest.mark.parametrize("attempt", [0, 1])
def test_the_manager_of_a_job_never_changes(before: str | None, after: str | None, attempt: int) -> None:
    """Neither while the job is active nor before: whoever manages it now may be creating its pods."""
    old, new = (make_manifest(managedBy=name) if name else make_manifest() for name in (before, after))
    with pytest.raises(ManifestError) as error:
        admit(new, old=TrainingJob.from_dict({**old, "status": {"attempt": attempt}}))
    assert "spec.managedBy: cannot be changed; delete the job and create it again" in error.value.problems


def test_the_status_of_a_manifest_is_ignored() -> None:
    """For example the output of an earlier run: a new job starts from the beginning."""
    ended = {"attempt": 3, "phase": "Succeeded", "conditions": [{**SUSPENDED["conditions"][0], "type": "Succeeded"}]}
    job = load_manifest(yaml.safe_dump({**make_manifest(), "status": {**ended, "invalid": 1}}))
    assert job.status == TrainingJobStatus()


def test_problems_that_need_resolved_presets_are_reported() -> None:
    trainer = trainer_spec(model={"name": "llama", "preset": "nano", "heads": 3})  # dim comes from the preset
    problems = refused(yaml.safe_dump(make_manifest(trainer=trainer)))
    assert problems == [
        "spec.trainer.model.dim: 128 must be a multiple of 2 x heads = 6 (preset nano with your overrides); "
        "change dim or heads, or set headDim",
        "spec.trainer.model.heads: 3 must be a multiple of kvHeads = 4 (preset nano with your overrides); "
        "change heads or kvHeads",
    ]


@pytest.mark.parametrize("number", ["1e-6", "1.e-6", "1.0e-6", "0.000001", "10E-7"])
def test_numbers_are_parsed_as_by_kubectl(number: str) -> None:
    manifest = yaml.safe_dump(make_manifest(trainer=trainer_spec(optimizer={"eps": 5})))
    job = load_manifest(manifest.replace("eps: 5", f"eps: {number}"))
    assert job.spec.trainer is not None
    assert job.spec.trainer.optimizer.eps == 1e-6
