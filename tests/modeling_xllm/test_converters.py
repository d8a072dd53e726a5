# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""Converters found by name: one of the user's own through all that meets it; rows and inputs."""

import copy
from types import SimpleNamespace

import pytest
import torch
from tiny import FRAMES, IMAGE, PIXELS, QUERIES, SPEECH, STATUS, TEXT, VIDEO, prompt, speech, tiny_model, tiny_rows
from torch import nn
from transformers import PreTrainedConfig

from xllm import X2LConfig, XLLMConfig, XLLMForConditionalGeneration
from xllm.modeling_xllm.converters import (
    CONVERTERS,
    CFormerConverter,
    ConverterOutput,
    LinearConverter,
    QFormerConverter,
    X2LConverter,
    in_windows,
    register_converter,
)
from xllm.training.stage_one import stage_one_task
from xllm.training.stages import StageError, freeze_for_stage


class PoolConfig(PreTrainedConfig):
    """Sizes of a `PoolConverter`."""

    model_type = "test_pool"
    width: int = 12


class PoolConverter(X2LConverter):
    """One token per item: the mean over its features, projected and shifted."""

    config_class = PoolConfig

    def __init__(self, row, owner_row):
        super().__init__(row, owner_row)
        self.dense = nn.Linear(row.encoder_hidden_size, row.converter_config.width)
        self.shift = nn.Parameter(torch.empty(row.converter_config.width))

    @classmethod
    def tokens_per_item(cls, row):
        return 1

    @classmethod
    def output_size(cls, owner_row):
        return owner_row.converter_config.width

    def init_weights_of_its_own(self, std):
        nn.init.constant_(self.shift, 0.5)

    def forward(self, hidden, mask=None):
        mask = torch.ones(hidden.shape[:2]) if mask is None else mask
        mean = (hidden * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
        return ConverterOutput(embeddings=self.dense(mean)[:, None] + self.shift)


@pytest.fixture
def pool():
    register_converter("pool", PoolConverter)
    yield X2LConfig(
        encoder=None,
        encoder_hidden_size=6,
        input_name="status_values",
        mask_name="status_mask",
        converter="pool",
        converter_config={"width": 20},
        placeholder_token="<StatusHere>",
        token_id=STATUS,
    )
    del CONVERTERS["pool"]


STATUS_INPUTS = {"status_values": torch.randn(1, 4, 6), "status_mask": torch.tensor([[1, 1, 1, 0]])}


@pytest.mark.parametrize("text", ["chatglm", "llama"])
def test_a_converter_of_the_users_own_in_config_model_stages_and_checkpoints(pool, tmp_path, text):
    model = tiny_model(text, rows=tiny_rows(status=pool))
    interface = model.model.interfaces["status"]
    assert (interface.converter.shift.shape, interface.adapter.weight.shape) == ((20,), (32, 20))

    ids = torch.tensor([prompt([STATUS], TEXT)])
    logits = model(input_ids=ids, **STATUS_INPUTS).logits
    token = model.get_features("status", *STATUS_INPUTS.values()).pooler_output[0]
    mean = interface.converter.dense(STATUS_INPUTS["status_values"][:, :3].mean(1)) + interface.converter.shift
    torch.testing.assert_close(token, interface.adapter(mean))
    assert not torch.equal(
        logits, model(input_ids=ids, status_values=torch.ones(1, 4, 6), status_mask=torch.ones(1, 4)).logits
    )
    answer = model.generate(input_ids=ids, **STATUS_INPUTS, max_new_tokens=2, eos_token_id=-1)
    assert answer[0, ids.shape[1]] == logits[0, -1].argmax()

    assert set(freeze_for_stage(model, 2, ["status"])) == {
        f"model.interfaces.status.{name}"
        for name in (
            "converter.shift",
            "converter.dense.weight",
            "converter.dense.bias",
            "adapter.weight",
            "adapter.bias",
        )
    }
    assert freeze_for_stage(model, 3, "status") == [f"model.interfaces.status.adapter.{n}" for n in ("weight", "bias")]
    with pytest.raises(StageError, match=r"trains nothing of status \(pool\)"):
        freeze_for_stage(model, 1, ["status"])
    with pytest.raises(StageError, match="no objective for status, a pool interface"):
        stage_one_task(model.config, ["status"])

    model.save_pretrained(tmp_path)
    again = XLLMForConditionalGeneration.from_pretrained(tmp_path)
    row = again.config.modalities["status"]
    assert (type(row.converter_config), row.converter_config.width) == (PoolConfig, 20)
    assert (row.converter, row.tokens_per_item) == ("pool", 1)
    saved, opened = model.state_dict(), again.state_dict()
    assert saved.keys() == opened.keys()
    assert all(torch.equal(saved[name], opened[name]) for name in saved)
    # Weights that are mapped from a file lie elsewhere in a cache line, which may change the last bits of a product.
    torch.testing.assert_close(again(input_ids=ids, **STATUS_INPUTS).logits, logits)


def test_new_parameters_are_initialised_by_their_converter(pool):
    model = XLLMForConditionalGeneration(tiny_model(rows=tiny_rows(status=pool)).config)
    assert model.model.interfaces["status"].converter.shift.tolist() == [0.5] * 20
    queries = model.model.interfaces["image"].converter.query_tokens  # (1, 2, 16)
    assert 0.1 < queries.std() < 0.5


def test_an_unknown_converter_lists_the_names(pool):
    with pytest.raises(
        ValueError, match=r"modalities\['a'\]: converter must be one of qformer, cformer, linear, pool, got"
    ):
        XLLMConfig(modalities={"a": {"converter": "mlp"}})


@pytest.mark.parametrize(
    ("name", "converter", "message"),
    [
        ("linear", PoolConverter, "'linear' is LinearConverter already; take another name"),
        ("mean", nn.Linear, "expected a subclass of X2LConverter, got .*Linear"),
        ("mean", "PoolConverter", "expected a subclass of X2LConverter, got 'PoolConverter'"),
    ],
)
def test_what_cannot_be_registered(name, converter, message):
    with pytest.raises(ValueError, match=message):
        register_converter(name, converter)


def test_a_copied_interface_uses_the_copied_converter():
    model = tiny_model()
    again = copy.deepcopy(model)
    videos = torch.randn(1, 2, 3, PIXELS, PIXELS)
    before = again.get_video_features(videos).embeddings
    with torch.no_grad():
        for parameter in model.model.interfaces["image"].parameters():
            parameter.zero_()
    assert torch.equal(again.get_video_features(videos).embeddings, before)
    with torch.no_grad():
        for parameter in again.model.interfaces["image"].converter.parameters():
            parameter.zero_()
    assert not torch.equal(again.get_video_features(videos).embeddings, before)


def test_image_and_video_rows_may_differ_in_query_tokens():
    model = tiny_model(rows={**tiny_rows(), "video": replaced(tiny_rows()["video"], num_query_tokens=5)})
    image, video = torch.randn(1, 3, PIXELS, PIXELS), torch.randn(1, FRAMES, 3, PIXELS, PIXELS)
    ids = torch.tensor([prompt([IMAGE] * QUERIES, [VIDEO] * 5 * FRAMES, TEXT)])
    logits = model(input_ids=ids, pixel_values=image, pixel_values_videos=video).logits
    answer = model.generate(
        input_ids=ids, pixel_values=image, pixel_values_videos=video, max_new_tokens=1, eos_token_id=-1
    )
    assert answer[0, -1] == logits[0, -1].argmax()
    assert len(model.get_video_features(video).pooler_output[0]) == 5 * FRAMES


def replaced(row: X2LConfig, **fields) -> X2LConfig:
    return X2LConfig(**{**row.to_dict(), **fields})


def heard(converter: str, **fields) -> X2LConfig:
    """A row over feature vectors of width 6, three of them a token."""
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    given = {"encoder": None, "encoder_hidden_size": 6, "input_name": "status_values", "mask_name": "status_mask"}
    given |= {"placeholder_token": "<StatusHere>", "token_id": STATUS, "frames_per_token": 3, "converter": converter}
    return X2LConfig(**given, **({"num_query_tokens": 1, "qformer_config": sizes} if converter == "qformer" else {}))


@pytest.mark.parametrize("converter", ["linear", "qformer"])
def test_frames_joined_to_tokens(converter):
    """Seven vectors are three tokens, each of what its own three vectors say, whatever stands in the padding."""
    model = tiny_model(rows=tiny_rows(status=heard(converter)))
    values, mask = torch.randn(2, 8, 6), torch.tensor([[1] * 7 + [0], [1, 1] + [0] * 6])
    tokens = model.get_features("status", values, mask).pooler_output
    assert [len(own) for own in tokens] == [3, 1]
    interface = model.model.interfaces["status"]
    for number, part in enumerate((values[0, :3], values[0, 3:6], values[0, 6:7])):
        if converter == "linear":
            one = interface.converter.dense(interface.converter.layernorm(part.mean(0, keepdim=True)))
        else:
            whole = interface.converter.qformer
            one = whole(query_embeds=interface.converter.query_tokens, encoder_hidden_states=part[None])
            one = one.last_hidden_state[0]
        torch.testing.assert_close(tokens[0][number], interface.adapter(one)[0], atol=1e-5, rtol=1e-4)
    noisy = values.masked_fill(mask[..., None] == 0, 9.0)
    for own, other in zip(tokens, model.get_features("status", noisy, mask).pooler_output):
        torch.testing.assert_close(own, other, atol=1e-5, rtol=1e-4)
    ids = torch.tensor([prompt([STATUS] * 3, TEXT)])
    alone = {"status_values": values[:1], "status_mask": mask[:1]}
    assert model(input_ids=ids, **alone).logits.isfinite().all()


@pytest.mark.parametrize("joined", [None, 1, 2])
def test_a_linear_converter_joins_as_many_frames_as_its_row_says(joined):
    row = replaced(heard("linear"), frames_per_token=joined, subsampling_factor=joined)
    model = tiny_model(rows=tiny_rows(status=row))
    values = torch.randn(1, 4, 6)
    (tokens,) = model.get_features("status", values, torch.ones(1, 4)).pooler_output
    interface = model.model.interfaces["status"]
    means = values[0].unflatten(0, (-1, joined or 1)).mean(1)
    expected = interface.adapter(interface.converter.dense(interface.converter.layernorm(means)))
    torch.testing.assert_close(tokens, expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("factor", [None, 1])
def test_tokens_that_were_fired_before_are_not_subsampled(factor):
    row = X2LConfig(converter="cformer", encoder=None, token_level=True, subsampling_factor=factor)
    assert XLLMConfig(modalities={"speech": row}).modalities["speech"].subsampling_factor == 1
    with pytest.raises(ValueError, match="token_level=True needs .* subsampling_factor=1, got 'cformer', None and 2"):
        XLLMConfig(modalities={"speech": replaced(row, subsampling_factor=2)})


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"converter": "qformer", "num_query_tokens": 2, "frames_per_token": 3}, "needs num_query_tokens=1"),
        ({"converter": "cformer", "frames_per_token": 3}, "a converter that joins frames, got 'cformer'"),
        ({"converter": "linear", "frames_per_token": 0}, "at least 1"),
        ({"converter": "qformer", "num_query_tokens": 1, "frames_per_token": 0}, "at least 1"),
        ({"converter": "qformer", "num_query_tokens": 1, "frames_per_token": 3, "num_frames": 4}, "and no num_frames"),
        ({"converter": "qformer", "num_query_tokens": 0}, "num_query_tokens must be positive, got 0"),
        ({"converter": "linear", "frames_per_token": 2, "subsampling_factor": 3}, "no multiple of frames_per_token"),
    ],
)
def test_rows_that_cannot_join_frames(fields, message):
    row = {"encoder": None, "encoder_hidden_size": 6, "input_name": "a", "placeholder_token": "<A>", **fields}
    with pytest.raises(ValueError, match=message):
        XLLMConfig(modalities={"a": row})


