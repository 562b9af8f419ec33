"""Bodies that parsers understand differently, and parsers that do: each tells what it takes for the field `model`.

What a target reads is not ours to choose. So whatever the gateway forwards after it has decided by a body must mean the same
to all of these, or be refused by them.
"""

from __future__ import annotations

import base64
import json
import shutil
import subprocess
from collections.abc import Callable, Sequence
from typing import Any

import msgspec
import pydantic_core

REFUSED = "(refused)"
DEEP = 100

MANY = b",".join(b'"k%d":0' % number for number in range(10_001))

BODIES: dict[str, bytes] = {
    "plain": b'{"model":"small"}',
    "twice": b'{"model":"small","model":"large"}',
    "twice, the other first": b'{"model":"large","model":"small"}',
    "twice, escaped": b'{"model":"small","\\u006dodel":"large"}',
    "twice, escaped in capitals": b'{"model":"small","\\u006Dodel":"large"}',
    "twice in an inner object": b'{"model":"small","x":{"a":1,"a":2}}',
    "another case": b'{"model":"small","Model":"large"}',
    "another case first": b'{"MODEL":"large","model":"small"}',
    "another case alone": b'{"Model":"large"}',
    "a name with a NUL": b'{"model":"small","model\\u0000":"large"}',
    "a name with a NUL first": b'{"model\\u0000x":"large","model":"small"}',
    "a value with a NUL": b'{"model":"small\\u0000large"}',
    "a raw NUL in a name": b'{"model":"small","model\x00":"large"}',
    "NaN": b'{"model":"small","n":NaN}',
    "Infinity": b'{"model":"small","n":-Infinity}',
    "1e400": b'{"model":"small","n":1e400}',
    "400 digits": b'{"model":"small","n":1' + b"0" * 400 + b"}",
    "5000 digits": b'{"model":"small","n":1' + b"0" * 5000 + b"}",
    "beyond 53 bits": b'{"model":"small","n":9007199254740993}',
    "-0": b'{"model":"small","n":-0}',
    "a leading zero": b'{"model":"small","n":01}',
    "a bare point": b'{"model":"small","n":1.}',
    "hexadecimal": b'{"model":"small","n":0x10}',
    "a plus": b'{"model":"small","n":+1}',
    "half a pair in a value": b'{"model":"small\\ud83d"}',
    "half a pair in a name": b'{"model":"small","model\\udc00":"large"}',
    "half a pair, then the name again": b'{"\\ud800":1,"model":"large","model":"small"}',
    "a pair": b'{"model":"small","x":"\\ud83d\\ude00"}',
    "byte order mark": b'\xef\xbb\xbf{"model":"small"}',
    "byte order mark and twice": b'\xef\xbb\xbf{"model":"large","model":"small"}',
    "UTF-16": '{"model":"large"}'.encode("utf-16"),
    "UTF-16 without a mark": '{"model":"large"}'.encode("utf-16-le"),
    "UTF-32": '{"model":"large"}'.encode("utf-32"),
    "overlong quote": b'{"model":"small","x":"\xc0\xa2,\xc0\xa2model\xc0\xa2:\xc0\xa2large"}',
    "overlong name": b'{"model":"small","\xc1\xadodel":"large"}',
    "surrogates in UTF-8": b'{"model":"small","x":"\xed\xa0\xbd"}',
    "wrong UTF-8 in a name": b'{"model":"small","model\xff":"large"}',
    "a comment": b'{"model":"small"/*,"model":"large"*/}',
    "a comment that ends nowhere": b'{"model":"small",/*"model":"large"}',
    "a line comment": b'{"model":"small"//,"model":"large"\n}',
    "a hash comment": b'{"model":"small"#\n}',
    "a trailing comma": b'{"model":"small",}',
    "two commas": b'{"model":"small",,"model":"large"}',
    "single quotes": b"{'model':'large'}",
    "a bare name": b'{model:"large"}',
    "a raw line break": b'{"model":"small","x":"a\nb"}',
    "a raw tab in a name": b'{"model":"small","model\t":"large"}',
    "an unknown escape": b'{"model":"small","x":"\\m"}',
    "an escaped line end": b'{"model":"small","x":"\\\n"}',
    "half an escape": b'{"model":"small","x":"\\u00"}',
    "another white space": b'{"model":"small","n":1\xc2\xa0}',
    "form feed": b'{\x0c"model":"small"}',
    "garbage before": b'x{"model":"large"}',
    "garbage behind": b'{"model":"small"}x',
    "a NUL behind": b'{"model":"small"}\x00{"model":"large"}',
    "two documents": b'{"model":"small"}{"model":"large"}',
    "two lines": b'{"model":"small"}\n{"model":"large"}',
    "guard against scripts": b')]}\',\n{"model":"large"}',
    "nested in a list": b'[{"model":"large"}]',
    "a text of JSON": b'"{\\"model\\":\\"large\\"}"',
    "deep": b'{"model":"small","x":' + b"[" * DEEP + b"]" * DEEP + b"}",
    "very deep": b'{"x":' + b"[" * 100_000 + b"]" * 100_000 + b',"model":"large"}',
    "deep without an end": b'{"model":"small","x":' + b"[" * 100_000,
    "many names": b'{"model":"small",' + MANY + b"}",
    "the name again after many": b'{"model":"small",' + MANY + b',"model":"large"}',
    "a long text": b'{"model":"small","x":"' + b"a" * 200_000 + b'"}',
    "a list for the model": b'{"model":["small","large"]}',
    "null for the model": b'{"model":null}',
    "an object for the model": b'{"model":{"small":1}}',
    "a number for the model": b'{"model":1}',
    "no model": b'{"x":1}',
    "cut": b'{"model":"small"',
    "empty": b"",
    "white space": b"  ",
    "prototype": b'{"model":"small","__proto__":{"model":"large"},"constructor":{"prototype":{"model":"large"}}}',
}


