# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""Commands: what is refused, what decoding allows and reaches, and what the simulated phone does."""

import itertools
import json
import random

import pytest
import torch
from jsonschema import Draft202012Validator
from small_device import COMMANDS, STATE
from transformers import PreTrainedTokenizerFast

from xllm.assembly.opening import load_checkpoint
from xllm.cli import main
from xllm.processing.tokenization_chatglm import ChatGLMTokenizer


llguidance = pytest.importorskip("llguidance")
from xllm.device import phone  # noqa: E402
from xllm.device.commands import DeviceCommands, Refused, _Pieces  # noqa: E402


HOME = {
    "battery": 50, "charging": False, "airplane": False, "wifi": True, "bluetooth": False, "signal": 3,
    "brightness": 40, "volume": 10, "ringer": "normal", "app": "home",
}  # fmt: skip


def tokens_of(tokenizer, text):
    return tokenizer.encode(text, add_special_tokens=False)


@pytest.fixture(scope="module", params=["sentencepiece", "bytes"])
def tokenizer(request, device_folder):
    """ChatGLM's slow tokenizer, whose pieces fall back to bytes, and a fast one of bytes alone."""
    if request.param == "sentencepiece":
        return ChatGLMTokenizer.from_pretrained(device_folder)
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("v", "o"), ("Ġ", "t"), ('"', "c")]
    vocabulary = {piece: index for index, piece in enumerate([*alphabet, *map("".join, merges), "<end>"])}
    backend = Tokenizer(models.BPE(vocabulary, merges))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<end>")


def walk(commands, tokenizer, choose, or_text=False, most=400):
    """A text that `choose` writes with the tokens that are allowed; the last call must leave the end alone."""
    size = len(tokenizer) + 7  # a model's vocabulary is often larger
    constrain = commands.logits_processor(tokenizer, size, or_text=or_text)
    ids = torch.tensor([[5, 6]])
    for _ in range(most):
        allowed = constrain(ids, torch.zeros(1, size))[0].isfinite().nonzero().flatten().tolist()
        assert allowed
        token = choose(allowed, ids[0, 2:].tolist())
        if token is None:
            return None
        if token == tokenizer.eos_token_id:
            return tokenizer.decode(ids[0, 2:].tolist()).strip()
        ids = torch.cat([ids, torch.tensor([[token]])], dim=1)
    return None


@pytest.mark.parametrize("schema", [COMMANDS, phone.COMMANDS], ids=["small", "phone"])
def test_whatever_decoding_allows_is_a_valid_command(tokenizer, schema):
    commands, rng, names = DeviceCommands(schema), random.Random(0), set()

    def choose(allowed, ids):
        return tokenizer.eos_token_id if tokenizer.eos_token_id in allowed else rng.choice(allowed)

    for _ in range(30):
        text = walk(commands, tokenizer, choose)
        assert text is not None
        assert Draft202012Validator(schema).is_valid(json.loads(text)), text
        assert commands.parse(text) == json.loads(text)
        names.add(json.loads(text)["command"])
    assert len(names) >= min(3, len(schema.get("anyOf", schema.get("oneOf"))))


def every_command(schema):
    """All commands of a schema whose arguments are finitely many."""
    for form in schema["anyOf"]:
        choices = []
        for part in form["properties"].values():
            whole = range(part.get("minimum", 0), part.get("maximum", -1) + 1)
            choices.append(
                part.get("enum")
                or ([part["const"]] if "const" in part else None)
                or ([True, False] if part["type"] == "boolean" else list(whole))
            )
        for values in itertools.product(*choices):
            yield dict(zip(form["properties"], values))


