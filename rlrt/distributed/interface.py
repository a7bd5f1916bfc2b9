"""The network interface by which ranks speak to each other: gloo takes the address that the machine's own name has, and Debian
writes a loopback address there."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from typing import Any

from rlrt.distributed.addresses import interfaces, is_loopback, resolved_addresses, route_to

GLOO, NCCL = "GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"
"""The libraries' own environment variables."""


def interface_problem(interface: str | None) -> str:
    """Return a sentence if this machine lacks the interface ``distributed.interface``; "" otherwise."""
    if interface is None or interface in interfaces():
        return ""
    found = ", ".join(interfaces()) or "none"
    return f"distributed.interface: expected a network interface of {socket.gethostname()}, got {interface!r}; it has {found}."


def settle_interface(interface: str | None, notes: Mapping[int, Mapping[str, Any]], rank: int) -> None:
    """Set the libraries' variables: to ``interface`` if one is given; otherwise gloo's alone, to the interface of the route to
    the other machines, where this machine's name leads to itself alone. A variable that is set already stays.

    Args:
        interface: ``distributed.interface``.
        notes: what each rank says of itself: ``machine``, and the ``address`` from which it reached the rendezvous.
        rank: number of this rank.
    """
    if interface is not None:
        os.environ |= {GLOO: interface, NCCL: interface}
        return
    others = [note["address"] for note in notes.values() if note["machine"] != notes[rank]["machine"]]
    reachable = [address for address in others if not is_loopback(address)]
    if not others or GLOO in os.environ or name_leads_here():
        return
    found = map(interface_of, [*map(route_to, reachable), notes[rank]["address"]])
    if name := next(filter(None, found), ""):
        os.environ[GLOO] = name


def interface_of(address: str) -> str:
    """Return the interface of this machine that has an address; "" for none, and for a loopback address."""
    if is_loopback(address):
        return ""
    return next((name for name, addresses in interfaces().items() if address.partition("%")[0] in addresses), "")


def name_leads_here() -> bool:
    """True if this machine's name leads to an address of one of its interfaces, as others could reach it too."""
    first = resolved_addresses(socket.gethostname())[:1]
    own = {address for addresses in interfaces().values() for address in addresses}
    return any(address.partition("%")[0] in own and not is_loopback(address) for address in first)
