# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""ChatGLM against a slow re-implementation (fixtures/chatglm_oracle.py) and against the published code where available."""

import copy
import json
import math
from pathlib import Path

import pytest
import torch
from fixtures.chatglm_oracle import CONFIG, EOP, FIXTURE, GMASK, MASK, PAD, PROMPTS, SOP, slow_logits, slow_positions
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM, DynamicCache, LlamaConfig, LlamaForCausalLM, StaticCache

from xllm import ChatGLMConfig, ChatGLMForConditionalGeneration
from xllm.modeling_xllm.modeling_chatglm import ChatGLMGenerationMixin, chatglm_positions


REFERENCE = load_file(str(FIXTURE))
WEIGHTS = {name[6:]: tensor for name, tensor in REFERENCE.items() if name.startswith("model.")}
PARITY = Path(__file__).resolve().parents[3] / "shared" / "parity" / "chatglm_tiny"
ROWS = [[7, 8, 9, 10, 11, GMASK, SOP], [5, GMASK, SOP], [12, 13, 14, 15, GMASK, SOP]]


def build(attention: str = "sdpa", **fields) -> ChatGLMForConditionalGeneration:
    model = ChatGLMForConditionalGeneration._from_config(
        ChatGLMConfig(**CONFIG, **fields), attn_implementation=attention
    )
    model.load_state_dict({name: tensor.float() for name, tensor in WEIGHTS.items()})
    return model.eval()


@pytest.fixture(scope="module")
def model() -> ChatGLMForConditionalGeneration:
    return build()


def pad(rows: list[list[int]], side: str = "left") -> tuple[torch.Tensor, torch.Tensor]:
    """Rows of ids to a batch and its mask."""
    longest = max(map(len, rows))
    fill = [longest - len(row) for row in rows]
    join = (lambda gap, row: gap + row) if side == "left" else (lambda gap, row: row + gap)
    ids = [join([PAD] * gap, row) for gap, row in zip(fill, rows)]
    mask = [join([0] * gap, [1] * len(row)) for gap, row in zip(fill, rows)]
    return torch.tensor(ids), torch.tensor(mask)


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


# ---- positions ------------------------------------------------------------------------------------------------------


def test_positions_by_hand():
    config = ChatGLMConfig(**CONFIG)
    ids = torch.tensor(
        [[PAD, PAD, 7, 8, GMASK, SOP, 20], [7, 9, 8, GMASK, SOP, 20, PAD], [7, MASK, 8, SOP, 20, 21, 22]]
    )
    mask = torch.tensor([[0, 0, 1, 1, 1, 1, 1], [1, 0, 1, 1, 1, 1, 0], [1, 1, 1, 1, 1, 1, 1]])
    positions, types = chatglm_positions(ids, mask, config)
    assert positions[0].tolist() == [[0, 0, 0, 1, 2, 2, 2], [0, 0, 1, 2, 2, 2, 2], [0, 1, 2, 1, 1, 1, 1]]
    assert positions[1].tolist() == [[0, 0, 0, 0, 0, 1, 2], [0, 0, 0, 0, 1, 2, 2], [0, 0, 0, 1, 2, 3, 4]]
    assert types.tolist() == [[0, 0, 0, 0, 0, 1, 1], [0, 0, 0, 0, 1, 1, 1], [0, 0, 0, 1, 1, 1, 1]]


@pytest.mark.parametrize("legacy", [False, True])
def test_positions_equal_the_slow_rule_wherever_masked_tokens_stand(legacy):
    config = ChatGLMConfig(**CONFIG, legacy_sop_position=legacy)
    generator = torch.Generator().manual_seed(1)
    for _ in range(20):
        length = 24
        ids = torch.randint(4, 50, (1, length), generator=generator)
        keep = torch.rand(1, length, generator=generator) > 0.4
        ids[0, 12], ids[0, 13] = GMASK, SOP
        keep[0, 12] = keep[0, 13] = True
        ids[0, 3], keep[0, 3] = SOP, False  # masked: does not count
        positions, types = chatglm_positions(ids, keep.long(), config)
        first, second, context = slow_positions(ids[0][keep[0]].tolist(), legacy)
        assert positions[:, 0, keep[0]].tolist() == [first, second]
        assert types[0, keep[0]].tolist() == [int(place >= context) for place in range(len(first))]


