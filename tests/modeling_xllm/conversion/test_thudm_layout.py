# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""ChatGLM's configuration, THUDM's folders, and the tensors of the published code where they are available."""

import json
import math
from pathlib import Path

import pytest
import torch
from fixtures.chatglm_helpers import WEIGHTS, build
from fixtures.chatglm_oracle import CONFIG, EOP, PROMPTS
from peft import LoraConfig, inject_adapter_in_model
from safetensors.torch import load_file
from tiny import GMASK, SOP, tiny_model
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    LlamaConfig,
    LlamaForCausalLM,
)

from xllm import ChatGLMConfig, ChatGLMForConditionalGeneration, ChatGLMTokenizer
from xllm.assembly.tiny import train_sentencepiece
from xllm.modeling_xllm.conversion.thudm_layout import save_thudm_checkpoint
from xllm.modeling_xllm.modeling_chatglm import chatglm_positions


PARITY = Path(__file__).resolve().parents[4] / "shared" / "parity" / "chatglm_tiny"


@pytest.fixture(scope="module")
def model() -> ChatGLMForConditionalGeneration:
    return build()


# ---- configuration --------------------------------------------------------------------------------------------------


def test_config_knows_both_generations_and_thudms_names():
    new, old = ChatGLMConfig(), ChatGLMConfig(vocab_size=150528)
    assert (new.mask_token_id, new.gmask_token_id, new.bos_token_id, new.eos_token_id, new.pad_token_id) == (
        130000, 130001, 130004, 130005, 3,
    )  # fmt: skip
    assert (old.gmask_token_id, old.bos_token_id, old.eos_token_id, old.pad_token_id) == (
        150001, 150004, 150005, 20003,
    )  # fmt: skip
    assert (new.legacy_sop_position, old.legacy_sop_position) == (False, True)
    config = ChatGLMConfig(**CONFIG, layernorm_epsilon=1e-6)
    assert (config.num_hidden_layers, config.intermediate_size, config.max_position_embeddings) == (2, 48, 128)
    assert (config.num_layers, config.inner_hidden_size, config.layer_norm_eps) == (2, 48, 1e-6)
    assert config.residual_scale == math.sqrt(56)  # whatever the number of layers


def test_config_survives_saving(tmp_path):
    config = ChatGLMConfig(**CONFIG, rope_half_precision=True, residual_scale=2.5)
    config.save_pretrained(tmp_path)
    again = AutoConfig.from_pretrained(tmp_path)
    assert isinstance(again, ChatGLMConfig)
    assert {**again.to_dict(), "_name_or_path": ""} == {**config.to_dict(), "_name_or_path": ""}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"padded_vocab_size": 65024, "multi_query_attention": True}, "ChatGLM2, ChatGLM3 or GLM-4"),
        ({"quantization_bit": 4}, "int4-quantised THUDM variant"),
        ({"pre_seq_len": 128}, "P-tuning"),
        ({"position_encoding_2d": False}, "position_encoding_2d"),
        ({"vocab_size": 500}, "give gmask_token_id and bos_token_id"),
        ({"hidden_size": 4100}, "multiple of 4 \\* num_attention_heads"),
    ],
)
def test_config_refuses_other_checkpoints(fields, message):
    with pytest.raises(ValueError, match=message):
        ChatGLMConfig(**fields)


def test_config_accepts_an_unquantised_folder_that_says_so():
    assert ChatGLMConfig(quantization_bit=0, pre_seq_len=None).vocab_size == 130528


# ---- checkpoints ----------------------------------------------------------------------------------------------------


def write_thudm_folder(folder: Path, **fields) -> None:
    """A folder as THUDM publishes it: sharded .bin in fp16 with fp32 norms, inv_freq per layer, auto_map."""
    state = {name: tensor.float() if "layernorm" in name else tensor for name, tensor in WEIGHTS.items()}
    for index in range(CONFIG["num_layers"]):
        state[f"transformer.layers.{index}.attention.rotary_emb.inv_freq"] = torch.full((4,), 7.0).half()
    names = sorted(state)
    shards = {"pytorch_model-00001-of-00002.bin": names[::2], "pytorch_model-00002-of-00002.bin": names[1::2]}
    for file, keys in shards.items():
        torch.save({key: state[key] for key in keys}, folder / file)
    index = {"metadata": {"total_size": 0}, "weight_map": {key: file for file, keys in shards.items() for key in keys}}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index), encoding="utf-8")
    config = {
        **CONFIG,
        "architectures": ["ChatGLMModel"],
        "auto_map": {"AutoConfig": "configuration_chatglm.ChatGLMConfig", "AutoModel": "modeling_chatglm.ChatGLM"},
        "model_type": "chatglm",
        "position_encoding_2d": True,
        "torch_dtype": "float16",
        "layernorm_epsilon": 1e-5,
        **fields,
    }
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    (folder / "modeling_chatglm.py").write_text("raise RuntimeError('remote code was run')", encoding="utf-8")


