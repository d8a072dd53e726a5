# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""The demo's phone: what is right, what the test alone has, and all of it at a reduced scale."""

import itertools
import json
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from jsonschema import Draft202012Validator
from shipped_status import shipped_status

from xllm.cli import main
from xllm.demo.run import format_table
from xllm.demo.settings import Optimisation
from xllm.device import phone
from xllm.modeling_xllm.weight_files import read_tensors


HOME = {
    "battery": 12, "charging": True, "airplane": False, "wifi": True, "bluetooth": False, "signal": 3,
    "brightness": 95, "volume": 10, "ringer": "normal", "app": "mail", "temperature": 21.5, "song": "blue river",
    "pulse": [60, 100, 81],
}  # fmt: skip
HELD_OUT = ("status", "command", "refusal")


@pytest.fixture(scope="module")
def world():
    with shipped_status():
        from xllm.demo.device import world

        yield world


@pytest.fixture(scope="module")
def data(world, tmp_path_factory):
    from xllm.demo.device.corpus import write_data

    return write_data(tmp_path_factory.mktemp("data"), 300, 60, seed=3)


def rows(data, name):
    return [json.loads(line)["messages"] for line in (data / name).read_text(encoding="utf-8").splitlines()]


@pytest.mark.parametrize(
    ("kind", "name", "expected"),
    [
        ("value", "battery", "12 %"),
        ("value", "temperature", "22 degrees"),
        ("value", "highest", "100 bpm"),
        ("value", "mean", "80 bpm"),
        ("value", "ringer", "normal"),
        ("value", "unknown", "I cannot tell."),
        ("is_on", "wifi", "yes"),
        ("is_on", "airplane", "no"),
        ("is_low", "unknown", "yes"),
        ("app", "unknown", "mail"),
        ("alarm", "unknown", "none"),
        ("song", "unknown", "blue river"),
    ],
)
def test_answers_are_right(world, kind, name, expected):
    assert world.right_answer(kind, name, HOME) == expected
    assert world.right_answer("alarm", "unknown", {**HOME, "alarm": {"hour": 7, "minute": 0}}) == "7:00"


def test_the_right_command_leads_where_the_words_say(world):
    """Of many requests: what is said to be refused is, the levels are those of the words, radios as they say."""
    rng, kinds = np.random.default_rng(0), set()
    for _ in range(600):
        state = world.random_state(rng)
        Draft202012Validator(phone.STATUS).validate(state)
        task = world.random_request(rng, state, False)
        kinds.add(task.kind)
        if task.command is None:
            assert task.reply.startswith("I cannot do that")
            continue
        assert json.loads(task.reply) == task.command
        after = phone.Phone(state).execute(task.command)
        if task.kind in ("raise", "lower"):
            changed = "brightness" if "brightness" in task.command["command"] else "volume"
            aim = state[changed] + (10 if task.kind == "raise" else -10)
            assert after[changed] == min(100, max(0, aim))
        if task.kind == "toggle":
            name = task.command["command"].removeprefix("set_")
            assert after[name] is not state[name]
    assert kinds >= {"set_level", "raise", "lower", "on", "off", "toggle", "ringer", "open", "close", "set_alarm",
                     "cancel_alarm", "impossible", "refused"}  # fmt: skip


def test_the_test_has_states_words_songs_and_wishes_of_its_own(world, data):
    train, test = (
        rows(data, "align_status.jsonl"),
        [row for name in HELD_OUT for row in rows(data, f"test_{name}.jsonl")],
    )
    assert len(train) == 300
    assert len(test) == 180

    def states(found):
        return {(data / row[0]["content"][0]["path"]).read_text() for row in found}

    assert len(states(train) | states(test)) == 480
    songs = [{json.loads(state).get("song") for state in states(found)} - {None} for found in (train, test)]
    assert min(map(len, songs)) > 20
    assert not songs[0] & songs[1]
    words = [{plainly(row[0]["content"][1]["text"]) for row in found} for found in (train, test)]
    assert min(map(len, words)) > 100
    assert not words[0] & words[1]
    from xllm.demo.device import phrases

    wishes = [
        {row[0]["content"][1]["text"] for row in found if row[1]["content"][0]["text"] == "I cannot do that."}
        for found in (train, test)
    ]
    pairs = [
        {(verb, thing) for verb in phrases.VERBS for thing in phrases.OBJECTS
         for words in found if f"{verb} {thing}" in words.lower()}
        for found in wishes
    ]  # fmt: skip
    assert min(map(len, pairs)) > 3
    assert not pairs[0] & pairs[1]