def test_layout_errors_name_the_row_and_the_remedy():
    config = ChatGLMConfig(**CONFIG)
    with pytest.raises(ValueError, match=r"row 1 of input_ids has no <sop> \(id 62\)"):
        chatglm_positions(torch.tensor([[5, GMASK, SOP], [5, 6, GMASK]]), None, config)
    with pytest.raises(ValueError, match=r"row 0 of input_ids has no \[gMASK\] \(id 61\) nor \[MASK\] \(id 60\)"):
        chatglm_positions(torch.tensor([[5, 6, SOP]]), None, config)
    ids = torch.full((1, 140), 5)
    ids[0, -2:] = torch.tensor([GMASK, SOP])
    with pytest.raises(ValueError, match="140 tokens in a row, the model takes max_sequence_length=128"):
        chatglm_positions(ids, None, config)
    mask = torch.ones_like(ids)
    mask[0, :20] = 0  # padding may exceed the limit, tokens may not
    assert chatglm_positions(ids, mask, config)[0].max() == 118
    chatglm_positions(torch.tensor([[5, GMASK, SOP], [PAD, PAD, PAD]]), torch.tensor([[1, 1, 1], [0, 0, 0]]), config)


# ---- forward --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("name", PROMPTS)
def test_logits_equal_the_slow_model(name, attention):
    logits = build(attention)(torch.tensor([PROMPTS[name]])).logits[0]
    assert (logits - REFERENCE[f"logits.{name}"]).abs().max() < 2e-5


def test_the_fixture_is_what_the_slow_model_says():
    assert torch.equal(slow_logits(WEIGHTS, PROMPTS["middle"]).float(), REFERENCE["logits.middle"])


def test_the_march_2023_rule_moves_sop(model):
    ids = torch.tensor([PROMPTS["answered"]])
    old = build(legacy_sop_position=True)(ids).logits[0]
    assert (old - slow_logits(WEIGHTS, PROMPTS["answered"], legacy=True)).abs().max() < 2e-5
    assert (old - model(ids).logits[0]).abs().max() > 1e-3


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("side", ["left", "right"])
def test_padded_rows_equal_rows_alone(side, attention):
    ids, mask = pad(ROWS, side)
    logits = build(attention)(ids, attention_mask=mask).logits
    assert torch.isfinite(logits).all()
    for row, got, keep in zip(ROWS, logits, mask.bool()):
        assert (got[keep] - slow_logits(WEIGHTS, row)).abs().max() < 2e-5


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_masked_slots_inside_a_row_are_as_good_as_absent(attention, dtype):
    model = build(attention).to(dtype)
    ids = torch.tensor([[7, 8, 9, 9, 9, 10, GMASK, SOP, 20]])
    mask = torch.tensor([[1, 1, 0, 0, 0, 1, 1, 1, 1]])
    with_holes = model(ids, attention_mask=mask).logits
    without = model(ids[mask.bool()][None]).logits
    assert torch.isfinite(with_holes).all()
    assert (with_holes[mask.bool()][None] - without).abs().max() < (1e-5 if dtype is torch.float32 else 0.05)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_a_row_of_padding_only_has_finite_outputs_and_gradients(attention):
    model = build(attention)
    embeds = torch.randn(2, 4, 32, requires_grad=True)
    ids, mask = torch.tensor([[7, 8, GMASK, SOP], [PAD] * 4]), torch.tensor([[1] * 4, [0] * 4])
    logits = model(ids, inputs_embeds=embeds, attention_mask=mask).logits
    logits[0].sum().backward()
    assert torch.isfinite(logits).all()
    assert torch.isfinite(embeds.grad).all()
    assert embeds.grad[0].abs().sum() > 0
    assert embeds.grad[1].abs().sum() == 0


