# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""No model is opened from weights that are missing, too many, misshapen, not finite or altered."""

import json
import locale
import os
import shutil
import stat
import sys
from pathlib import Path

import pytest
import torch
from hub_cache import snapshot
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from tiny import tiny_model, tiny_text_config

from xllm import XLLMConfig, XLLMEncoderModel, XLLMForConditionalGeneration, XLLMModel
from xllm.cli import main
from xllm.modeling_xllm.weight_files import (
    RECORD,
    StageCheckpointError,
    check_finite,
    check_fit,
    copy_tensors,
    pinned_revision,
    read_json,
    read_tensors,
    record_weights,
    resolve_source,
    save_tensors,
    split_source,
    unread_tensors,
    verify_weights,
    weight_files,
    write_json,
)


QUERIES = "model.interfaces.image.converter.query_tokens"


@pytest.fixture(scope="module", params=["whole", "stage"])
def saved(request, tmp_path_factory):
    """A whole checkpoint, and one that names its towers."""
    base = tmp_path_factory.mktemp("saved") / "base"
    model = tiny_model()
    model.save_pretrained(base)
    if request.param == "whole":
        return base
    XLLMForConditionalGeneration.from_pretrained(base).save_interfaces(base.parent / "stage")
    return base.parent / "stage"


@pytest.fixture
def folder(saved, tmp_path):
    shutil.copytree(saved, tmp_path / "copy")
    return tmp_path / "copy"


def rewrite(folder, change, record=True):
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    if record:
        record_weights(folder)


def drop_image(tensors):
    for key in [key for key in tensors if ".interfaces.image." in key]:
        del tensors[key]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (drop_image, r"copy.* does not fit this model: \d+ missing: model.interfaces.image.adapter.bias, .* \.\.\."),
        (lambda t: t.update(odd=torch.ones(1)), "1 without a place: odd"),
        (lambda t: t.update({QUERIES: torch.ones(1, 5, 16)}), r"misshapen: .*tokens \(\[1, 5, 16\], expected \[1, 2"),
        (lambda t: t[QUERIES].fill_(float("nan")), "NaN or Inf in 1 of its tensors: model.interfaces.image.conv"),
        (lambda t: t["model.interfaces.image.adapter.bias"].fill_(float("-inf")), "NaN or Inf in 1 .*adapter.bias"),
    ],
)  # fmt: skip
def test_tensors_that_are_not_those_of_the_model(folder, change, message):
    rewrite(folder, change)
    with pytest.raises(StageCheckpointError, match=message):
        XLLMForConditionalGeneration.from_pretrained(folder)


def test_a_removed_row_or_another_width_in_the_config(folder):
    settings = json.loads((folder / "config.json").read_text())
    rows = settings["modalities"]
    speech = rows.pop("speech")
    (folder / "config.json").write_text(json.dumps(settings))
    with pytest.raises(StageCheckpointError, match=r"copy does not fit this model: \d+ without a place"):
        XLLMForConditionalGeneration.from_pretrained(folder)
    rows["speech"] = {**speech, "converter_config": {**speech["converter_config"], "hidden_size": 32}}
    (folder / "config.json").write_text(json.dumps(settings))
    with pytest.raises(StageCheckpointError, match="misshapen: model.interfaces.speech"):
        XLLMForConditionalGeneration.from_pretrained(folder)


def test_one_flipped_bit_is_found_and_whoever_means_it_says_so(folder):
    data = bytearray((folder / "model.safetensors").read_bytes())
    data[-1] ^= 1
    (folder / "model.safetensors").write_bytes(data)
    for model_class in (XLLMForConditionalGeneration, XLLMModel, XLLMEncoderModel):
        with pytest.raises(StageCheckpointError, match=r"copy/model.safetensors: altered or damaged"):
            model_class.from_pretrained(folder)
    settings = json.loads((folder / "config.json").read_text())
    del settings[RECORD]
    (folder / "config.json").write_text(json.dumps(settings))
    XLLMForConditionalGeneration.from_pretrained(folder)


def test_saving_keeps_the_record_true(folder, tmp_path):
    model = XLLMForConditionalGeneration.from_pretrained(folder)
    with torch.no_grad():
        model.get_parameter(QUERIES).add_(1)  # fine-tuned, or merged, outside of `xllm train`
    model.save_pretrained(tmp_path / "tuned", max_shard_size="20KB")
    record = json.loads((tmp_path / "tuned" / "config.json").read_text())[RECORD]
    assert len(record) > 1
    assert {file.name for file in (tmp_path / "tuned").glob("*.safetensors")} == set(record)
    again = XLLMForConditionalGeneration.from_pretrained(tmp_path / "tuned")
    assert again.get_parameter(QUERIES).equal(model.get_parameter(QUERIES))
    # A config in memory is of no particular files.
    XLLMConfig.from_pretrained(tmp_path / "tuned").save_pretrained(tmp_path / "alone")
    assert RECORD not in json.loads((tmp_path / "alone" / "config.json").read_text())


