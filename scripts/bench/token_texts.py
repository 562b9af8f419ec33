"""Texts of all kinds to count tokens in, from what is installed here anyway or made by chance with a fixed seed.

English prose comes from packages' descriptions and licences, code from the standard library and packages, other languages from
the catalogues of translations (``*.mo``) of packages and of the system.
"""

from __future__ import annotations

import base64
import gettext
import json
import random
import site
import sysconfig
import unicodedata
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

SHORTEST, LONGEST = 20, 6_000
SYSTEM_CATALOGUES = Path("/usr/share/locale")

GROUPS = {
    "de": "Latin", "fr": "Latin", "es": "Latin", "pt": "Latin", "it": "Latin", "pl": "Latin", "cs": "Latin", "tr": "Latin",
    "fi": "Latin", "hu": "Latin", "nl": "Latin", "sv": "Latin", "vi": "Latin", "id": "Latin", "sw": "Latin",
    "ru": "Cyrillic, Greek", "uk": "Cyrillic, Greek", "bg": "Cyrillic, Greek", "sr": "Cyrillic, Greek", "el": "Cyrillic, Greek",
    "kk": "Cyrillic, Greek", "mn": "Cyrillic, Greek",
    "ar": "Arabic, Hebrew", "fa": "Arabic, Hebrew", "ur": "Arabic, Hebrew", "he": "Arabic, Hebrew",
    "hi": "Indic, Thai, others", "bn": "Indic, Thai, others", "ta": "Indic, Thai, others", "te": "Indic, Thai, others",
    "mr": "Indic, Thai, others", "ml": "Indic, Thai, others", "th": "Indic, Thai, others", "km": "Indic, Thai, others",
    "si": "Indic, Thai, others", "am": "Indic, Thai, others", "ka": "Indic, Thai, others", "hy": "Indic, Thai, others",
    "zh_CN": "Chinese", "zh_TW": "Chinese", "zh_Hans": "Chinese", "zh_Hant": "Chinese", "ja": "Japanese", "ko": "Korean",
}  # fmt: skip


def texts(seed: int = 7) -> list[tuple[str, str]]:
    """Pairs of a kind and a text."""
    chance = random.Random(seed)
    found: list[tuple[str, str]] = []
    for kind, source, pieces in _sources(chance):
        if len(source) >= SHORTEST:
            found += [(kind, piece) for piece in (_piece(source, chance) for _ in range(pieces)) if piece.strip()]
    for _ in range(150):
        size = int(SHORTEST * 300 ** chance.random())
        found += [(kind, made) for kind, make in MADE.items() if (made := make(size, chance))]
    return found


def _piece(source: str, chance: random.Random) -> str:
    size = int(SHORTEST * (min(LONGEST, len(source)) / SHORTEST) ** chance.random())
    start = chance.randrange(max(1, len(source) - size))
    return source[start : start + size]


def _sources(chance: random.Random) -> Iterator[tuple[str, str, int]]:
    library = Path(sysconfig.get_paths()["stdlib"])
    packages = [Path(folder) for folder in site.getsitepackages()]
    yield from _files("code", chance, 300, 3, library.glob("*.py"), library.glob("*/*.py"))
    yield from _files("code", chance, 60, 4, *(folder.rglob(end) for folder in packages for end in ("*.js", "*.html", "*.css")))
    yield from _files("English", chance, 200, 8, *(folder.glob("*.dist-info/METADATA") for folder in packages))
    yield from _files("English", chance, 60, 5, *(folder.rglob("*LICENSE*") for folder in packages))
    catalogues: dict[str, list[str]] = {}
    roots = [folder.glob("*/conf/locale/*/LC_MESSAGES/*.mo") for folder in packages]
    for path in sorted(path for root in (*roots, SYSTEM_CATALOGUES.glob("*/LC_MESSAGES/*.mo")) for path in root):
        language = path.parent.parent.name
        if language in GROUPS:
            catalogues.setdefault(language, []).append(_messages(path))
    for language, messages in catalogues.items():
        yield GROUPS[language], "\n".join(messages), 40


def _files(
    kind: str, chance: random.Random, most: int, pieces: int, *folders: Iterator[Path]
) -> Iterator[tuple[str, str, int]]:
    paths = sorted(path for folder in folders for path in folder if path.is_file())
    for path in chance.sample(paths, min(most, len(paths))):
        yield kind, path.read_text(encoding="utf-8", errors="ignore"), pieces


def _messages(path: Path) -> str:
    try:
        with path.open("rb") as file:
            catalogue = gettext.GNUTranslations(file)._catalog  # type: ignore[attr-defined]
    except (OSError, LookupError, ValueError):
        return ""
    return "\n".join(text for key, text in catalogue.items() if key and isinstance(text, str) and len(text) > 25)


def _json(size: int, chance: random.Random) -> str:
    rows = [
        {"id": chance.randrange(10**6), "user_name": chance.choice(["anna", "bob"]), "values": [chance.random()], "next": None}
        for _ in range(size // 70 + 1)
    ]
    return json.dumps(rows, indent=chance.choice([None, 2, 4]))


def _csv(size: int, chance: random.Random) -> str:
    return "\n".join(
        f"{chance.randrange(10**6)},{chance.uniform(0, 9):.4f},2026-05-{chance.randrange(10, 30)}T07:15:03Z,"
        f"{uuid.UUID(int=chance.getrandbits(128))}"
        for _ in range(size // 70 + 1)
    )


def _unicode(size: int, chance: random.Random) -> str:
    chars = (chr(chance.randrange(0xA0, 0x2FFFF)) for _ in range(size // 3))
    return "".join(char for char in chars if unicodedata.category(char)[0] in "LMNPS")


def _of(alphabet: str) -> Callable[[int, random.Random], str]:
    return lambda size, chance: "".join(chance.choices(alphabet, k=size))


EMOJI = "".join(
    chr(code) for start, end in ((0x1F600, 0x1F650), (0x1F300, 0x1F5FF), (0x2600, 0x27BF)) for code in range(start, end)
)

MADE: dict[str, Callable[[int, random.Random], str]] = {
    "JSON, CSV, numbers": _json,
    "JSON, CSV, numbers ": _csv,
    "JSON, CSV, numbers  ": lambda size, chance: " ".join(f"{chance.uniform(-1e4, 1e4):.2f}" for _ in range(size // 8 + 1)),
    "base64": lambda size, chance: base64.b64encode(chance.randbytes(size)).decode(),
    "hexadecimal": lambda size, chance: chance.randbytes(size).hex(),
    "digits only": _of("0123456789"),
    "random letters": _of("abcdefghijklmnopqrstuvwxyz"),
    "random capitals": _of("ABCDEFGHIJKLMNOPQRSTUVWXYZ"),
    "random ASCII": _of("".join(map(chr, range(32, 127)))),
    "random Unicode": _unicode,
    "emoji": lambda size, chance: "".join(chance.choices(EMOJI, k=size // 4 + 1)),
    "white space": lambda size, chance: "".join(
        chance.choice([" " * chance.randrange(1, 40), "\t" * chance.randrange(1, 5), "\n", "x"]) for _ in range(size // 8 + 1)
    ),
    "one character": lambda size, chance: chance.choice("aA0-= _.") * size,
}