def _model(read: Callable[[bytes], Any]) -> Callable[[bytes], Any]:
    def model(body: bytes) -> Any:
        try:
            value = read(body)
        except (ValueError, RecursionError, pydantic_core.PydanticCustomError):
            return REFUSED
        return value.get("model") if isinstance(value, dict) else None

    return model


def _first(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    return dict(reversed(pairs))


def _folded(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    return {name.casefold(): value for name, value in pairs}


def _cut_at_nul(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    return {name.partition("\0")[0]: value for name, value in pairs}


READERS: dict[str, Callable[[bytes], Any]] = {
    "python": _model(json.loads),
    "msgspec": _model(msgspec.json.decode),
    "jiter": _model(pydantic_core.from_json),
    "one that takes the first": _model(lambda body: json.loads(body, object_pairs_hook=_first)),
    "one that overlooks case": _model(lambda body: json.loads(body, object_pairs_hook=_folded)),
    "one that overlooks case and takes the first": _model(
        lambda body: json.loads(body, object_pairs_hook=lambda pairs: _folded(_first(pairs).items()))  # type: ignore[arg-type]
    ),
    "one that ends texts at a NUL": _model(lambda body: json.loads(body, object_pairs_hook=_cut_at_nul)),
    "one that replaces wrong UTF-8": _model(lambda body: json.loads(body.decode("utf-8", "replace"), strict=False)),
}

_NODE = """
const lines = require("fs").readFileSync(0, "latin1").trim().split("\\n");
for (const line of lines) {
  let model;
  try {
    const value = JSON.parse(new TextDecoder().decode(Buffer.from(line, "base64")));
    model = value !== null && typeof value === "object" && !Array.isArray(value) ? value.model ?? null : null;
  } catch { model = "(refused)"; }
  console.log(JSON.stringify(model));
}
"""
_PERL = """
use JSON::PP; my $out = JSON::PP->new->ascii->allow_nonref; my $in = JSON::PP->new->utf8->max_depth(512);
use MIME::Base64; while (my $line = <STDIN>) {
  my $value = eval { $in->decode(decode_base64($line)) };
  my $model = $@ ? "(refused)" : ref $value eq "HASH" ? $value->{model} : undef;
  print $out->encode($model), "\\n";
}
"""
_JQ = """
if . == "" then "(refused)"
else (try (@base64d | fromjson | if type == "object" then .model else null end) catch "(refused)") end
"""
PROGRAMS: dict[str, Sequence[str]] = {
    "node": ("node", "-e", _NODE),
    "perl": ("perl", "-e", _PERL),
    "jq": ("jq", "-R", "-c", _JQ),
}


def _is_installed(program: str) -> bool:
    if shutil.which(program) is None:
        return False
    needed = ("perl", "-MJSON::PP", "-MMIME::Base64", "-e", "1")  # a minimal perl has neither
    return program != "perl" or subprocess.run(needed, capture_output=True, timeout=60, check=False).returncode == 0


def read_by_programs(bodies: Sequence[bytes]) -> dict[str, list[Any]]:
    """What the programs that are installed take for each body's model."""
    lines = b"".join(base64.b64encode(body) + b"\n" for body in bodies)
    found: dict[str, list[Any]] = {}
    for name, command in PROGRAMS.items():
        if not _is_installed(command[0]):
            continue
        ran = subprocess.run(command, input=lines, capture_output=True, timeout=60, check=True)
        found[name] = [json.loads(line) for line in ran.stdout.splitlines()]
        assert len(found[name]) == len(bodies), name
    return found


def readings(bodies: Sequence[bytes]) -> dict[str, list[Any]]:
    """What every reader takes for each body's model."""
    return {name: [read(body) for body in bodies] for name, read in READERS.items()} | read_by_programs(bodies)
