# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""States by a declared schema: what is read, what the model gets, what is refused, and how it travels."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from small_device import PERCENT, STATE, STATUS

from xllm.assembly.opening import load_checkpoint
from xllm.cli import main
from xllm.hub_cards.remote_code import export_code
from xllm.processing.media_sources import MediaError
from xllm.training.batches.collator import XLLMDataCollator
from xllm.training.evaluation.looking import look


ROOT = Path(__file__).parents[2]
ANSWER = """
import json, sys
sys.modules["xllm"] = None  # whoever imports it fails
from transformers import AutoModel, AutoProcessor
model = AutoModel.from_pretrained(sys.argv[1], trust_remote_code=True).eval()
processor = AutoProcessor.from_pretrained(sys.argv[1], trust_remote_code=True)
content = [{"type": "status", "status": json.loads(sys.argv[2])}, {"type": "text", "text": "What is this?"}]
inputs = processor.apply_chat_template(
    [{"role": "user", "content": content}], tokenize=True, return_dict=True, add_generation_prompt=True,
    return_tensors="pt",
)
print(json.dumps(model.generate(**inputs, max_new_tokens=4, do_sample=False).tolist()))
"""


@pytest.fixture
def reader(status_module):
    return status_module.DeviceStatusReader(STATUS)


def fields(reader, status_module, **values):
    state = {"battery": 0, "wifi": False, **values}
    return {field.path: (field.kind, field.value) for field in status_module.fields_of(state, reader.status)}


def test_series_with_gaps_and_parts_that_name_no_type(status_module):
    gaps = {"items": {"type": ["number", "null"], "x-unit": "bpm"}}
    mixed = {"type": "array", "items": {"type": ["number", "string"]}}
    schema = {"type": "object", "properties": {"pulse": gaps, "mixed": mixed, "alarm": {"properties": {"on": gaps}}}}
    reader = status_module.DeviceStatusReader(schema)

    def found(state):
        fields = status_module.fields_of(reader.load(state).state, schema)
        return {field.path: None if field.kind == "absent" else field.value for field in fields}

    assert found({"pulse": [60, None, 90], "mixed": ["12", 1]}) == {
        "pulse.first": 60.0, "pulse.last": 90.0, "pulse.lowest": 60.0, "pulse.highest": 90.0, "pulse.mean": 75.0,
        "pulse.gaps": 1, "mixed[0] 0.0": b"12", "mixed[1]": 1, "mixed.length": 2, "alarm": None,
    }  # fmt: skip
    assert found({"pulse": [None]}) == {
        **{f"pulse.{name}": None for name in status_module.SUMMARY}, "pulse.gaps": 1, "mixed": None, "alarm": None,
    }  # fmt: skip
    for state, message in (
        ({"alarm": 5}, "field alarm: 5 is not of type 'object': give object"),
        ({"pulse": 5}, "field pulse: 5 is not of type 'array': give array"),
    ):
        with pytest.raises(MediaError, match=message):
            reader.load(state)


def test_each_field_of_the_schema_is_there_once_in_its_order(reader, status_module):
    found = fields(reader, status_module, song="blue riverbanks", pulse=[60, 90.0, 75], apps=["mail"], ringer=None)
    assert found == {
        "battery": ("number", 0),
        "wifi": ("code", "false"),
        "ringer": ("absent", None),
        "temperature": ("absent", None),
        "song 0.0": ("text", b"blue"),
        "song 1.0": ("text", b"riverban"),
        "song 1.8": ("text", b"ks"),
        "alarm": ("absent", None),
        "pulse.first": ("number", 60.0),
        "pulse.last": ("number", 75.0),
        "pulse.lowest": ("number", 60.0),
        "pulse.highest": ("number", 90.0),
        "pulse.mean": ("number", 75.0),
        "apps[0]": ("code", '"mail"'),
        "apps.length": ("number", 1),
    }
    assert list(found)[:2] == ["battery", "wifi"]
    assert fields(reader, status_module, alarm={"hour": 7})["alarm.hour"] == ("number", 7)
    assert fields(reader, status_module, pulse=[])["pulse.length"] == ("number", 0)


