"""Which bodies pass content_validator, what is left of them, and what a client learns when one does not."""

import asyncio
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.errors import GatewayError, InvalidField
from gateway.plugin import Reject
from tests.builders import a_plugin, a_reply, a_request, an_exchange

CHAT = {"model": "m", "messages": [{"role": "user", "content": "hello"}]}
SCHEMA = {
    "type": "object",
    "required": ["model"],
    "properties": {"model": {"type": "string"}, "n": {"maximum": 3}, "a/b": {"items": {"type": "integer"}}},
}


async def checked(request, stage="pre_request", **settings):
    """The request after the plugin saw it."""
    plugin = a_plugin("content_validator", settings, stage)
    await plugin.pre_request(an_exchange(request))
    return request


async def refused(request, **settings):
    with pytest.raises(GatewayError) as caught:
        await checked(request, **settings)
    return caught.value.status, caught.value.code, caught.value.param


async def reply_checked(reply, stage="pre_response", method="POST", **settings):
    plugin = a_plugin("content_validator", settings, stage)
    await plugin.pre_response(an_exchange(a_request(CHAT, method=method), reply=reply))
    return reply


async def reply_refused(reply, **settings):
    with pytest.raises(Reject) as caught:
        await reply_checked(reply, **settings)
    assert (caught.value.status, caught.value.code) == (502, "invalid_upstream_reply")
    return caught.value


def invalid(**settings):
    with pytest.raises(InvalidField) as caught:
        a_plugin("content_validator", settings)
    return str(caught.value.param).removeprefix("plugin.settings").lstrip("."), caught.value.message


# types


@pytest.mark.parametrize("given_type", ["application/json", "Application/JSON; charset=utf-8", "image/png"])
async def test_listed_types_pass_whatever_their_case_and_parameters(given_type):
    await checked(a_request(b"{}", content_type=given_type), allowed_types=["application/json", "image/*"])


@pytest.mark.parametrize(
    "headers",
    [
        {"content-type": "text/html"},
        {"content-type": "application/jsonp"},
        {"content-type": "imagex/png"},
        {"content-type": "*/*"},
        {"content-type": ""},
        {},
        [("content-type", "application/json"), ("content-type", "text/html")],
    ],
)
async def test_other_missing_or_contradicting_types_are_refused(headers):
    request = a_request(b"{}", content_type=None, headers=headers)
    assert await refused(request, allowed_types=["application/json", "image/*"]) == (
        415,
        "unsupported_media_type",
        "content-type",
    )


async def test_types_alone_are_checked_without_reading_the_body():
    plugin = a_plugin("content_validator", {"allowed_types": ["application/json"]})
    assert not plugin.needs_request_body
    await plugin.pre_request(an_exchange(method="GET"))
    await plugin.pre_request(an_exchange(method="POST"))


@pytest.mark.parametrize("method", ["POST", "GET"])
async def test_an_undeclared_type_does_not_slip_through_when_a_body_follows(method):
    assert (await refused(a_request(method=method, has_body=True), allowed_types=["application/json"]))[0] == 415


# size


async def test_a_body_of_exactly_the_limit_passes_and_one_byte_more_does_not():
    await checked(a_request(b"x" * 1024), max_size="1KiB")
    assert await refused(a_request(b"x" * 1025), max_size="1KiB") == (413, "body_too_large", None)


def test_a_length_that_may_not_be_declared_is_measured():
    assert a_plugin("content_validator", {"max_size": 5}).needs_request_body


# fields


async def test_only_the_listed_fields_are_forwarded():
    request = a_request({"model": "m", "admin": True, "messages": []}, headers={"content-digest": "sha-256=:x:"})
    await checked(request, fields=["model", "messages"])
    assert json.loads(request.body or b"") == {"model": "m", "messages": []}
    assert "content-digest" not in request.headers


async def test_a_body_of_which_nothing_is_dropped_stays_byte_for_byte():
    body = b'{ "model" : "m" }'
    assert (await checked(a_request(body), fields=["model", "messages"])).body is body


