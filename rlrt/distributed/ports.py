"""Ports of this machine."""

from __future__ import annotations

import socket


def probed(host: str, port: int) -> int:
    """Listen at a port for a moment, as the server that will have it does: a connection's last minutes do not count.

    Args:
        port: 0: any that is free.

    Returns:
        the port.

    Raises:
        OSError: if something listens there already.
        OverflowError: if it is no port.
    """
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind((host, port))
        return int(probe.getsockname()[1])
