"""This machine's interfaces and addresses, and how another one is reached."""

from __future__ import annotations

import contextlib
import fcntl
import ipaddress
import os
import socket
import struct
from pathlib import Path

SIOCGIFADDR = 0x8915
"""Linux's request for the IPv4 address of an interface."""
PROBE_PORT = 9
"""Port of the address to which a route is asked for; nothing is sent there."""


def is_loopback(address: str) -> bool:
    """True if an address means the machine itself, or is none."""
    try:
        found = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return True
    return found.is_loopback or found.is_unspecified


def interfaces() -> dict[str, list[str]]:
    """Return this machine's interfaces with the addresses that Linux tells: their first IPv4 address, and those of IPv6."""
    found: dict[str, list[str]] = {name: [] for _, name in socket.if_nameindex()}
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asked:
        for name, addresses in found.items():
            with contextlib.suppress(OSError):  # one without an IPv4 address
                answer = fcntl.ioctl(asked, SIOCGIFADDR, struct.pack("256s", os.fsencode(name)[:15]))
                addresses.append(socket.inet_ntoa(answer[20:24]))
    with contextlib.suppress(OSError):
        for line in Path("/proc/net/if_inet6").read_text().splitlines():
            digits, *_, name = line.split()
            if name in found:
                found[name].append(str(ipaddress.IPv6Address(bytes.fromhex(digits))))
    return found


def resolved_addresses(name: str) -> list[str]:
    """Return the addresses of a name, in the order in which they would be tried; none if it cannot be resolved."""
    try:
        return [str(found[4][0]) for found in socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)]
    except (OSError, UnicodeError):
        return []


def route_to(name: str) -> str:
    """Return the address of this machine from which it would speak to another; "" if there is no way."""
    for address in resolved_addresses(name):
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        with contextlib.suppress(OSError), socket.socket(family, socket.SOCK_DGRAM) as asked:
            asked.connect((address, PROBE_PORT))
            return str(asked.getsockname()[0])
    return ""


def reachable_name(name: str, address: str | None) -> str:
    """Return how to reach a machine: by its name, if that leads from here to more than a loopback address, and otherwise by its
    address, if that is known.

    Debian writes a machine's own name as ``127.0.1.1`` into ``/etc/hosts``, and SLURM needs names that SLURM alone can resolve.
    """
    if not address or any(not is_loopback(found) for found in resolved_addresses(name)[:1]):
        return name
    return address