def test_windows_of_vectors_by_hand():
    hidden = torch.arange(10.0).view(1, 5, 2)
    for mask, real in ((None, [[[True] * 3, [True, True, False]]]),
                       (torch.tensor([[1, 1, 1, 1, 0]]), [[[True] * 3, [True, False, False]]])):  # fmt: skip
        windows, kept = in_windows(hidden, mask, 3)
        assert windows.tolist() == [[[[0, 1], [2, 3], [4, 5]], [[6, 7], [8, 9], [0, 0]]]]
        torch.testing.assert_close(kept, torch.tensor(real))
    assert in_windows(hidden, None, 5)[0].shape == (1, 1, 5, 2)
    assert in_windows(hidden.to("meta"), None, 3)[1].is_meta


def table_row(frames_per_token=None, **fields):
    given = {"encoder_hidden_size": 6, "vectors_per_frame": 1, "converter_config": None, "token_level": False}
    return SimpleNamespace(frames_per_token=frames_per_token, converter="x", **{**given, **fields})


@pytest.mark.parametrize(("own", "owners", "fits"), [(None, 1, True), (1, None, True), (2, 2, True), (None, 2, False),
                                                     (2, None, False), (3, 2, False)])  # fmt: skip
def test_rows_that_share_a_converter_join_as_many_frames(own, owners, fits):
    QFormerConverter.check_table(table_row(own), table_row(owners))  # has query tokens of its own
    if fits:
        LinearConverter.check_table(table_row(own), table_row(owners))
    else:
        with pytest.raises(ValueError, match=f"frames_per_token is {own}, but the .* that it shares joins {owners}"):
            LinearConverter.check_table(table_row(own), table_row(owners))


