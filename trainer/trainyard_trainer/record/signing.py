"""Signatures of records with a key of the user's, offline: DSSE envelopes as in-toto and cosign verify them.

A key is a PEM file: ECDSA, Ed25519 or RSA, for example of `openssl genpkey -algorithm ed25519`.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from securesystemslib.dsse import Envelope
from securesystemslib.exceptions import VerificationError
from securesystemslib.signer import CryptoSigner, Key, SSlibKey

from trainyard_trainer.record.statement import PAYLOAD_TYPE, RecordError, Statement, VerificationFailed, write_envelope


def load_signer(path: Path, field: str) -> CryptoSigner:
    """Return the signer of a private key in a PEM file without a passphrase.

    `field`: name of the field or option of the path, for errors.

    Raises:
        RecordError: the file cannot be read, or holds no such key.
    """
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    content = _read(path, field)
    try:
        return CryptoSigner(load_pem_private_key(content, None))
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise RecordError(
            f"{field}: {path} is not a private key in PEM format without a passphrase; make one with openssl genpkey "
            "-algorithm ed25519 -out FILE"
        ) from error


def load_public_key(path: Path, field: str) -> Key:
    """Return the public key in a PEM file.

    Raises:
        RecordError: the file cannot be read, or holds no such key.
    """
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    content = _read(path, field)
    try:
        return SSlibKey.from_crypto(load_pem_public_key(content))
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise RecordError(
            f"{field}: {path} is not a public key in PEM format; write it with openssl pkey -in PRIVATE -pubout -out "
            "FILE"
        ) from error


def signed(payload: bytes, signer: CryptoSigner) -> dict[str, Any]:
    """Return the envelope of a payload, signed."""
    envelope = Envelope(payload, PAYLOAD_TYPE, {})
    envelope.sign(signer)
    found: dict[str, Any] = envelope.to_dict()
    return found


def sign_record(statement: Statement, key: Path, field: str) -> Statement:
    """Sign the record of a folder, also if other keys have signed it, and return it as it is then.

    Raises:
        RecordError: the key cannot be used.
        OSError: the folder cannot be written to.
    """
    signer = load_signer(key, field)
    envelope = _envelope(statement)
    envelope.sign(signer)
    content: dict[str, Any] = envelope.to_dict()
    write_envelope(statement.folder, content)
    return replace(statement, envelope=content)


def verify_signatures(statements: list[Statement], key: Path | None, say: Callable[[str], None]) -> None:
    """Check that a key has signed all records; without one, say that no signature was checked.

    Raises:
        VerificationFailed: it has not signed all of them, or one was changed afterwards.
        RecordError: the key cannot be used.
    """
    if key is None:
        say("signature: not checked, there is no --key")
        return
    public = load_public_key(key, "--key")
    for statement in statements:
        check_signature(statement, public)
    say(f"signature: {len(statements)} of {len(statements)} records are signed with the key {public.keyid[:16]}")


def check_signature(statement: Statement, key: Key) -> None:
    """Check that a key has signed a record.

    Raises:
        VerificationFailed: it has not, or the record was changed afterwards.
    """
    where = f"the record of {statement.folder}"
    if not statement.key_ids:
        raise VerificationFailed(f"{where} has no signature")
    try:
        _envelope(statement).verify([key], 1)
    except VerificationError as error:
        reason = "it was changed after it was signed" if key.keyid in statement.key_ids else "it was signed with others"
        raise VerificationFailed(f"{where} has no valid signature of this key: {reason}") from error
    except (ValueError, KeyError) as error:
        raise VerificationFailed(f"{where} has a signature that cannot be read ({error})") from error


def _envelope(statement: Statement) -> Envelope:
    # from_dict changes what it is given.
    signatures = [dict(signature) for signature in statement.envelope["signatures"]]
    return Envelope.from_dict({**statement.envelope, "signatures": signatures})


def _read(path: Path, field: str) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise RecordError(f"{field}: {path} cannot be read ({error.strerror}); correct the path") from error
