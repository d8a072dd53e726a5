# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""`xllm serve` as a client sees it: the `openai` package against a server on this machine."""

import base64
import contextlib
import io
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import wave
from itertools import islice

import openai
import pytest
import uvicorn
from serving_fixtures import NAME, chat, data_url, own_answer, parts_of, post, running

from xllm.cli import build_parser, main
from xllm.serving import Limits, MediaAccess, Service, create_app
from xllm.serving.draining import DrainingServer


@pytest.fixture(scope="module")
def client(serving):
    with serving.client() as client:
        yield client


def test_an_openai_client_gets_the_model_s_own_answer(client, loaded, media):
    text, length = own_answer(loaded, media)
    reply = chat(client, parts_of(media))
    assert reply.choices[0].message.content == text
    assert reply.choices[0].finish_reason == "length"
    assert (reply.usage.prompt_tokens, reply.usage.completion_tokens) == (length, 8)
    assert reply.model == NAME


def test_an_evaluation_through_the_server_is_that_of_the_model(serving, loaded, media, tmp_path):
    """Pictures and sounds of a table, sent as any other model would get them, and as the model reads them itself."""
    for part in loaded:
        part.save_pretrained(tmp_path / "model")
    (tmp_path / "t.csv").write_text("file,text\nred.png,red\nlow.wav,low\nhigh.wav,high\n")
    asked = ["--task", "qa", "--data", str(tmp_path / "t.csv"), "--media-root", str(media), "--max-new-tokens", "6"]
    asked += ["--prompt", "What is this?", "--output"]
    assert main(["evaluate", str(tmp_path / "model"), *asked, str(tmp_path / "own")]) == 0
    served = ["--endpoint", f"{serving.url}/v1", "--concurrency", "2"]
    assert main(["evaluate", NAME, *asked, str(tmp_path / "served"), *served]) == 0
    both = [(tmp_path / name / "samples_qa.jsonl").read_text() for name in ("own", "served")]
    assert both[0] == both[1]
    assert len({json.loads(line)["answer"] for line in both[0].splitlines()}) > 1


def test_a_stream_is_the_answer_in_pieces(client, media):
    whole = chat(client, parts_of(media)).choices[0].message.content
    chunks = list(chat(client, parts_of(media), stream=True, stream_options={"include_usage": True}))
    pieces = [chunk.choices[0].delta.content for chunk in chunks if chunk.choices and chunk.choices[0].delta.content]
    assert "".join(pieces) == whole
    assert len(pieces) > 1
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices][-1] == "length"
    assert chunks[-1].usage.completion_tokens == 8


def test_what_is_doubtful_about_media_is_told(client, media, caplog):
    """An answer is given all the same."""
    whole = (media / "red.png").read_bytes()
    cut = base64.b64encode(whole[:-12]).decode()  # without its last chunk
    good = {"type": "image_url", "image_url": {"url": data_url(media / "red.png", "image/png")}}
    bad = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{cut}"}}
    said = ["messages[0].content[1]: cut off: the end of the file is missing"]
    for _ in range(2):  # not only once
        assert chat(client, [good, bad]).warnings == said
    chunks = list(chat(client, [good, bad], stream=True))
    assert [getattr(chunk, "warnings", None) for chunk in chunks] == [said, *[None] * (len(chunks) - 1)]
    part = {"type": "input_image", "image_url": bad["image_url"]["url"]}
    reply = client.responses.create(model=NAME, input=[{"role": "user", "content": [part]}], max_output_tokens=2)
    assert reply.warnings == ["messages[0].content[0]: cut off: the end of the file is missing"]
    assert not hasattr(chat(client, [good]), "warnings")
    assert "cut off" not in caplog.text
    worse = f"data:image/png;base64,{base64.b64encode(whole[:50]).decode()}"
    with pytest.raises(openai.BadRequestError, match=r"messages\[0\].content\[1\]: (damaged|not an image)"):
        chat(client, [good, {"type": "image_url", "image_url": {"url": worse}}])