def test_each_embedding_of_a_look_has_the_name_of_its_field(tmp_path, capsys):
    device, file, folder = (tmp_path / name for name in ("device.json", "state.json", "model"))
    device.write_text(json.dumps({"status": STATUS}))
    file.write_text(json.dumps(STATE))
    assert main(["init", str(folder), "--preset", "tiny", "--modality", f"status={device}"]) == 0
    model, processor = load_checkpoint(str(folder))
    [row] = look(model, processor, {"type": "status", "path": str(file)}).rows
    assert [piece.name for piece in row.pieces[:5]] == ["battery", "battery", "wifi", "wifi", "ringer"]
    assert all(piece.name for piece in row.pieces)
    assert main(["look", str(folder), str(file)]) == 0
    assert re.search(r"^ +3  wifi ", capsys.readouterr().out, re.MULTILINE)


def test_the_digits_of_a_number_can_be_told_from_its_sines(status_module):
    """The cosine and sine of 2 pi v / 10 are those of the last digit, of 2 pi v / 1 those of the hundredths."""
    field = status_module.Field("battery", PERCENT, "number", 37)
    waves = status_module.features(field)[-2 * 35 :].reshape(2, 7, 5)
    assert waves[:, 2, 0] == pytest.approx([np.cos(2 * np.pi * 0.7), np.sin(2 * np.pi * 0.7)], abs=1e-6)
    assert waves[:, 3, 0] == pytest.approx([np.cos(2 * np.pi * 0.37), np.sin(2 * np.pi * 0.37)], abs=1e-6)
    assert waves[:, 1, 0] == pytest.approx([1, 0], abs=1e-6)  # a whole number
    place = status_module.features(field)[-2 * 35 - 3 : -2 * 35]
    assert place == pytest.approx([0.37, 1, np.log(38) / 10])
    everything = {status_module.features(field._replace(value=value / 100)).tobytes() for value in range(10001)}
    assert len(everything) == 10001


def test_what_differs_in_one_field_differs_in_its_tokens_alone(reader):
    first = reader.load(STATE).values
    for name, value in (("battery", 38), ("wifi", False), ("ringer", "normal"), ("temperature", 21.4)):
        second = reader.load({**STATE, name: value}).values
        place = list(STATUS["properties"]).index(name)
        assert np.flatnonzero((first != second).any(1)).tolist() == [2 * place, 2 * place + 1]
    other = type(reader)({**STATUS, "properties": {**STATUS["properties"], "battery": {**PERCENT, "x-unit": "V"}}})
    assert (other.load(STATE).values != first).any()  # 37 V are not 37 %