def test_media_embeddings_with_ids_or_with_positions(model):
    media = torch.randn(3, 32)
    ids = torch.tensor([[999, 999, 999, 7, 8, GMASK, SOP, 20]])  # placeholder ids lie outside the vocabulary
    embeds = torch.cat((media, model.get_input_embeddings()(ids[0, 3:])))[None]
    expected = slow_logits(WEIGHTS, [0, 0, 0, *ids[0, 3:].tolist()], media)
    positions, types = chatglm_positions(ids, None, model.config)
    for inputs in (
        {"input_ids": ids},
        {"position_ids": positions, "token_type_ids": types},
        {"position_ids": positions},
    ):
        assert (model(inputs_embeds=embeds, **inputs).logits[0] - expected).abs().max() < 2e-5


def test_hidden_states_are_the_inputs_of_each_layer_and_the_normed_output(model):
    ids = torch.tensor([PROMPTS["middle"]])
    outputs = build("eager")(ids, output_hidden_states=True, output_attentions=True)
    assert [tuple(state.shape) for state in outputs.hidden_states] == [(1, 7, 32)] * 3
    assert torch.equal(outputs.hidden_states[0], model.get_input_embeddings()(ids))
    last = model.lm_head(outputs.hidden_states[-1])
    assert (last - outputs.logits).abs().max() < 1e-5
    weights = outputs.attentions[0][0]
    assert weights.shape == (2, 7, 7)
    assert weights[:, 0, 5].min() > 0  # the prefix sees what follows in it
    assert weights[:, :6, 6].abs().max() == 0  # but not <sop>


def test_bad_input_is_refused(model):
    embeds = torch.zeros(1, 3, 32)
    with pytest.raises(ValueError, match="give input_ids or inputs_embeds"):
        model()
    with pytest.raises(ValueError, match="inputs_embeds alone do not tell where <sop> is"):
        model(inputs_embeds=embeds)
    with pytest.raises(ValueError, match=r"input_ids must lie in 0..63, got 5..130001"):
        model(torch.tensor([[5, 130001, SOP]]))
    with pytest.raises(
        ValueError, match=r"position_ids must have shape \(2, batch, length\) = \(2, 1, 3\), got \(1, 3\)"
    ):
        model(inputs_embeds=embeds, position_ids=torch.zeros(1, 3, dtype=torch.long))
    cache = model(torch.tensor([ROWS[0]]), use_cache=True).past_key_values
    with pytest.raises(ValueError, match="past_key_values holds 7 tokens: give the position_ids"):
        model(torch.tensor([[20]]), past_key_values=cache)


def test_rotary_tables_survive_casts_and_can_be_half_precision(model):
    position_ids = torch.full((2, 1, 1), 1999)
    frequencies = (1.0 / 10000 ** (torch.arange(0, 8, 2) / 8)).half().double()
    expected = (1999 * frequencies).cos()
    cast = copy.deepcopy(model).to(torch.bfloat16).transformer.rotary_emb(position_ids, torch.float32)[0]
    assert cast.shape == (1, 1, 1, 1, 2, 2, 4)
    assert (cast - expected).abs().max() < 2e-4  # fp32 angles near 2000
    half = build(rope_half_precision=True).transformer.rotary_emb(position_ids, torch.float32)[0]
    assert torch.equal(half[0, 0, 0, 0, 0, 0], (torch.tensor(1999.0).half() * frequencies.half()).cos().float())
    assert (half - expected).abs().max() > 0.01


# ---- training -------------------------------------------------------------------------------------------------------