def test_no_wording_of_the_test_is_one_of_training_said_otherwise(world):
    """Polite words around it, capitals and marks make no new wording."""
    from xllm.demo.device import phrases

    for table in (phrases.QUESTIONS, phrases.REQUESTS):
        learnt = {
            plainly(f"{before} {words} {behind}")
            for wordings in table.values()
            for words in wordings.train
            for before in ("", *phrases.OPENINGS)
            for behind in ("", *phrases.CLOSINGS)
        }
        assert len(learnt) > 500
        assert not learnt & {plainly(words) for wordings in table.values() for words in wordings.test}
    rng, kinds = np.random.default_rng(5), set()
    said = {False: set(), True: set()}
    for _ in range(2500):
        state = world.random_state(rng)
        said[False].add(plainly(world.random_task(rng, state).words))
        task = (world.random_question if rng.random() < 0.5 else world.random_request)(rng, state, True)
        said[True].add(plainly(task.words))
        kinds.add(task.kind.split()[0])
    assert len(kinds) > 15
    assert min(map(len, said.values())) > 400
    assert not said[False] & said[True]


def test_training_asks_more_for_times_and_names_and_seldom_for_all_fields(world, data):
    """The test's questions are spread as ever; of the rows of stage 2 a tenth are descriptions."""
    kinds = {}
    for held_out in (False, True):
        rng = np.random.default_rng(1)
        asked = [world.random_question(rng, world.random_state(rng), held_out).kind.split()[0] for _ in range(1500)]
        kinds[held_out] = {kind: asked.count(kind) / len(asked) for kind in ("value", "alarm", "app", "song", "is_on")}
    assert kinds[True] == pytest.approx({"value": 9 / 15, **dict.fromkeys(("alarm", "app", "song", "is_on"), 1 / 15)},
                                        abs=0.03)  # fmt: skip
    assert all(kinds[False][kind] > 1.5 * kinds[True][kind] for kind in ("alarm", "app", "song"))
    train = rows(data, "align_status.jsonl")
    described = [row for row in train if world.DESCRIBE.lower().rstrip(".") in row[0]["content"][1]["text"].lower()]
    assert 0.05 < len(described) / len(train) < 0.15


def plainly(words):
    return " ".join(words.lower().replace(",", " ").replace(".", " ").replace("?", " ").split())


def test_the_figures_are_those_of_the_answers(tmp_path):
    """One sample of each outcome: what counts as reached, refused and valid."""
    from xllm.demo.device.run import _judge, _of_others

    path = tmp_path / "state.json"
    path.write_text(json.dumps(HOME))

    def told(name, **arguments):
        return json.dumps({"command": name, **arguments})

    def samples(*pairs):
        return [{"kind": "", "state": str(path), "question": "", "reference": a, "answer": b} for a, b in pairs]

    on = told("set_bluetooth", on=True)
    found = {
        "status": samples(("12 %", "12 %"), ("12 %", "13 %"), ("12 %", told("close_app"))),
        "command": samples(
            (on, on),
            (on, told("set_bluetooth", on=False)),
            (told("set_volume", value=10), told("set_wifi", on=True)),  # neither changes this phone
            (on, "I cannot do that."),
            (on, told("cancel_alarm")),  # the phone refuses that
            (on, '{"command": "set_volu'),
        ),
        "refusal": samples(("I cannot do that.", "I cannot do that."), ("I cannot do that.", on)),
    }
    right = _judge(found, phone.Phone.commands)
    assert right["answers"] == [True, False, False]
    assert right["goal_reached"] == [True, False, True, False, False, False]
    assert right["refused"] == [True, False, True, True, True, False, True, True]
    assert right["reason_given"] == [True, False]
    assert right["valid_commands"] == [True] * 5 + [False, True]

    rows = [{"messages": [{"role": "user", "content": [{"type": "status", "path": name}, {"text": name}]}, {}],
             "state": name} for name in "abc"]  # fmt: skip
    for is_spoken, expected in ((False, ["ca", "ab", "bc"]), (True, ["ac", "ba", "cb"])):
        beside = [row["messages"][0]["content"] for row in _of_others(rows, is_spoken)]
        assert [state["path"] + words["text"] for state, words in beside] == expected
    assert [row["state"] for row in _of_others(rows, False)] == ["a", "b", "c"]


