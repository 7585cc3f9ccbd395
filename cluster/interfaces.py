"""The network interface over which ranks talk.

The one idea: a node is known to Ray by an address that the other nodes reach, so the interface with that address
is the right one, unless somebody names a better one. Left to themselves gloo and NCCL take what the host name
resolves to, which is 127.0.0.1 on many machines, and ranks on two hosts never meet.
"""

from __future__ import annotations

import os
import socket

import psutil

LOOPBACK = "127.0.0.1"
_VARIABLES = ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")
_FAMILIES = (socket.AF_INET, socket.AF_INET6)


class NoInterface(ConnectionError):
    """A node has no interface of the name that was asked for; the message names those it has."""


def _addresses() -> dict[str, list[str]]:
    """The addresses of each interface of this machine."""
    return {
        name: [found.address.partition("%")[0] for found in addresses if found.family in _FAMILIES]
        for name, addresses in psutil.net_if_addrs().items()
    }


def address_of(interface: str) -> str:
    """The address of an interface. NoInterface names those there are."""
    found = _addresses()
    if not found.get(interface):
        known = ", ".join(f"{name} ({' '.join(addresses)})" for name, addresses in sorted(found.items()) if addresses)
        raise NoInterface(
            f"execution.network_interface={interface}: host {socket.gethostname()} has no interface of that name with an "
            f"address; it has {known}. Name one that every node has, or leave it out to have it found"
        )
    return found[interface][0]


def interface_of(address: str) -> str | None:
    """The interface with this address; None if there is none (behind an address translation)."""
    return next((name for name, addresses in _addresses().items() if address in addresses), None)


def variables(interface: str | None) -> dict[str, str]:
    """The environment that makes gloo and NCCL use this interface; what is set on the node already counts more."""
    return {name: interface for name in _VARIABLES if interface and name not in os.environ}
