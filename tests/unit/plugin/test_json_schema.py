"""Schemas of tenants. What a tenant may write is proved with content_validator; here is what its author can rely on."""

import pytest
from pydantic import TypeAdapter, ValidationError

from gateway.errors import BodyTooLarge
from gateway.plugin import JsonSchema, SchemaCheck


def test_a_value_that_fits_has_no_mismatch():
    assert SchemaCheck({"type": "object"}).mismatch({}, b"{}") is None


def test_a_mismatch_has_a_pointer_with_escapes_and_the_word_of_the_schema():
    check = SchemaCheck({"properties": {"a/b~": {"maxLength": 1}}})
    found = check.mismatch({"a/b~": "xy"}, b'{"a/b~":"xy"}')
    assert found is not None
    assert found.pointer == "/a~1b~0"
    assert found.message.endswith("maxLength.")


def test_the_missing_field_is_named():
    found = SchemaCheck({"required": ["model"]}).mismatch({}, b"{}")
    assert found is not None
    assert "model" in found.message


def test_the_cost_is_bounded_by_the_source_before_anything_is_checked():
    check = SchemaCheck({"items": {"allOf": [{"minimum": number} for number in range(1_000)]}})
    with pytest.raises(BodyTooLarge):
        check.mismatch([], b"[" * 10_000)


def test_a_large_integer_is_an_integer():
    assert SchemaCheck({"type": "integer"}).mismatch(10**40, b"1") is None


def test_patterns_in_a_schema_are_linear():
    check = SchemaCheck({"pattern": "^(a+)+$"})
    text = "a" * 50_000 + "!"
    assert check.mismatch(text, text.encode()) is not None


@pytest.mark.parametrize("schema", [True, [], "x", {"minimum": "one"}])
def test_what_is_no_schema_is_refused(schema):
    with pytest.raises(ValidationError):
        TypeAdapter(JsonSchema).validate_python(schema)