def test_every_valid_command_can_be_written(tokenizer):
    """As the tokenizer writes it: each is accepted whole and not before, and of some each token is left possible."""
    commands, everything = DeviceCommands(phone.COMMANDS), list(every_command(phone.COMMANDS))
    assert len(everything) == 2 * 101 + 3 * 2 + 3 + 6 + 1 + 24 * 4 + 1
    start = commands.logits_processor(tokenizer, len(tokenizer), or_text=False)._start
    for number, command in enumerate(everything):
        ids, matcher = tokens_of(tokenizer, json.dumps(command)), start.deep_copy()
        assert matcher.consume_tokens(ids[:-1]), command
        assert not matcher.is_accepting(), command
        assert matcher.consume_token(ids[-1]), command
        assert matcher.is_accepting(), command
        if number % 9 == 0:
            written = [*ids, tokenizer.eos_token_id]
            text = walk(commands, tokenizer, lambda allowed, done, ids=written: follow(ids, done, allowed))
            assert text == json.dumps(command)


def follow(ids, done, allowed):
    """The next of `ids` if it is allowed."""
    return ids[len(done)] if ids[len(done)] in allowed else None


def test_text_or_a_command_but_no_half_of_one(tokenizer):
    commands = DeviceCommands(COMMANDS)

    def writes(text, or_text):
        ids = [*tokens_of(tokenizer, text), tokenizer.eos_token_id]
        return walk(commands, tokenizer, lambda allowed, done: follow(ids, done, allowed), or_text)

    assert writes("I cannot do that: 40 is %, 你好.", True) == "I cannot do that: 40 is %, 你好."
    assert writes("I cannot do that.", False) is None
    good = '{"command": "set_volume", "value": 40}'
    for or_text in (True, False):
        assert writes(good, or_text) == good
        for bad in (good.replace("40", "101"), good[:-1], good.replace("set_volume", "explode"), good + "}", "x{}"):
            assert writes(bad, or_text) is None, bad


def test_rows_beams_and_what_ended_are_kept_apart(device_folder):
    """Rows of a batch at different places, the order of beams changed between steps, padding behind an end."""
    tokenizer, size = ChatGLMTokenizer.from_pretrained(device_folder), 512
    commands = DeviceCommands(COMMANDS)
    constrain = commands.logits_processor(tokenizer, size)
    first = tokens_of(tokenizer, '{"command": "set_wifi", "on": true}')
    second = [*tokens_of(tokenizer, "No."), tokenizer.eos_token_id]
    length = len(first)
    second += [tokenizer.pad_token_id] * (length - len(second))
    prompt = torch.tensor([[3], [4]])
    rows = torch.tensor([first, second])
    for step in range(length):
        order = [0, 1] if step % 2 else [1, 0]
        scores = constrain(torch.cat([prompt, rows[:, :step]], dim=1)[order], torch.zeros(2, size))
        for place, row in enumerate(order):
            ended = row and step >= len(tokens_of(tokenizer, "No.")) + 1
            assert scores[place, tokenizer.eos_token_id if ended else rows[row, step]] == 0
    ended = constrain(torch.cat([prompt, rows], dim=1), torch.zeros(2, size))
    assert ended.isfinite().nonzero().tolist() == [[0, tokenizer.eos_token_id], [1, tokenizer.eos_token_id]]


@pytest.mark.parametrize("options", [{"do_sample": True}, {"num_beams": 3}])
def test_a_model_that_knows_nothing_writes_valid_commands(device_folder, options):
    model, processor = load_checkpoint(str(device_folder))
    commands = DeviceCommands(processor.readers["status"].commands)
    content = [{"type": "status", "status": STATE}, {"type": "text", "text": "Volume 40"}]
    inputs = processor.encode_conversations([[{"role": "user", "content": content}]] * 2)
    size, ends = model.config.text_config.vocab_size, model.generation_config.eos_token_id
    constrain = commands.logits_processor(processor.tokenizer, size, ends, or_text=False)
    torch.manual_seed(0)
    output = model.generate(**inputs, max_new_tokens=150, logits_processor=[constrain], **options)
    for row in output[:, inputs["input_ids"].shape[1] :]:
        answer = processor.tokenizer.decode(row, skip_special_tokens=True).strip()
        assert commands.parse(answer) == json.loads(answer)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('{"command": "set_volume", "value": 140}', "140"),
        ('{"command": "explode"}', "is not valid under any of the given schemas|'set_volume' was expected"),
        ('{"command": "set_volume", "value": 1, "value": 2}', "there twice"),
        ('{"command": "set_volume", "value": NaN}', "NaN is no number of JSON"),
        ('{"command": "set_volume", "val', "not the JSON of a command"),
        ("[]", "a command is an object"),
    ],
)
def test_what_breaks_the_schema_is_refused(text, reason):
    with pytest.raises(Refused, match=reason):
        DeviceCommands(COMMANDS).parse(text)


