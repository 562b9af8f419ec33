"""What may go wrong in a Lua file: each change of one token or statement that `mutate_lua` tries."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from scripts.lint_lua import KEYWORDS

_TOKEN = re.compile(
    r"""(?P<comment>--[^\n]*)|(?P<string>'(?:\\.|[^'\\\n])*'|"(?:\\.|[^"\\\n])*")|(?P<number>\d+)"""
    r"""|(?P<name>[A-Za-z_]\w*)|(?P<sign>==|~=|<=|>=|\.\.|[-+*/%^#<>=(){}\[\];:,.])|(?P<space>\s+)"""
)
_SWAPS = {
    "<": "<=", "<=": "<", ">": ">=", ">=": ">", "==": "~=", "~=": "==",
    "+": "-", "-": "+", "and": "or", "or": "and", "true": "false", "false": "true",
}  # fmt: skip
_BEFORE_OPERAND = frozenset(re.findall(r"\S+", "( [ { , = == ~= < <= > >= + - * / % .. and or not return then do"))
_OPENS, _CLOSES = "([{", ")]}"


@dataclass(frozen=True)
class Token:
    """A word of the text that is neither space nor comment."""

    kind: str
    text: str
    start: int

    @property
    def end(self) -> int:
        return self.start + len(self.text)


@dataclass(frozen=True)
class Mutant:
    """One change in one file; ``before`` and ``after`` are the line in which it begins."""

    file: str
    line: int
    before: str
    after: str
    text: str

    @property
    def title(self) -> str:
        return f"{self.file}:{self.line}: `{self.before}` → `{self.after}`"


def tokens_of(text: str) -> list[Token]:
    """Without space and comments. Raises ValueError for what is no Lua of ours."""
    found, position = [], 0
    while position < len(text):
        match = _TOKEN.match(text, position)
        if match is None or match.lastgroup is None:
            raise ValueError(f"line {text.count(chr(10), 0, position) + 1}: unknown character {text[position]!r}")
        if match.lastgroup not in {"space", "comment"}:
            found.append(Token(match.lastgroup, match[0], position))
        position = match.end()
    return found


def mutants_of(file: str, text: str) -> Iterator[Mutant]:
    """Every mutant of a file, in the order of its text."""
    seen = {text}
    for start, end, new in sorted(_changes(text, tokens_of(text))):
        changed = text[:start] + new + text[end:]
        if changed not in seen:
            seen.add(changed)
            line = text.count("\n", 0, start)
            before, after = (one.split("\n")[line].strip() for one in (text, changed))
            yield Mutant(file, line + 1, before, after or "(dropped)", changed)


def _changes(text: str, tokens: Sequence[Token]) -> Iterator[tuple[int, int, str]]:
    """Start, end and the text between them instead."""
    for index, token in enumerate(tokens):
        before = tokens[index - 1] if index else None
        if token.kind == "number":
            yield from ((token.start, token.end, str(number)) for number in _beside(int(token.text)))
        elif token.kind == "string" and token.text[1:-1].isdigit():
            yield from ((token.start + 1, token.end - 1, str(number)) for number in _beside(int(token.text[1:-1])))
        elif token.text == "-" and (before is None or before.text in _BEFORE_OPERAND):
            yield token.start, token.end, ""
        elif token.kind in {"sign", "name"} and token.text in _SWAPS:
            yield token.start, token.end, _SWAPS[token.text]
        elif token.text in {"if", "elseif", "while"}:
            stop = next(later for later in tokens[index:] if later.text == ("do" if token.text == "while" else "then"))
            yield token.end, stop.start, f" not ({text[token.end : stop.start].strip()}) "
        elif token.kind == "name" and token.text not in KEYWORDS and (before is None or _begins_statement(text, before, token)):
            yield from _dropped_call(tokens, index)
        if token.text in {"max", "min"} and before is not None and before.text == ".":
            yield from _clamps(text, tokens, index)


def _beside(number: int) -> tuple[int, ...]:
    return (number - 1, number + 1) if number else (1,)


def _begins_statement(text: str, before: Token, token: Token) -> bool:
    """A statement stands at the start of a line, and nothing before it asks for more."""
    return "\n" in text[before.end : token.start] and before.text not in _BEFORE_OPERAND - {"then", "do"}


def _closing(tokens: Sequence[Token], opening: int) -> int:
    depth = 0
    for index in range(opening, len(tokens)):
        depth += (tokens[index].text in _OPENS) - (tokens[index].text in _CLOSES)
        if depth == 0:
            return index
    raise ValueError("a bracket is not closed")


def _dropped_call(tokens: Sequence[Token], index: int) -> Iterator[tuple[int, int, str]]:
    """A call whose result nobody uses."""
    opening = index + 1
    while opening + 1 < len(tokens) and tokens[opening].text == "." and tokens[opening + 1].kind == "name":
        opening += 2
    if opening < len(tokens) and tokens[opening].text == "(":
        yield tokens[index].start, tokens[_closing(tokens, opening)].end, ""


def _clamps(text: str, tokens: Sequence[Token], index: int) -> Iterator[tuple[int, int, str]]:
    """``math.max(a, b)`` is either of them."""
    closing = _closing(tokens, index + 1)
    depth, start = 0, tokens[index + 1].end
    for token in tokens[index + 1 : closing + 1]:
        depth += (token.text in _OPENS) - (token.text in _CLOSES)
        if (token.text == "," and depth == 1) or depth == 0:
            yield tokens[index - 2].start, tokens[closing].end, f"({text[start : token.start].strip()})"
            start = token.end
