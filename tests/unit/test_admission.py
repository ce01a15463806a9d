"""Admission without an API server: each fault is refused with a message that says what to do."""

import json

import pytest
import yaml

from tests.builders import make_manifest, trainer_spec
from tests.support.faults import FAULTS, RULES, Fault
from trainyard.admission import admit, load_manifest
from trainyard.crd import Schema, openapi_schema
from trainyard.manifest import ManifestError, parse_manifest


def refused(text: str) -> list[str]:
    with pytest.raises(ManifestError) as error:
        load_manifest(text)
    return error.value.problems


@pytest.mark.parametrize("fault", FAULTS, ids=[f.name for f in FAULTS])
def test_a_fault_is_refused_with_exactly_one_message(fault: Fault) -> None:
    assert refused(yaml.safe_dump(fault.manifest())) == [fault.message]


@pytest.mark.parametrize("fault", FAULTS, ids=[f.name for f in FAULTS])
def test_json_is_judged_as_yaml_is(fault: Fault) -> None:
    assert refused(json.dumps(fault.manifest())) == [fault.message]


def test_every_rule_about_a_new_job_has_a_fault_in_the_table() -> None:
    def rules(schema: Schema) -> list[str]:
        here = [r["message"] for r in schema.get("x-kubernetes-validations", ()) if "oldSelf" not in r["rule"]]
        children = [*schema.get("properties", {}).values(), *([schema["items"]] if "items" in schema else ())]
        return here + [message for child in children for message in rules(child)]

    assert set(rules(openapi_schema())) == {fault.server or fault.message for fault in RULES}


def test_all_faults_are_told_at_once() -> None:
    manifest = make_manifest(replicas=0, command="train", workers={"colour": "red"})
    assert len(refused(yaml.safe_dump(manifest))) == 3


def test_a_good_manifest_is_accepted_and_its_defaults_are_filled_in() -> None:
    job = load_manifest(yaml.safe_dump(make_manifest(trainer=trainer_spec())))
    assert job.spec.trainer is not None
    assert job.spec.trainer.batch.micro == "auto"
    assert job.spec.workers.procs_per_worker == "auto"
    assert job.spec.restart_policy.limit == 3
    assert job.metadata.namespace == "default"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "one TrainingJob is expected, found no object; give a file with one TrainingJob"),
        ("just words", "one TrainingJob is expected, found no object; give a file with one TrainingJob"),
        ("spec: {}", "one TrainingJob is expected, found an object without kind; give a file with one TrainingJob"),
        ("kind: Pod", "one TrainingJob is expected, found kind Pod; give a file with one TrainingJob"),
        (
            "kind: PyTorchJob\n---\nkind: Pod\n---\nkind: Pod",
            "one TrainingJob is expected, found kinds Pod, PyTorchJob; give a file with one TrainingJob",
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


def test_other_objects_beside_the_job_are_left_alone() -> None:
    text = f"kind: ConfigMap\n---\n{yaml.safe_dump(make_manifest())}"
    assert load_manifest(text).metadata.name == "job"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("spec: [1, 2\nkind: x", "line 2, column 5: while parsing a flow sequence expected ',' or ']', but got ':'"),
        ("kind: TrainingJob\nspec: {a: 1}\nspec: {b: 2}\n", "line 3, column 1: duplicate key 'spec'"),
        ('{"kind": "TrainingJob", "spec": {"a": 1, "a": 1}}', "line 1, column 42: duplicate key 'a'"),
        ("spec: {a: &x {b: 1}, c: {<<: *x, b: 2, d: !!python/object:os.x {}}}", "line 1, column 43: could not"),
        ("a: \x00", "unacceptable character #x0000: special characters are not allowed position 3"),
        ("[" * 5000, "nested too deeply; remove levels of nesting"),
        ("a: 2020-99-99", "month must be in 1..12"),
    ],
    ids=["flow", "duplicate", "duplicate in JSON", "tag", "character", "nested", "date"],
)
def test_invalid_yaml_is_refused_with_line_and_column(text: str, message: str) -> None:
    (problem,) = refused(text)
    assert problem.startswith(f"not valid YAML: {message}")
    assert "unicode string" not in problem
    assert "\n" not in problem


def test_merge_keys_are_not_duplicates() -> None:
    text = yaml.safe_dump(make_manifest())
    merged = text.replace("metadata:\n", "metadata:\n  <<: {labels: {team: a}}\n")
    assert parse_manifest(merged)["metadata"]["labels"] == {"team": "a"}


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
def test_a_broken_frame_is_refused(body: dict[str, object], message: str) -> None:
    with pytest.raises(ManifestError) as error:
        admit(body)
    assert error.value.problems == [message]


def test_rules_that_compare_with_an_older_version_do_not_concern_a_new_job() -> None:
    assert admit(make_manifest()).spec.command == ("train",)


def test_the_problems_that_no_rule_can_express_are_found_too() -> None:
    trainer = trainer_spec(model={"name": "gpt", "preset": "nano", "heads": 3})  # dim comes from the preset
    problems = refused(yaml.safe_dump(make_manifest(trainer=trainer)))
    assert problems == [
        "spec.trainer.model.dim: 128 must be a multiple of 2 x heads = 6 (preset nano with your overrides); "
        "change dim or heads",
        "spec.trainer.model.heads: 3 must be a multiple of kvHeads = 4 (preset nano with your overrides); "
        "change heads or kvHeads",
    ]


@pytest.mark.parametrize("number", ["1e-6", "1.e-6", "1.0e-6", "0.000001", "10E-7"])
def test_numbers_are_read_as_kubectl_reads_them(number: str) -> None:
    manifest = yaml.safe_dump(make_manifest(trainer=trainer_spec(optimizer={"eps": 5})))
    job = load_manifest(manifest.replace("eps: 5", f"eps: {number}"))
    assert job.spec.trainer is not None
    assert job.spec.trainer.optimizer.eps == 1e-6
