# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""Pushing stages and loading them again, against a Hub of our own."""

import json
import os
import re
import shutil
import subprocess

import pytest
import torch
from hub_server import READER, WRITER
from huggingface_hub import HfApi, ModelCard, constants
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoModel

from xllm import XLLMForConditionalGeneration
from xllm.assembly.opening import CheckpointError, load_checkpoint
from xllm.cli import main
from xllm.hub_cards.contents import choose_files
from xllm.hub_cards.publish import PublishError, check_files, find_stage, publish
from xllm.modeling_xllm.weight_files import StageCheckpointError


REPO = "user/tiny"


def set_stage(folder, stage):
    config = json.loads((folder / "config.json").read_text())
    config["stage"] = {"stage": stage, "modalities": ["image"]}
    (folder / "config.json").write_text(json.dumps(config))


@pytest.fixture
def stage2(tiny_folder, tmp_path):
    """A checkpoint of stage 2 as a run leaves it, with log, samples and results."""
    folder = shutil.copytree(tiny_folder, tmp_path / "run" / "stage2-image")
    set_stage(folder, 2)
    (folder / "log.jsonl").write_text('{"step": 1}\n')
    (folder / "samples_all.jsonl").write_text('{"where": "secret.csv:1"}\n')
    (folder / "results.json").write_text(
        json.dumps({"all": {"task": "qa", "metric": "accuracy", "value": 0.5, "n": 8}})
    )
    return folder


@pytest.fixture
def impatient(monkeypatch):
    """The client tries again at once."""
    monkeypatch.setattr("time.sleep", lambda seconds: None)


def same_weights(first, second):
    ours, theirs = first.state_dict(), second.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def files_of(hub, revision, repo_id=REPO):
    repo = hub.repos[repo_id]
    return repo.commits[repo.resolve(revision)]


def test_a_stage_is_pushed_pinned_and_loaded_by_its_tag_and_then_offline(hub, stage2, monkeypatch):
    commit = publish(stage2.parent, REPO, stage=2, license="apache-2.0")
    assert hub.repos[REPO].tags == {"stage2": commit.oid}
    files = files_of(hub, "stage2")
    assert {"README.md", "config.json", "model.safetensors", "modeling_xllm.py", "results.json"} <= files.keys()
    assert not {"log.jsonl", "samples_all.jsonl"} & files.keys()
    assert files["model.safetensors"].content is None, "by LFS"

    set_stage(stage2, 3)
    later = publish(stage2, REPO)
    assert hub.repos[REPO].tags == {"stage2": commit.oid, "stage3": later.oid}
    card = ModelCard(files_of(hub, "stage2")["README.md"].content.decode())
    assert "stage2" in card.data.tags
    assert card.data.license == "apache-2.0"
    assert card.data.eval_results[0].metric_value == 0.5
    assert f'"{REPO}", revision="stage2"' in card.text

    model, processor = load_checkpoint(f"{REPO}@stage2")
    assert model.config.stage["stage"] == 2
    assert same_weights(model, XLLMForConditionalGeneration.from_pretrained(stage2))
    assert processor.num_query_tokens == 4
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert same_weights(load_checkpoint(f"{REPO}@stage2")[0], model)
    with pytest.raises(CheckpointError, match="user/never@stage2: cannot open"):
        load_checkpoint("user/never@stage2")


def test_an_interrupted_push_leaves_the_repository_as_it_was_and_can_be_repeated(hub, stage2, impatient):
    for broken in ("^PUT /", "/commit/main$"):
        hub.broken = broken
        with pytest.raises(PublishError, match="the push can be repeated"):
            publish(stage2, REPO)
        assert list(hub.repos[REPO].titles.values()) == ["initial commit"]
        assert hub.repos[REPO].tags == {}
    hub.broken = "/tag/"
    sent = len([request for request in hub.requests if request.startswith("PUT")])
    with pytest.raises(
        PublishError, match="all files are there .* the tag stage2 is not set .* it will only set the tag"
    ):
        publish(stage2, REPO)
    hub.broken = None
    commit = publish(stage2, REPO)
    assert list(hub.repos[REPO].titles.values()) == ["initial commit", "Push stage2"]
    assert hub.repos[REPO].tags == {"stage2": commit.oid}
    assert len([request for request in hub.requests if request.startswith("PUT")]) == sent, "large files came once"