def test_weights_are_as_readable_as_their_config(tmp_path):
    before = os.umask(0o022)
    try:
        tiny_model().save_pretrained(tmp_path)
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "model.safetensors").stat().st_mode) == 0o644


def test_no_weights_leave_no_record(tmp_path):
    record_weights(tmp_path)  # of an adapter alone
    assert not any(tmp_path.iterdir())
    config = {"model_type": "xllm"}
    write_json(tmp_path / "config.json", {**config, RECORD: {"model.safetensors": "of before"}})
    record_weights(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text()) == config


def test_a_full_disk_is_an_error_of_the_system(tmp_path, monkeypatch):
    def fail(*args, **kwargs):
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr("transformers.modeling_utils.safe_save_file", fail)
    with pytest.raises(OSError, match="cannot write the weights: .*No space left"):
        tiny_model().save_pretrained(tmp_path)


def test_an_index_names_files_of_its_own_folder_only(folder, tmp_path):
    shutil.move(folder / "model.safetensors", tmp_path / "model.safetensors")
    keys = load_file(tmp_path / "model.safetensors")
    index = {"metadata": {}, "weight_map": dict.fromkeys(keys, "../model.safetensors")}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(
        StageCheckpointError, match=r"index.json: names '../model.safetensors', which is not a file in the"
    ):
        XLLMForConditionalGeneration.from_pretrained(folder)


def test_an_encoder_model_does_without_the_language_model_but_lacks_nothing_of_its_own(folder):
    model = XLLMEncoderModel.from_pretrained(folder, modalities=["speech"])
    assert set(model.interfaces) == {"speech"}
    rewrite(folder, lambda tensors: tensors.update({"model.interfaces.speech.odd": torch.ones(1)}))
    with pytest.raises(StageCheckpointError, match="1 without a place: .*interfaces.speech.odd"):
        XLLMEncoderModel.from_pretrained(folder, modalities=["speech"])
    rewrite(folder, lambda tensors: tensors.pop("model.interfaces.speech.odd"))
    rewrite(folder, lambda tensors: tensors.pop("model.interfaces.speech.adapter.bias"))
    XLLMEncoderModel.from_pretrained(folder, modalities=["image"])
    with pytest.raises(StageCheckpointError, match="1 missing: .*speech.adapter.bias"):
        XLLMEncoderModel.from_pretrained(folder)


@pytest.mark.parametrize(
    "command", [["chat", "MODEL", "What?"], ["train", "stage2_image", "model=MODEL", "train=x.csv"]]
)
def test_commands_say_it_in_one_line(tmp_path, capfd, command):
    assert main(["init", str(tmp_path / "m"), "--preset", "tiny"]) == 0
    rewrite(tmp_path / "m", drop_image)
    (tmp_path / "x.csv").write_text("file,text\n")
    capfd.readouterr()
    assert main([part.replace("MODEL", str(tmp_path / "m")) for part in command]) == 1
    out, err = capfd.readouterr()
    assert out == ""
    assert len(err.splitlines()) == 1
    assert "m does not fit this model: 47 missing: model.interfaces.image.adapter.bias" in err


def test_who_asks_for_the_report_of_loading_gets_it_instead_of_an_error(folder):
    model, info = XLLMForConditionalGeneration.from_pretrained(folder, output_loading_info=True)
    assert type(model) is XLLMForConditionalGeneration
    assert not info["missing_keys"]
    if not json.loads((folder / "config.json").read_text()).get("towers"):  # else it is put together before
        rewrite(folder, lambda tensors: tensors.update(odd=torch.ones(1)))
        _, info = XLLMForConditionalGeneration.from_pretrained(folder, output_loading_info=True)
        assert list(info["unexpected_keys"]) == ["odd"]


def test_what_follows_saving_is_told_the_folder(tmp_path):
    model, told = tiny_model("llama"), []
    model.after_saving = told.append
    model.save_pretrained(tmp_path / "a", is_main_process=False)
    assert told == []
    model.save_pretrained(tmp_path / "b")
    assert told == [tmp_path / "b"]
    model.after_saving = None
    model.save_pretrained(tmp_path / "c")
    assert RECORD in json.loads((tmp_path / "c" / "config.json").read_text())


