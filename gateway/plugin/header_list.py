"""Header fields in order, as bytes, the way they came from the wire."""

from __future__ import annotations

from collections.abc import Iterable, Iterator


class Headers:
    """A list of header fields. Names are lower case in `raw`; every method takes them in any case.

    Values are Latin-1, as HTTP/1.1 transports them.
    """

    __slots__ = ("raw",)

    def __init__(self, raw: Iterable[tuple[bytes, bytes]] = ()) -> None:
        self.raw: list[tuple[bytes, bytes]] = list(raw)

    @classmethod
    def of(cls, fields: Iterable[tuple[str, str]]) -> Headers:
        """From text."""
        return cls((name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in fields)

    def get(self, name: str) -> str | None:
        """The first value of this name."""
        wanted = name.lower().encode("latin-1")
        for key, value in self.raw:
            if key == wanted:
                return value.decode("latin-1")
        return None

    def get_all(self, name: str) -> list[str]:
        """Every value of this name, in order."""
        wanted = name.lower().encode("latin-1")
        return [value.decode("latin-1") for key, value in self.raw if key == wanted]

    def set(self, name: str, value: str) -> None:
        """Make this the only field of its name. Raises ValueError on characters that would break the framing."""
        if any(char in "\r\n\0" for char in name + value):
            raise ValueError(f"header {name!r} contains a line break or NUL")
        self.remove(name)
        self.raw.append((name.lower().encode("latin-1"), value.encode("latin-1")))

    def remove(self, name: str) -> None:
        """Drop every field of this name."""
        unwanted = name.lower().encode("latin-1")
        self.raw = [field for field in self.raw if field[0] != unwanted]

    def __contains__(self, name: str) -> bool:
        wanted = name.lower().encode("latin-1")
        return any(key == wanted for key, _ in self.raw)

    def __iter__(self) -> Iterator[tuple[str, str]]:
        return ((key.decode("latin-1"), value.decode("latin-1")) for key, value in self.raw)

    def __len__(self) -> int:
        return len(self.raw)

    def __repr__(self) -> str:
        # values may be credentials
        return f"Headers({[key.decode('latin-1') for key, _ in self.raw]})"