def test_tags_are_moved_only_when_asked_and_stale_weights_go(hub, stage2):
    first = publish(stage2, REPO)
    model = XLLMForConditionalGeneration.from_pretrained(stage2)
    (stage2 / "model.safetensors").unlink()
    model.save_pretrained(stage2, max_shard_size="500KB")
    with pytest.raises(PublishError, match=f"has a tag stage2 \\(at {first.oid[:8]}\\)"):
        publish(stage2, REPO)
    assert hub.repos[REPO].branches["main"] == first.oid
    second = publish(stage2, REPO, replace=True, revision="retrained")
    assert hub.repos[REPO].tags == {"stage2": second.oid}
    assert "model.safetensors" not in files_of(hub, "stage2"), "it would be loaded instead of the shards"
    assert "model.safetensors" in files_of(hub, "main"), "another branch"


def test_private_means_private(hub, stage2, monkeypatch):
    publish(stage2, REPO, private=True)
    assert hub.repos[REPO].private
    hub.repos[REPO].private = False
    with pytest.raises(PublishError, match="exists and is public"):
        publish(stage2, REPO, private=True, replace=True)


def test_a_stage_checkpoint_names_its_towers_on_the_hub_and_they_are_found(
    hub, interfaces_folder, tiny_folder, tmp_path, monkeypatch
):
    base = hub.repos["user/base"].tags["v1"]
    publish(interfaces_folder, REPO, tag="stage2", license="apache-2.0")
    towers = json.loads(files_of(hub, "main")["config.json"].content)["towers"]
    assert towers.keys() == {"vision_tower", "audio_tower", "language_model"}
    assert {tower["revision"] for tower in towers.values()} == {base}, "pinned by commit"
    text = files_of(hub, "main")["README.md"].content.decode()
    assert "| language_model | [user/base](https://huggingface.co/user/base) |" in text
    assert re.search(rf"{base} \| mit \|", text), "the tower's own licence"
    assert str(tmp_path) not in text

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "fresh"))
    hub.repos["user/base"].gated = True
    with pytest.raises(StageCheckpointError, match="audio_tower: cannot load user/base at revision .* gated repo"):
        XLLMForConditionalGeneration.from_pretrained(REPO, token=READER)
    hub.repos["user/base"].gated = False
    model = XLLMForConditionalGeneration.from_pretrained(tiny_folder)
    for auto in (XLLMForConditionalGeneration, AutoModel):
        again = auto.from_pretrained(REPO, revision="stage2", token=READER)
        assert same_weights(again, model), "the failed attempt left the cache sound"


def test_towers_from_local_folders_are_stored(hub, stage2, tmp_path):
    model = XLLMForConditionalGeneration.from_pretrained(stage2)
    folder = shutil.copytree(stage2, tmp_path / "interfaces", ignore=shutil.ignore_patterns("*.safetensors"))
    model.save_interfaces(folder)
    with safe_open(folder / "model.safetensors", framework="pt") as file:
        assert {key.split(".")[1] for key in file.keys()} == {"interfaces"}  # noqa: SIM118
    publish(folder, REPO)
    config = files_of(hub, "main")["config.json"].content.decode()
    assert str(tmp_path) not in config
    shutil.rmtree(stage2)
    assert same_weights(XLLMForConditionalGeneration.from_pretrained(REPO), model)


