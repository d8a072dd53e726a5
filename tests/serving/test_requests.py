# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""Bodies that are not what the API says: each is an error in OpenAI's JSON, and the next request is answered."""

import http.client
import json
import re
import socket

import openai
import pytest
from serving_fixtures import NAME, chat, data_url, post, running

from xllm.serving import Limits
from xllm.serving.limits import RequestError
from xllm.serving.requests import ChatBody, parse_body


HELLO = [{"role": "user", "content": "Hello"}]


def part(**members):
    return {"messages": [{"role": "user", "content": [members]}]}


@pytest.mark.parametrize(
    ("change", "status", "message"),
    [
        (b"{", 400, "no JSON in UTF-8"),
        (b"\xff\xfe", 400, "no JSON in UTF-8"),
        (b'{"model": "\\ud800", "messages": []}', 400, "no JSON in UTF-8"),
        (b"[" * 100_000, 400, "no JSON in UTF-8"),
        (b"[]", 400, "no JSON object"),
        ({"messages": None}, 400, "messages: Field required"),
        ({"messages": []}, 400, "messages: List should have at least 1"),
        ({"messages": "Hello"}, 400, "messages: Input should be a valid list"),
        ({"messages": ["Hello"]}, 400, "messages.0: Input should be a valid dictionary"),
        ({"messages": [{"content": "Hello"}]}, 400, "messages[0].role: expected one of system, developer, user"),
        ({"messages": [{"role": ["user"], "content": "x"}]}, 400, "messages[0].role: expected one of"),
        ({"messages": [{"role": "tool", "content": "x"}]}, 400, "messages[0].role: expected one of"),
        ({"messages": [{"role": "user", "content": 7}]}, 400, "messages[0].content: expected a text or a list"),
        ({"messages": [{"role": "user", "content": ["x"]}]}, 400, "messages[0].content: expected a text or a list"),
        ({"messages": [{"role": "user", "content": "x", "tool_calls": [1]}]}, 400, "tool_calls is not supported"),
        (part(text="x"), 400, "expected a dict with a 'type'"),
        (part(type="picture", url="x"), 400, "content part of type 'picture': expected one of 'text', 'image'"),
        (part(type="text", txt="x"), 400, "expected a string under 'text'"),
        (part(type="image_url"), 400, "holds no image"),
        (part(type="image_url", image_url={"url": 7}), 400, "no image: send a data: URL"),
        (part(type="image_url", image_url={"url": "data:image/png;base64,!!"}), 400, "not valid base64"),
        (part(type="image", image=[["/etc/passwd"]]), 400, "no image: send a data: URL"),
        (part(type="input_audio", input_audio={"data": "QUJD", "format": "wav"}), 400, "not an audio or video file"),
        ({"model": "other"}, 404, "the model 'other' does not exist here"),
        ({"model": 7}, 400, "model: Input should be a valid string"),
        ({"temperature": 3}, 400, "temperature: Input should be less than or equal to 2"),
        ({"temperature": "hot"}, 400, "temperature: Input should be a valid number"),
        ({"max_tokens": 0}, 400, "max_tokens: Input should be greater than or equal to 1"),
        ({"max_tokens": 100_000}, 400, "tokens of the model's context for the 100000 that the answer may have"),
        (
            {"messages": [{"role": "user", "content": "word " * 100_000}]},
            400,
            "500000 characters of text are more than the 1024 tokens",
        ),
        ({"n": 0}, 400, "n: Input should be greater than or equal to 1"),
        ({"n": 1000}, 400, "n: at most 8 answers"),
        ({"stop": [""]}, 400, "stop: expected up to 16 strings that are not empty"),
        ({"top_logprobs": 2}, 400, "top_logprobs needs logprobs: true"),
        ({"logit_bias": {"5": 900}}, 400, "logit_bias: expected values from -100 to 100"),
        ({"logit_bias": {"99999999": 1}}, 400, "logit_bias: there is no token 99999999"),
        ({"tools": [{"type": "function"}]}, 400, "tools is not supported by this server"),
        ({"chat_template": "{{ 1 }}"}, 400, "chat_template is not supported by this server"),
        ({"chat_template_kwargs": {"sanitize_control_tokens": False}}, 400, "chat_template_kwargs is not supported"),
        ({"generation_config": "{}"}, 400, "generation_config is not supported by this server"),
        ({"response_format": {"type": "xml"}}, 400, "response_format.type: Input should be 'text', 'json_object'"),
        ({"response_format": {"type": "json_schema"}}, 400, "'json_schema' needs a schema"),
    ],
)
def test_a_bad_body_is_an_error_in_openai_s_form(serving, change, status, message):
    body = change if isinstance(change, bytes) else {"model": NAME, "messages": HELLO, "max_tokens": 2, **change}
    found, text = post(serving, "/v1/chat/completions", body)
    error = json.loads(text)["error"]
    assert (found, message in error["message"]) == (status, True), error
    assert set(error) == {"message", "type", "param", "code"}
    assert "\n" not in error["message"]