def test_nothing_is_copied_unless_all_of_it_fits():
    target = {"a": torch.zeros(2), "b": torch.zeros(2)}
    with pytest.raises(
        StageCheckpointError, match=r"x does not fit the model: 1 misshapen: b \(\[3\], expected \[2\]\)"
    ):
        copy_tensors({"a": torch.ones(2), "b": torch.ones(3)}, target, "x")
    assert target["a"].sum() == 0
    copy_tensors({"a": torch.ones(2), "b": torch.ones(2)}, target, "x")
    assert target["a"].sum() == 2


def test_a_path_with_an_at_sign_is_a_path(tmp_path):
    (tmp_path / "a@b").mkdir()
    assert split_source(str(tmp_path / "a@b")) == (str(tmp_path / "a@b"), None)
    assert split_source("user/repo@v1") == ("user/repo", "v1")


@pytest.mark.parametrize("shards", [1, 2])
def test_a_revision_of_a_repository_is_that_revision(tmp_path, shards):
    hub, folders = {"cache_dir": tmp_path, "local_files_only": True}, {}
    for revision, commit in (("v1", "a" * 40), ("v2", "odd")):
        folders[revision] = folder = snapshot(tmp_path, revision, commit)
        names = [f"{number}.safetensors" for number in range(shards)] if shards > 1 else ["model.safetensors"]
        for number, name in enumerate(names):
            save_tensors({f"{revision}.{number}": torch.ones(number + 1)}, folder / name)
        if shards > 1:
            index = {"weight_map": {f"{revision}.{name[0]}": name for name in names}}
            write_json(folder / "model.safetensors.index.json", index)
        write_json(folder / "config.json", {})
        record_weights(folder)
    assert pinned_revision("a/b", "v1", **hub) == "a" * 40
    assert pinned_revision("a/b", "v2", **hub) == "v2"  # whose folder is not called after a commit
    assert pinned_revision(str(folders["v1"]), "v2", **hub) == "v2"  # of the caller's own, wherever it is
    for revision, folder in folders.items():
        found = read_tensors("a/b", revision, bool, **hub)
        assert {key: len(value) for key, value in found.items()} == {f"{revision}.{n}": n + 1 for n in range(shards)}
        verify_weights("a/b", revision, **hub)
        Path(weight_files("a/b", revision, **hub)[-1]).write_bytes(b"other")
        with pytest.raises(StageCheckpointError, match=f"{folder}/.*altered or damaged"):
            verify_weights("a/b", revision, **hub)


def test_a_message_names_three_tensors():
    check_fit({}, {}, "x")
    for number, names in ((1, "a$"), (3, "a, b, c$"), (4, r"a, b, c \.\.\.$")):
        wanted = {name: torch.Size([1]) for name in "dcba"[-number:]}
        with pytest.raises(StageCheckpointError, match=f"x does not fit the model: {number} missing: {names}"):
            check_fit({}, wanted, "x")
    with pytest.raises(StageCheckpointError, match=r"1 missing: a; 1 without a place: c; 1 misshapen: b \(\[2\], exp"):
        check_fit({"b": torch.ones(2), "c": torch.ones(1)}, {"a": torch.ones(1), "b": torch.ones(1)}, "x")


@pytest.mark.parametrize(
    ("tensor", "is_broken"),
    [
        (torch.tensor([1.0, float("nan")]), True),
        (torch.tensor([float("-inf"), 1.0], dtype=torch.float16), True),
        (torch.tensor([float("nan")]).to(torch.float8_e4m3fn), False),  # has no largest value to be asked for
        (torch.tensor([1, 2]), False),
        (torch.zeros(0), False),
        (torch.zeros(2, device="meta"), False),
    ],
)
def test_what_is_not_finite_is_named(tensor, is_broken):
    check_finite({"good": torch.ones(3)}, "x")
    if not is_broken:
        return check_finite({"good": torch.ones(3), "odd": tensor}, "x")
    for broken in (tensor, torch.nn.Parameter(tensor)):
        with pytest.raises(StageCheckpointError, match="x: NaN or Inf in 1 of its tensors: odd"):
            check_finite({"good": torch.ones(3), "odd": broken}, "x")


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", 3])
def test_an_index_names_files(tmp_path, name):
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": name}}))
    with pytest.raises(StageCheckpointError, match="index.json: names .*, which is not a file in the"):
        weight_files(str(tmp_path))


