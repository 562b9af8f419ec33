"""Where a rule may point, and which addresses a connection may reach in the end."""

from gateway.targets.addresses import AddressPolicy, is_metadata, is_public, subscriber
from gateway.targets.target import Target, parse_target

__all__ = ["AddressPolicy", "Target", "is_metadata", "is_public", "parse_target", "subscriber"]
