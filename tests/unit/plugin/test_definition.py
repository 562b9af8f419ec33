"""What a plugin class is found to be."""

from gateway.plugin import Exchange, LimitScope, Plugin, Settings, Stage


class Two(Plugin[Settings]):
    async def post_response(self, exchange: Exchange) -> None: ...

    async def pre_request(self, exchange: Exchange) -> None: ...


class OnlyLimits(Plugin[Settings]):
    def limits(self, scope: LimitScope):
        return ()


class OwnSettings(Settings):
    word: str


class Own(Plugin[OwnSettings]):
    pass


class Heir(Own):
    pass


def test_stages_are_the_methods_that_are_defined_in_the_order_they_run():
    assert Two.stages() == (Stage.PRE_REQUEST, Stage.POST_RESPONSE)
    assert Own.stages() == ()


def test_declared_limits_take_effect_before_the_request_is_forwarded():
    assert OnlyLimits.stages() == (Stage.PRE_REQUEST,)


def test_an_entry_runs_in_its_stage_or_in_all():
    assert [stage for stage in Stage if Two(Settings()).runs_in(stage)] == [Stage.PRE_REQUEST, Stage.POST_RESPONSE]
    assert [stage for stage in Stage if Two(Settings(), Stage.POST_RESPONSE).runs_in(stage)] == [Stage.POST_RESPONSE]
    assert [stage for stage in Stage if Two(Settings(), Stage.POST_REQUEST).runs_in(stage)] == []


def test_the_settings_model_is_the_one_in_the_class_statement_and_is_inherited():
    assert Own.settings_type is OwnSettings
    assert Heir.settings_type is OwnSettings