def test_training_projects_supervised_positions_only_and_gets_the_same_loss():
    model = build()
    ids, mask = pad([PROMPTS["answered"], [5, GMASK, SOP, 20, EOP]], "right")
    labels = ids.masked_fill((mask == 0) | (ids < 20) | (ids == GMASK), -100)
    rows = []
    model.lm_head.register_forward_hook(lambda module, inputs, output: rows.append(output.shape[:-1].numel()))
    full = model(ids, attention_mask=mask, labels=labels)
    full.loss.backward()
    expected = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    by_hand = torch.nn.functional.cross_entropy(full.logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
    assert full.loss.item() == pytest.approx(by_hand.item(), abs=1e-6)
    model.zero_grad()
    model.train()
    sparse = model(ids, attention_mask=mask, labels=labels)
    sparse.loss.backward()
    assert sparse.logits is None
    assert rows == [24, int((labels != -100).sum())]
    assert sparse.loss.item() == pytest.approx(full.loss.item(), abs=1e-6)
    for name, parameter in model.named_parameters():
        assert (parameter.grad - expected[name]).abs().max() < 1e-5, name
    assert model(ids, attention_mask=mask, labels=labels, logits_to_keep=12).logits.shape == (2, 12, 64)
    scaled = model(ids, attention_mask=mask, labels=labels, num_items_in_batch=torch.tensor(2 * 8)).loss
    assert scaled.item() == pytest.approx(full.loss.item() * 8 / 16, abs=1e-6)


@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpointing_gives_the_same_gradient_to_the_media(reentrant):
    model = build().train()
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    ids = torch.tensor([PROMPTS["answered"]])
    labels = ids.masked_fill(ids < SOP, -100)
    gradients = []
    for checkpointing in (False, True):
        if checkpointing:
            model.activation_checkpointing_enable({"use_reentrant": reentrant})
        torch.manual_seed(0)
        embeds = torch.randn(1, ids.shape[1], 32, requires_grad=True)
        model(ids, inputs_embeds=embeds, labels=labels, use_cache=False).loss.backward()
        gradients.append(embeds.grad)
    assert gradients[0].abs().max() > 0
    assert torch.equal(*gradients)


# ---- generation -----------------------------------------------------------------------------------------------------


def recompute(model, ids: list[int], steps: int) -> list[int]:
    """Greedy continuation without a cache and without `generate`."""
    for _ in range(steps):
        ids = [*ids, int(model(torch.tensor([ids])).logits[0, -1].argmax())]
    return ids


def test_greedy_equals_the_slow_model(model):
    assert model.generate(torch.tensor([PROMPTS["middle"]]), max_new_tokens=8, eos_token_id=None)[0].tolist() == (
        REFERENCE["greedy"].tolist()
    )


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"use_cache": False},
        {"cache_implementation": "static"},
        {"logits_to_keep": 0},
    ],
    ids=str,
)
@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_greedy_modes_equal_recomputation_of_each_row_alone(options, legacy, attention):
    model = build(attention, legacy_sop_position=legacy)
    ids, mask = pad(ROWS)
    got = model.generate(ids, attention_mask=mask, max_new_tokens=9, eos_token_id=None, do_sample=False, **options)
    for row, sequence, fill in zip(ROWS, got, (mask == 0).sum(-1)):
        assert sequence[fill:].tolist() == recompute(model, row, 9)


@pytest.mark.parametrize("legacy", [False, True])
def test_drafted_tokens_get_the_right_positions(legacy):
    model = build(legacy_sop_position=legacy)
    prompt = [20, 21, 22, 23, 20, 21, GMASK, SOP]
    options = {"max_new_tokens": 14, "eos_token_id": None, "do_sample": False}
    expected = recompute(model, prompt, 14)
    seen = []
    hook = model.transformer.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs["position_ids"]), with_kwargs=True
    )
    looked_up = model.generate(torch.tensor([prompt]), prompt_lookup_num_tokens=3, **options)
    hook.remove()
    assert looked_up[0].tolist() == expected
    drafted = [positions for positions in seen[1:] if positions.shape[-1] > 1]
    assert drafted
    assert all((positions[0, :, positions[1, 0] > 1] == 6).all() for positions in seen)
    assistant = copy.deepcopy(model)
    assert model.generate(torch.tensor([prompt]), assistant_model=assistant, **options)[0].tolist() == expected


