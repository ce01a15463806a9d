"""The table that decides with which changes a run can be resumed."""

import json
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from tests.support.run_config import make_config
from trainyard.base import ApiModel, models_in
from trainyard.config import RunConfig
from trainyard.models import FAMILIES
from trainyard.resume import (
    RULES,
    Effect,
    differences,
    refusals,
    resume_table,
    rule_for,
    with_resume_table,
)
from trainyard.run_record import FORMAT, MAX_CHANGES, RUN_FILE, DataRecord, RunRecord, TokenizerRecord, compare

DOCUMENT = Path(__file__).parents[2] / "docs" / "checkpoints.md"
IDENTITY = (
    "data.fingerprint",
    "tokenizer.sha256",
    "base.sha256",
    "image",
    "versions.trainyard",
    "versions.torch",
    "versions.python",
)


def fields(model: type[ApiModel], prefix: str = "") -> Iterator[str]:
    """Yield the paths of all fields of a type that hold values."""
    for name, field in model.model_fields.items():
        path = f"{prefix}{field.alias or name}"
        nested = [] if path == "model" else models_in(field.annotation)
        for child in nested:
            yield from fields(child, f"{path}.")
        if path == "model":
            for family in FAMILIES.values():
                yield from fields(family.config, "model.")
        elif not nested:
            yield path


ALL = sorted({*fields(RunConfig), *IDENTITY})


@pytest.mark.parametrize("path", ALL)
def test_every_field_of_the_configuration_has_a_rule(path: str) -> None:
    """A new field fails here until trainyard.resume.RULES says what follows if it changes between two attempts."""
    assert rule_for(path) in RULES


def test_every_rule_is_about_fields_that_exist() -> None:
    for rule in RULES:
        for pattern in rule.paths:
            found = [path for path in ALL if f"{path}." == pattern.removesuffix("*") or path == pattern]
            found += [path for path in ALL if path.startswith(pattern.removesuffix("*"))]
            assert found, pattern


def test_no_field_has_two_rules() -> None:
    patterns = [pattern for rule in RULES for pattern in rule.paths]
    assert len(patterns) == len(set(patterns))


def test_the_table_in_the_documentation_is_up_to_date() -> None:
    text = DOCUMENT.read_text("utf-8")
    assert with_resume_table(text) == text, "run make generate"
    assert "`spec.trainer.seed` | refused |" in resume_table()


def record(config: RunConfig, **changes: Any) -> RunRecord:
    about = {
        "created": datetime(2030, 1, 1, tzinfo=UTC),
        "config": config.to_dict(),
        "data": DataRecord(fingerprint=7, samples=100, eval_samples=10),
        "tokenizer": TokenizerRecord(sha256="a1"),
        "versions": {"trainyard": "1", "torch": "2", "python": "3"},
        "image": "trainer:1",
    }
    return RunRecord(**{**about, **changes})


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, []),
        ({"batch": {"global": 16}}, [("spec.trainer.batch.global", Effect.ALLOWED)]),
        ({"data": {"sequenceLength": 32}}, [("spec.trainer.data.sequenceLength", Effect.ALLOWED)]),
        ({"seed": 1}, [("spec.trainer.seed", Effect.REFUSED)]),
        ({"data": {"evalFraction": 0.1}}, [("spec.trainer.data.evalFraction", Effect.REFUSED)]),
        ({"model": {"layers": 3}}, [("spec.trainer.model.layers", Effect.REFUSED)]),
        ({"optimizer": {"learningRate": 0.5}}, [("spec.trainer.optimizer.learningRate", Effect.ALLOWED)]),
        ({"optimizer": {"name": "sgd"}}, [("spec.trainer.optimizer.name", Effect.REFUSED)]),
        (
            {"data": {"tokenizer": "bpe", "vocabSize": 512}},
            [("spec.trainer.data.tokenizer", Effect.ALLOWED), ("spec.trainer.data.vocabSize", Effect.REFUSED)],
        ),
    ],
)
def test_differences_of_a_configuration(changes: dict[str, Any], expected: list[tuple[str, Effect]]) -> None:
    found = differences(make_config(1).to_dict(), make_config(1, **changes).to_dict())
    assert [(difference.field, difference.rule.effect) for difference in found] == expected


