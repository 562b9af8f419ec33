"""JSON that cannot mean two things."""

import json
import math
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.errors import UnsupportedMediaType
from gateway.plugin import InvalidJson, check_alike, check_json_type, parse_json
from tests.json_readers import READERS, REFUSED

names = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]))
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(names, inner, max_size=4),
    max_leaves=20,
)


@given(values, st.booleans())
def test_every_value_comes_back_as_it_was_written(value, ascii_only):
    assert parse_json(json.dumps(value, ensure_ascii=ascii_only).encode()) == value


@given(st.binary(max_size=40) | st.text(alphabet='{}[]":,0123456789eE.-+truefalsn\\u dD8', max_size=40).map(str.encode))
def test_what_passes_means_the_same_to_the_standard_parser(body):
    try:
        value = parse_json(body)
    except InvalidJson:
        return
    assert json.loads(body) == value
    # and can be written again for every other reader
    json.dumps(value, allow_nan=False, ensure_ascii=False).encode()


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b'{"a": 1, "a": 2}', "'a' is given twice"),
        (b'{"a": 1, "\\u0061": 2}', "'a' is given twice"),
        (b'[{"b": {"a": 1, "a": 1}}]', "given twice"),
        (b'{"a": NaN}', "NaN"),
        (b"[-Infinity]", "-Infinity"),
        (b"[1e999]", "too large"),
        (b'{"a": -1e999}', "too large"),
        (b"[[1" + b"0" * 400 + b"]]", "too large"),
        (b"-1" + b"0" * 309, "too large"),
        (b'{"a\\u0000b": 1}', "NUL"),
        (b"\xef\xbb\xbf{}", "byte order mark"),
        (b'["\\ud800"]', "surrogate"),
        (b'{"\\udc00": 1}', "surrogate"),
        (b'["\xff"]', "not valid JSON"),
        ('{"a": 1}'.encode("utf-16"), "not valid JSON"),
        (b"", "not valid JSON"),
        (b"{} {}", "not valid JSON"),
        (b"[1,]", "not valid JSON"),
    ],
)
def test_what_readers_could_understand_differently_is_refused(body, words):
    with pytest.raises(InvalidJson, match=words):
        parse_json(body)


def test_a_pair_of_surrogates_is_one_character():
    assert parse_json(b'["\\ud83d\\ude00"]') == ["\N{GRINNING FACE}"]


def nested(levels):
    return b"[" * levels + b"]" * levels


def test_64_levels_pass_and_one_more_does_not():
    parse_json(nested(64))
    for levels in (65, 100_000):
        with pytest.raises(InvalidJson, match="64 levels"):
            parse_json(nested(levels))


def keys(count):
    return json.dumps([{f"k{number}": 1} for number in range(count)]).encode()


def test_10_000_keys_pass_and_one_more_does_not():
    parse_json(keys(10_000))
    with pytest.raises(InvalidJson, match="10000 keys"):
        parse_json(keys(10_001))


def test_a_repeated_key_after_many_others_is_found_in_linear_time():
    body = b"{" + b",".join(b'"%d":0' % number for number in range(100_000)) + b',"99999":0}'
    started = time.process_time()
    with pytest.raises(InvalidJson, match="given twice"):
        parse_json(body)
    assert time.process_time() - started < 5


def test_a_number_that_fits_is_finite():
    assert math.isfinite(parse_json(b"1.7e308"))


members = st.tuples(
    st.sampled_from(['"model"', '"Model"', '"\\u006dodel"', '"model\\u0000"', '"mode\\u017f"', '"x"', '"model "']),
    st.sampled_from(['"small"', '"large"', '{"model":"large"}', '["model"]', "1e400", "-0", "NaN", '"\\ud800"', "1 "]),
)
bodies = st.lists(members, max_size=4).map(lambda pairs: "{" + ",".join(f"{name}:{value}" for name, value in pairs) + "}")


@given(bodies, st.sampled_from(["", "\ufeff", " ", "//\n", "{}"]), st.sampled_from(["", "\n", "x", ",", "\0"]))
def test_what_passes_names_one_model_whatever_the_parser(body, before, behind):
    sent = (before + body + behind).encode()
    try:
        value = parse_json(sent)
        check_alike(value, "model")
    except InvalidJson:
        return
    assert {str(read(sent)) for read in READERS.values()} - {REFUSED} == {str(value.get("model"))}


@pytest.mark.parametrize("names", [["a", "A"], ["model", "x", "MODEL"], ["Model"], ["model\0"], ["K", "\N{KELVIN SIGN}"]])
def test_names_that_some_parser_takes_for_each_other_are_refused(names):
    with pytest.raises(InvalidJson, match="some parsers"):
        check_alike(names, "model")


def test_other_names_pass():
    check_alike(["model", "x", "X-y", "models", ""], "model")
    check_alike(["Other", "x"], "model")


@pytest.mark.parametrize(
    "given_type", ["image/png", "application/jsonx", "x", "application/json; charset=latin-1", ";charset=utf-7"]
)
def test_a_content_type_that_is_not_json_in_utf_8_is_refused(given_type):
    with pytest.raises(UnsupportedMediaType):
        check_json_type(["application/json", given_type])


def test_a_million_values_are_checked_without_holding_up_others_for_long():
    started = time.process_time()
    parse_json(b"[" + b"0," * 1_000_000 + b"0]")
    assert time.process_time() - started < 5
