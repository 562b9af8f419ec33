"""Where plugins are found, what stops the start, and how a chain entry is judged."""

import re
import sys
import textwrap

import pytest

from gateway.errors import ConfigurationError, InvalidField, NotFound
from gateway.plugin import Stage
from gateway.registry import Registry
from tests.builders import an_exchange, built_in_plugins

PLUGIN = '''
    """A plugin."""

    from __future__ import annotations

    from dataclasses import dataclass
    from typing import Annotated

    from pydantic import Field

    from gateway.plugin import Exchange, Plugin, Settings


    @dataclass
    class Noted:
        words: list[str]


    class ShoutSettings(Settings):
        words: Annotated[tuple[str, ...], Field(min_length=1, description="What to shout.")]
        volume: int = 11


    class Shout(Plugin[ShoutSettings]):
        """Shouts words.

        Loudly.
        """

        name = "shout"

        def prepare(self) -> None:
            if self.settings.volume > 11:
                raise ValueError("it does not go beyond 11")
            if self.settings.volume < 0:
                raise OSError("/secret/path")

        async def post_request(self, exchange: Exchange) -> None:
            exchange.notes["shout"] = Noted(list(self.settings.words))

        async def pre_request(self, exchange: Exchange) -> None:
            pass
'''


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "my plugins"
    folder.mkdir()
    return folder


def write(folder, name, text=PLUGIN):
    path = folder / name
    path.write_text(textwrap.dedent(text))
    return path


def loaded(*folders):
    return Registry.load(folders, entry_points=False)


def stops(*folders, entry_points=False):
    with pytest.raises(ConfigurationError) as caught:
        Registry.load(folders, entry_points=entry_points)
    return str(caught.value)


def refusal(call):
    with pytest.raises(InvalidField) as caught:
        call()
    return caught.value.param, caught.value.message


# finding


def test_the_built_in_plugins_are_there():
    assert built_in_plugins().names() == ["content_validator", "rate_limiter", "security_validator"]


def test_a_configured_folder_adds_its_files_but_not_those_with_an_underscore(folder):
    write(folder, "shout.py")
    write(folder, "_helper.py", "raise RuntimeError")
    registry = loaded(folder)
    info = registry.get("shout")
    assert info.description == "Shouts words."
    assert info.stages == (Stage.PRE_REQUEST, Stage.POST_REQUEST)
    assert info.source == str(folder / "shout.py")


def test_modules_are_loaded_without_touching_the_search_path_or_taking_a_name(folder):
    before = list(sys.path)
    write(folder, "json.py")
    registry = loaded(folder)
    assert sys.path == before
    assert sys.modules["json"].__file__ != str(folder / "json.py")
    assert registry.get("shout").cls.__module__.startswith("_gateway_plugin_json_")


def test_files_of_the_same_name_in_two_folders_do_not_collide(folder, tmp_path):
    write(folder, "mine.py")
    write(tmp_path, "mine.py", PLUGIN.replace('"shout"', '"whisper"'))
    registry = loaded(folder, tmp_path)
    modules = {registry.get(name).cls.__module__ for name in ("shout", "whisper")}
    assert len(modules) == 2


def test_a_plugin_class_that_a_file_imports_is_not_its_own(folder, tmp_path, monkeypatch):
    entry_point(tmp_path, monkeypatch, "acme_shout:Shout")
    write(folder, "mine.py", PLUGIN.replace('"shout"', '"mine"') + "\n    from acme_shout import Shout as Theirs\n")
    names = loaded(folder).names()
    assert "mine" in names
    assert "shout" not in names


def test_a_nameless_base_is_not_a_plugin_of_the_file(folder):
    text = PLUGIN + "\n    class Base(Plugin[ShoutSettings]):\n        async def pre_request(self, exchange): ...\n"
    write(folder, "a.py", text)
    assert "shout" in loaded(folder).names()


def entry_point(tmp_path, monkeypatch, value):
    site = tmp_path / "site"
    (site / "acme-1.0.dist-info").mkdir(parents=True)
    (site / "acme-1.0.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: acme\nVersion: 1.0\n")
    (site / "acme-1.0.dist-info" / "entry_points.txt").write_text(f"[gateway.plugins]\nshout = {value}\n")
    (site / "acme_shout.py").write_text(textwrap.dedent(PLUGIN))
    monkeypatch.syspath_prepend(site)
    monkeypatch.delitem(sys.modules, "acme_shout", raising=False)


def test_an_installed_package_adds_plugins_by_entry_point(tmp_path, monkeypatch):
    entry_point(tmp_path, monkeypatch, "acme_shout:Shout")
    info = Registry.load().get("shout")
    assert info is not None
    assert "package acme" in info.source
    assert Registry.load(entry_points=False).get("shout") is None


@pytest.mark.parametrize("value", ["acme_shout:Missing", "acme_shout:Noted", "acme_nowhere:Shout"])
def test_an_entry_point_that_is_no_plugin_stops_the_start(tmp_path, monkeypatch, value):
    entry_point(tmp_path, monkeypatch, value)
    assert "package acme" in stops(entry_points=True)