PRIVACY = {"epsilon": 3, "delta": 1e-6}


@pytest.mark.parametrize(
    ("before", "after", "refused"),
    [
        ({}, {"privacy": PRIVACY}, True),
        ({"privacy": PRIVACY}, {}, True),
        ({"privacy": PRIVACY}, {"privacy": {**PRIVACY, "delta": 1e-5}}, True),
        ({"privacy": PRIVACY}, {"privacy": {**PRIVACY, "epsilon": 4, "noiseMultiplier": 2, "maxGradNorm": 3}}, False),
    ],
)
def test_privacy_is_for_all_steps_of_a_run(before: dict[str, Any], after: dict[str, Any], refused: bool) -> None:
    run, attempt = (make_config(1, checkpoint={}, **changes) for changes in (before, after))
    found = refusals(differences(run.to_dict(), attempt.to_dict()), "run.json")
    assert found.startswith("spec.trainer.privacy.delta is") if refused else found == ""


def test_what_an_attempt_is_made_of_is_compared_too() -> None:
    run = record(make_config(1))
    attempt = record(
        make_config(2),
        data=DataRecord(fingerprint=8, samples=120, eval_samples=10),
        tokenizer=None,
        versions={"trainyard": "1", "torch": "2.1", "python": "3"},
        image=None,
    )
    found = {difference.field: difference for difference in compare(run, attempt)}
    assert {field: difference.rule.effect for field, difference in found.items()} == {
        "the number of ranks": Effect.ALLOWED,
        "the data (fingerprint)": Effect.WARNING,
        "the tokenizer (SHA-256)": Effect.REFUSED,
        "spec.image": Effect.ALLOWED,
        "version of torch": Effect.ALLOWED,
    }
    assert refusals(found.values(), "run.json") == (
        "the tokenizer (SHA-256) is not set, but a1 in run.json: the ids of tokens would stand for other text than "
        "those that the model has learnt; change it back, or start another run: another name, or another "
        "spec.checkpoint volume"
    )


def test_a_field_that_a_record_does_not_have_yet_has_its_default() -> None:
    """Another version wrote the record: what it did not know is not a difference."""
    config = make_config(1)
    old = config.to_dict()
    del old["health"]
    del old["trainer"]["tensorboard"]
    old["trainer"]["forgotten"] = 1
    assert compare(record(config).replace(config=old), record(config)) == []


def test_a_record_is_read_as_it_was_written_and_keeps_its_history(tmp_path: Path) -> None:
    first, second = record(make_config(1)), record(make_config(1, batch={"global": 16}))
    assert first.id != second.id
    run = first.continued_by(second, compare(first, second), step=30)
    (tmp_path / RUN_FILE).write_text(run.text())
    found = RunRecord.read(tmp_path)
    assert found == run
    assert (found.id, found.created, found.config["trainer"]["batch"]["global"]) == (first.id, first.created, 16)
    (change,) = found.changes
    assert (change.step, change.field, change.before, change.after) == (30, "spec.trainer.batch.global", 8, 16)


def test_a_record_keeps_a_bounded_number_of_changes() -> None:
    first, second = record(make_config(1)), record(make_config(1, batch={"global": 16}))
    run = first
    for step in range(MAX_CHANGES + 5):
        run = run.continued_by(second, compare(first, second), step)
    assert [run.changes[0].step, len(run.changes)] == [5, MAX_CHANGES]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "run.json cannot be read ("),
        ("[]", "run.json cannot be read ("),
        ('{"format": 1, "id": "x"}', "created: Field required); restore it, or remove it to resume without comparing"),
        (json.dumps({"format": FORMAT + 1}), f"has the format {FORMAT + 1}, but this version of Trainyard reads"),
    ],
)
def test_a_record_that_cannot_be_read_is_an_error_with_the_fix(tmp_path: Path, text: str, words: str) -> None:
    assert RunRecord.read(tmp_path) is None
    (tmp_path / RUN_FILE).write_text(text)
    with pytest.raises(ValueError) as error:  # noqa: PT011 (the words are compared below)
        RunRecord.read(tmp_path)
    assert words in str(error.value)
    assert "\n" not in str(error.value)