def test_a_thudm_folder_loads_without_its_code_and_saves_under_its_names(tmp_path, model):
    write_thudm_folder(tmp_path)
    loaded, info = AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert type(loaded) is ChatGLMForConditionalGeneration
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert {parameter.dtype for parameter in loaded.parameters()} == {torch.float16}
    assert loaded.generation_config.eos_token_id == EOP
    ids = torch.tensor([PROMPTS["answered"]])
    full = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).eval()
    assert torch.equal(full(ids).logits, model(ids).logits)
    loaded.save_pretrained(tmp_path / "saved")
    saved = load_file(str(tmp_path / "saved" / "model.safetensors"))
    assert saved.keys() == WEIGHTS.keys()
    assert all(torch.equal(saved[name], tensor) for name, tensor in WEIGHTS.items())


@pytest.mark.parametrize("legacy", [False, True])
def test_saving_in_thudms_layout_and_back(tmp_path, legacy):
    model = build(legacy_sop_position=legacy, residual_scale=3.0)
    tokenizer = ChatGLMTokenizer(str(train_sentencepiece(["seven dogs ran left"], tmp_path, 100, word_level=True)))
    tmp_path = tmp_path / "saved"
    save_thudm_checkpoint(model, tmp_path, tokenizer, max_shard_size=10_000)
    index = json.loads((tmp_path / "pytorch_model.bin.index.json").read_text(encoding="utf-8"))
    shards = sorted(set(index["weight_map"].values()))
    assert shards == [f"pytorch_model-{shard:05d}-of-{len(shards):05d}.bin" for shard in range(1, len(shards) + 1)]
    assert len(shards) > 1
    stored = {shard: torch.load(tmp_path / shard, weights_only=True) for shard in shards}
    assert {name: shard for shard, tensors in stored.items() for name in tensors} == index["weight_map"]
    sizes = [tensor.numel() * tensor.itemsize for tensors in stored.values() for tensor in tensors.values()]
    assert index["metadata"]["total_size"] == sum(sizes)
    frequencies = [f"transformer.layers.{layer}.attention.rotary_emb.inv_freq" for layer in range(2)]
    assert index["weight_map"].keys() == {*WEIGHTS, *frequencies}
    for name, tensor in ((name, tensor) for tensors in stored.values() for name, tensor in tensors.items()):
        assert tensor.dtype == (torch.float32 if "layernorm" in name else torch.float16), name
    config = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    assert {name: config[name] for name in CONFIG} == CONFIG
    assert config["architectures"] == ["ChatGLMModel"]
    assert config["torch_dtype"] == "float16"
    assert ("legacy_sop_position" in config, config["residual_scale"]) == (legacy, 3.0)

    again, info = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32, output_loading_info=True)
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    ours = {**again.config.to_dict(), "_name_or_path": "", "architectures": None, "auto_map": None, "dtype": None}
    assert ours.items() >= {**model.config.to_dict(), "architectures": None, "dtype": None}.items()
    ids = torch.tensor([PROMPTS["answered"]])
    assert torch.equal(again(ids).logits, model(ids).logits)
    text = "seven dogs\nran"
    assert AutoTokenizer.from_pretrained(tmp_path)(text)["input_ids"] == tokenizer(text)["input_ids"]


def test_the_chatglm_inside_a_composite_is_saved_alone(tmp_path):
    composite = tiny_model()
    save_thudm_checkpoint(composite, tmp_path, dtype=torch.float32)
    assert not (tmp_path / "pytorch_model.bin.index.json").exists()
    alone = AutoModelForCausalLM.from_pretrained(tmp_path)
    inputs = {"input_ids": torch.tensor([[7, 8, 9, GMASK, SOP]])}
    assert torch.equal(alone(**inputs).logits, composite(**inputs).logits)


def test_saving_refuses_what_the_layout_cannot_hold(tmp_path):
    llama = LlamaConfig(vocab_size=8, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1)
    with pytest.raises(ValueError, match="got a llama language model, expected a ChatGLM"):
        save_thudm_checkpoint(LlamaForCausalLM(llama), tmp_path)
    adapted = build()
    inject_adapter_in_model(LoraConfig(target_modules=["query_key_value"]), adapted)
    with pytest.raises(ValueError, match=r"no place for .*query_key_value.*\(merge_and_unload\)"):
        save_thudm_checkpoint(adapted, tmp_path)
    quantised = build()
    quantised.config.quantization_config = BitsAndBytesConfig(load_in_8bit=True)
    with pytest.raises(ValueError, match="its weights are quantised"):
        save_thudm_checkpoint(quantised, tmp_path)


