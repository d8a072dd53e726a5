# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""An adapter of the language model by one key of a recipe: trained, kept with the interfaces, continued, merged."""

import json
import shutil
import sys

import pytest
import torch
from hub_cache import snapshot
from peft import LoraConfig, PeftModel
from safetensors.torch import load_file
from tiny import batch_of, mixed_rows, tiny_config, tiny_model
from transformers import AutoModel, GPTNeoXConfig, Trainer, TrainingArguments

from xllm import XLLMEncoderModel, XLLMForConditionalGeneration, XLLMModel, add_lora, freeze_for_stage, merge_lora
from xllm.assembly.opening import CheckpointError, load_checkpoint
from xllm.cli import main
from xllm.modeling_xllm.stage_checkpoints import adapted_layers, without_adapter
from xllm.modeling_xllm.weight_files import StageCheckpointError
from xllm.training.adapters import adapter_of, target_modules
from xllm.training.batches.collator import XLLMDataCollator
from xllm.training.recipes.recipe import load_recipe
from xllm.training.stages import StageError
from xllm.training.train import check, train


QUICK = {"max_steps": 2, "per_device_train_batch_size": 2, "logging_steps": 1, "learning_rate": 1e-2}
LORA = {"r": 2, "alpha": 4}


def shaken(model, **kwargs):
    """The model with an adapter that changes its answers: a new one is zero."""
    add_lora(model, **{**LORA, **kwargs})
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".lora_B." in name:
                parameter.normal_(std=0.2)
    return model


def logits(model) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(**batch_of(mixed_rows())).logits


@pytest.fixture
def stage(tiny_checkpoint, media, tmp_path):
    """A recipe of one stage of speech over the tiny preset, whose towers are named, not stored."""
    (media / "speech.csv").write_text("file,text\nlow.wav,low\nhigh.wav,high\n")
    base = tmp_path / "named"
    shutil.copytree(tiny_checkpoint, base)
    return {
        "model": str(tiny_checkpoint), "output_dir": str(tmp_path / "out"), "trainer": QUICK,
        "stage": 2, "modalities": ["speech"], "data": {"train": str(media / "speech.csv")},
    }  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "names"),
    [
        ("chatglm", "query_key_value"),
        ("llama", "q_proj|v_proj"),
        ("qwen3", "q_proj|v_proj"),
        ("neox", "query_key_value"),
    ],
)
def test_attention_projections_are_found_by_the_kind_of_language_model(kind, names):
    if kind == "neox":
        text = GPTNeoXConfig(
            vocab_size=120, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64
        )
        model = XLLMForConditionalGeneration(type(tiny_config())(text_config=text, **_towers(tiny_config())))
    else:
        model = tiny_model(kind)
    assert target_modules(model).endswith(f"({names})")
    added = add_lora(model)
    assert added
    assert all(name.startswith("model.language_model.") for name in added)
    layers = len([name for name in added if ".lora_A." in name])
    assert layers == 2 * len(names.split("|"))


def _towers(config) -> dict:
    rows = {name: row.to_diff_dict() for name, row in config.modalities.items()}
    for row in rows.values():
        row.pop("language_hidden_size", None)
    return {"vision_config": config.vision_config, "audio_config": config.audio_config, "modalities": rows}


@pytest.mark.parametrize("dora", [False, True], ids=["lora", "dora"])
@pytest.mark.parametrize("kind", ["chatglm", "llama"])
def test_a_checkpoint_holds_interfaces_and_adapter(tmp_path, kind, dora):
    model = shaken(tiny_model(kind), dora=dora, modules="all-linear" if kind == "llama" else "default")
    expected, plain = logits(model), logits(tiny_model(kind))
    assert not torch.equal(expected, plain)
    model.save_pretrained(tmp_path)
    again = AutoModel.from_pretrained(tmp_path)
    assert type(again) is XLLMForConditionalGeneration
    torch.testing.assert_close(logits(again), expected, atol=0, rtol=0)
    assert not any(p.requires_grad for name, p in again.named_parameters() if "lora_" in name)
    assert without_adapter(again).keys() == tiny_model(kind).state_dict().keys()
    with torch.no_grad():
        states = XLLMModel.from_pretrained(tmp_path).eval()(**batch_of(mixed_rows())).last_hidden_state
    torch.testing.assert_close(again.lm_head(states), expected, atol=1e-5, rtol=1e-4)
    peft = PeftModel.from_pretrained(tiny_model(kind), tmp_path / "adapter")  # in PEFT's own format
    torch.testing.assert_close(logits(peft), expected, atol=1e-5, rtol=1e-4)
    for _ in range(2):  # a folder may be written over
        again.save_pretrained(tmp_path / "again")
    torch.testing.assert_close(logits(AutoModel.from_pretrained(tmp_path / "again")), expected, atol=0, rtol=0)