def test_beams_and_returned_sequences_equal_each_row_alone(model):
    ids, mask = pad(ROWS)
    options = {
        "max_new_tokens": 7,
        "num_beams": 3,
        "num_return_sequences": 2,
        "do_sample": False,
        "eos_token_id": None,
    }
    together = model.generate(ids, attention_mask=mask, **options)
    uncached = model.generate(ids, attention_mask=mask, use_cache=False, **options)
    assert torch.equal(together, uncached)
    for index, row in enumerate(ROWS):
        alone = model.generate(torch.tensor([row]), **options)
        assert torch.equal(together[2 * index : 2 * index + 2, -7:], alone[:, -7:])


def test_sampling_with_and_without_a_cache_draws_the_same(model):
    ids, mask = pad(ROWS)
    drawn = []
    for use_cache in (True, False):
        torch.manual_seed(5)
        drawn.append(model.generate(ids, attention_mask=mask, max_new_tokens=8, do_sample=True, use_cache=use_cache))
    assert torch.equal(*drawn)


@pytest.mark.parametrize("give", ["ids", "positions"])
def test_generation_from_embeddings(model, give):
    ids, mask = pad(ROWS)
    embeds = model.get_input_embeddings()(ids)
    options = {"attention_mask": mask, "max_new_tokens": 6, "eos_token_id": None, "do_sample": False}
    expected = model.generate(ids, **options)
    if give == "ids":
        assert torch.equal(model.generate(ids, inputs_embeds=embeds, **options), expected)
    else:
        positions, types = chatglm_positions(ids, mask, model.config)
        got = model.generate(inputs_embeds=embeds, position_ids=positions, token_type_ids=types, **options)
        assert torch.equal(got, expected[:, ids.shape[1] :])


@pytest.mark.parametrize("kind", ["dynamic", "static"])
def test_generation_goes_on_from_a_cache_that_holds_the_prefix(model, kind):
    prompt = torch.tensor([PROMPTS["middle"]])
    options = {"eos_token_id": None, "do_sample": False}
    cache = (
        DynamicCache(config=model.config) if kind == "dynamic" else StaticCache(config=model.config, max_cache_len=32)
    )
    some = model.generate(prompt, past_key_values=cache, max_new_tokens=4, **options)
    more = model.generate(some, past_key_values=cache, max_new_tokens=4, **options)
    assert torch.equal(more, model.generate(prompt, max_new_tokens=8, **options))


def test_generation_refuses_what_a_bidirectional_prefix_cannot_do(model):
    prompt = torch.tensor([PROMPTS["middle"]])
    with pytest.raises(ValueError, match="prefill_chunk_size=2: the prompt of a ChatGLM is seen in both directions"):
        model.generate(prompt, prefill_chunk_size=2)
    positions, types = chatglm_positions(prompt, None, model.config)
    cache = model(
        prompt[:, :3], position_ids=positions[..., :3], token_type_ids=types[:, :3], use_cache=True
    ).past_key_values
    with pytest.raises(ValueError, match="holds 3 tokens but the prompt's bidirectional prefix is longer"):
        model.generate(prompt, past_key_values=cache)
    with pytest.raises(ValueError, match="generate got inputs_embeds alone"):
        model.generate(inputs_embeds=model.get_input_embeddings()(prompt))
    with pytest.raises(ValueError, match="row 0 of input_ids has no <sop>"):
        model.generate(torch.tensor([[5, 6, 7]]))