def test_other_files_than_those_that_were_saved(tmp_path):
    save_file({"a": torch.ones(1)}, tmp_path / "model.safetensors")
    write_json(tmp_path / "config.json", {"model_type": "xllm", RECORD: {"other.safetensors": "0"}})
    with pytest.raises(StageCheckpointError, match="config.json was saved with other.safetensors, these are other"):
        verify_weights(str(tmp_path))
    write_json(tmp_path / "config.json", {"model_type": "xllm", RECORD: "a string"})
    verify_weights(str(tmp_path))


def test_files_are_written_and_read_alike_in_every_locale(tmp_path):
    before = locale.setlocale(locale.LC_CTYPE)
    try:
        locale.setlocale(locale.LC_CTYPE, "C")
        save_tensors({"问": torch.ones(1)}, tmp_path / "é.safetensors")
        write_json(tmp_path / "model.safetensors.index.json", {"weight_map": {"问": "é.safetensors"}})
        write_json(tmp_path / "config.json", {"word": "问"})
        assert (tmp_path / "config.json").read_bytes() == '{\n  "word": "问"\n}\n'.encode()  # as a person reads it
        record_weights(tmp_path)
        settings = read_json(tmp_path / "config.json")
        assert (settings["word"], [*settings[RECORD]]) == ("问", ["é.safetensors"])
        assert read_tensors(str(tmp_path), None, bool)["问"].tolist() == [1]
        assert read_json(tmp_path / "none.json") == {}
    finally:
        locale.setlocale(locale.LC_CTYPE, before)


@pytest.mark.parametrize("more", [None, {"config": "{}"}])
def test_a_file_of_tensors_says_its_format_and_what_it_is_told(tmp_path, more):
    tensor, before = torch.arange(6.0).view(2, 3).T, os.umask(0o027)
    try:
        save_tensors({"x": tensor}, tmp_path / "x.safetensors", more)
    finally:
        os.umask(before)
    with safe_open(tmp_path / "x.safetensors", framework="pt") as file:
        assert file.metadata() == {"format": "pt", **(more or {})}
        assert file.get_tensor("x").equal(tensor)
    assert stat.S_IMODE((tmp_path / "x.safetensors").stat().st_mode) == 0o640


@pytest.mark.skipif(sys.platform != "linux", reason="what is mapped is read from /proc")
@pytest.mark.parametrize(
    ("dtype", "mapped"),
    [(None, "fhi"), (torch.float32, "fi"), (torch.float16, "hi"), (torch.bfloat16, "i")],
)
def test_what_is_not_copied_stays_in_the_mapped_file(tmp_path, dtype, mapped):
    path = tmp_path / "x.safetensors"
    tensors = {"f": torch.rand(9), "h": torch.rand(9).half(), "i": torch.arange(9)}
    save_tensors(tensors, path)
    found = {name: one[...] for name, one in unread_tensors(str(path), dtype).items()}
    torch.testing.assert_close(found, tensors, atol=0, rtol=0)
    lines = Path("/proc/self/maps").read_text(encoding="utf-8").splitlines()
    spans = [[int(end, 16) for end in line.split()[0].split("-")] for line in lines if line.endswith(str(path))]
    inside = [name for name, one in found.items() if any(start <= one.data_ptr() < end for start, end in spans)]
    assert sorted(inside) == list(mapped)


def test_sources_beside_a_checkpoint_are_found_from_it(tmp_path):
    assert resolve_source("../base", tmp_path / "stage") == str(tmp_path / "base")
    assert resolve_source("user/base", tmp_path / "stage") == "user/base"
    assert split_source("@odd") == ("@odd", None)
    assert split_source("user/repo") == ("user/repo", None)
    assert pinned_revision(str(tmp_path), "v1") == "v1"


@pytest.mark.skipif(sys.platform != "linux", reason="the peak of resident memory is read from /proc")
@pytest.mark.parametrize("kind", ["whole", "stage"])
def test_opening_in_another_type_takes_the_memory_of_the_model_and_no_more(tmp_path, kind):
    """Pages of the mapped files would be resident beside what is copied from them: twice the model."""
    text = tiny_text_config()
    text.hidden_size, text.num_hidden_layers, text.intermediate_size = 512, 24, 4096
    tiny_model(text_config=text).half().save_pretrained(tmp_path / "whole", max_shard_size="64MB")
    if kind == "stage":
        XLLMForConditionalGeneration.from_pretrained(tmp_path / "whole").save_interfaces(tmp_path / "stage")
    before = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")  # the peak is now the present
    model = XLLMForConditionalGeneration.from_pretrained(tmp_path / kind, dtype=torch.bfloat16)
    assert (resident("VmHWM") - before) / model.get_memory_footprint() < 1.4


def resident(key: str) -> int:
    """Bytes of a line of /proc/self/status."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{key}:"))