def test_the_language_model_beside_an_adapter_stays_a_named_tower(tmp_path):
    tiny_model().save_pretrained(tmp_path / "base")
    model = XLLMForConditionalGeneration.from_pretrained(tmp_path / "base")
    shaken(model).save_interfaces(tmp_path / "stage")
    stored = XLLMForConditionalGeneration.from_pretrained(tmp_path / "stage")
    assert "language_model" in stored.config.towers
    torch.testing.assert_close(logits(stored), logits(model), atol=0, rtol=0)
    with torch.no_grad():
        next(iter(adapted_layers(stored).values())).base_layer.weight.add_(1.0)
    with pytest.raises(StageCheckpointError, match="has changed since it was loaded"):
        stored.save_pretrained(tmp_path / "moved")


def test_a_sub_folder_is_a_checkpoint_of_its_own(tmp_path):
    """With its adapter, its towers and the record of its weights; here and on the Hub."""
    tiny_model().save_pretrained(tmp_path / "base")
    model = shaken(XLLMForConditionalGeneration.from_pretrained(tmp_path / "base"))
    for repository in (tmp_path / "repo", snapshot(tmp_path, "main")):
        model.save_interfaces(repository / "stages" / "stage")
        (repository / "stages" / "other.json").write_text("{")
    hub = {"cache_dir": tmp_path, "local_files_only": True}
    for source, options in ((tmp_path / "repo", {}), ("a/b", hub)):
        for auto in (XLLMForConditionalGeneration, AutoModel):
            again = auto.from_pretrained(source, subfolder="stages/stage", **options)
            torch.testing.assert_close(logits(again), logits(model), atol=0, rtol=0)
        with pytest.raises(StageCheckpointError, match="has no folder 'none'; leave subfolder out"):
            XLLMForConditionalGeneration.from_pretrained(source, subfolder="none", **options)
    path = tmp_path / "repo/stages/stage/model.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(StageCheckpointError, match="model.safetensors"):
        XLLMForConditionalGeneration.from_pretrained(tmp_path / "repo", subfolder="stages/stage")


def test_a_half_precision_language_model_has_a_float32_adapter(tmp_path):
    model = tiny_model().to(torch.float16)
    model.model.interfaces.float()
    shaken(model).save_pretrained(tmp_path)
    again = AutoModel.from_pretrained(tmp_path, dtype=torch.float16)
    for one in (model, again):
        assert {p.dtype for name, p in one.named_parameters() if "lora_" in name} == {torch.float32}
        assert next(iter(adapted_layers(one).values())).base_layer.weight.dtype == torch.float16


def test_merging_changes_no_answer_and_stores_the_language_model(tmp_path):
    tiny_model().save_pretrained(tmp_path / "base")
    model = XLLMForConditionalGeneration.from_pretrained(tmp_path / "base")
    model.config.towers = {"language_model": {"name_or_path": str(tmp_path / "base"), "revision": None}}
    expected = logits(shaken(model, dora=True))
    changed = merge_lora(model)
    assert changed == [name for name in changed if name.endswith("query_key_value.weight")]
    torch.testing.assert_close(logits(model), expected, atol=1e-4, rtol=1e-4)
    model.save_pretrained(tmp_path / "merged")
    again = AutoModel.from_pretrained(tmp_path / "merged")
    assert not again.config.adapter
    assert not again.config.towers
    torch.testing.assert_close(logits(again), logits(model), atol=0, rtol=0)
    with pytest.raises(StageError, match="no adapter to merge"):
        merge_lora(again)