@pytest.mark.parametrize("converter", [LinearConverter, QFormerConverter, CFormerConverter])
def test_rows_that_share_a_converter_are_as_wide(converter):
    with pytest.raises(ValueError, match="encoder_hidden_size is 5, but the converter that it shares reads 6"):
        converter.check_table(table_row(encoder_hidden_size=5), table_row())


@pytest.mark.parametrize("shape", [(2, 4), (2, 4, 3)])  # waveforms; frames
def test_a_clip_that_must_not_reach_its_encoder_is_named(shape):
    inputs, mask = torch.zeros(shape), torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])
    CFormerConverter.check_inputs("speech", inputs, None)
    inputs.view(2, 4, -1)[1, 2, 0] = float("nan")  # one number of a frame of padding
    CFormerConverter.check_inputs("speech", inputs, mask)
    with pytest.raises(ValueError, match="speech: clip 1 holds NaN or Inf"):
        CFormerConverter.check_inputs("speech", inputs, None)
    with pytest.raises(ValueError, match="speech: clip 1 has no frames"):
        CFormerConverter.check_inputs("speech", inputs, mask * torch.tensor([[1], [0]]))
    with pytest.raises(ValueError, match=r"speech: inputs must have shape \(clips, frames, features\)"):
        CFormerConverter.check_inputs("speech", inputs.view(1, 1, *shape), None)


