"""Spellings of addresses inside, as whoever configures targets may try them: generated, so that there is no end of them."""

from __future__ import annotations

import ipaddress
import random
from collections.abc import Iterator

INSIDE = [
    "127.0.0.1",
    "127.255.1.9",
    "0.0.0.0",
    "10.0.0.1",
    "172.16.5.4",
    "192.168.1.1",
    "100.64.0.1",
    "169.254.1.1",
    "198.18.0.1",
    "224.0.0.1",
    "255.255.255.255",
]
METADATA = ["169.254.169.254", "169.254.170.2", "100.100.100.200", "168.63.129.16", "192.0.0.192"]
METADATA6 = ["fd00:ec2::254", "fd20:ce::254"]
NAMES = [
    "localhost",
    "LocalHost",
    "localhost.",
    "localhost.localdomain",
    "a.localhost",
    "ip6-localhost",
    "metadata.google.internal",
    "metadata.google.internal.",
    "instance-data",
    "rebinding.example",
    "127.0.0.1.nip.example",
    "[::1].example",
]
SCHEMES = ["https://"] * 12 + ["http://"] * 4
SCHEMES += [
    "HTTPS://",
    "hTTp://",
    "//",
    "",
    "https:",
    "https:/",
    "https:///",
    "https:\\\\",
    "http:\\",
    " https://",
    "https://\t",
]
SCHEMES += ["ftp://", "file://", "gopher://", "dict://", "ws://", "unix://", "jar:https://", "blob:https://", "\x00https://"]
PORTS = [""] * 8 + [
    ":443",
    ":80",
    ":0443",
    ":6379",
    ":22",
    ":0",
    ":65536",
    ":-1",
    ":4\uff143",
    ":",
    ":443:80",
    ":443@127.0.0.1",
]
TAILS = [""] * 6 + ["/", "/v1", "/..;/x", "/%2e%2e/x", "//evil.example", "/\\evil.example", "/@evil.example", "#@evil.example"]
TAILS += ["?x", "/x?@127.0.0.1", "/%00", "/%0d%0ahost:x", "\\@127.0.0.1", "/latest/meta-data/", ";@127.0.0.1"]
USERS = [""] * 14 + [
    "a@",
    "a:b@",
    "example.com@",
    "example.com:443@",
    "%61@",
    "@",
    "a@b@",
    "example.com\\@",
    "example.com#@",
    "127.0.0.1%2f@",
]

_FULL_WIDTH = str.maketrans("0123456789.", "０１２３４５６７８９．")
_CIRCLED = str.maketrans("123456789", "①②③④⑤⑥⑦⑧⑨")


def spellings(chance: random.Random, address: str) -> str:
    """One way to write an IPv4 address, or what it becomes in IPv6."""
    number = int(ipaddress.IPv4Address(address))
    octets = address.split(".")
    high, low = f"{number >> 16:x}", f"{number & 0xFFFF:x}"

    def based(value: int) -> str:
        return chance.choice([str(value), f"0x{value:x}", f"0X{value:X}", f"0{value:o}", f"0x{value:08x}", f"000{value:o}"])

    parts = chance.choice(
        [
            [number],
            [number >> 24, number & 0xFFFFFF],
            [number >> 24, number >> 16 & 255, number & 0xFFFF],
            [int(octet) for octet in octets],
        ]
    )
    in_six = chance.choice([address, f"{high}:{low}"])
    return chance.choice(
        [
            address,
            ".".join(based(part) for part in parts),
            ".".join(based(part) for part in parts) + chance.choice([".", "..", "%2e", "。"]),
            address.translate(_FULL_WIDTH),
            address.translate(_CIRCLED),
            address.replace(".", chance.choice(["。", "．", "%2e", "%252e", "｡"])),
            "".join(f"%{ord(char):02x}" for char in address),
            str(number + (1 << 32)),
            f"[::ffff:{in_six}]",
            f"[0:0:0:0:0:FFFF:{in_six}]",
            f"[::{in_six}]",
            f"[::ffff:0:{in_six}]",
            f"[64:ff9b::{in_six}]",
            f"[64:ff9b:1::{in_six}]",
            f"[2002:{high}:{low}::1]",
            f"[2001:0:{high}:{low}::{(~number >> 16) & 0xFFFF:x}:{~number & 0xFFFF:x}]",
            f"[fe80::5efe:{in_six}]",
            f"[::ffff:{in_six}%25lo]",
            f"[::ffff:{in_six}",
            f"::ffff:{in_six}",
            f"[{address}]",
            chance.choice(["[::1]", "[::]", "[0:0:0:0:0:0:0:1]", "[::1%25lo]", "[fe80::1%251]", "[fc00::1]", "[ff02::1]"]),
        ]
    )


def targets(seed: int, count: int, addresses: list[str] | None = None, *, plain: bool = False) -> Iterator[str]:
    """So many texts for a rule's target; ``plain`` ones are nothing but scheme and host."""
    chance = random.Random(seed)
    inside = addresses or INSIDE + METADATA
    for _ in range(count):
        host = spellings(chance, chance.choice(inside)) if addresses or chance.random() < 0.85 else chance.choice(NAMES)
        if plain:
            yield chance.choice(["http://", "https://"]) + host
        else:
            yield chance.choice(SCHEMES) + chance.choice(USERS) + host + chance.choice(PORTS) + chance.choice(TAILS)


REQUEST_TARGETS = [
    "/v1/x",
    "//evil.example/v1/x",
    "///evil.example/v1",
    "@evil.example",
    "@evil.example/v1/x",
    "/v1@evil.example/x",
    "/v1/x@evil.example",
    "http://evil.example/v1/x",
    "https://127.0.0.1/v1/x",
    "http://testcompany.example.com@evil.example/v1/x",
    "/v1/..;/x",
    "/v1/../x",
    "/v1/%2e%2e/x",
    "/v1//evil.example",
    "/v1/\\evil.example",
    "/v1/%5cevil.example",
    "/v1/%2f%2fevil.example",
    "/v1/x?url=http://evil.example",
    "/v1/x#@evil.example",
    "/v1:443@evil.example/",
    "/v1/%0d%0aHost:%20evil.example",
    "/v1/x%00.evil.example",
    ":443@evil.example/v1",
    ".evil.example/v1",
    "v1/x",
    "*",
    "evil.example:443",
    "\\\\evil.example\\v1",
]
REQUEST_FIELDS = [
    [],
    [("x-forwarded-host", "evil.example")],
    [("forwarded", "host=evil.example;proto=http")],
    [("x-original-url", "http://evil.example/")],
    [("x-rewrite-url", "//evil.example/")],
    [("x-host", "evil.example"), ("x-forwarded-server", "evil.example")],
    [("referer", "http://evil.example/"), ("origin", "http://127.0.0.1")],
    [("proxy", "http://evil.example"), ("via", "1.1 evil.example")],
    [("connection", "host"), ("upgrade", "h2c")],
]