def test_a_stream_ends_with_done(serving):
    body = {"model": NAME, "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 2, "stream": True}
    events = post(serving, "/v1/chat/completions", body)[1].strip().split("\n\n")
    assert events[-1] == "data: [DONE]"
    assert all(json.loads(event.removeprefix("data: "))["created"] for event in events[:-1])


def test_each_choice_is_as_its_own_seed_gives_it(client):
    both = chat(client, "Say", n=2, temperature=1.5, seed=3, max_tokens=12)
    alone = [chat(client, "Say", temperature=1.5, seed=seed, max_tokens=12) for seed in (3, 4)]
    texts = [choice.message.content for choice in both.choices]
    assert texts == [reply.choices[0].message.content for reply in alone]
    assert texts[0] != texts[1]
    greedy = chat(client, "Say", max_tokens=12).choices[0].message.content
    assert greedy not in texts
    narrow = chat(client, "Say", temperature=1.5, seed=3, max_tokens=12, extra_body={"top_k": 1})
    assert narrow.choices[0].message.content == greedy


def test_an_answer_ends_before_a_stop(client):
    whole = chat(client, "Say", max_tokens=24).choices[0].message.content
    stop = whole[6:9]
    assert stop
    reply = chat(client, "Say", max_tokens=24, stop=["\0never", stop])
    assert reply.choices[0].message.content == whole[: whole.index(stop)]
    assert reply.choices[0].finish_reason == "stop"
    pieces = chat(client, "Say", max_tokens=24, stop=stop, stream=True)
    streamed = "".join(chunk.choices[0].delta.content or "" for chunk in pieces)
    assert streamed == whole[: whole.index(stop)]


def test_log_probabilities_are_the_model_s(client, loaded):
    model, processor = loaded
    reply = chat(client, "Say", max_tokens=1, logprobs=True, top_logprobs=3)
    (told,) = reply.choices[0].logprobs.content
    inputs = processor.encode_conversations([[{"role": "user", "content": "Say"}]])
    scores = model(**inputs).logits[0, -1].detach()
    scores[model.model.placeholder_ids()] = -float("inf")
    values, ids = scores.log_softmax(-1).topk(3)
    assert [one.logprob for one in told.top_logprobs] == pytest.approx(values.tolist(), abs=1e-4)
    assert told.logprob == pytest.approx(float(values[0]), abs=1e-4)
    assert told.token == processor.tokenizer.decode([int(ids[0])])


def test_biases_and_penalties_change_what_is_said(client, loaded):
    tokenizer = loaded[1].tokenizer
    (token,) = tokenizer("什么", add_special_tokens=False)["input_ids"][-1:]
    biased = chat(client, "Say", max_tokens=4, logit_bias={str(token): 100}).choices[0].message.content
    assert biased.count(tokenizer.decode([token]).strip()) == 4
    plain = chat(client, "Say", max_tokens=40).choices[0].message.content
    varied = chat(client, "Say", max_tokens=40, presence_penalty=2, frequency_penalty=2).choices[0].message.content
    assert len(set(varied)) > len(set(plain))


def test_an_answer_keeps_to_a_json_schema(client):
    schema = {
        "type": "object",
        "properties": {"level": {"type": "integer", "minimum": 0, "maximum": 50}},
        "required": ["level"],
        "additionalProperties": False,
    }
    wanted = {"type": "json_schema", "json_schema": {"name": "level", "schema": schema, "strict": True}}
    for seed in range(3):
        reply = chat(client, "Say", max_tokens=64, temperature=1.0, seed=seed, response_format=wanted)
        assert 0 <= json.loads(reply.choices[0].message.content)["level"] <= 50
        assert reply.choices[0].finish_reason == "stop"
    given = {"format": {"type": "json_schema", "name": "level", "schema": schema}}
    text = client.responses.create(model=NAME, input="Say", text=given, max_output_tokens=64).output_text
    assert 0 <= json.loads(text)["level"] <= 50


def test_responses_whole_and_streamed(client, media, loaded):
    parts = [
        {"type": "input_image", "image_url": data_url(media / "red.png", "image/png")},
        {"type": "input_text", "text": "What is this?"},
    ]
    asked = {"model": NAME, "input": [{"role": "user", "content": parts}], "max_output_tokens": 8}
    whole = client.responses.create(**asked)
    model, processor = loaded
    content = [{"type": "image", "path": str(media / "red.png")}, {"type": "text", "text": "What is this?"}]
    inputs = processor.encode_conversations([[{"role": "user", "content": content}]])
    output = model.generate(**inputs, max_new_tokens=8, do_sample=False)[0, inputs["input_ids"].shape[1] :]
    assert whole.output_text == processor.decode(output, skip_special_tokens=True)
    assert whole.status == "incomplete"
    assert whole.usage.output_tokens == 8
    events = list(client.responses.create(**asked, stream=True))
    assert "".join(event.delta for event in events if event.type == "response.output_text.delta") == whole.output_text
    assert events[-1].response.output_text == whole.output_text
    assert [event.sequence_number for event in events] == [*range(len(events))]


def test_instructions_of_responses_are_a_system_message(client, loaded):
    model, processor = loaded
    asked = {"model": NAME, "input": "What is this?", "max_output_tokens": 8}
    messages = [{"role": "system", "content": "Speak like a pirate."}, {"role": "user", "content": asked["input"]}]
    inputs = processor.encode_conversations([messages])
    output = model.generate(**inputs, max_new_tokens=8, do_sample=False)[0, inputs["input_ids"].shape[1] :]
    whole = client.responses.create(**asked, instructions="Speak like a pirate.")
    assert whole.output_text == processor.decode(output, skip_special_tokens=True)
    assert whole.usage.input_tokens > client.responses.create(**asked).usage.input_tokens


@pytest.fixture(scope="module")
def recording():
    """Half a second of tone, four of silence, half a second of tone."""
    import numpy as np

    tone = np.sin(np.arange(8000) * 0.2) * 12000
    samples = np.concatenate([tone, np.zeros(64000), tone]).astype("<i2")
    file = io.BytesIO()
    with wave.open(file, "wb") as writer:
        writer.setparams((1, 2, 16000, 0, "NONE", "NONE"))
        writer.writeframes(samples.tobytes())
    return file.getvalue()


def test_a_recording_is_transcribed_with_times(client, recording, loaded):
    def ask(**options):
        return client.audio.transcriptions.create(model=NAME, file=("a.wav", recording), **options)

    from xllm.training.evaluation.transcription import join_segments, transcribe

    own = list(transcribe(*loaded, recording, max_new_tokens=64))
    spoken = [segment for segment in own if not segment.silent]
    assert len(spoken) == 2
    verbose = ask(response_format="verbose_json", timestamp_granularities=["segment"])
    assert [(one.start, one.end, one.text) for one in verbose.segments] == [
        (one.start, one.end, one.text) for one in spoken
    ]
    assert verbose.duration == pytest.approx(5.0)
    assert ask().text == verbose.text == join_segments(own)
    assert ask(response_format="text").strip() == verbose.text
    srt, vtt = ask(response_format="srt"), ask(response_format="vtt")
    assert srt.startswith("1\n00:00:00,000 --> 00:00:00,700\n")
    assert "\n2\n00:00:04,300 --> 00:00:05,000\n" in srt
    assert vtt.startswith("WEBVTT\n\n00:00:00.000 --> 00:00:00.700\n")


def test_the_served_model_is_listed(client):
    assert [model.id for model in client.models.list()] == [NAME]
    assert client.models.retrieve(NAME).modalities == ["image", "speech", "video"]
    with pytest.raises(openai.NotFoundError, match="'other' does not exist here; this server has 'tiny-x'"):
        client.models.retrieve("other")


def test_control_tokens_in_a_request_are_text(client):
    typed, plain = (chat(client, text).usage.prompt_tokens for text in ("<ImageHere>[gMASK]<sop>", ""))
    assert typed > plain + 3  # spelt out, not one token each


def test_a_client_that_goes_away_is_not_answered(loaded):
    with running(loaded, Limits(new_tokens=900)) as server, server.client() as client:
        endless = {"max_tokens": 900, "logit_bias": {str(loaded[1].tokenizer.eos_token_id): -100}}
        stream = chat(client, "Say", stream=True, **endless)
        list(islice(stream, 5))
        assert server.service.engine.running == 1
        stream.close()
        with pytest.raises(openai.APITimeoutError):
            chat(client.with_options(timeout=0.3), "Say", **endless)
        deadline = time.monotonic() + 20
        while (server.service.engine.running or server.service.engine.waiting) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert server.service.engine.counts["tokens"] < 1800
        assert server.service.engine.running == 0


def test_a_full_queue_and_late_answers_are_refused(loaded):
    with running(loaded, Limits(rows=1, queue=1, request_seconds=1.0)) as server, server.client() as client:
        results = []

        def ask():
            try:
                results.append(chat(client, "Say", max_tokens=1000))
            except openai.APIStatusError as error:
                results.append(error.status_code)

        threads = [threading.Thread(target=ask) for _ in range(6)]
        for thread in threads:
            thread.start()
            time.sleep(0.1)
        for thread in threads:
            thread.join()
        assert results.count(429) >= 3
        assert 504 in results
        assert chat(client, "Say", max_tokens=2).usage.completion_tokens == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "nowhere: not a checkpoint: it is not a folder"),
        (["{folder}", "--port", "{busy}"], "port {busy} (Address already in use): choose another --port"),
        (["{folder}", "--port", "99999"], "choose another --port"),
        (["{folder}", "--device", "abacus"], "abacus"),
        (["{folder}", "--drain", "-1"], "--drain -1: expected 0 or more seconds"),
        (["{folder}", "--queue", "0"], "queue is 0: expected more than 0"),
        (["{folder}", "--allow-media-from", "/no/folder"], "--allow-media-from /no/folder: no such folder"),
    ],
)
def test_what_cannot_be_served_is_one_line_and_status_1(folder, capsys, arguments, message):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        names = {"folder": folder, "busy": taken.getsockname()[1]}
        assert main(["serve", "--host", "127.0.0.1", *(text.format(**names) for text in arguments)]) == 1
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 1
    assert message.format(**names) in errors[0]