async def test_what_was_validated_is_what_is_forwarded():
    request = a_request({"model": "m", "note": "forbidden"})
    await checked(request, fields=["model"], blocked_patterns=["forbidden"], json_schema={"maxProperties": 1})
    assert request.body == b'{"model":"m"}'


@pytest.mark.parametrize("body", [[], "text", 3, None])
async def test_a_body_that_is_no_object_has_no_fields(body):
    request = a_request(json.dumps(body).encode())
    assert (await refused(request, fields=["model"]))[:2] == (400, "schema_mismatch")
    assert (await refused(request, required_fields=["model"]))[:2] == (400, "schema_mismatch")


# required fields and schema


async def test_a_missing_field_is_named():
    assert await refused(a_request({"model": "m"}), required_fields=["model", "messages"]) == (400, "missing_field", "messages")
    await checked(a_request({"model": None, "messages": []}), required_fields=["model", "messages"])


@pytest.mark.parametrize(
    ("body", "pointer"),
    [({}, ""), ({"model": 3}, "/model"), ({"model": "m", "n": 4}, "/n"), ({"model": "m", "a/b": [1, "x"]}, "/a~1b/1")],
)
async def test_a_mismatch_is_located_by_a_json_pointer(body, pointer):
    assert await refused(a_request(body), json_schema=SCHEMA) == (400, "schema_mismatch", pointer)


async def test_a_mismatch_does_not_echo_the_value():
    with pytest.raises(Reject) as caught:
        await checked(a_request({"model": ["sk-secret"], "sk-secret": 1}), json_schema=SCHEMA | {"additionalProperties": False})
    assert "sk-secret" not in json.dumps(caught.value.body("r"))


async def test_a_body_that_would_take_seconds_to_check_is_refused_instead():
    schema = {"items": {"allOf": [{"minimum": number} for number in range(500)]}}
    assert (await refused(a_request(b"[" + b"1," * 100_000 + b"1]"), json_schema=schema))[0] == 413


async def test_a_large_mismatch_is_refused_without_looking_for_the_place():
    schema = {"items": {"anyOf": [{"maximum": number} for number in range(50)]}}
    assert await refused(a_request([100] * 10_000), json_schema=schema) == (400, "schema_mismatch", None)


@pytest.mark.parametrize(
    ("schema", "words"),
    [
        ({"type": "strin"}, "not a valid JSON Schema"),
        ({"pattern": "("}, "not a valid JSON Schema"),
        ({"pattern": "(?=backtracking)"}, "not a valid JSON Schema"),
        ({"$ref": "https://example.com/schema"}, "must point inside"),
        ({"properties": {"a": {"$ref": "file:///etc/passwd"}}}, "must point inside"),
        ({"$ref": "https://json-schema.org/draft/2020-12/schema"}, "must point inside"),
        ({"$schema": "http://127.0.0.1:1/meta"}, "not a valid JSON Schema"),
        ({"$schema": "http://json-schema.org/draft-04/schema#"}, "draft 4"),
        ({"$ref": "#"}, "recursive"),
        (
            {"$ref": "#/$defs/a", "$defs": {"a": {"not": {"$ref": "#/$defs/b"}}, "b": {"items": {"$ref": "#/$defs/a"}}}},
            "recursive",
        ),
        ({"$dynamicRef": "#a"}, "$dynamicRef"),
        ({"properties": {"a": {"$id": "https://example.com/"}}}, "$id"),
        ({"$ref": "#/$defs/none"}, "points to nothing"),
    ],
)
def test_a_schema_that_is_wrong_or_reaches_outside_is_refused_when_written(schema, words):
    param, message = invalid(json_schema=schema)
    assert param == "json_schema"
    assert words in message


def test_a_schema_that_doubles_with_every_reference_is_refused():
    definitions = {f"d{n}": {"anyOf": [{"$ref": f"#/$defs/d{n + 1}"}, {"$ref": f"#/$defs/d{n + 1}"}]} for n in range(30)}
    assert "5000 nodes" in invalid(json_schema={"$ref": "#/$defs/d0", "$defs": definitions | {"d30": {"const": 1}}})[1]


