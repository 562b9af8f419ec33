"""Write the tables of docs/configuration.md from the settings classes. Usage: document_configuration.py [--check]."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

from pydantic import BaseModel, SecretStr
from pydantic_core import PydanticUndefined

from gateway.config import Section, sections
from gateway.units import format_duration_ms

PAGE = Path(__file__).resolve().parent.parent / "docs" / "configuration.md"

_SIZES = ((1 << 20, "MiB"), (1 << 10, "KiB"))


def tables() -> str:
    """A heading and a table for each section."""
    return "\n\n".join(_table(name, section) for name, section in sections().items())


def _table(name: str, section: type[Section]) -> str:
    about = (section.__doc__ or "").strip().partition("\n")[0]
    rows = [f"## `{name}`", "", about, "", "| key | default | meaning |", "|---|---|---|"]
    for key, field in section.model_fields.items():
        default = _shown(field.default, "Duration" in repr(field.metadata) or _is(field, "duration"), _is(field, "size"))
        rows.append(f"| `{name}.{key}` | {default} | {(field.description or '').replace('|', chr(92) + '|')} |")
    return "\n".join(rows)


def _is(field: Any, kind: str) -> bool:
    return f"parse_{kind}" in repr(field.metadata) + repr(field.annotation)


def _shown(value: Any, is_duration: bool, is_size: bool) -> str:
    if value is PydanticUndefined:
        return "required"
    if isinstance(value, SecretStr):
        value = value.get_secret_value()
    if value is None:
        return "unset"
    if isinstance(value, BaseModel):
        return f"`{value.model_dump_json(exclude_defaults=True)}`"
    if isinstance(value, tuple):
        return f"`[{', '.join(map(str, value))}]`"
    if is_duration:
        return f"`{format_duration_ms(value)}`"
    if is_size:
        for size, unit in _SIZES:
            if value % size == 0:
                return f"`{value // size}{unit}`"
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    return f'`"{value}"`' if isinstance(value, str) and not value else f"`{value}`"


def page(text: str) -> str:
    """The page with its tables replaced."""
    return re.sub(
        r"(<!-- keys -->\n).*(\n<!-- end of keys -->)", lambda m: f"{m[1]}\n{tables()}\n{m[2]}", text, flags=re.DOTALL
    )


def main() -> int:
    """Rewrite the page, or with --check tell whether that would change it."""
    current = PAGE.read_text(encoding="utf-8")
    wanted = page(current)
    if "--check" in sys.argv:
        if current != wanted:
            print("docs/configuration.md is not what the settings say; run scripts/document_configuration.py")
        return int(current != wanted)
    PAGE.write_text(wanted, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