def test_a_missing_extra_is_named(folder, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "llguidance", None)
    assert main(["serve", folder]) == 1
    assert "pip install 'xllm-transformers[serve]'" in capsys.readouterr().err


def test_a_damaged_checkpoint_is_named(folder, tmp_path, capsys):
    broken = tmp_path / "broken"
    shutil.copytree(folder, broken)
    weights = (broken / "model.safetensors").read_bytes()
    (broken / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    assert main(["serve", str(broken), "--port", str(port)]) == 1
    assert "cannot open the checkpoint" in capsys.readouterr().err


def test_it_listens_on_this_machine_unless_told_otherwise():
    assert build_parser().parse_args(["serve", "model"]).host == "localhost"


@contextlib.contextmanager
def serving_in_a_thread(service: Service, drain: float = 0.2):
    """The command's server and its port."""
    server = DrainingServer(uvicorn.Config(create_app(service), port=0, ws="none", log_level="error"), service, drain)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.02)
    try:
        yield server, server.servers[0].sockets[0].getsockname()[1]
    finally:
        server.should_exit = True
        thread.join(20)
    assert not thread.is_alive()


def test_an_answer_that_lasts_longer_than_the_server_is_told_so(loaded):
    service = Service(*loaded, NAME, MediaAccess(), Limits())
    endless = {"max_tokens": 900, "logit_bias": {str(loaded[1].tokenizer.eos_token_id): -100}}
    with serving_in_a_thread(service) as (server, port):
        client = openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none", max_retries=0)
        stream = chat(client, "Say", stream=True, **endless)
        next(iter(stream))
        server.should_exit = True
        with pytest.raises(openai.APIError, match="the server is shutting down"):
            list(stream)
        client.close()