def test_a_schema_nested_beyond_the_stack_is_refused():
    schema: dict[str, object] = {}
    for _ in range(3_000):
        schema = {"not": schema}
    assert invalid(json_schema=schema)[0] == "json_schema"


async def test_references_within_the_schema_work():
    schema = {"$defs": {"a~b/c": {"type": "string"}}, "properties": {"model": {"$ref": "#/$defs/a~0b~1c"}}}
    await checked(a_request({"model": "m"}), json_schema=schema)
    assert (await refused(a_request({"model": 1}), json_schema=schema))[2] == "/model"


# patterns


@pytest.mark.parametrize(
    "body",
    [
        {"messages": [{"role": "user", "content": "say forbidden now"}]},
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "forbidden"}]}]},
        {"messages": [{"content": [{"type": "text", "text": "forb"}, {"type": "text", "text": "idden"}]}]},
        {"tools": [{"function": {"arguments": json.dumps({"q": "forbidden"}).replace("forb", "\\u0066orb")}}]},
        {"tools": [{"arguments": json.dumps(json.dumps({"q": "forbidden"}).replace("forb", "\\u0066orb"))}]},
        {"metadata": {"forbidden": 1}},
        "forbidden",
    ],
)
async def test_blocked_text_is_found_wherever_it_hides(body):
    assert await refused(a_request(body), blocked_patterns=["harmless", "forbidden"]) == (403, "blocked_content", None)


around = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=20)  # a NUL is refused in keys


@given(
    before=around,
    after=around,
    escapes=st.lists(st.booleans(), min_size=9, max_size=9),
    depth=st.integers(0, 5),
    in_key=st.booleans(),
)
async def test_json_escapes_and_depth_cannot_hide_blocked_text(before, after, escapes, depth, in_key):
    word = "".join(f"\\u{ord(char):04X}" if escaped else char for char, escaped in zip("forbidden", escapes, strict=True))
    text = f'"{json.dumps(before)[1:-1]}{word}{json.dumps(after)[1:-1]}"'
    body = f"{{{text}: 1}}" if in_key else text
    for level in range(depth):
        body = f'{{"k": [{body}, "x"]}}' if level % 2 else f'["x", {body}]'
    assert (await refused(a_request(body.encode()), blocked_patterns=["forbidden"]))[1] == "blocked_content"


@given(st.text(alphabet='forbiden {}[]"\\u0:,', max_size=40))
async def test_only_text_that_is_there_is_blocked(text):
    if "forbidden" not in text and "\\" not in text:
        await checked(a_request({"content": text}), blocked_patterns=["forbidden"])


async def test_a_refusal_does_not_tell_the_pattern():
    with pytest.raises(Reject) as caught:
        await checked(a_request(CHAT), blocked_patterns=["hell[o]"])
    assert "hell" not in caught.value.message


async def test_a_pattern_that_backtracks_elsewhere_is_linear_here():
    await checked(a_request({"text": "x" * 100_000}), blocked_patterns=["(.*)(.*)(.*)=$"])


@pytest.mark.parametrize(("text", "lets_others_run"), [("xyz" * 10_000, True), ("xyz", False)])
async def test_a_search_that_may_take_long_runs_beside_the_event_loop(text, lets_others_run):
    plugin = a_plugin("content_validator", {"blocked_patterns": [f"(a|b)*a(a|b){{100}}z{n}" for n in range(10)]})
    search = asyncio.create_task(plugin.pre_request(an_exchange(a_request({"text": text}))))
    await asyncio.sleep(0)
    assert search.done() is not lets_others_run
    await search


async def test_more_text_than_can_be_searched_in_seconds_is_refused():
    patterns = [f"(a|b)*a(a|b){{100}}z{n}" for n in range(10)]
    assert (await refused(a_request({"text": "x" * 3_000_000}), blocked_patterns=patterns))[0] == 413


