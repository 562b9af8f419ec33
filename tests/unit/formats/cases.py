"""All recorded forms of replies."""

from tests.unit.formats import (
    expected_anthropic,
    expected_compatible,
    expected_gemini,
    expected_openai,
    expected_openai_other,
)
from tests.unit.formats.case import Streamed, Whole

ALL = [
    *expected_openai.CASES,
    *expected_openai_other.CASES,
    *expected_compatible.CASES,
    *expected_anthropic.CASES,
    *expected_gemini.CASES,
]
WHOLE = [case for case in ALL if isinstance(case, Whole)]
STREAMED = [case for case in ALL if isinstance(case, Streamed)]
HIDING = [case for case in STREAMED if case.hides_usage]
