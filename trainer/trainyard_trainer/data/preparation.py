"""Preparation of documents: they become tokens once per job, by all pods together.

The tokens of a set of documents are in a folder whose name is a digest of all that they depend on: the files (by name,
size and time of modification), the tokenizer, and how documents are separated. The documents are divided into tasks of
some MiB, which depend on the files alone. Each pod encodes tasks of which no other pod has a lease, one on each
processor, until all are done; then it adds the index, which makes the set complete. A task that was interrupted is done
again, all others stay. Memory is bounded by the pieces of documents that are being encoded.
"""

import errno
import hashlib
import json
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from trainyard.config import RunConfig
from trainyard.protocol.constants import ENV_CACHE, ENV_CHECKPOINTS
from trainyard_trainer.data.documents import Documents, Part
from trainyard_trainer.data.downloads import cache_folder
from trainyard_trainer.data.encoding import Task, TokenizerChoice
from trainyard_trainer.data.encoding_tasks import EncodingTasks, waits
from trainyard_trainer.data.lease import Leases
from trainyard_trainer.data.token_set import INDEX, TokenSet, open_prepared
from trainyard_trainer.data.tokenizer import Tokenizer, learn_bpe
from trainyard_trainer.runtime import log
from trainyard_trainer.runtime.errors import ConfigError

FORMAT = 2
"""Part of the name of each folder. Raise it when the same documents would give other tokens than before."""
MIN_TASK, MAX_TASK, TASKS = 4 << 20, 256 << 20, 1024
"""Bytes of the smallest and the largest task, and the number of tasks between the two."""
LEARNED = 256 << 20
"""Bytes of text that a tokenizer is trained on at most."""
SMALL = 8 << 20
"""Bytes of documents that every pod prepares for itself, within about a second."""
BYTE_FACTOR = 8
"""How many times more of them the byte tokenizer encodes in that time."""
_NOT_WRITABLE = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOENT, errno.ENOTDIR, errno.ENOSPC, errno.EDQUOT)

T = TypeVar("T")
Report = Callable[[float, float], None]
"""Receives the share of the preparation that is done, and the seconds from its start to the last task that was done."""