@pytest.mark.parametrize("pattern", ["(", "(?=a)", r"(a)\1", ""])
def test_a_pattern_that_re2_does_not_take_is_refused_when_written(pattern):
    assert invalid(blocked_patterns=[pattern])[0] == "blocked_patterns.0"


# what cannot be read must not pass


@pytest.mark.parametrize(
    "settings", [{"fields": ["a"]}, {"required_fields": ["a"]}, {"json_schema": {}}, {"blocked_patterns": ["x"]}]
)
@pytest.mark.parametrize(
    "body", [b'{"a":1,"a":2}', b'{"a":"\xff"}', b"[" * 70 + b"]" * 70, b"a=1&b=2", b'{"a":NaN}', b'{"a":1e999}']
)
async def test_a_body_that_readers_could_understand_differently_is_refused(settings, body):
    assert (await refused(a_request(body), **settings))[:2] == (400, "invalid_json")


@pytest.mark.parametrize("settings", [{"fields": ["a"]}, {"json_schema": {}}, {"blocked_patterns": ["x"]}])
async def test_a_compressed_body_is_refused_if_it_must_be_read(settings):
    request = a_request(b"\x1f\x8b", headers={"content-encoding": "gzip"})
    assert (await refused(request, **settings))[:2] == (415, "unsupported_content_encoding")
    await checked(a_request({"a": 1}, headers={"content-encoding": "identity"}), **settings)


async def test_a_body_that_was_not_read_is_a_failure_and_no_pass():
    with pytest.raises(RuntimeError):
        await checked(a_request(None), blocked_patterns=["x"])


# empty bodies

DEMANDING = {"allowed_types": ["application/json"], "max_size": 9, "required_fields": ["a"], "json_schema": {"type": "object"}}


@pytest.mark.parametrize("method", ["GET", "HEAD", "DELETE", "OPTIONS"])
@pytest.mark.parametrize("body", [None, b""])
async def test_methods_without_a_body_have_nothing_to_check(method, body):
    await checked(a_request(body, method=method, content_type=None), **DEMANDING)


async def test_a_body_under_get_is_checked_like_any_other():
    assert (await refused(a_request({"b": 1}, method="GET"), **DEMANDING))[1] == "missing_field"


async def test_an_empty_post_lacks_what_is_required_and_nothing_else():
    assert await refused(a_request(b""), required_fields=["a", "b"]) == (400, "missing_field", "a")
    assert await refused(a_request(b""), json_schema=SCHEMA) == (400, "schema_mismatch", "")
    await checked(a_request(b"", content_type=None), fields=["a"], blocked_patterns=["x"], allowed_types=["text/plain"])


# replies


@pytest.mark.parametrize(
    ("reply", "settings"),
    [
        (a_reply(b"<html>", content_type="text/html"), {"allowed_types": ["application/json"]}),
        (a_reply(b"123456"), {"max_size": 5}),
        (a_reply({"a": 1}), {"required_fields": ["b"]}),
        (a_reply(b"not json"), {"required_fields": ["b"]}),
        (a_reply({"a": 1}), {"json_schema": {"required": ["b"]}}),
        (a_reply(b""), {"json_schema": SCHEMA}),
        (a_reply({"a": "secret"}), {"blocked_patterns": ["secret"]}),
        (a_reply(b"the secret", content_type="text/plain"), {"blocked_patterns": ["secret"]}),
        (a_reply(b'{"a": "secr\\u0065t", "a": 1}', content_type="text/plain"), {"blocked_patterns": ["secret"]}),
        (a_reply(b'{"a": 1, "a": 2}'), {"blocked_patterns": ["secret"]}),
        (a_reply(b"\xff\xfe", content_type="image/png"), {"blocked_patterns": ["secret"]}),
        (a_reply({"a": 1}, headers={"content-encoding": "gzip"}), {"blocked_patterns": ["secret"]}),
        (a_reply({"error": "secret"}, status=500), {"blocked_patterns": ["secret"]}),
    ],
)
async def test_a_reply_that_breaks_a_check_is_502_without_its_content(reply, settings):
    error = await reply_refused(reply, **settings)
    assert "secret" not in str(error.body("r"))
    assert error.param is None