def test_stages_train_keep_continue_and_merge_an_adapter(stage, tmp_path, capsys):
    """Stage 2 makes it, stage 3 keeps it as it is, another trains it on and merges it; nothing else moves."""
    settings = {key: stage.pop(key) for key in ("stage", "modalities")}
    stages = [{**settings, "lora": LORA}, {"stage": 3}, {"stage": 3, "name": "on", "lora": {"merge": True}}]
    recipe = {**stage, "stages": stages}
    sizes = [int(line.split(" samples, ")[1].split(" ")[0].replace(",", "")) for line in check(recipe)]
    assert sizes[2] > sizes[1]
    folders = [result.folder for result in train(recipe, progress=False).stages]
    models = [load_checkpoint(str(folder))[0] for folder in folders]
    adapters = [{name: p for name, p in one.named_parameters() if "lora_" in name} for one in models]
    assert adapters[0]
    assert any(parameter.abs().sum() > 0 for name, parameter in adapters[0].items() if ".lora_B." in name)
    assert all(torch.equal(adapters[0][name], parameter) for name, parameter in adapters[1].items())
    assert adapters[2] == {}
    base = load_checkpoint(stage["model"])[0].state_dict()
    states = [without_adapter(model) for model in models]
    language = [name for name in base if name.startswith(("model.language_model.", "lm_head."))]
    assert all(torch.equal(state[name], base[name]) for state in states[:2] for name in language)
    moved = [name for name in language if not torch.equal(states[2][name], base[name])]
    assert moved
    assert all(name.endswith("query_key_value.weight") for name in moved)

    lineage = models[2].config.lineage
    made, kept, merged = (entry["adapter"] for entry in lineage)
    assert (made["parent"], made["r"], made["alpha"], made["merged"]) == (None, 2, 4, False)
    assert kept["parent"] == kept["weights"] == made["weights"] == merged["parent"] != merged["weights"]
    assert merged["merged"]
    receipts = [json.loads((folder / "frozen.json").read_text()) for folder in folders]
    assert set(receipts[2]["merged"]) == set(moved)
    assert not any("base_layer" in name for receipt in receipts for name in receipt["tensors"])
    assert any(".lora_A." in name for name in receipts[1]["tensors"])  # kept, so frozen there
    assert not any(".lora_A." in name for name in receipts[0]["tensors"])
    for folder in folders:
        assert main(["chat", str(folder), "What is it?", "--max-new-tokens", "2"]) == 0


