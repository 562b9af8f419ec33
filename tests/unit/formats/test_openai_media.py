"""What speech and images are asked for."""

import json

from gateway.formats import Asked
from gateway.formats.openai_media import OpenAIMedia


def test_an_image():
    fields = {"model": b'"gpt-image-1"', "prompt": b'"A cat"', "n": b"2", "stream": b"true"}
    got = OpenAIMedia("openai.images").asked(fields, "/v1/images/generations")
    assert got == Asked("gpt-image-1", streams=True, prompt=("A cat",), answers=2)


def test_speech():
    fields = {
        "input": b'"Hello"',
        "instructions": b'"Whisper"',
        "voice": b'"alloy"',
        "stream_format": json.dumps("sse").encode(),
    }
    got = OpenAIMedia("openai.speech").asked(fields, "/openai/deployments/tts/audio/speech")
    assert got == Asked("tts", streams=True, prompt=("Hello", "Whisper"))


def test_a_form_tells_nothing_and_nothing_is_added():
    media = OpenAIMedia("openai.transcriptions")
    assert media.asked({}, "/v1/audio/transcriptions") == Asked("")
    assert media.bounded({}, 5) == {}
    assert media.asks_for_usage({"stream": b"true"}) == {}


def test_sound_itself_tells_nothing():
    assert OpenAIMedia("openai.speech").usage_of(b"ID3\x04\x00\x00\xff\xfb") is None