def test_a_schema_that_decoding_cannot_follow_is_named():
    with pytest.raises(ValueError, match=r"commands: a rule of this schema cannot be followed.*uniqueItems"):
        DeviceCommands({"type": "object", "properties": {"apps": {"type": "array", "uniqueItems": True}}})
    with pytest.raises(ValueError, match="commands.type: not a JSON Schema"):
        DeviceCommands({"type": "thing"})


def test_a_schema_that_no_text_fulfils_does_not_end_in_silence(tokenizer):
    endless = {"$ref": "#/properties/a"}
    for schema in ({"$ref": "#"}, {"type": "object", "properties": {"a": endless}, "required": ["a"]}):
        with pytest.raises(ValueError, match="no text from here on fulfils it"):
            walk(DeviceCommands(schema), tokenizer, lambda allowed, _: allowed[-1])


def test_the_time_for_a_long_text_grows_with_its_length(device_folder):
    """Each step reads all that is left of a text that a schema names."""

    class Counted(dict):
        looks = 0

        def __contains__(self, piece):
            self.looks += 1
            return super().__contains__(piece)

    tokenizer = ChatGLMTokenizer.from_pretrained(device_folder)
    pieces = _Pieces(tokenizer, len(tokenizer))
    pieces._numbers = Counted(pieces._numbers)
    text = "§µ".encode() * 300
    assert b"".join(pieces.tokens[index] for index in pieces(text)) == text
    assert pieces._numbers.looks <= len(text) * max(map(len, pieces.tokens))


@pytest.mark.parametrize(
    ("command", "change"),
    [
        ({"command": "set_volume", "value": 40}, {"volume": 40}),
        ({"command": "set_wifi", "on": False}, {"wifi": False}),
        ({"command": "set_airplane", "on": True}, {"airplane": True, "wifi": False, "bluetooth": False, "signal": 0}),
        ({"command": "set_ringer", "mode": "silent"}, {"ringer": "silent"}),
        ({"command": "open_app", "app": "maps"}, {"app": "maps"}),
        ({"command": "set_alarm", "hour": 7, "minute": 30}, {"alarm": {"hour": 7, "minute": 30}}),
    ],
)
def test_the_phone_does_what_it_is_told(command, change):
    device = phone.Phone(HOME)
    assert device.execute(command) == {**HOME, **change} == device.state
    Draft202012Validator(phone.STATUS).validate(device.state)


@pytest.mark.parametrize(
    ("command", "state", "reason"),
    [
        ({"command": "set_wifi", "on": True}, {"airplane": True, "wifi": False}, "airplane mode is on"),
        ({"command": "cancel_alarm"}, {}, "there is no alarm"),
        ({"command": "close_app"}, {}, "no app is open"),
        ({"command": "set_volume", "value": 1}, {"battery": 0}, "the battery is empty"),
        ({"command": "set_volume", "value": 101}, {}, "is not valid under any|101 is greater"),
        ({"command": "make_coffee"}, {}, "is not valid under any|was expected|is not one of"),
    ],
)
def test_what_the_phone_cannot_do_changes_nothing(command, state, reason):
    device = phone.Phone({**HOME, **state})
    with pytest.raises(Refused, match=reason):
        device.execute(command)
    assert device.state == {**HOME, **state}