def test_a_converter_s_sizes_are_those_of_its_owner_s_encoder():
    own, other = (table_row(converter_config=SimpleNamespace(encoder_hidden_size=1)) for _ in range(2))
    CFormerConverter.check_table(own, own)
    CFormerConverter.check_table(other, own)
    assert (own.converter_config.encoder_hidden_size, other.converter_config.encoder_hidden_size) == (6, 1)
    LinearConverter.check_table(table_row(vectors_per_frame=2), table_row())
    with pytest.raises(ValueError, match="its encoder gives several vectors per frame, which 'x' cannot join"):
        CFormerConverter.check_table(table_row(vectors_per_frame=2), table_row())


def test_names_of_rows_carry_no_meaning():
    model = tiny_model()
    rows = tiny_rows()
    names = {"image": "photo", "video": "clip", "speech": "voice"}
    renamed = {
        names[name]: replaced(row, shares_converter_with=names.get(row.shares_converter_with))
        for name, row in rows.items()
    }
    other = tiny_model(rows=renamed, seed=1)
    assert (other.config.image_token_id, other.config.video_token_id, other.config.audio_token_id) == (
        IMAGE,
        VIDEO,
        SPEECH,
    )
    weights = model.state_dict()
    for old, new in names.items():
        weights = {key.replace(f".interfaces.{old}.", f".interfaces.{new}."): value for key, value in weights.items()}
    other.load_state_dict(weights)
    media = {
        "pixel_values": torch.randn(1, 3, PIXELS, PIXELS),
        "pixel_values_videos": torch.randn(1, FRAMES, 3, PIXELS, PIXELS),
        **speech(40),
    }
    ids = torch.tensor([prompt([IMAGE] * QUERIES, [VIDEO] * QUERIES * FRAMES, [SPEECH] * 5, TEXT)])
    assert torch.equal(model(input_ids=ids, **media).logits, other(input_ids=ids, **media).logits)
    answers = [m.generate(input_ids=ids, **media, max_new_tokens=3, eos_token_id=-1) for m in (model, other)]
    assert torch.equal(*answers)
    for getter, given in (
        ("get_image_features", {"pixel_values": media["pixel_values"]}),
        ("get_video_features", {"pixel_values_videos": media["pixel_values_videos"]}),
        ("get_audio_features", speech(40)),
    ):
        assert torch.equal(getattr(model, getter)(**given).embeddings, getattr(other, getter)(**given).embeddings)
    only_voice = tiny_model(rows={"voice": renamed["voice"]})
    with pytest.raises(ValueError, match="no row of config.modalities reads pixel_values"):
        only_voice.get_image_features(media["pixel_values"])


def test_rows_may_read_the_same_tensors():
    second = replaced(tiny_rows()["speech"], placeholder_token="<Again>", token_id=STATUS)
    model = tiny_model(rows=tiny_rows(again=second))
    clip = speech(40)
    ids = torch.tensor([prompt([SPEECH] * 5, [STATUS] * 5, TEXT)])
    output = model(input_ids=ids, **clip)
    assert sorted(output.modality_features) == ["again", "speech"]
    answer = model.generate(input_ids=ids, **clip, max_new_tokens=1, eos_token_id=-1)
    assert answer[0, -1] == output.logits[0, -1].argmax()
    with pytest.raises(ValueError, match="again: the text holds 0 placeholder tokens, but the 1 item"):
        model(input_ids=torch.tensor([prompt([SPEECH] * 5, TEXT)]), **clip)