# what stops the start


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("raise RuntimeError('out of ink')", "RuntimeError: out of ink"),
        ("raise SystemExit(3)", "SystemExit"),
        ("def broken(:", "SyntaxError"),
        ("import no_such_package", "no_such_package"),
        ("x = 1", "no Plugin with a name"),
        ("from gateway.plugin import Plugin", "no Plugin with a name"),
        (PLUGIN.replace('"shout"', '"Shout!"'), "not a plugin name"),
        ("from gateway.plugin import Plugin, Settings\nclass P(Plugin[Settings]):\n    name = 'p'", "defines no stage"),
        (
            PLUGIN.replace("__future__ import annotations", "collections.abc import Callable").replace(
                "volume: int = 11", "volume: Callable[[], int]"
            ),
            "no JSON Schema",
        ),
    ],
)
def test_a_file_that_is_no_plugin_stops_the_start_and_is_named(folder, text, words):
    path = write(folder, "bad.py", text)
    message = stops(folder)
    assert str(path) in message
    assert words in message
    assert not [name for name in sys.modules if name.startswith("_gateway_plugin_bad_") and "RuntimeError" in message]


def test_two_plugins_of_one_name_stop_the_start_and_both_files_are_named(folder):
    paths = [write(folder, "one.py"), write(folder, "two.py")]
    message = stops(folder)
    assert all(str(path) in message for path in paths)


def test_a_built_in_name_cannot_be_taken(folder):
    write(folder, "mine.py", PLUGIN.replace('"shout"', '"rate_limiter"'))
    assert "two plugins are named rate_limiter" in stops(folder)


def test_a_configured_folder_that_is_missing_stops_the_start(tmp_path):
    assert str(tmp_path / "nowhere") in stops(tmp_path / "nowhere")


# describing


def test_the_admin_api_gets_description_stages_and_schema_but_no_path(folder):
    write(folder, "shout.py")
    shown = loaded(folder).describe("shout")
    assert shown["name"] == "shout"
    assert shown["stages"] == ["pre_request", "post_request"]
    assert shown["settings_schema"]["properties"]["words"]["description"] == "What to shout."
    assert shown["settings_schema"]["additionalProperties"] is False
    assert str(folder) not in str(shown)
    assert shown in loaded(folder).public()


def test_a_plugin_that_does_not_exist_is_not_found():
    with pytest.raises(NotFound, match=re.escape("did you mean rate_limiter?")):
        built_in_plugins().describe("rate_limitr")


def test_every_setting_of_every_built_in_plugin_has_a_description():
    for plugin in built_in_plugins().public():
        schema = plugin["settings_schema"]
        for model in (schema, *schema.get("$defs", {}).values()):
            for name, field in model["properties"].items():
                assert field.get("description") or name in ("daily", "monthly"), f"{plugin['name']}: {name}"


# judging a chain entry


def test_valid_settings_come_back_typed(folder):
    write(folder, "shout.py")
    settings = loaded(folder).validate("shout", {"words": ["hey"]}, Stage.PRE_REQUEST, where="plugin_chain.0")
    assert (settings.words, settings.volume) == (("hey",), 11)


@pytest.mark.parametrize(
    ("name", "settings", "stage", "param", "words"),
    [
        ("shut", {}, None, "plugin_chain.3.name", "did you mean shout?"),
        ("shout", {"words": ["a"]}, Stage.PRE_RESPONSE, "plugin_chain.3.stage", "its stages are pre_request, post_request"),
        ("shout", {}, None, "plugin_chain.3.settings.words", "words: is required"),
        ("shout", {"words": []}, None, "plugin_chain.3.settings.words", "at least 1"),
        ("shout", {"words": ["a", 7]}, None, "plugin_chain.3.settings.words.1", "valid string"),
        ("shout", {"words": ["a"], "volum": 1}, None, "plugin_chain.3.settings.volum", "did you mean volume?"),
        ("shout", {"words": ["a"], "zzz": 1}, None, "plugin_chain.3.settings.zzz", "unknown field"),
        ("shout", {"words": ["a"], "volume": 12}, None, "plugin_chain.3.settings", "does not go beyond 11"),
    ],
)
def test_an_entry_that_cannot_run_is_refused_and_the_field_named(folder, name, settings, stage, param, words):
    write(folder, "shout.py")
    registry = loaded(folder)
    found, message = refusal(lambda: registry.validate(name, settings, stage, where="plugin_chain.3"))
    assert found == param
    assert words in message


def test_what_a_plugin_fails_with_while_preparing_is_not_shown(folder):
    write(folder, "shout.py")
    message = refusal(lambda: loaded(folder).create("shout", {"words": ["a"], "volume": -1}))[1]
    assert "OSError" in message
    assert "/secret/path" not in message


def test_an_instance_knows_its_settings_and_stage(folder):
    write(folder, "shout.py")
    plugin = loaded(folder).create("shout", {"words": ["hey"]}, Stage.POST_REQUEST)
    assert plugin.settings.words == ("hey",)
    assert [stage for stage in Stage if plugin.runs_in(stage)] == [Stage.POST_REQUEST]


async def test_annotations_of_a_loaded_file_resolve(folder):
    write(folder, "shout.py")
    plugin = loaded(folder).create("shout", {"words": ["hey"]})
    exchange = an_exchange()
    await plugin.post_request(exchange)
    assert exchange.notes["shout"].words == ["hey"]