@dataclass
class Workshop:
    """Where and by whom documents of a job are prepared."""

    own: Path
    """Folder of this pod."""
    shared: Path | None
    """Folder that all pods share; None: each pod prepares for itself."""
    required: bool
    """Whether the shared folder was asked for (spec.trainer.data.cache), so that nothing replaces it."""
    works: bool
    """Whether this rank works; the others of a pod wait for it."""
    first: float
    """Place of this pod among all, from 0 to 1: where in the tasks it begins."""
    processes: int
    """Processes that encode at a time."""
    report: Report
    started: float = field(default_factory=time.monotonic)
    started_work: bool = False
    """Whether anything had to be prepared."""

    @classmethod
    def of_rank(cls, config: RunConfig, report: Report) -> "Workshop":
        """Return what the environment of a rank says."""
        cache, checkpoints = config.trainer.data.cache, os.environ.get(ENV_CHECKPOINTS)
        shared = Path(cache) if cache is not None else None
        if shared is None and config.checkpoint is not None and checkpoints:
            shared = Path(checkpoints, "data")
        local, pods = int(os.environ.get("LOCAL_RANK", "0")), int(os.environ.get("PET_NNODES", "1"))
        # The launcher has divided the processors among the ranks of the pod.
        threads = int(os.environ.get("OMP_NUM_THREADS") or len(os.sched_getaffinity(0)))
        return cls(
            own=cache_folder(),
            shared=shared,
            required=cache is not None,
            works=local == 0,
            first=int(os.environ.get("PET_NODE_RANK", "0")) / max(1, pods),
            processes=threads * int(os.environ.get("LOCAL_WORLD_SIZE", "1")),
            report=report,
        )

    def tokens(self, documents: Documents, choice: TokenizerChoice, tokenizer: Tokenizer, identity: str) -> TokenSet:
        """Return the tokens of documents, prepared now if they are not yet.

        Args:
            documents: the documents.
            choice: the tokenizer, for other processes.
            tokenizer: the tokenizer, loaded.
            identity: what the tokenizer's result depends on.

        Raises:
            ConfigError: the documents are missing or unreadable, or no folder can be written.
        """
        source = documents.source
        key = [source.source, source.field, source.split, identity, choice.separates, tokenizer.end]
        name = _digest([*key, documents.identity()])
        if (found := self._find(Path(name, INDEX))) is not None:
            return open_prepared(found.parent)
        groups = grouped_parts(documents)
        size = sum(part.size for group in groups for part in group)
        small = size <= SMALL * (BYTE_FACTOR if choice.path is None else 1)
        log.info(f"preparing {size / 1e6:,.1f} MB of documents of {documents.source.name}", dataBytes=size)

        def prepare(folder: Path) -> TokenSet:
            tasks = [
                Task(source, documents.field, tuple(group), folder / f"{index:05}.bin")
                for index, group in enumerate(groups)
            ]
            EncodingTasks(self, tasks, folder, choice, tokenizer, alone=small).run()
            return open_prepared(folder)

        return self._in_folder(name, small, prepare)

    def learned_tokenizer(self, sources: Sequence[Documents], vocab_size: int) -> Path:
        """Return the path of a byte-pair encoding that was learned from a part of all sources.

        Raises:
            ConfigError: the documents are missing or unreadable, or no folder can be written.
        """
        identities = [(d.source.source, d.source.field, d.source.split, d.identity()) for d in sources]
        name = _digest(["bpe", vocab_size, LEARNED, identities])
        file = "tokenizer.json"
        if (found := self._find(Path(name, file))) is not None:
            return found
        parts = [[*documents.parts(MIN_TASK)] for documents in sources]
        size = sum(part.size for group in parts for part in group)

        def learn(folder: Path) -> Path:
            target, lease = folder / file, folder / f"{file}.lease"
            with Leases() as leases:
                for _ in waits(target.exists):
                    if not self.works or not leases.acquire(lease):
                        continue
                    log.info(f"learning a vocabulary of {vocab_size:,} tokens from {min(size, LEARNED) / 1e6:,.1f} MB")
                    part = target.with_suffix(f".{os.getpid()}.part")
                    share = min(1.0, LEARNED / max(1, size))
                    learn_bpe(self._sample(sources, parts, share), vocab_size, part)
                    part.rename(target)
                    leases.release(lease)
            return target

        return self._in_folder(name, size <= SMALL, learn)

    def _sample(self, sources: Sequence[Documents], parts: list[list[Part]], share: float) -> Iterator[str]:
        """Yield text of all parts, of each the same share from its beginning on."""
        total = sum(len(group) for group in parts)
        done = 0
        for documents, group in zip(sources, parts, strict=True):
            for part in group:
                left = part.size * share
                for piece in documents.read(part):
                    yield piece.text
                    left -= len(piece.text)
                    if share < 1 and left <= 0:
                        break
                done += 1
                # A tenth of the time, as far as that can be known.
                self.report(0.1 * done / total, self.seconds)

    @property
    def seconds(self) -> float:
        """Seconds since the preparation began."""
        return time.monotonic() - self.started

    def _find(self, path: Path) -> Path | None:
        """Return a path in one of the folders, if it exists in one."""
        for folder in (self.shared, self.own):
            if folder is not None and (folder / path).exists():
                return folder / path
        return None

    def _in_folder(self, name: str, small: bool, act: Callable[[Path], T]) -> T:
        """Return the result of an action in the folder of this name, which all pods share if they should."""
        self.started_work = True
        shared = None if self.shared is None or (small and not self.required) else self.shared / name
        try:
            if shared is not None:
                shared.mkdir(parents=True, exist_ok=True)
                return act(shared)
        except OSError as error:
            if error.errno not in _NOT_WRITABLE:
                raise
            if self.required:
                raise ConfigError(
                    f"spec.trainer.data.cache: {self.shared} cannot be written to ({error.strerror}); choose a folder "
                    f"that user {os.getuid()} may write to, or prepare the data there with trainyard prepare"
                ) from error
            log.logger.warning("data is prepared by each pod for itself: %s: %s", shared, error.strerror)
        own = self.own / name
        try:
            own.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(
                f"{ENV_CACHE}: {own.parent} cannot be created in the worker ({error.strerror}); mount an emptyDir at "
                f"/tmp via spec.workers.template, or set {ENV_CACHE} in spec.env to a folder that can be written"
            ) from error
        return act(own)


def grouped_parts(documents: Documents) -> list[list[Part]]:
    """Return the parts of documents that become one file of tokens each, in order.

    Raises:
        ConfigError: the documents are missing or unreadable.
    """
    parts = list(documents.parts(MAX_TASK))
    limit = max(MIN_TASK, min(MAX_TASK, sum(part.size for part in parts) // TASKS))
    return list(_grouped(parts if limit == MAX_TASK else documents.parts(limit), limit))


def _grouped(parts: Iterable[Part], limit: int) -> Iterator[list[Part]]:
    """Yield parts in groups of at most about `limit` bytes, in order."""
    group: list[Part] = []
    size = 0
    for part in parts:
        if group and size + part.size > limit:
            yield group
            group, size = [], 0
        group.append(part)
        size += part.size
    if group:
        yield group


def _digest(what: Any) -> str:
    """Return the name of a folder whose content depends on these values."""
    return hashlib.sha256(json.dumps([FORMAT, what]).encode()).hexdigest()[:24]