def test_a_batch_is_padded_and_masked(reader):
    short, long = {"battery": 1, "wifi": True}, {**STATE, "pulse": [1, 2]}
    batch = reader([short, reader.load(long)])
    lengths = [len(reader.load(state).values) for state in (short, long)]
    assert batch["status_mask"].sum(1).tolist() == lengths
    assert torch.equal(batch["status_values"][0, : lengths[0]], torch.from_numpy(reader.load(short).values))
    assert not batch["status_values"][0, lengths[0] :].any()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ('"battery": 140', "field battery: 140 is greater than the maximum of 100: give integer from 0 to 100 %"),
        ('"battery": "37 %"', "field battery: '37 %' is not of type 'integer': give integer from 0 to 100 %"),
        ('"battery": true', "field battery: True is not of type 'integer'"),
        ('"battery": NaN', "field battery: nan is not of type 'integer'"),
        ('"temperature": NaN', "field temperature: nan is not a finite number: give number from -20 to 60 °C"),
        ('"temperature": -1e999', "field temperature: -inf is less than the minimum of -20"),
        ('"ringer": "loud"', "field ringer: 'loud' is not one of ['silent', 'vibrate', 'normal']: give one of"),
        ('"alarm": {}', "field alarm.hour is missing: give integer"),
        ('"alarm": {"hour": 1' + "0" * 400 + "}", "field alarm.hour: 1000"),
        ('"alarm": {"hour": 1, "minute": 2}', "field alarm.minute: the device has none; its fields are hour"),
        ('"pulse": [60, NaN]', "field pulse[1]: nan is not a finite number: give number bpm"),
        ('"pulse": [60, null]', "field pulse[1]: None is not of type 'number'"),
        ('"volume": 3', "field volume: the device has none; its fields are battery, wifi, ringer"),
        ('"battery": 3, "battery": 4', "not the JSON of a status: battery is there twice"),
        ('"battery": 3,', "not the JSON of a status: "),
    ],
)  # fmt: skip
def test_a_state_that_breaks_its_schema_is_refused_by_file_field_and_fix(reader, tmp_path, change, message):
    path = tmp_path / "state.json"
    rest = [f'"{name}": {json.dumps(STATE[name])}' for name in ("battery", "wifi") if f'"{name}"' not in change]
    path.write_text("{" + ", ".join([*rest, change]) + "}")
    with pytest.raises(MediaError) as error:
        reader.load(str(path))
    assert str(error.value).startswith(f"{path}: {message}")
    assert len(str(error.value)) < 400 + len(str(path))


def test_what_is_no_state_is_refused(reader, tmp_path):
    for text, message in (("[1]", "the state: [1] is not of type 'object'"), ("[" * 100_000, "not the JSON of a")):
        (tmp_path / "state.json").write_text(text)
        with pytest.raises(MediaError, match=message.replace("[", r"\[")):
            reader.load(tmp_path / "state.json")
    with pytest.raises(MediaError, match="field battery is missing: give integer from 0 to 100 %"):
        reader.load({"wifi": True})


@pytest.mark.parametrize(
    ("schema", "message"),
    [
        ({"type": "array", "items": {"type": "string"}}, "the schema of a state is one of an object"),
        ({"type": "object", "properties": {"a": {"type": "object"}}}, "status.a: no field that a status can have"),
        ({"type": "object", "properties": {"a": {"enum": [1, "x"]}}}, "status.a: no field that a status can have"),
        ({"type": "object", "properties": {"a": True}}, "status.a: no field that a status can have"),
        (
            {"type": "object", "properties": {"a": {"type": "array", "items": True}}},
            r"status.a\[\]: no field that a status can have",
        ),
        (
            {"type": "object", "properties": {"a": {"type": "string"}}, "patternProperties": {"^s": {}}},
            "status.patternProperties: what it allows would not be read: declare it",
        ),
        (
            {"type": "object", "properties": {"a": {"type": "array", "prefixItems": [{"type": "string"}]}}},
            "status.a.prefixItems: what it allows would not be read",
        ),
        (
            {"type": "object", "properties": {"a": {"type": ["string", "array"], "items": {"type": "number"}}}},
            "status.a: type is .* but items are those of an array: give type: array",
        ),
        (
            {"type": "object", "properties": {"a": {"type": "number"}}, "required": ["b"]},
            "status.required: b is none of the properties",
        ),
        ({"type": "object", "properties": {"a": {"minimum": "x"}}}, "not a JSON Schema: 'x' is not of type 'number'"),
    ],
)
def test_a_schema_that_cannot_be_read_is_refused(status_module, tmp_path, schema, message):
    (tmp_path / "phone.json").write_text(json.dumps({"status": schema}))
    with pytest.raises(ValueError, match=message) as error:
        status_module.DeviceStatusReader.from_file(tmp_path / "phone.json")
    assert "phone.json" in str(error.value)


