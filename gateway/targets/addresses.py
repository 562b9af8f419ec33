"""Which IP addresses a connection may reach; decided on the address itself, after every name has been resolved.

``ipaddress.is_global`` alone is not enough: it says yes to translation prefixes that embed private addresses, to multicast and
to a cloud's own service address.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from dataclasses import dataclass

IPAddress = ipaddress.IPv4Address | ipaddress.IPv6Address
IPNetwork = ipaddress.IPv4Network | ipaddress.IPv6Network

_GLOBAL_UNICAST = ipaddress.IPv6Network("2000::/3")
# https://www.iana.org/assignments/iana-ipv6-special-registry and -ipv4-: prefixes that lead, or may lead, to somewhere else
_NOT_PUBLIC = tuple(
    ipaddress.ip_network(text)
    for text in (
        "168.63.129.16/32",  # Azure's host agent
        "192.0.0.0/24",
        "192.88.99.0/24",  # 6to4 relay anycast
        "224.0.0.0/4",
        "240.0.0.0/4",
        "2001::/23",  # Teredo, ORCHID and other protocol assignments
        "2002::/16",  # 6to4
        "3fff::/20",
    )
)

_METADATA = frozenset(
    ipaddress.ip_address(text)
    for text in (
        "100.100.100.200",  # Alibaba Cloud
        "168.63.129.16",  # Azure's host agent
        "169.254.169.254",  # AWS, Google Cloud, Azure, …
        "169.254.169.123",
        "169.254.170.2",  # AWS ECS
        "169.254.170.23",  # AWS EKS
        "192.0.0.192",  # Oracle Cloud
        "fd00:ec2::254",
        "fd00:ec2::23",
        "fd20:ce::254",
    )
)


def plain(address: IPAddress) -> IPAddress:
    """The IPv4 address inside an IPv4-mapped IPv6 one, else the address."""
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return mapped or address


def subscriber(address: str) -> str:
    """One subscriber has a whole /64 of IPv6 (RFC 6177); counting single addresses would limit nobody."""
    try:
        parsed = plain(ipaddress.ip_address(address.partition("%")[0]))
    except ValueError:
        return address
    if isinstance(parsed, ipaddress.IPv6Address):
        return str(ipaddress.ip_network((parsed, 64), strict=False))
    return str(parsed)


def is_public(address: IPAddress) -> bool:
    """True if the address belongs to the public Internet and to nothing special in it."""
    address = plain(address)
    if isinstance(address, ipaddress.IPv6Address) and address not in _GLOBAL_UNICAST:
        return False
    return address.is_global and not any(address in network for network in _NOT_PUBLIC if network.version == address.version)


def is_metadata(address: IPAddress) -> bool:
    """True for addresses at which clouds hand out credentials to whoever asks from inside."""
    return plain(address) in _METADATA or not _METADATA.isdisjoint(_embedded(address))


def _embedded(address: IPAddress) -> frozenset[IPAddress]:
    """The IPv4 addresses that a translator or tunnel may reach in place of an IPv6 one.

    Most keep them in the last 32 bits, whatever their prefix (NAT64, ISATAP, IPv4-compatible, an operator's own).
    """
    if not isinstance(address, ipaddress.IPv6Address):
        return frozenset()
    teredo = address.teredo or ()
    found = (ipaddress.IPv4Address(int(address) & 0xFFFFFFFF), address.sixtofour, *teredo)
    return frozenset(each for each in found if each is not None)


@dataclass(frozen=True)
class AddressPolicy:
    """``allowed_networks`` may be reached besides public addresses; ``public`` False leaves only them."""

    allowed_networks: tuple[IPNetwork, ...]
    public: bool = True

    @classmethod
    def of(cls, networks: Iterable[IPNetwork], *, public: bool = True) -> AddressPolicy:
        """From the networks of the configuration."""
        return cls(tuple(networks), public)

    def is_allowed(self, address: IPAddress) -> bool:
        """Whether a connection may go there. Metadata services never, whatever network they are in."""
        address = plain(address)
        if is_metadata(address):
            return False
        if any(address in network for network in self.allowed_networks if network.version == address.version):
            return True
        return self.public and is_public(address)