@pytest.mark.parametrize(
    ("name", "token", "message"),
    [
        ("user/nothing", READER, "user/nothing"),
        ("user/tiny@stage9", READER, "stage9"),
        ("user/tiny", None, "user/tiny"),
        ("user/tiny", "hf_wrong", "user/tiny"),
    ],
)
def test_what_cannot_be_loaded_is_one_clear_line(hub, stage2, monkeypatch, capsys, name, token, message):
    publish(stage2, REPO, private=True)
    capsys.readouterr()
    with monkeypatch.context() as patch:
        patch.delenv("HF_TOKEN")
        patch.setattr(constants, "HF_TOKEN_PATH", "none")
        if token:
            patch.setenv("HF_TOKEN", token)
        assert main(["inspect", name]) == 1
    error = capsys.readouterr().err
    assert len(error.splitlines()) == 1, error
    assert message in error
    assert load_checkpoint(REPO)[0].config.stage["stage"] == 2, "the cache is sound"


@pytest.mark.parametrize(
    ("token", "message"), [(READER, "not allowed to write \\(403\\)"), ("hf_wrong", "not allowed to write \\(401\\)")]
)
def test_a_token_without_rights_is_refused(hub, stage2, token, message):
    with pytest.raises(PublishError, match=message):
        publish(stage2, REPO, token=token)
    assert hub.repos == {}