def test_alarms_are_cancelled_and_apps_closed():
    device = phone.Phone({**HOME, "app": "mail", "alarm": {"hour": 6, "minute": 0}})
    device.execute({"command": "close_app"})
    assert device.execute({"command": "cancel_alarm"}) == HOME
    with pytest.raises(ValueError, match="no state of this phone"):
        phone.Phone({"battery": 3})


class Recorder:
    """A device that keeps what it is told."""

    told: list = []

    def __init__(self, state):
        self.state = state

    def execute(self, command):
        self.told.append(command)
        return {**self.state, "volume": 1}


def test_chat_executes_only_what_it_is_asked_to(device_folder, tmp_path, capsys, monkeypatch):
    """The answer is replaced by one that decoding would allow: what follows from it is under test."""
    from xllm.device import session

    monkeypatch.setattr(session, "_class", lambda name: Recorder)
    good = '{"command": "set_volume", "value": 40}'
    (tmp_path / "state.json").write_text(json.dumps(STATE))
    from xllm.commands import chat

    said = iter([good, good, '{"command": "set_volume", "val', "Hello", good])
    ask = chat.Chat.ask

    def answer(self, question, media):
        ask(self, question, media)
        return next(said)

    monkeypatch.setattr(chat.Chat, "ask", answer)
    command = ["chat", str(device_folder), "Volume 40", "--json", "--max-new-tokens", "2"]
    status = ["--status", str(tmp_path / "state.json")]
    outputs = []
    for more in ([*status, "--commands"], *[[*status, "--execute", "x:Recorder"]] * 3, ["--execute", "x:Recorder"]):
        assert main([*command, *more]) == 0
        outputs.append(json.loads(capsys.readouterr().out))
    assert outputs[0] == {"question": "Volume 40", "answer": good}
    assert outputs[1]["state"] == {**STATE, "volume": 1}
    assert "not the JSON of a command" in outputs[2]["refused"]
    assert outputs[3].keys() == {"question", "answer"}
    assert "no status has been given" in outputs[4]["refused"]
    assert Recorder.told == [{"command": "set_volume", "value": 40}]


def test_a_device_of_the_users_that_fails_is_named(status_module, device_folder, monkeypatch, tmp_path, capsys):
    """One that cannot be made of a state, and one that does not refuse what it cannot do."""
    from xllm.device import session

    class Broken(Recorder):
        def execute(self, command):
            raise KeyError(command["command"])

    (tmp_path / "state.json").write_text(json.dumps(STATE))
    asked = ["chat", str(device_folder), "x", "--status", str(tmp_path / "state.json"), "--execute", "x:Device"]
    monkeypatch.setattr(session, "_class", lambda name: lambda: None)
    assert main([*asked, "--max-new-tokens", "2"]) == 1
    assert "--execute x:Device: cannot be made of a state: TypeError(" in capsys.readouterr().err
    monkeypatch.setattr(session, "_class", lambda name: Broken)
    device = session.DeviceSession(load_checkpoint(str(device_folder))[1], "x:Device")
    device.look([{"status": status_module.DeviceStatus(STATE, None)}])
    with pytest.raises(
        ValueError, match=r"x:Device: fails at .*: KeyError\('set_volume'\); what it cannot do it has to"
    ):
        device.act('{"command": "set_volume", "value": 40}')


def test_commands_need_a_device(device_folder, tmp_path, capsys):
    assert main(["chat", str(device_folder), "x", "--execute", "json:loads"]) == 1
    assert "--execute json:loads: expected MODULE:CLASS, a class with a method `execute`" in capsys.readouterr().err
    assert main(["init", str(tmp_path / "plain"), "--preset", "tiny"]) == 0
    capsys.readouterr()
    assert main(["chat", str(tmp_path / "plain"), "x", "--commands"]) == 1
    assert "--commands: the model's device declares none" in capsys.readouterr().err