def test_the_same_seed_writes_the_same_files(data, tmp_path):
    from xllm.demo.device.corpus import write_data

    again = write_data(tmp_path, 300, 60, seed=3)
    for path in data.rglob("*.json*"):
        assert (again / path.relative_to(data)).read_bytes() == path.read_bytes()


def test_the_interface_has_a_token_for_each_word_of_a_description(world, tmp_path):
    """What the language model has read, and the processor writes with real states, differ in those tokens alone."""
    from xllm.demo.corpus import Turn, encode_sample
    from xllm.demo.device.corpus import build_tokenizer, random_text_sample
    from xllm.device.device_status import DeviceStatusReader

    tokenizer = build_tokenizer(tmp_path, 0)
    reader, rng = DeviceStatusReader(**phone.DEVICE), np.random.default_rng(1)
    for _ in range(40):
        state = world.random_state(rng)
        words = world.describe(state)
        _, labels, described = encode_sample(tokenizer, (Turn((("status", words),), "What is this?", "none"),))
        assert sum(described) == len(words.split()) == len(reader.load(state).values)
        assert max(labels) < len(tokenizer)
    replies = [random_text_sample(rng)[0].answer for _ in range(200)]
    for reply in replies:
        assert tokenizer.decode(tokenizer.encode(reply, add_special_tokens=False)) == reply
    longest = max(len(tokenizer.encode(reply, add_special_tokens=False)) for reply in replies if "{" in reply)
    assert longest <= 12


def test_two_words_of_a_description_share_a_place(world, tmp_path):
    from xllm.demo.corpus import Turn, collate_text, encode_sample
    from xllm.demo.device.corpus import build_tokenizer

    tokenizer = build_tokenizer(tmp_path, 0)
    said = "battery 12 wifi on app mail"
    samples = [(Turn((("status", said),), "Wifi?", "yes"),), (Turn((("status", "app maps"),), "Which app?", "maps"),)]
    encoded = [encode_sample(tokenizer, sample) for sample in samples]
    plain, paired = (collate_text(tokenizer, encoded, paired) for paired in ("", "status"))
    first = paired["partners"][0] >= 0
    assert torch.equal(first, paired["described"][0])
    both = torch.stack([paired["input_ids"][0][first], paired["partners"][0][first]], dim=1)
    assert tokenizer.decode(both.flatten().tolist()) == said
    assert paired["input_ids"].shape[1] == plain["input_ids"].shape[1] - 3
    for name in ("input_ids", "labels"):  # nothing else has changed
        rest = plain[name][0][~plain["described"][0]]
        assert torch.equal(paired[name][0][~first], rest)
    assert (paired["partners"][1] >= 0).sum() == 1