def test_no_network_is_said(hub, stage2, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(PublishError, match="offline mode is on"):
        publish(stage2, REPO)
    with pytest.raises(PublishError, match="not/a/name: no name of a repository"):
        publish(stage2, "not/a/name")
    assert hub.requests == []


def test_the_command(hub, stage2, capsys):
    assert main(["push", str(stage2.parent), REPO, "--stage", "2", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["commit"] == hub.repos[REPO].tags["stage2"]
    assert main(["push", str(stage2.parent), REPO, "--stage", "1"]) == 1
    error = capsys.readouterr().err
    assert "expected one checkpoint of stage 1, found stage2-image (stage 2)" in error
    assert len(error.splitlines()) == 1


def test_incomplete_checkpoints_are_not_pushed(stage2):
    assert find_stage(stage2.parent, None) == (stage2, 2)
    with pytest.raises(PublishError, match="found no checkpoint"):
        find_stage(stage2.parent / "none", 2)
    weights = (stage2 / "model.safetensors").read_bytes()
    (stage2 / "model.safetensors").write_bytes(weights[:100])
    with pytest.raises(PublishError, match="model.safetensors: altered or damaged"):
        check_files(stage2)
    (stage2 / "model.safetensors").unlink()
    with pytest.raises(PublishError, match="model.safetensors"):
        check_files(stage2)
    (stage2 / "processor_config.json").unlink()
    with pytest.raises(PublishError, match=r"has no processor_config\.json"):
        check_files(stage2)


def change_weights(folder, change):
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    config.pop("weight_files", None)
    (folder / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tensors: tensors.pop("lm_head.weight"), "1 missing: lm_head.weight"),
        (lambda tensors: tensors.update(extra=torch.ones(1)), "1 without a place: extra"),
        (lambda tensors: tensors["lm_head.weight"].fill_(torch.nan), "NaN or Inf in 1 of its tensors: lm_head.weight"),
    ],
)
def test_weights_that_do_not_fit_are_not_pushed(hub, stage2, capsys, change, message):
    change_weights(stage2, change)
    assert main(["push", str(stage2), REPO]) == 1
    error = capsys.readouterr().err
    assert message in error
    assert len(error.splitlines()) == 1
    assert hub.repos == {}


def test_only_what_a_checkpoint_consists_of_is_pushed(hub, stage2, tmp_path, capsys, caplog):
    outside = tmp_path / "outside.txt"
    outside.write_text("secret")
    strays = ["token.txt", "id_rsa", "train.csv", "data.parquet", "evil.py", "events.out.tfevents.1", "optimizer.pt"]
    for name in strays:
        (stage2 / name).write_text("secret")
    (stage2 / "innocent.json").symlink_to(outside)
    (stage2 / "checkpoint-5").mkdir()
    (stage2 / "checkpoint-5" / "config.json").write_text("{}")
    shared = tmp_path / "shared.model"
    shutil.move(stage2 / "ice_text.model", shared)
    (stage2 / "ice_text.model").symlink_to(shared)  # as in the cache of the Hub
    assert main(["push", str(stage2), REPO]) == 0
    files = files_of(hub, "stage2")
    left = {*strays, "innocent.json", "log.jsonl", "samples_all.jsonl"}
    assert not left & files.keys()
    assert not [name for name in files if name.startswith("checkpoint-5")]
    assert {"ice_text.model", "tokenizer_config.json", "results.json", "README.md"} <= files.keys()
    assert hub.objects[files["ice_text.model"].oid] == shared.read_bytes()
    (line,) = [record.getMessage() for record in caplog.records if "left out" in record.getMessage()]
    assert "\n" not in line
    assert all(name in line for name in (*left, "checkpoint-5/"))


def test_files_of_readers_may_be_called_anything_but_lie_there(hub, stage2, tmp_path):
    settings = json.loads((stage2 / "processor_config.json").read_text())
    (stage2 / "status").mkdir()
    (stage2 / "status" / "scale.txt").write_text("3")
    chosen, left = choose_files(stage2)
    assert "status/" in left
    (stage2 / "processor_config.json").write_text(json.dumps({**settings, "readers": {"status": "StatusReader"}}))
    chosen, left = choose_files(stage2)
    assert stage2 / "status" / "scale.txt" in chosen
    (stage2 / "status" / ".git").mkdir()
    for name in (".env", ".git/config"):
        (stage2 / "status" / name).write_text("secret")
    hidden, left = choose_files(stage2)
    assert hidden == chosen
    assert {"status/.env", "status/.git/config"} <= {*left}
    (tmp_path / "secret").write_text("secret")
    (stage2 / "status" / "more.txt").symlink_to(tmp_path / "secret")
    with pytest.raises(ValueError, match=r"more\.txt: points outside the checkpoint"):
        choose_files(stage2)


def test_a_later_stage_removes_what_earlier_ones_pushed_and_nothing_else(hub, stage2):
    (stage2 / "losses.png").write_bytes(b"picture")
    publish(stage2, REPO)
    api = HfApi(token=WRITER)
    theirs = {"notes.md": b"mine", "demo.py": b"print()\n", "images/photo.png": b"photo"}
    old = b"# Copyright 2026 The X-LLM Transformers Authors. Licensed\n"
    for name, content in {**theirs, "formerly_ours.py": old}.items():
        api.upload_file(path_or_fileobj=content, path_in_repo=name, repo_id=REPO)
    (stage2 / "losses.png").unlink()
    (stage2 / "results.json").unlink()
    set_stage(stage2, 3)
    publish(stage2, REPO)
    files = files_of(hub, "stage3")
    assert not {"losses.png", "results.json", "formerly_ours.py"} & files.keys()
    assert theirs.keys() <= files.keys()
    assert {"losses.png", "results.json"} <= files_of(hub, "stage2").keys(), "what is tagged stays"


def test_a_killed_push_leaves_nothing_that_the_next_does_not_remove(hub, stage2, tmp_path):
    model = XLLMForConditionalGeneration.from_pretrained(stage2)
    folder = shutil.copytree(stage2, tmp_path / "interfaces", ignore=shutil.ignore_patterns("*.safetensors"))
    model.save_interfaces(folder)
    dead = subprocess.Popen(["true"])
    dead.wait()
    left = tmp_path / f".interfaces.push-{dead.pid}"
    left.mkdir()
    (left / "model.safetensors").write_bytes(b"large")
    alive = tmp_path / f".interfaces.push-{os.getppid()}"
    alive.mkdir()
    publish(folder, REPO)
    assert [path.name for path in tmp_path.glob(".interfaces.push-*")] == [alive.name]
    assert same_weights(XLLMForConditionalGeneration.from_pretrained(REPO), model)