def test_a_schema_too_deep_to_follow_is_refused(serving):
    schema: dict = {"type": "object"}
    for _ in range(450):
        schema = {"type": "object", "properties": {"a": schema}}
    wanted = {"type": "json_schema", "json_schema": {"name": "deep", "schema": schema}}
    body = {"model": NAME, "messages": HELLO, "max_tokens": 2, "response_format": wanted}
    status, text = post(serving, "/v1/chat/completions", body)
    assert (status, json.loads(text)["error"]["type"]) == (400, "invalid_request_error")


def test_after_bad_bodies_the_same_connection_is_answered(serving):
    with serving.client() as client:
        for bad in ([], [{"role": "user", "content": [{"type": "nothing"}]}]):
            with pytest.raises(openai.BadRequestError):
                client.chat.completions.create(model=NAME, messages=bad)
        assert chat(client, "Hello").choices[0].finish_reason == "length"


def test_after_a_fault_of_the_server_the_same_connection_is_answered(serving, monkeypatch, caplog):
    connection = http.client.HTTPConnection(serving.url.removeprefix("http://"), timeout=60)
    body = json.dumps({"model": NAME, "messages": HELLO, "max_tokens": 2})

    def ask():
        connection.request("POST", "/v1/chat/completions", body)
        reply = connection.getresponse()
        return reply.status, json.loads(reply.read())

    connection.connect()
    own = connection.sock
    with monkeypatch.context() as patch:
        patch.setattr(serving.service, "prepare", lambda conversation: conversation.no_such_thing)
        assert ask() == (500, RequestError("the server failed: AttributeError", 500).body())
    assert "no_such_thing" in caplog.text  # whose fault it is stands in the log alone
    assert ask()[0] == 200
    assert connection.sock is own
    assert 'status="500"' in post(serving, "/metrics", None)[1]
    connection.request("HEAD", "/health")
    assert connection.getresponse().status == 200


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"input": None}, "input: Field required"),
        ({"input": []}, "input: expected a text or messages"),
        ({"input": [{"type": "function_call_output", "output": "x"}]}, "only items of type 'message'"),
        ({"previous_response_id": "resp_1"}, "previous_response_id is not supported by this server"),
    ],
)
def test_a_bad_body_of_responses(serving, change, message):
    status, text = post(serving, "/v1/responses", {"model": NAME, "input": "Hello", **change})
    assert status == 400
    assert message in json.loads(text)["error"]["message"]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"model": NAME}, "file: expected a recording"),
        ({"file": ("a.wav", b"not a sound"), "model": NAME}, "not an audio or video file"),
        ({"file": ("a.wav", b"RIFF"), "model": "other"}, "the model 'other' does not exist here"),
        ({"file": ("a.wav", b"RIFF"), "model": NAME, "response_format": "xml"}, "response_format: expected one of"),
        ({"file": ("a.wav", b"RIFF"), "model": NAME, "language": "zh"}, "language is not supported by this server"),
        ({"file": ("a.wav", b"RIFF"), "model": NAME, "timestamp_granularities[]": "word"}, "only 'segment' is known"),
    ],
)
def test_a_bad_transcription(serving, fields, message):
    boundary, lines = "frontier", []
    for name, value in fields.items():
        file, content = value if isinstance(value, tuple) else (None, value.encode())
        more = f'; filename="{file}"' if file else ""
        lines.append(f'--{boundary}\r\nContent-Disposition: form-data; name="{name}"{more}\r\n\r\n'.encode() + content)
    body = b"\r\n".join([*lines, f"--{boundary}--\r\n".encode()])
    kind = {"Content-Type": f"multipart/form-data; boundary={boundary}"}
    status, text = post(serving, "/v1/audio/transcriptions", body, kind)
    assert status in (400, 404)
    assert message in json.loads(text)["error"]["message"]