def test_loading_refills_the_rotary_table_and_reports_what_is_missing(tmp_path, model):
    model.save_pretrained(tmp_path)
    again = ChatGLMForConditionalGeneration.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert torch.equal(again.transformer.rotary_emb.inv_freq_bits, model.transformer.rotary_emb.inv_freq_bits)


CHATGLM2 = {
    "architectures": ["ChatGLMModel"],
    "auto_map": {"AutoModel": "modeling_chatglm.ChatGLMForConditionalGeneration"},
    "model_type": "chatglm",
    "ffn_hidden_size": 13696,
    "hidden_size": 4096,
    "kv_channels": 128,
    "layernorm_epsilon": 1e-05,
    "multi_query_attention": True,
    "multi_query_group_num": 2,
    "num_attention_heads": 32,
    "num_layers": 28,
    "padded_vocab_size": 65024,
    "rmsnorm": True,
    "seq_length": 32768,
    "eos_token_id": 2,
    "torch_dtype": "float16",
}
GLM4 = {**CHATGLM2, "padded_vocab_size": 151552, "rope_ratio": 500, "eos_token_id": [151329, 151336, 151338]}


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (CHATGLM2, "ChatGLM2, ChatGLM3 or GLM-4 config .* use THUDM/chatglm-6b here, or zai-org/glm-4-9b-hf"),
        (GLM4, "ChatGLM2, ChatGLM3 or GLM-4 config .* use THUDM/chatglm-6b here, or zai-org/glm-4-9b-hf"),
        ({"quantization_bit": 4, "quantization_embeddings": True}, "int4-quantised THUDM variant.* TorchAoConfig"),
        ({"quantization_bit": 8, "quantization_embeddings": False}, "int8-quantised THUDM variant.* TorchAoConfig"),
    ],
)
@pytest.mark.parametrize("auto", [AutoConfig, AutoModelForCausalLM, ChatGLMForConditionalGeneration])
def test_folders_of_other_kinds_are_refused(tmp_path, auto, config, message):
    write_thudm_folder(tmp_path, **config)
    if config is CHATGLM2 or config is GLM4:
        (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        auto.from_pretrained(tmp_path)


def test_fresh_weights_follow_the_initializer_range():
    model = ChatGLMForConditionalGeneration(ChatGLMConfig(**CONFIG, initializer_range=0.01))
    assert model.transformer.layers[0].mlp.dense_h_to_4h.weight.std().item() == pytest.approx(0.01, rel=0.1)
    assert model.transformer.final_layernorm.weight.unique().tolist() == [1.0]


# ---- the published code ---------------------------------------------------------------------------------------------


# Largest differences of the published fp32 logits and hidden states from our fp64 ones; the logits reach 10.7.
ROUNDING = {
    "single_1": (2.7e-6, 1.2e-5),
    "single_5": (4.9e-5, 1.7e-4),
    "single_17": (1.3e-4, 3.4e-4),
    "single_64": (1.6e-4, 4.9e-4),
    "single_200": (4.9e-4, 6.7e-4),
    "with_output": (2.8e-4, 2.7e-4),
    "mask_mid": (8.2e-5, 1.3e-4),
    "mask_and_gmask": (1.8e-4, 2.9e-4),
    "leftpad": (9.6e-5, 1.4e-4),
    "xllm_image": (1.1e-4, 2.2e-4),
    "xllm_speech": (1.0e-4, 3.0e-4),
    "xllm_both": (1.2e-4, 2.3e-4),
    "text_loss": (),
}


@pytest.mark.skipif(not PARITY.is_dir(), reason="needs the tensors of the published code in ../shared/parity")
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
class TestPublishedCode:
    """Tensors made by THUDM's and X-LLM's own code; see the README beside them."""

    @pytest.fixture
    def cases(self, attention):
        tensors = load_file(str(PARITY / "reference.safetensors"))
        kinds = json.loads((PARITY / "reference.json").read_text(encoding="utf-8"))["cases"]
        config = ChatGLMConfig(**json.loads((PARITY / "config_kwargs.json").read_text(encoding="utf-8")))
        model = ChatGLMForConditionalGeneration._from_config(config, attn_implementation=attention).eval()
        state = load_file(str(PARITY / "model.safetensors"))
        model.load_state_dict({name: tensor for name, tensor in state.items() if "inv_freq" not in name})
        named = {
            case: {name[len(case) + 1 :]: tensor for name, tensor in tensors.items() if name.startswith(f"{case}.")}
            for case in kinds
        }
        return model, kinds, named

    @staticmethod
    def inputs(model, tensors) -> dict:
        """Our arguments for a case; its 4-D mask (True = masked) has padding on the diagonal."""
        ids = tensors["input_ids"]
        inputs = {"input_ids": ids}
        if "attention_mask" in tensors:
            inputs["attention_mask"] = (~tensors["attention_mask"][:, 0].diagonal(dim1=1, dim2=2)).long()
        media = [tensors[name] for name in ("input_image", "input_speech") if name in tensors]
        if media:
            media = torch.cat(media, dim=1).to(model.dtype).requires_grad_(True)
            text = model.get_input_embeddings()(ids[:, media.shape[1] :]).detach()
            inputs["inputs_embeds"] = torch.cat((media, text), dim=1)
            inputs["media"] = media
        return inputs

    def run(self, model, tensors, dtype) -> dict[str, torch.Tensor]:
        """Our tensors of a case, computed in `dtype`; a published tensor has the same name, or a part of it."""
        model.to(dtype).zero_grad()
        inputs = self.inputs(model, tensors)
        media = inputs.pop("media", None)
        outputs = model(**inputs, labels=tensors.get("labels"), output_hidden_states=True)
        keep = inputs.get("attention_mask", torch.ones_like(tensors["input_ids"])).bool()
        ours = {"logits": outputs.logits[keep], "hidden": torch.stack(outputs.hidden_states)[:, keep]}
        if "loss" in tensors:
            outputs.loss.backward()
            ours["loss"] = outputs.loss
            grads = {name: model.get_parameter(name[6:]).grad.clone() for name in tensors if name.startswith("pgrad.")}
            ours |= grads if media is None else {**grads, "pgrad.media": media.grad}
        return {name: tensor.detach().double() for name, tensor in ours.items()} | {"keep": keep}

    def test_forward_and_gradients(self, cases):
        """The published fp32 run is as far from our fp64 as its own rounding, and so is our fp32, on any processor."""
        model, kinds, named = cases
        compared = 0
        for case, info in kinds.items():
            # leftpad_nomask is what X-LLM fed by mistake: padding attended and counted.
            if info.get("kind") not in ("forward", "loss") or case == "leftpad_nomask":
                continue
            published = dict(named[case])
            if "hidden" in published:
                published["hidden"] = torch.stack(list(published["hidden"]))
            single, double = (self.run(model, published, dtype) for dtype in (torch.float32, torch.float64))
            keep = double.pop("keep")
            for name, rounding in zip(("logits", "hidden"), ROUNDING[case]):
                theirs = published[name][..., keep, :].double()
                assert (double[name] - theirs).abs().max() < 1.25 * rounding + 1e-6, (case, name)
                assert (single[name] - double[name]).abs().max() < 2 * rounding + 2e-5, (case, name)
            if "loss" in published:
                assert double["loss"].item() == pytest.approx(published["loss"].item(), abs=1e-5), case
                assert double["loss"].item() == pytest.approx(single["loss"].item(), abs=1e-5), case
            names = [f"grad_{name}" for name in ("input_image", "input_speech") if f"grad_{name}" in published]
            if names:
                published["pgrad.media"] = torch.cat([published[name] for name in names], dim=1)
            for name in [name for name in double if name.startswith("pgrad.")]:
                bound = 1e-4 * published[name].abs().max()
                assert (double[name] - published[name]).abs().max() < bound, (case, name)
                assert (double[name] - single[name]).abs().max() < bound, (case, name)
            compared += 1
        model.float()
        assert compared == 13

    def test_generations(self, cases):
        model, kinds, named = cases
        compared = 0
        for case, info in kinds.items():
            if info.get("kind") not in ("generate", "stream"):
                continue
            inputs = self.inputs(model, named[case])
            inputs.pop("media", None)
            options = info.get("kwargs") or {"max_new_tokens": info["yields"], "do_sample": False}
            got = model.generate(**inputs, **options)
            assert got.tolist() == info["sequences"], case
            compared += 1
        assert compared == 13

    def test_positions_of_left_padding(self, cases):
        model, _, named = cases
        tensors = named["leftpad"]
        mask = self.inputs(model, tensors)["attention_mask"]
        positions, _ = chatglm_positions(tensors["input_ids"], mask, model.config)
        assert torch.equal(positions[:, mask.bool()], tensors["position_ids"].transpose(0, 1)[:, mask.bool()])
