"""The report of explanations: explanation.json for programs, explanation.html for people."""

from collections.abc import Mapping
from typing import Any

from trainyard_trainer.evaluation.report import Subject, to_json
from trainyard_trainer.explanation.page import explanation_page
from trainyard_trainer.html_page import write_file
from trainyard_trainer.runtime.object_store import Location

JSON_FILE, HTML_FILE = "explanation.json", "explanation.html"


def write_explanation(folder: Location, subject: Subject, content: Mapping[str, Any]) -> Location:
    """Write the report into a folder, and return the path of the page.

    Raises:
        OSError: the storage refuses.
    """
    complete = {**subject.content(), **content}
    write_file(folder / JSON_FILE, to_json(complete))
    write_file(folder / HTML_FILE, explanation_page(complete).content())
    return folder / HTML_FILE
