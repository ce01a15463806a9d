"""What the clients of Google Cloud Storage and Azure Blob Storage make of the answers of a server.

No test has such a store. The server here only refuses: it shows that requests go where the environment says, and that
what cannot be repaired by a repetition is told apart from what can.
"""

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from pyarrow import fs

from trainyard_trainer.runtime import object_streams
from trainyard_trainer.runtime.object_store import ObjectPath, ObjectStoreRefused, ObjectStoreUnavailable

KEY = "c2VjcmV0LWtleQ=="


@dataclass
class Answers:
    """A server that answers every request alike, and remembers them."""

    status: int = 503
    code: str = ""
    """Code of the error, as Azure has it."""
    requests: list[str] = field(default_factory=list)
    port: int = 0


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch) -> Iterator[Answers]:
    found = Answers()

    class Handler(BaseHTTPRequestHandler):
        def answer(self) -> None:
            found.requests.append(f"{self.command} {self.path}")
            text = f"<?xml version='1.0'?><Error><Code>{found.code}</Code><Message>no</Message></Error>"
            body = text.encode() if found.code else b""
            self.send_response(found.status)
            self.send_header("x-ms-error-code", found.code)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        do_GET = do_PUT = do_HEAD = do_POST = do_DELETE = answer

        def log_message(self, format: str, *args: Any) -> None:
            """Write no log."""

    object_streams.file_system_of.cache_clear()
    monkeypatch.setattr(object_streams, "REQUEST_SECONDS", 1.0)
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        found.port = server.server_port
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield found
        server.shutdown()
        thread.join()
    object_streams.file_system_of.cache_clear()


@pytest.fixture
def google(answers: Answers, monkeypatch: pytest.MonkeyPatch) -> Answers:
    """Without a key, for which the client would ask Google."""
    made = fs.GcsFileSystem
    monkeypatch.setattr(fs, "GcsFileSystem", lambda **fields: made(anonymous=True, **fields))
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", f"http://127.0.0.1:{answers.port}")
    monkeypatch.setenv("CLOUD_STORAGE_EMULATOR_ENDPOINT", f"http://127.0.0.1:{answers.port}")
    return answers


@pytest.fixture
def azure(answers: Answers, monkeypatch: pytest.MonkeyPatch) -> Answers:
    """Its client has no variable for another address, so the test adds one."""
    made, place = fs.AzureFileSystem, f"127.0.0.1:{answers.port}"
    given = {f"{kind}_storage_{part}": value for kind in ("blob", "dfs") for part, value in _parts(place)}
    monkeypatch.setattr(fs, "AzureFileSystem", lambda **fields: made(**fields, **given))
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_NAME", "account")
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_KEY", KEY)
    return answers


def _parts(place: str) -> list[tuple[str, str]]:
    return [("authority", place), ("scheme", "http")]


@pytest.mark.parametrize("status", [401, 403])
def test_google_refuses(google: Answers, status: int) -> None:
    google.status = status
    path = ObjectPath("gs://bucket/folder/name")
    acts: list[Callable[[], object]] = [path.stat, path.read_bytes, lambda: list(path.iterdir())]
    acts.append(lambda: path.write_bytes(b"content"))
    for act in acts:
        with pytest.raises(ObjectStoreRefused, match=f"HTTP status code: {status}: 'gs://bucket"):
            act()
    assert all("/bucket/" in request or "/b/bucket" in request for request in google.requests)


def test_google_has_no_such_object_or_bucket(google: Answers) -> None:
    google.status = 404
    path = ObjectPath("gs://bucket/folder/name")
    assert not path.exists()
    with pytest.raises(FileNotFoundError):
        path.stat()
    with pytest.raises(ObjectStoreRefused, match="NOT_FOUND"):
        path.write_bytes(b"content")


def test_google_is_unavailable(google: Answers) -> None:
    with pytest.raises(ObjectStoreUnavailable, match=r"UNAVAILABLE.*HTTP status code: 503"):
        ObjectPath("gs://bucket/name").stat()


@pytest.mark.parametrize("code", ["AuthenticationFailed", "AuthorizationPermissionMismatch", "AuthorizationFailure"])
def test_azure_refuses(azure: Answers, code: str) -> None:
    azure.status, azure.code = 403, code
    path = ObjectPath("az://container/folder/name")
    for act in (path.stat, path.read_bytes, lambda: path.write_bytes(b"content")):
        with pytest.raises(ObjectStoreRefused, match=rf"\[{code}\] 403 Forbidden: 'az://container") as caught:
            act()
        assert KEY not in str(caught.value)
    assert all(request.split()[1].startswith("/account/container") for request in azure.requests)


def test_azure_has_no_such_container(azure: Answers) -> None:
    azure.status, azure.code = 404, "ContainerNotFound"
    path = ObjectPath("az://container/folder/name")
    assert not path.exists()
    with pytest.raises(ObjectStoreRefused, match="ContainerNotFound"):
        path.write_bytes(b"content")


def test_azure_needs_the_name_of_the_account(azure: Answers, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AZURE_STORAGE_ACCOUNT_NAME")
    with pytest.raises(ObjectStoreRefused, match="AZURE_STORAGE_ACCOUNT_NAME is not set"):
        ObjectPath("az://container/name").stat()