def test_the_mixin_leaves_other_language_models_alone():
    class Other(LlamaForCausalLM, ChatGLMGenerationMixin):
        pass

    config = LlamaConfig(
        vocab_size=50, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, pad_token_id=0
    )
    plain = LlamaForCausalLM(config).eval()
    other = Other(config).eval()
    other.load_state_dict(plain.state_dict())
    ids, mask = torch.tensor([[0, 5, 6, 7], [4, 5, 6, 8]]), torch.tensor([[0, 1, 1, 1], [1, 1, 1, 1]])
    for options in ({}, {"num_beams": 2}, {"cache_implementation": "static"}, {"prefill_chunk_size": 2}):
        options = {"attention_mask": mask, "max_new_tokens": 5, "do_sample": False, **options}
        assert torch.equal(plain.generate(ids, **options), other.generate(ids, **options))


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


def test_loading_refills_the_rotary_table_and_reports_what_is_missing(tmp_path, model):
    model.save_pretrained(tmp_path)
    again = ChatGLMForConditionalGeneration.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert torch.equal(again.transformer.rotary_emb.inv_freq_bits, model.transformer.rotary_emb.inv_freq_bits)


@pytest.mark.parametrize(
    ("fields", "message"),
    [({"quantization_bit": 4}, "int4-quantised THUDM variant"), ({"multi_query_attention": True}, "ChatGLM2")],
)
def test_folders_of_other_kinds_are_refused(tmp_path, fields, message):
    write_thudm_folder(tmp_path, **fields)
    with pytest.raises(ValueError, match=message):
        AutoModelForCausalLM.from_pretrained(tmp_path)


def test_fresh_weights_follow_the_initializer_range():
    model = ChatGLMForConditionalGeneration(ChatGLMConfig(**CONFIG, initializer_range=0.01))
    assert model.transformer.layers[0].mlp.dense_h_to_4h.weight.std().item() == pytest.approx(0.01, rel=0.1)
    assert model.transformer.final_layernorm.weight.unique().tolist() == [1.0]


# ---- the published code ---------------------------------------------------------------------------------------------


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
            media = torch.cat(media, dim=1).requires_grad_(True)
            text = model.get_input_embeddings()(ids[:, media.shape[1] :]).detach()
            inputs["inputs_embeds"] = torch.cat((media, text), dim=1)
            inputs["media"] = media
        return inputs

    def test_forward_and_gradients(self, cases):
        model, kinds, named = cases
        compared = 0
        for case, info in kinds.items():
            # leftpad_nomask is what X-LLM fed by mistake: padding attended and counted.
            if info.get("kind") not in ("forward", "loss") or case == "leftpad_nomask":
                continue
            tensors, inputs = named[case], self.inputs(model, named[case])
            media = inputs.pop("media", None)
            outputs = model(**inputs, labels=tensors.get("labels"), output_hidden_states=True)
            keep = inputs.get("attention_mask", torch.ones_like(tensors["input_ids"])).bool()
            if "logits" in tensors:
                assert (outputs.logits - tensors["logits"])[keep].abs().max() < 2e-4, case
            for got, expected in zip(outputs.hidden_states, tensors.get("hidden", ())):
                assert (got - expected)[keep].abs().max() < 5e-4, case
            if "loss" in tensors:
                assert outputs.loss.item() == pytest.approx(tensors["loss"].item(), abs=1e-5), case
                model.zero_grad()
                outputs.loss.backward()
                expected = {name[6:]: grad for name, grad in tensors.items() if name.startswith("pgrad.")}
                got = {name: model.get_parameter(name).grad for name in expected}
                if media is not None:
                    names = [f"grad_{name}" for name in ("input_image", "input_speech") if name in tensors]
                    got["media"], expected["media"] = media.grad, torch.cat([tensors[name] for name in names], dim=1)
                for name, grad in expected.items():
                    assert (got[name] - grad).abs().max() < 1e-4 * grad.abs().max(), (case, name)
            compared += 1
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
