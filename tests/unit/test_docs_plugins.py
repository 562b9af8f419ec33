"""docs/plugins.md: its examples run, and it names every setting."""

import json
import re
from pathlib import Path

import pytest

from gateway.errors import InvalidField
from gateway.models import NewRule, PluginEntry, Stage
from gateway.plugin import Reject
from gateway.registry import Registry
from tests.builders import a_request, an_exchange, built_in_plugins

PAGE = (Path(__file__).parents[2] / "docs" / "plugins.md").read_text(encoding="utf-8")


def example(name):
    found = re.findall(rf"<!-- example: {name} -->\n```python\n(.*?)```", PAGE, re.DOTALL)
    assert len(found) == 1
    return found[0]


def section(title):
    return re.split(r"\n#{2,3} ", PAGE.partition(f"### `{title}`\n")[2])[0]


@pytest.fixture
def registry(tmp_path):
    (tmp_path / "block_words.py").write_text(example("plugin"), encoding="utf-8")
    return Registry.load([tmp_path], entry_points=False)


async def test_the_example_plugin_is_found_and_does_what_the_page_says(registry):
    plugin = registry.create("block_words", {"words": ["Secret"], "status": 451})
    assert plugin.needs_request_body
    with pytest.raises(Reject) as caught:
        await plugin.pre_request(an_exchange(a_request(b"top SECRET")))
    assert (caught.value.status, caught.value.code) == (451, "blocked_word")
    await plugin.pre_request(an_exchange(a_request(b"hello")))


def test_the_example_plugin_is_described_and_its_settings_are_judged(registry):
    assert registry.describe("block_words")["description"] == "Refuses requests whose text contains a blocked word."
    assert registry.describe("block_words")["stages"] == ["pre_request", "pre_response"]
    with pytest.raises(InvalidField) as caught:
        registry.validate("block_words", {"words": ["a"], "status": 200}, None, where="plugin_chain.0")
    assert caught.value.param == "plugin_chain.0.settings.status"


def page_tests():
    return re.findall(r"^def (test_\w+)", example("test"), re.MULTILINE)


@pytest.mark.parametrize("name", page_tests())
def test_the_tests_on_the_page_pass(name):
    names: dict[str, object] = {"__name__": "block_words"}
    exec(compile(example("plugin") + example("test"), "docs/plugins.md", "exec"), names)
    test = names[name]
    assert callable(test)
    test()


def documented(plugin):
    schema = plugin["settings_schema"]
    return {name for model in (schema, *schema.get("$defs", {}).values()) for name in model["properties"]}


@pytest.mark.parametrize("name", built_in_plugins().names())
def test_every_setting_of_every_built_in_plugin_is_on_the_page(name):
    page = section(name)
    settings = documented(built_in_plugins().describe(name))
    missing = {setting for setting in settings if f"`{setting}`" not in page and f'"{setting}"' not in page}
    assert settings
    assert not missing


@pytest.mark.parametrize("name", built_in_plugins().names())
def test_every_code_a_built_in_plugin_answers_is_on_the_page(name):
    source = (Path(__file__).parents[2] / "plugins" / f"{name}.py").read_text(encoding="utf-8")
    codes = set(re.findall(r'Reject\(\s*\d+,\s*"(\w+)"', source)) - {"stream", "not_text"}
    assert {code for code in codes if f"`{code}`" not in section(name)} == set()


def test_every_field_of_a_chain_entry_and_every_stage_is_on_the_page():
    for name in ("name", *PluginEntry.model_fields, *Stage):
        assert f"| `{name}` |" in PAGE


def test_every_json_example_is_a_rule_an_entry_or_settings_that_pass():
    registry = built_in_plugins()
    for title in registry.names():
        examples = [json.loads(text) for text in re.findall(r"```json\n(.*?)```", section(title), re.DOTALL)]
        assert examples
        for found in examples:
            registry.validate(title, found.get("settings", found), None, where="settings")
    rule = NewRule.model_validate(json.loads(PAGE.partition("```json\n")[2].partition("```")[0]))
    for entry in rule.plugin_chain:
        registry.validate(entry.name, entry.settings, entry.stage, where="plugin_chain")