def test_unknown_routes_are_openai_s_errors(serving):
    for path in ("/load_model", "/reset", "/docs", "/v1/files"):
        status, text = post(serving, path, {})
        assert (status, "error" in json.loads(text)) == (404, True)
    assert post(serving, "/v1/chat/completions", None)[0] == 405


def test_health_and_metrics(serving):
    assert json.loads(post(serving, "/health", None)[1])["status"] == "ok"
    post(serving, "/v1/chat/completions", {"model": NAME, "messages": HELLO, "max_tokens": 2})
    lines = post(serving, "/metrics", None)[1].splitlines()
    values = {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in lines if not line.startswith("#")}
    assert values['xllm_requests_total{status="200"}'] >= 2
    assert values["xllm_tokens_total"] >= 2
    assert values["xllm_answers_waiting"] == 0


def test_more_than_a_client_may_ask_is_refused_before_it_is_done(loaded, media):
    limits = Limits(body_bytes=20_000, items=2, medium_memory=2_000_000)
    with running(loaded, limits) as server, server.client() as client:
        picture = {"type": "image_url", "image_url": {"url": data_url(media / "red.png", "image/png")}}
        assert chat(client, [picture] * 2).choices
        with pytest.raises(openai.BadRequestError, match="more than 2 media in one request"):
            chat(client, [picture] * 3)
        with pytest.raises(openai.APIStatusError, match="longer than 20000 bytes") as error:
            chat(client, "x" * 30_000)
        assert error.value.status_code == 413


def test_a_body_of_many_values_is_refused_before_they_are_made(loaded):
    body = {"model": NAME, "messages": HELLO, "max_tokens": 2}
    with running(loaded, Limits(body_values=1000)) as server:
        status, text = post(server, "/v1/chat/completions", {**body, "messages": [[]] * 2000})
        assert (status, "more than 1000 values" in text) == (413, True)
        assert post(server, "/v1/chat/completions", body)[0] == 200


def test_a_client_that_sends_far_too_much_is_told_so(loaded):
    """Not that the connection was lost, which it would try again."""
    with running(loaded, Limits(body_bytes=20_000)) as server:
        status, text = post(server, "/v1/chat/completions", b"x" * (32 << 20))
        assert (status, "longer than 20000 bytes" in text) == (413, True)


MANY = 20_000


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"messages": [1] * MANY}, "messages.0: Input should be a valid dictionary"),
        ({"stop": [1] * MANY}, "stop.str: Input should be a valid string"),
        ({"modalities": ["x"] * MANY}, "modalities.0: Input should be 'text'"),
        ({"logit_bias": {f"x{n}": n for n in range(MANY)}}, "more than 10000 names"),
        ({str(n): n for n in range(MANY)}, "more than 10000 names"),
        ({"response_format": {"type": "text", "json_schema": dict.fromkeys(map(str, range(MANY)))}}, "10000 names"),
    ],
)
def test_what_is_wrong_many_times_is_said_once(change, message):
    """An error for each would take minutes and all memory."""
    with pytest.raises(RequestError, match=re.escape(message)) as error:
        parse_body(ChatBody, {"model": NAME, "messages": HELLO, **change})
    assert error.value.__cause__.error_count() <= 2


def test_a_body_without_a_length_is_cut_off_at_the_limit(loaded):
    import http.client

    with running(loaded, Limits(body_bytes=20_000)) as server:
        connection = http.client.HTTPConnection(server.url.removeprefix("http://"), timeout=30)
        connection.request("POST", "/v1/chat/completions", iter([b"x" * 8192] * 4), encode_chunked=True)
        assert connection.getresponse().status == 413
        connection.close()


def test_a_body_that_does_not_come_keeps_nobody_waiting(loaded):
    with running(loaded, Limits(body_seconds=1.5, bodies=1)) as server, server.client() as client:
        host, port = server.url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port)), timeout=30) as slow:
            head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: {host}\r\nContent-Length: 5000\r\n\r\n{{"
            slow.sendall(head.encode())
            assert chat(client, "Hello").choices
            assert b" 408 " in slow.recv(1000)
