"""How far the estimates of tokens are from real counts, and how long a count takes at most.

    python -m scripts.bench.token_estimate [--no-times]

Real counts come from ``toktok-rs`` (the extra ``tokens``) and, where they are installed, ``splintr-rs`` (vocabularies of Llama,
DeepSeek, Qwen, Mistral, GLM, Kimi) and ``ctok`` (a reconstruction of Claude's counts); nothing is fetched. Times are those of
the thread on the CPU, so that what else runs counts little.
"""

from __future__ import annotations

import argparse
import base64
import importlib
import random
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from gateway.tokens import estimated_tokens, most_tokens
from scripts.bench.token_texts import texts

Counter = Callable[[Sequence[str]], list[int]]

SPLINTR = ("llama3", "deepseek_v3", "qwen3", "mistral_v3", "glm4", "kimi_k2", "mistral_v1")
CLAUDE = (("3.0", "Claude 3 to Opus 4.6 (ctok)", 7), ("4.8", "Claude from Opus 4.7 (ctok)", 6))


def counters() -> Iterator[tuple[str, Counter]]:
    """The vocabularies at hand."""
    toktok = importlib.import_module("toktok")
    for name in ("o200k_base", "cl100k_base"):
        yield name, lambda given, name=name: toktok.batch_count(given, name, 1)
    try:
        splintr = importlib.import_module("splintr")
    except ModuleNotFoundError:
        pass
    else:
        for name in SPLINTR:
            tokenizer = splintr.Tokenizer.from_pretrained(name)
            yield name, lambda given, tokenizer=tokenizer: [len(tokenizer.encode(text)) for text in given]
    try:
        ctok = importlib.import_module("ctok")
    except ModuleNotFoundError:
        return
    for version, name, frame in CLAUDE:
        yield (
            name,
            lambda given, version=version, frame=frame: [max(1, ctok.token_count(text, version) - frame) for text in given],
        )


def errors() -> None:
    """Print how far the estimates are off, by kind of text and by vocabulary."""
    given = texts()
    kinds = [kind.strip() for kind, _ in given]
    pieces = [text for _, text in given]
    central = [estimated_tokens([text]) for text in pieces]
    upper = [most_tokens([text]) for text in pieces]
    print(f"{len(pieces)} texts\n")
    print("| vocabulary | median | p1 | p99 | upper estimate too low | upper / real, median |")
    print("|---|---:|---:|---:|---:|---:|")
    real: dict[str, list[int]] = {}
    for name, count in counters():
        real[name] = count(pieces)
        low = sum(most < found for most, found in zip(upper, real[name], strict=True))
        ratio = statistics.median(most / found for most, found in zip(upper, real[name], strict=True))
        print(f"| {name} | {_spread(central, real[name])} | {low / len(pieces):.2%} | {ratio:.2f} |")
    print("\n| text | n | " + " | ".join(real) + " |")
    print("|---|---:|" + "---:|" * len(real))
    for kind in dict.fromkeys(kinds):
        rows = [index for index, other in enumerate(kinds) if other == kind]
        cells = [_spread([central[row] for row in rows], [found[row] for row in rows]) for found in real.values()]
        print(f"| {kind} | {len(rows)} | " + " | ".join(cell.replace(" | ", " / ") for cell in cells) + " |")


def _spread(estimates: Sequence[int], found: Sequence[int]) -> str:
    off = sorted(estimate / real - 1 for estimate, real in zip(estimates, found, strict=True))
    low, high = off[len(off) // 100], off[-1 - len(off) // 100]
    return f"{statistics.median(off):+.0%} | {low:+.0%} | {high:+.0%}"


def _long_texts() -> dict[str, Callable[[int], str]]:
    chance = random.Random(1)
    code = Path(statistics.__file__).read_text(encoding="utf-8")
    return {
        "code": lambda size: (code * (size // len(code) + 1))[:size],
        "one long word": lambda size: "a" * size,
        "random letters": lambda size: "".join(chance.choices("abcdefghijklmnopqrstuvwxyz", k=size)),
        "only spaces": lambda size: " " * size,
        "only digits": lambda size: "7" * size,
        "only emoji": lambda size: "\U0001f600" * (size // 4),
        "random ideographs": lambda size: "".join(chr(chance.randrange(0x4E00, 0x9FFF)) for _ in range(size // 3)),
        "base64": lambda size: base64.b64encode(chance.randbytes(size))[:size].decode(),
    }


def times() -> None:
    """Print the longest of several calls, in milliseconds, by kind and size of the text."""
    toktok = importlib.import_module("toktok")
    counted: dict[str, Callable[[str], object]] = {
        "upper estimate": lambda text: most_tokens([text]),
        "exact, o200k_base": lambda text: toktok.batch_count([text], "o200k_base", 1),
        "exact, cl100k_base": lambda text: toktok.batch_count([text], "cl100k_base", 1),
    }
    sizes = (1_000, 16_000, 100_000, 800_000, 1_000_000, 4_000_000)
    for name, count in counted.items():
        count("warm")
        print(f"\n{name}: longest of 5 calls, ms\n")
        print("| text | " + " | ".join(f"{size // 1_000} KB" for size in sizes) + " |")
        print("|---|" + "---:|" * len(sizes))
        for kind, make in _long_texts().items():
            cells = []
            for size in sizes:
                text, longest = make(size), 0.0
                for _ in range(5):
                    began = time.thread_time()
                    count(text)
                    longest = max(longest, time.thread_time() - began)
                cells.append(f"{longest * 1e3:.2f}")
            print(f"| {kind} | " + " | ".join(cells) + " |")


def main() -> None:
    """Print all tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--no-times", action="store_true")
    arguments = parser.parse_args()
    errors()
    if not arguments.no_times:
        times()


if __name__ == "__main__":
    main()
