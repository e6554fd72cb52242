"""Which addresses stay on this machine: the only ones where clear text is allowed."""

from __future__ import annotations

import ipaddress


def host_of(address: str) -> str:
    """The host of `host:port`, `[v6]:port` or a bare host."""
    if address.startswith("["):
        return address[1:].partition("]")[0]
    return address.rpartition(":")[0] if address.count(":") == 1 else address


def is_loopback(address: str) -> bool:
    """True for localhost and loopback addresses, with or without a port. A name that must be resolved is not."""
    host = host_of(address)
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
