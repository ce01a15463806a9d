"""Whether the address of worker 0 can be looked up yet, found out without a look-up that comes too early.

The name of a pod in a headless Service exists once the pod has an address. DNS servers remember for a while that a name
does not exist (RFC 2308): CoreDNS for 5 s, and for 30 s as kubeadm configures it. So a program that looks up its master
too early fails, or waits for that time, and all others on the cluster wait with it.

CoreDNS remembers an answer for one name and one type of record. So the launcher asks for types that no program asks
for, each time for another one, and looks up the address only when the name exists. A server that remembers a name for
all types only makes the wait longer.

Mounted into images of users together with `launcher.py`: standard library of Python 3.8 only.
"""

from __future__ import annotations

import contextlib
import ipaddress
import os
import socket
import struct
import time
from pathlib import Path

RESOLV_CONF = Path("/etc/resolv.conf")
HOSTS = Path("/etc/hosts")
POLL_SECONDS = 0.25
"""Time between two queries. Launchers query the same type in the same quarter of a second, so that the server answers
all of them from its cache."""
_ANSWER_SECONDS = 0.5
"""Time for the answer of a server."""
_FIRST_TYPE, _TYPES = 65280, 254
"""Types of records for private use (RFC 6895): one after the other for 63 s, in which each of them is forgotten."""
_NO_SUCH_NAME = 3  # NXDOMAIN (RFC 1035)
_RECURSION_DESIRED = 0x0100
_PORT = 53


def can_look_up(name: str) -> bool:
    """Return whether a name can be looked up. A name in the cluster is only looked up if it exists."""
    with contextlib.suppress(ValueError):
        ipaddress.ip_address(name)
        return True
    # The kubelet has written the names of this pod to this file.
    if name in _names_of_hosts():
        return True
    servers, domain = _configuration()
    if domain and servers and name.endswith((".svc", f".svc.{domain}")):
        full_name = name if name.endswith(f".{domain}") else f"{name}.{domain}"
        if not _may_exist(full_name, servers[0]):
            return False
    try:
        socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)
    except OSError:
        return False
    return True


def cluster_domain() -> str:
    """Return the DNS domain of the cluster that this pod is in; empty outside of a cluster."""
    return _configuration()[1]


def _names_of_hosts() -> set[str]:
    """Return the names in the file of hosts."""
    try:
        lines = [line.partition("#")[0].split() for line in HOSTS.read_text("utf-8", "replace").splitlines()]
    except OSError:
        return set()
    return {name for words in lines for name in words[1:]}


def _configuration() -> tuple[list[str], str]:
    """Return the addresses of the DNS servers, and the domain of the cluster; empty if the pod has none.

    The kubelet writes NAMESPACE.svc.DOMAIN, svc.DOMAIN and DOMAIN, among others, into the search list of a pod.
    """
    try:
        lines = [line.split() for line in RESOLV_CONF.read_text("utf-8", "replace").splitlines()]
    except OSError:
        return [], ""
    servers = [words[1] for words in lines if len(words) > 1 and words[0] == "nameserver"]
    search = [word.rstrip(".") for words in lines if words and words[0] == "search" for word in words[1:]]
    return servers, next((domain for domain in search if f"svc.{domain}" in search), "")


def _may_exist(name: str, server: str) -> bool:
    """Return whether a DNS server knows a name. A server that does not answer, or only with an error, may know it."""
    kind = _FIRST_TYPE + int(time.time() / POLL_SECONDS) % _TYPES
    number = os.urandom(2)
    try:
        question = _question(name, kind)
        header = number + struct.pack("!HHHHH", _RECURSION_DESIRED, 1, 0, 0, 0)
        with socket.socket(socket.AF_INET6 if ":" in server else socket.AF_INET, socket.SOCK_DGRAM) as client:
            client.settimeout(_ANSWER_SECONDS)
            client.connect((server, _PORT))
            client.send(header + question)
            answer = client.recv(512)
    except (OSError, UnicodeError):
        return True
    return len(answer) < 4 or answer[:2] != number or answer[3] & 0x0F != _NO_SUCH_NAME


def _question(name: str, kind: int) -> bytes:
    """Return the question for the records of a type that a name has, in the class IN (RFC 1035, 4.1.2)."""
    labels = [label.encode("ascii") for label in name.split(".")]
    return b"".join(bytes([len(label)]) + label for label in labels) + b"\0" + struct.pack("!HH", kind, 1)
