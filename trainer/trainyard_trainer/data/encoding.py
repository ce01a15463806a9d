"""Encoding of parts of documents, in this process or in one that it starts.

A rank has threads, so it must not fork; an encoder is a program of its own (`python -m
trainyard_trainer.data.encoding`) that imports no torch. It reads a task as a line of JSON, and answers with one.
"""

import hashlib
import json
import os
import signal
import subprocess
import sys
import uuid
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

from trainyard.resource.datasets import DataSource
from trainyard_trainer.data.documents import Part, open_documents
from trainyard_trainer.data.tokenizer import ByteTokenizer, JsonTokenizer, Tokenizer
from trainyard_trainer.runtime.errors import ConfigError


@dataclass(frozen=True)
class TokenizerChoice:
    """Which tokenizer encodes documents; it can be sent to another process."""

    path: str | None
    """Path of a tokenizer.json; None: bytes."""
    separates: bool
    """Whether documents end with a token."""
    end_token: str | None = None
    """spec.trainer.data.endToken."""
    chat: bool = False
    """Whether documents are conversations."""
    template: str | None = None
    """Path of the chat template; None: that of the tokenizer."""

    def load(self) -> Tokenizer:
        """Return the tokenizer.

        Raises:
            ConfigError: the file is missing or is not a tokenizer.
        """
        if self.chat:
            from trainyard_trainer.data.chat_template import load_chat_tokenizer

            path, template = (None if name is None else Path(name) for name in (self.path, self.template))
            return load_chat_tokenizer(path, template)
        if self.path is None:
            return ByteTokenizer(separates=self.separates)
        return JsonTokenizer(Path(self.path), separates=self.separates, end_token=self.end_token)


@dataclass(frozen=True)
class Task:
    """Parts of documents that become one file of tokens."""

    source: DataSource
    field: str
    """Name of the source's path in errors."""
    parts: tuple[Part, ...]
    target: Path
    """Path of the file of tokens; its record is beside it with the suffix .json."""

    def to_json(self) -> str:
        """Return the task as a line of JSON."""
        body = {"source": self.source.to_dict(), "field": self.field, "parts": self.parts, "target": str(self.target)}
        return json.dumps(body)

    @classmethod
    def from_json(cls, line: str) -> Self:
        """Return the task that `to_json` has written."""
        body = json.loads(line)
        parts = tuple(Part(*part) for part in body["parts"])
        return cls(DataSource.model_validate(body["source"]), body["field"], parts, Path(body["target"]))


def encode(task: Task, tokenizer: Tokenizer) -> None:
    """Write the tokens of a task and, once they are complete, their record.

    Both appear by a rename, so that an interrupted task leaves nothing that looks complete. The last piece of a
    document may belong to another task than its first.

    Raises:
        ConfigError: a document is unreadable or has another form than its source should have.
        OSError: the tokens cannot be written.
    """
    documents = open_documents(task.source, task.field)
    digest, count = hashlib.sha256(), 0
    # What is left of a process that was killed: this one has its lease now.
    for left in task.target.parent.glob(f"{task.target.name}.*.part"):
        left.unlink(missing_ok=True)
    part = task.target.with_name(f"{task.target.name}.{uuid.uuid4().hex}.part")
    parent = os.getppid()
    try:
        with part.open("wb") as file:
            for piece in (piece for part in task.parts for piece in documents.read(part)):
                ids = tokenizer.encode(piece)
                digest.update(ids)
                count += file.write(ids)
                # The rank that has started this process may have been killed.
                if os.getppid() != parent:
                    raise ProcessLookupError("the process that asked for the tokens has ended")
            file.flush()
            os.fsync(file.fileno())
        part.rename(task.target)
    except FileNotFoundError:
        # Another process considers this one lost, has removed its file and does the same work.
        return
    finally:
        part.unlink(missing_ok=True)
    size = {"uint8": 1, "uint16": 2, "uint32": 4}[tokenizer.dtype]
    write_atomically(
        task.target.with_suffix(".json"), json.dumps({"count": count // size, "digest": digest.hexdigest()})
    )


def write_atomically(path: Path, text: str) -> None:
    """Write a file that is complete as soon as it exists; several processes may write it at the same time."""
    part = path.with_name(f"{path.name}.{uuid.uuid4().hex}.part")
    try:
        with part.open("w") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        part.rename(path)
    finally:
        part.unlink(missing_ok=True)


class Encoder:
    """A process that encodes one task after the other."""

    def __init__(self, choice: TokenizerChoice) -> None:
        """Start the process; it loads its own copy of the tokenizer."""
        command = [sys.executable, "-m", "trainyard_trainer.data.encoding", json.dumps(asdict(choice))]
        # Each process uses one processor; there are as many processes as processors.
        env = {**os.environ, "TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        env["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(command, stdin=pipe, stdout=pipe, env=env, text=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()

    def encode(self, task: Task) -> None:
        """Encode a task in the process, as `encode` does."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(task.to_json() + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            code = self._process.wait()
            raise ChildProcessError(f"a process that encodes documents has ended with {code}, perhaps without memory")
        answer: dict[str, Any] = json.loads(line)
        if "config" in answer:
            raise ConfigError(answer["config"])
        if "errno" in answer:
            raise OSError(answer["errno"], answer["message"], answer["path"])


def main() -> None:
    """Encode the tasks of standard input."""
    # Ctrl-C reaches all processes of a terminal; the one that asked for the tokens ends this one.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # What a library prints must not be taken for an answer.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    tokenizer: Tokenizer | None = None
    for line in sys.stdin:
        try:
            tokenizer = tokenizer or TokenizerChoice(**json.loads(sys.argv[1])).load()
            encode(Task.from_json(line), tokenizer)
            answer: dict[str, Any] = {}
        except ConfigError as error:
            answer = {"config": str(error)}
        except OSError as error:
            answer = {"errno": error.errno, "message": error.strerror or str(error), "path": error.filename}
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