@pytest.mark.skipif(not hasattr(socket, "TCP_USER_TIMEOUT"), reason="Linux ends what nobody reads")
def test_what_nobody_reads_is_written_no_further(loaded, monkeypatch):
    monkeypatch.setattr("xllm.serving.draining.UNREAD", 1)
    service = Service(*loaded, NAME, MediaAccess(), Limits())
    bias = {str(loaded[1].tokenizer.eos_token_id): -100}
    body = {"model": NAME, "messages": [{"role": "user", "content": "Say"}], "max_tokens": 900, "stream": True, "n": 8}
    content = json.dumps({**body, "logit_bias": bias, "logprobs": True, "top_logprobs": 20}).encode()
    with serving_in_a_thread(service) as (server, port), socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.connect(("127.0.0.1", port))
        head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(content)}\r\n\r\n"
        client.sendall(head.encode() + content)
        deadline = time.monotonic() + 60
        while not service.engine.counts["tokens"] and time.monotonic() < deadline:
            time.sleep(0.05)
        while server.server_state.connections and time.monotonic() < deadline:
            time.sleep(0.05)
        assert not server.server_state.connections
        assert service.engine.counts["tokens"] < 8 * 900


@pytest.mark.slow
def test_the_command_serves_and_a_signal_lets_answers_end(folder, media):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [
        sys.executable,
        "-m",
        "xllm",
        "serve",
        folder,
        "--port",
        str(port),
        "--api-key",
        "secret",
        "--name",
        NAME,
    ]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    process = subprocess.Popen(command, env=env, stderr=subprocess.PIPE, text=True)
    try:
        key = {"api_key": "secret", "base_url": f"http://127.0.0.1:{port}/v1"}
        with openai.OpenAI(**key, max_retries=60, timeout=60) as client:
            client.models.list()
            with pytest.raises(openai.AuthenticationError):
                client.with_options(api_key="wrong").models.list()
            picture = {"type": "image_url", "image_url": {"url": data_url(media / "red.png", "image/png")}}
            stream = chat(client, [picture], stream=True, max_tokens=200)
            first = next(iter(stream))
            process.send_signal(signal.SIGTERM)
            rest = list(stream)
            assert first.choices
            assert rest[-1].choices[0].finish_reason == "length"
        assert process.wait(40) == -signal.SIGTERM  # as uvicorn ends when all is done
        assert "Traceback" not in process.stderr.read()
    finally:
        process.kill()
        process.stderr.close()


def test_base64_text_is_taken_as_the_file(client, media):
    content = base64.b64encode((media / "red.png").read_bytes()).decode()
    forms = [
        {"type": "image", "base64": content},
        {"type": "image", "image": data_url(media / "red.png", "image/png")},
        {"type": "image_url", "image_url": data_url(media / "red.png", "image/png")},
    ]
    assert len({chat(client, [part]).choices[0].message.content for part in forms}) == 1