def test_a_run_begins_with_the_adapter_of_another_run(stage, tmp_path):
    first = train({**stage, "lora": {"r": 2, "dora": True}}, progress=False).checkpoint
    again = {**stage, "model": str(first), "output_dir": str(tmp_path / "again")}
    second = train({**again, "lora": {}}, progress=False).checkpoint
    assert adapter_of(load_checkpoint(str(second))[0])["dora"]
    with pytest.raises(StageError, match=r"lora.r is 4, but the model has an adapter with 2: leave it out to"):
        train({**again, "output_dir": str(tmp_path / "other"), "lora": {"r": 4}})
    with pytest.raises(StageError, match="stage 0 trains the language model, but that has an adapter"):
        check({**again, "output_dir": str(tmp_path / "text"), "stage": 0, "modalities": None})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lora": {"rank": 2}}, "unknown key 'lora.rank'"),
        ({"lora": {"r": 0}}, "r and alpha are at least 1"),
        (
            {"lora": {"modules": ["q_proj"]}},
            "lora.modules: 'q_proj': the linear layers of the language model are d",
        ),
        ({"lora": {"target": "vision_tower"}}, "only language_model can have an adapter"),
        ({"lora": {}, "stage": 1}, "lora belongs to stages 2 and 3"),
    ],
)
def test_bad_settings_leave_nothing(stage, changes, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        train({**stage, **changes}, progress=False)
    assert not (tmp_path / "out").exists()


def test_an_empty_key_means_the_defaults_and_none_means_no_adapter():
    recipe = {"model": "m", "output_dir": "o", "stage": 2, "data": {"train": "a"}}
    assert load_recipe({**recipe, "lora": {}}).stages[0].lora is not None
    assert load_recipe({**recipe, "lora": None}).stages[0].lora is None


def test_without_peft_one_line_says_what_to_install(stage, tmp_path, monkeypatch, capsys):
    folder = train({**stage, "lora": LORA}, progress=False).checkpoint
    monkeypatch.setitem(sys.modules, "peft", None)
    assert main(["chat", str(folder), "?"]) == 1
    assert capsys.readouterr().err.endswith("its language model has an adapter: pip install peft\n")
    with pytest.raises(StageError, match="lora needs PEFT: pip install peft"):
        train({**stage, "output_dir": str(tmp_path / "other"), "lora": LORA})


@pytest.mark.parametrize("fault", ["missing", "altered", "truncated", "other", "nan"])
def test_a_damaged_adapter_is_an_error(tmp_path, fault):
    shaken(tiny_model()).save_pretrained(tmp_path)
    weights = tmp_path / "adapter" / "adapter_model.safetensors"
    if fault == "missing":
        weights.unlink()
    elif fault == "altered":
        weights.write_bytes(weights.read_bytes()[:-1] + b"\1")
    elif fault == "truncated":
        weights.write_bytes(weights.read_bytes()[:100])
    else:
        other = shaken(tiny_model(), r=3 if fault == "other" else 2)
        if fault == "nan":
            next(p for name, p in other.named_parameters() if ".lora_A." in name).data[0, 0] = torch.nan
        other.save_pretrained(tmp_path / "other")
        shutil.copy(tmp_path / "other" / "adapter" / weights.name, weights)
        config = json.loads((tmp_path / "config.json").read_text())
        del config["adapter"]["sha256"]
        (tmp_path / "config.json").write_text(json.dumps(config))
    message = {"other": "misshapen", "nan": "adapter_model.safetensors: NaN or Inf in 1 of its"}.get(fault, "adapter")
    with pytest.raises(StageCheckpointError, match=message) as raised:
        AutoModel.from_pretrained(tmp_path)
    assert "\n" not in str(raised.value)


def test_an_adapter_is_read_into_the_one_that_is_trained(tmp_path):
    saved = shaken(tiny_model())
    saved.save_pretrained(tmp_path)
    model = tiny_model()
    trained = add_lora(model, **LORA)
    model.load_adapter_weights(str(tmp_path))
    torch.testing.assert_close(logits(model), logits(saved), atol=0, rtol=0)
    assert all(model.get_parameter(name).requires_grad for name in trained)


def test_weights_of_one_s_own_and_encoders_alone_come_without_the_adapter(tmp_path):
    model = shaken(tiny_model())
    model.save_pretrained(tmp_path)
    own = {"config": model.config, "state_dict": without_adapter(model)}
    found = XLLMEncoderModel.from_pretrained(tmp_path), XLLMForConditionalGeneration.from_pretrained(None, **own)
    assert not any(adapted_layers(one) for one in found)


def test_an_adapter_of_the_head_is_stored_without_the_head(tmp_path):
    model = tiny_model("llama")
    model.attach_adapter(LoraConfig(target_modules=["q_proj", "lm_head"]))
    model.save_pretrained(tmp_path)
    stored = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    assert {key.rpartition(".lora_")[2] for key in stored} == {"A.weight", "B.weight"}


def test_a_plain_trainer_s_checkpoint_is_whole(tiny, media, tmp_path):
    model, processor = tiny
    add_lora(model, **LORA)
    freeze_for_stage(model, 2, ["image"])
    user = {"role": "user", "content": [{"type": "image", "path": str(media / "red.png")}]}
    rows = [{"messages": [user, {"role": "assistant", "content": "red"}]}] * 2
    args = TrainingArguments(
        str(tmp_path), max_steps=2, per_device_train_batch_size=1, remove_unused_columns=False, label_names=["labels"],
        report_to="none", disable_tqdm=True, use_cpu=True, learning_rate=1e-2, save_steps=2,
    )  # fmt: skip
    Trainer(model, args, data_collator=XLLMDataCollator(processor), train_dataset=rows).train()
    again = AutoModel.from_pretrained(tmp_path / "checkpoint-2")
    state = again.state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())


def test_more_than_one_adapter_is_not_saved(tmp_path):
    model = shaken(tiny_model())
    model.add_adapter(next(iter(model.peft_config.values())), "second")
    with pytest.raises(StageCheckpointError, match="a checkpoint holds one adapter"):
        model.save_pretrained(tmp_path)
    other = tiny_model("llama")
    other.attach_adapter(LoraConfig(target_modules=["q_proj"], modules_to_save=["lm_head"]))
    with pytest.raises(StageCheckpointError, match="without modules_to_save"):
        other.save_pretrained(tmp_path)
    with pytest.raises(StageError, match="the model has an adapter already"):
        add_lora(model)


def test_a_checkpoint_with_an_adapter_is_one_for_commands(stage):
    folder = train({**stage, "lora": LORA}, progress=False).checkpoint
    with pytest.raises(CheckpointError, match="nowhere"):
        load_checkpoint(str(folder / "nowhere"))
    assert main(["inspect", str(folder)]) == 0
    with pytest.raises(ValueError, match="its language model has an adapter that would be lost; merge it"):
        XLLMForConditionalGeneration.from_towers(interfaces={"speech": str(folder)})