def test_a_new_model_wants_the_device(status_module, device_file, tmp_path, capsys):
    assert main(["init", str(tmp_path / "new"), "--preset", "tiny", "--modality", "status"]) == 1
    assert "a status needs the schema of its device: --modality status=DEVICE.json" in capsys.readouterr().err
    assert main(["init", str(tmp_path / "new"), "--preset", "tiny", "--modality", "status=no.json"]) == 1
    assert "no.json: no device" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


def test_the_schema_travels_and_the_command_needs_no_module(device_folder, tmp_path, capsys):
    """In a process of its own: only the checkpoint's own name for the module leads to it."""
    (tmp_path / "state.json").write_text(json.dumps(STATE))
    assert json.loads((device_folder / "status" / "device.json").read_text())["status"] == STATUS
    assert json.loads((device_folder / "config.json").read_text())["modules"] == ["device_status"]
    command = ["chat", str(device_folder), "Battery?", "--status", str(tmp_path / "state.json"), "--json"]
    command += ["--max-new-tokens", "3"]
    answered = subprocess.run(
        [sys.executable, "-m", "xllm", *command],
        capture_output=True, text=True, check=False, env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert answered.returncode == 0, answered.stderr
    assert main(command) == 0
    assert capsys.readouterr().out == answered.stdout
    (tmp_path / "state.json").write_text(json.dumps({**STATE, "battery": 101}))
    assert main(command) == 1
    assert "state.json: field battery: 101 is greater than the maximum of 100" in capsys.readouterr().err


def test_a_status_is_answered_where_the_package_is_not(device_folder, tmp_path):
    """Remote code: the module lies beside the checkpoint, and imports its siblings alone."""
    model, processor = load_checkpoint(str(device_folder))
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    files = export_code(tmp_path)
    assert "device_status.py" in files
    content = [{"type": "status", "status": STATE}, {"type": "text", "text": "What is this?"}]
    inputs = processor.encode_conversations([[{"role": "user", "content": content}]])
    row = model.config.modalities["status"]
    assert (inputs["input_ids"] == row.token_id).sum() == 2 * 9  # eight fields, of which the song has two words
    expected = model.generate(**inputs, max_new_tokens=4, do_sample=False).tolist()
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    run = subprocess.run(
        [sys.executable, "-c", ANSWER, str(tmp_path), json.dumps(STATE)],
        capture_output=True, text=True, check=False, cwd=tmp_path,
        env={**environment, "HF_MODULES_CACHE": str(tmp_path / "modules")},
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    assert json.loads(run.stdout) == expected


def test_a_converter_reads_every_whole_number_of_a_field(device_folder, status_module):
    """A row's converter and one linear layer: 101 values of one field, and those of another at the same time."""
    row = load_checkpoint(str(device_folder))[0].config.modalities["status"]
    torch.manual_seed(0)
    learner = torch.nn.Sequential(status_module.FieldsConverter(row, row), torch.nn.Linear(256, 101))
    fields = [status_module.Field(name, PERCENT, "number", value) for name in "ab" for value in range(101)]
    inputs = torch.from_numpy(np.stack([status_module.features(field) for field in fields]))[None]
    wanted = torch.tensor([field.value if field.path == "a" else 100 - field.value for field in fields])
    optimiser = torch.optim.AdamW(learner.parameters(), lr=5e-3)
    for _ in range(150):
        scores = learner[1](learner[0](inputs).embeddings[0])
        optimiser.zero_grad()
        torch.nn.functional.cross_entropy(scores, wanted).backward()
        optimiser.step()
    assert (scores.argmax(-1) == wanted).float().mean() > 0.99


def test_the_gradient_reaches_the_whole_interface(device_folder):
    model, processor = load_checkpoint(str(device_folder))
    model.requires_grad_(False)
    interface = model.model.interfaces["status"].requires_grad_(True)
    content = [{"type": "status", "status": STATE}, {"type": "text", "text": "Battery?"}]
    sample = {"messages": [{"role": "user", "content": content}, {"role": "assistant", "content": "low"}]}
    model(**XLLMDataCollator(processor)([sample])).loss.backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in interface.parameters())