def test_the_interface_learns_what_each_field_is_called(world, data, tmp_path):
    """From random weights to words: of all names, the nearest to what stands for a field is its own."""
    from xllm.demo.device import run
    from xllm.demo.device.corpus import build_tokenizer
    from xllm.modeling_xllm.modeling_chatglm import ChatGLMForConditionalGeneration

    scale = run.DeviceScale(language_size=32, language_layers=1, convert=Optimisation(100, 256, 2e-3))
    tokenizer = build_tokenizer(tmp_path, 0)
    config = run._config(tokenizer, scale)
    torch.manual_seed(0)
    ChatGLMForConditionalGeneration(config.text_config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    run._compose(tmp_path, config, 0, tmp_path / "base", data, scale)

    model, processor = run.load_checkpoint(str(tmp_path / "base"))
    state = json.loads((data / "states" / "test-status-0000.json").read_text())
    named = torch.tensor(tokenizer.sp_model.encode(world.describe(state))).view(-1, 2)
    values = torch.from_numpy(processor.readers["status"].load(state).values)[None]
    with torch.no_grad():
        interface, words = model.model.interfaces["status"], model.get_input_embeddings().weight
        written = interface.adapter(interface.converter(values).embeddings)[0]
        candidates = words[named[:, 0]] + words[named[:, 1], None]  # (values, names, width)
        nearest = torch.stack([torch.cdist(one[None], some)[0].argmin() for one, some in zip(written, candidates)])
    assert (named[nearest, 0] == named[:, 0]).float().mean() > 0.9


@pytest.mark.parametrize(
    ("words", "said", "pairs"),
    [
        ("Wake me at 7:30.", "wake me at seven thirty", {False}),
        ("Set an alarm for 0:00, please", "set an alarm for zero o'clock please", {True}),
        ("Alarm at 21:45", "alarm at twenty one forty five", {True}),
        ("Volume 42 %", "volume forty two percent", {True}),
        ("Hey phone, make it 105.", "hey phone make it one hundred five", set()),
        ("Volume 150", "volume one hundred fifty", set()),
        ("20 or 99 or 127", "twenty or ninety nine or one hundred twenty seven", {False}),
        ("Could you close it?", "could you close it", set()),
    ],
)
def test_what_is_said_of_what_is_written(world, words, said, pairs):
    assert world.say(words) == said
    assert world.unheard(words) == pairs


def test_what_is_spoken_stands_behind_the_state_and_what_is_read_is_what_the_processor_writes(world, tmp_path):
    """Of the language model's text: two words of a state at one place, and each word of a voice at its own."""
    from xllm.demo.corpus import collate_text, encode_sample
    from xllm.demo.device.corpus import build_tokenizer, random_text_sample

    tokenizer, rng = build_tokenizer(tmp_path, 0, spoken=True), np.random.default_rng(2)
    samples = [random_text_sample(rng, 1.0) for _ in range(300)]
    asked, written = ([one for one in samples if bool(one[0].question) is is_asked] for is_asked in (False, True))
    assert len(written) == pytest.approx(60, abs=25)
    for (turn,) in written:
        ((name, said),) = turn.media
        assert (name, turn.question, turn.answer) == ("speech", "What is said?", said)
        assert len(tokenizer.encode(said, add_special_tokens=False)) == len(said.split())
        assert tokenizer.decode(tokenizer.encode(said, add_special_tokens=False)) == said
    for sample in asked[:20]:
        (_, state), (_, said) = sample[0].media
        batch = collate_text(tokenizer, [encode_sample(tokenizer, sample)], "status")
        assert (batch["partners"] >= 0).sum() == len(state.split()) // 2
        ids = batch["input_ids"][0][batch["described"][0] & (batch["partners"][0] < 0)]
        assert tokenizer.decode(ids.tolist()) == said


def test_the_test_is_spoken_by_other_voices_in_other_words_about_numbers_never_heard(world, tmp_path):
    from xllm.demo.device.corpus import write_data
    from xllm.demo.device.spoken import write_spoken
    from xllm.demo.run import read_lines
    from xllm.demo.settings import DemoScale
    from xllm.training.instructions import speech_synthesis

    spoken, speak = [], speech_synthesis.synthesise
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("xllm.demo.dataset.synthesise", lambda said: spoken.append(said) or speak(said))
        data = write_data(tmp_path, 40, 20, seed=3, spoken=True)
        write_spoken(data, DemoScale(num_recordings=80, num_tests=10), 3)
    train, *tests = spoken
    assert [len(said) for said in spoken] == [160, 20, 20, 20]
    # As many recordings again are words in no order, each as often as any other: no parts of numbers side by side.
    lists = [one.text.split() for one in train[80:]]
    counts = Counter(word for line in lists for word in line)
    assert set(counts) == {word for one in train[:80] for word in one.text.split()}
    assert max(counts.values()) - min(counts.values()) <= 2
    numbers = {*world.TEENS, *world.TENS, "hundred"}
    assert not any({*pair} <= numbers for line in lists for pair in itertools.pairwise(line))
    voices = [{one.voice for said in some for one in said} for some in ([train], tests)]
    assert not voices[0] & voices[1]
    words = [{one.text for said in some for one in said} for some in ([train], tests)]
    assert not words[0] & words[1]
    assert sum(bool(world.unheard(row[0]["content"][1]["text"])) for name in HELD_OUT
               for row in rows(data, f"test_{name}.jsonl")) >= 2  # fmt: skip
    for name in HELD_OUT:
        for typed, row in zip(rows(data, f"test_{name}.jsonl"), read_lines(data / f"test_spoken_{name}.jsonl")):
            assert False not in world.unheard(typed[0]["content"][1]["text"])
            (state, heard), reply = row["messages"][0]["content"], row["messages"][1]
            assert (state, reply, row["words"]) == (typed[0]["content"][0], typed[1], typed[0]["content"][1]["text"])
            assert (data / heard["path"]).stat().st_size > 8000
    for asked, reply in rows(data, "convert_speech.jsonl"):
        assert [part["type"] for part in asked["content"]] == ["audio"]
        assert reply["content"][0]["text"] in words[0]
    assert len(rows(data, "test_speech.jsonl")) == 10


@pytest.mark.slow
def test_the_whole_demo_at_a_reduced_scale(world, tmp_path, capsys):
    """Its status interface alone, then speech composed with it, and a conversation with the result."""
    from xllm.demo.device.run import SPOKEN_SCALE, run_device_demo

    def brief(scale, *names):  # as shipped, but for a few steps
        return {name: replace(getattr(scale, name), steps=2, batch_size=4) for name in names}

    heard = SPOKEN_SCALE.spoken
    spoken = replace(
        heard, num_recordings=24, num_tests=8, speech_size=16, converter_size=16,
        **brief(heard, "speech", "speech_convert"),
    )  # fmt: skip
    scale = replace(
        SPOKEN_SCALE, language_size=32, language_layers=1, num_states=40, num_tests=8, spoken=spoken,
        **brief(SPOKEN_SCALE, "language", "convert", "align"),
    )  # fmt: skip
    demo = tmp_path / "demo"
    results = run_device_demo(demo, seed=1, scale=scale)
    assert json.loads((demo / "results.json").read_text()) == results
    typed = ["answers", "valid_commands", "goal_reached", "refused", "reason_given"]
    assert list(results["tasks"]) == [*typed, *(f"spoken_{task}" for task in typed), "transcripts"]
    assert results["language_model_unchanged"] is True
    for cell in results["tasks"].values():
        assert 0 <= cell["value"] <= 1 or cell["metric"] == "cer"
    assert results["tasks"]["refused"]["n"] == results["tasks"]["spoken_refused"]["n"] == 16
    assert "bit-identical" in format_table(results)
    # Whatever a model that knows nothing says is text or a valid command.
    samples = [
        json.loads(line)["answer"]
        for task in HELD_OUT
        for path in (demo / "samples").glob(f"samples_*{task}.jsonl")
        for line in path.read_text().splitlines()
    ]
    assert len(samples) == 48
    assert all("{" not in answer for answer in samples if not answer.startswith("{"))
    # What is composed is what was trained, bit for bit.
    status, speech, both = (
        read_tensors(str(demo / "stages" / name), None, lambda key: key.startswith("model.interfaces."))
        for name in ("stage2-status", "speech/words", "composed")
    )
    assert {key: value.tolist() for key, value in both.items()} == {
        key: value.tolist() for key, value in {**status, **speech}.items()
    }
    (demo / "towers").rename(tmp_path / "elsewhere")
    capsys.readouterr()
    state = str(demo / "data" / "states" / "test-command-0000.json")
    heard = str(demo / "data" / "speech" / "test-command-00000.wav")
    command = ["chat", str(demo / "checkpoint"), "--status", state, "--json", "--max-new-tokens", "16"]
    assert main([*command, "--execute", "xllm.device.phone:Phone", "Could you close the app?"]) == 0
    assert "answer" in json.loads(capsys.readouterr().out)
    assert main([*command, "--speech", heard, "--execute", "xllm.device.phone:Phone", ""]) == 0
    assert "answer" in json.loads(capsys.readouterr().out)


def test_digits_are_spoken_anyway(capsys):
    with pytest.raises(SystemExit):
        main(["demo", "--spoken"])
    assert "--spoken: it is for --world device" in capsys.readouterr().err
