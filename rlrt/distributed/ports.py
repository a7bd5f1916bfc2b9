"""Ports of this machine."""

from __future__ import annotations

import socket


def probed(host: str, port: int) -> int:
    """Return a port that a server on this machine can listen at, or fail if it is taken.

    Args:
        port: number to try, by listening for a moment with SO_REUSEADDR as the server will, so that a connection's
            TIME_WAIT does not count; 0 for any free port.

    Returns:
        the port.

    Raises:
        OSError: if another program listens at the port.
        OverflowError: if the number is outside the range of ports.
    """
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind((host, port))
        return int(probe.getsockname()[1])
