"""Certificates of one throw-away cluster: a CA, and a key pair for each component."""

from __future__ import annotations

import base64
import datetime
import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

VALIDITY = datetime.timedelta(days=3650)


@dataclass(frozen=True)
class Subject:
    """Who a certificate speaks for. Kubernetes reads the user from CN and the groups from O."""

    user: str
    group: str | None = None
    hosts: Sequence[str] = ()
    """Names and addresses it serves at; none for a mere client."""


@dataclass(frozen=True)
class KeyPair:
    """A private key and its certificate."""

    key: ec.EllipticCurvePrivateKey
    certificate: x509.Certificate

    def write(self, folder: Path, name: str) -> None:
        """Write NAME.key, readable for its owner only, and NAME.crt."""
        write_key(folder / f"{name}.key", self.key)
        (folder / f"{name}.crt").write_bytes(self.certificate.public_bytes(Encoding.PEM))

    @property
    def key_pem(self) -> bytes:
        """The private key."""
        return key_pem(self.key)

    @property
    def certificate_pem(self) -> bytes:
        """The certificate."""
        return self.certificate.public_bytes(Encoding.PEM)


def key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    """Return a private key in PEM, in the one format that Kubernetes also reads the public key from."""
    return key.private_bytes(Encoding.PEM, PrivateFormat.TraditionalOpenSSL, NoEncryption())


def write_key(file: Path, key: ec.EllipticCurvePrivateKey) -> None:
    """Write a private key that only its owner can read."""
    file.touch(mode=0o600)
    file.write_bytes(key_pem(key))


def new_key() -> ec.EllipticCurvePrivateKey:
    """Return a new private key; elliptic, because an RSA key takes a hundred times as long to make."""
    return ec.generate_private_key(ec.SECP256R1())


def certificate_authority() -> KeyPair:
    """Return a new, self-signed CA."""
    key = new_key()
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "trainyard-test-ca")])
    builder = _builder(name, name, key).add_extension(x509.BasicConstraints(ca=True, path_length=None), True)
    return KeyPair(key, builder.sign(key, hashes.SHA256()))


def issue(ca: KeyPair, subject: Subject) -> KeyPair:
    """Return a key pair that the CA has signed, for clients and servers."""
    key = new_key()
    attributes = [x509.NameAttribute(NameOID.COMMON_NAME, subject.user)]
    if subject.group:
        attributes.append(x509.NameAttribute(NameOID.ORGANIZATION_NAME, subject.group))
    usage = [ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH]
    builder = _builder(x509.Name(attributes), ca.certificate.subject, key)
    builder = builder.add_extension(x509.ExtendedKeyUsage(usage), False)
    if subject.hosts:
        builder = builder.add_extension(x509.SubjectAlternativeName(list(map(_host, subject.hosts))), False)
    return KeyPair(key, builder.sign(ca.key, hashes.SHA256()))


def _builder(subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePrivateKey) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + VALIDITY)
    )


def _host(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def kubeconfig(server: str, ca: KeyPair, user: KeyPair) -> str:
    """Return a kubeconfig that contains all certificates and keys, so that it can be copied anywhere."""

    def inline(pem: bytes) -> str:
        return base64.b64encode(pem).decode()

    cluster = {"server": server, "certificate-authority-data": inline(ca.certificate_pem)}
    credentials = {
        "client-certificate-data": inline(user.certificate_pem),
        "client-key-data": inline(user.key_pem),
    }
    document = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "trainyard", "cluster": cluster}],
        "users": [{"name": "trainyard", "user": credentials}],
        "contexts": [{"name": "trainyard", "context": {"cluster": "trainyard", "user": "trainyard"}}],
        "current-context": "trainyard",
    }
    return yaml.safe_dump(document, sort_keys=False)