async def test_a_reply_loses_the_fields_that_are_not_listed():
    reply = await reply_checked(a_reply({"id": 1, "internal": 2}, headers={"etag": '"x"'}), fields=["id"])
    assert reply.body == b'{"id":1}'
    assert "etag" not in reply.headers


async def test_an_error_of_the_target_keeps_its_shape():
    reply = a_reply({"error": {"message": "slow down"}}, status=429)
    body = reply.body
    await reply_checked(reply, fields=["id"], required_fields=["id"], json_schema=SCHEMA, allowed_types=["text/plain"])
    assert reply.body == body


@pytest.mark.parametrize(("method", "status"), [("HEAD", 200), ("POST", 204), ("GET", 304)])
async def test_a_reply_that_cannot_have_a_body_passes(method, status):
    await reply_checked(a_reply(None, status=status, content_type=None), method=method, required_fields=["a"])


SSE = "text/event-stream; charset=utf-8"


@pytest.mark.parametrize("settings", [{"max_size": 5}, {"blocked_patterns": ["x"]}, {"json_schema": {}}])
async def test_a_stream_is_refused_unless_it_may_be_skipped(settings):
    await reply_refused(a_reply(None, content_type=SSE), **settings)
    await reply_checked(a_reply(None, content_type=SSE), skip_streams=True, **settings)


async def test_a_stream_of_an_allowed_type_passes_where_no_body_is_checked():
    await reply_checked(a_reply(None, content_type=SSE), allowed_types=["text/event-stream"])


# which direction


@pytest.mark.parametrize(
    ("stage", "settings", "reads_request", "reads_reply"),
    [
        (None, {"required_fields": ["a"]}, True, False),
        (None, {"json_schema": {}}, True, False),
        (None, {"max_size": 5}, True, False),
        (None, {"allowed_types": ["text/plain"]}, False, False),
        (None, {"blocked_patterns": ["x"], "fields": ["a"]}, True, True),
        ("pre_request", {"blocked_patterns": ["x"]}, True, False),
        ("pre_response", {"blocked_patterns": ["x"]}, False, True),
        ("pre_response", {"required_fields": ["a"]}, False, True),
    ],
)
def test_bodies_are_read_only_where_a_check_needs_them(stage, settings, reads_request, reads_reply):
    plugin = a_plugin("content_validator", settings, stage)
    assert (plugin.needs_request_body, plugin.needs_reply_body) == (reads_request, reads_reply)


async def test_without_a_stage_the_shape_is_the_requests_and_patterns_hold_for_both():
    settings = {"required_fields": ["model"], "blocked_patterns": ["secret"]}
    await reply_checked(a_reply({"id": 1}), stage=None, **settings)
    await reply_refused(a_reply({"id": "secret"}), stage=None, **settings)


async def test_an_entry_for_replies_leaves_requests_alone():
    await checked(a_request(b"no json"), stage="pre_response", required_fields=["a"])


# settings


@pytest.mark.parametrize(
    ("settings", "param", "words"),
    [
        ({}, "", "nothing is checked"),
        ({"skip_streams": True}, "", "nothing is checked"),
        ({"fields": ["a"], "required_fields": ["a", "b"]}, "", "'b' is not among fields"),
        ({"allowed_types": ["json"]}, "allowed_types.0", "media type"),
        ({"allowed_types": ["*/json"]}, "allowed_types.0", "media type"),
        ({"allowed_types": ["text/plain; charset=utf-8"]}, "allowed_types.0", "without parameters"),
        ({"max_size": 0}, "max_size", "greater than or equal to 1"),
        ({"max_size": "1 parsec"}, "max_size", "64KiB"),
        ({"required_field": ["a"]}, "required_field", "did you mean required_fields?"),
    ],
)
def test_settings_that_check_nothing_or_contradict_themselves_are_refused(settings, param, words):
    assert invalid(**settings)[0] == param
    assert words in invalid(**settings)[1]
