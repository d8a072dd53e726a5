# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""Stage 1 of the Q-Former: hand-computed losses, parity with transformers' BLIP-2 and BERT, masks, learning."""

import math
import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tiny import assert_equal_whatever_is_made_by_default, default_numbers, made_by_default
from torch import nn
from transformers import (
    ASTConfig,
    BertConfig,
    BertForMaskedLM,
    BertModel,
    Blip2Config,
    Blip2ForImageTextRetrieval,
    Blip2QFormerConfig,
    Dinov2Config,
    LlamaConfig,
    Siglip2VisionConfig,
    Trainer,
    TrainingArguments,
)
from transformers.models.blip_2.configuration_blip_2 import Blip2VisionConfig

from xllm.modeling_xllm.composition.towers import SOURCES
from xllm.modeling_xllm.configuration_xllm import X2LConfig, XLLMConfig
from xllm.modeling_xllm.modeling_encoders import XLLMEncoderModel
from xllm.modeling_xllm.stage1 import modeling_qformer_pretraining, qformer_objectives
from xllm.modeling_xllm.stage1.configuration_qformer_pretraining import QFormerPreTrainingConfig
from xllm.modeling_xllm.stage1.modeling_qformer_pretraining import XLLMForQFormerPreTraining
from xllm.modeling_xllm.stage1.qformer_objectives import (
    captioning_loss,
    contrastive_loss,
    draw_hard_negatives,
    matching_loss,
    max_similarity,
    pair_positives,
)
from xllm.modeling_xllm.stage1.qformer_text import additive_mask
from xllm.modeling_xllm.stage1.text_sides import start_from_bert, start_from_blip2
from xllm.modeling_xllm.weight_files import copy_tensors


PAD, CLS, SEP, DEC, VOCAB = 0, 1, 2, 39, 40
QFORMER = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "encoder_hidden_size": 24,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}
VISION = {
    "hidden_size": 24,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "image_size": 16,
    "patch_size": 8,
    "initializer_range": 0.1,
}
# A table whose rows are out of the ordinary: the image row's Q-Former is shared by the video row.
ROWS = {
    "image": {"num_query_tokens": 4},
    "video": {
        "input_name": "pixel_values_videos",
        "mask_name": "video_frame_mask",
        "placeholder_token": "<VideoHere>",
        "num_query_tokens": 4,
        "num_frames": 3,
        "shares_converter_with": "image",
    },
    "sound": {
        "encoder": "sound",
        "input_name": "sound_features",
        "mask_name": "sound_features_mask",
        "placeholder_token": "<SoundHere>",
        "num_query_tokens": 1,
        "frames_per_token": 2,
    },
}
# Reads 104 positions at a time, and makes 9 frames of them, of two vectors each.
AST = {"hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
AST |= {"max_length": 104, "num_mel_bins": 26, "initializer_range": 0.1}
LENGTHS = (104, 70, 208, 25)  # of sounds: 9, 7, 18 and 3 frames, so 5, 4, 9 and 2 windows of two


def tiny_config(modality: str = "image", **fields) -> QFormerPreTrainingConfig:
    rows = {name: X2LConfig(**row) for name, row in ROWS.items()}
    rows["image"].qformer_config = rows["sound"].qformer_config = Blip2QFormerConfig(**QFORMER)
    return QFormerPreTrainingConfig(
        text_config=LlamaConfig(hidden_size=20, num_attention_heads=2, vocab_size=60, num_hidden_layers=1),
        vision_config=Blip2VisionConfig(**VISION),
        extra_encoders={"sound": ASTConfig(**AST)},
        modalities=rows,
        modality=modality,
        initializer_range=0.1,
        **{
            "text_vocab_size": VOCAB,
            "text_bos_token_id": DEC,
            "text_eos_token_id": SEP,
            "text_max_positions": 16,
            "max_text_length": 10,
            "projection_size": 16,
            **fields,
        },
    )


def tiny_model(modality: str = "image", **fields) -> XLLMForQFormerPreTraining:
    torch.manual_seed(0)
    model = XLLMForQFormerPreTraining(tiny_config(modality, **fields))
    (model.model.vision_tower or model.model.extra_towers).requires_grad_(False)
    return model.eval()


def shaken_model(modality: str = "image") -> XLLMForQFormerPreTraining:
    """All parameters random, biases too, so that whatever leaks shows."""
    model = tiny_model(modality)
    for name, parameter in model.named_parameters():
        if name != "temperature":
            nn.init.normal_(parameter.data, std=0.3)
    return model


def texts(*rows: list[int]) -> dict[str, torch.Tensor]:
    length = max(map(len, rows))
    ids = torch.tensor([row + [PAD] * (length - len(row)) for row in rows])
    return {"input_ids": ids, "attention_mask": torch.tensor([[1] * len(r) + [0] * (length - len(r)) for r in rows])}


def batch(modality: str = "image", **changes) -> dict[str, torch.Tensor]:
    torch.manual_seed(1)
    inputs = texts([CLS, 5, 6, SEP], [CLS, 7, SEP], [CLS, 8, 9, 10, SEP], [CLS, 11, SEP])
    if modality == "image":
        inputs["pixel_values"] = torch.randn(4, 3, 16, 16)
    elif modality == "video":
        inputs["pixel_values_videos"] = torch.randn(4, 3, 3, 16, 16)
        inputs["video_frame_mask"] = torch.tensor([[1, 1, 1], [1, 0, 0], [1, 1, 0], [1, 1, 1]])
    else:
        inputs["sound_features"] = torch.randn(4, 208, 26)
        inputs["sound_features_mask"] = (torch.arange(208) < torch.tensor(LENGTHS)[:, None]).long()
    return {**inputs, **changes}


class TestObjectives:
    def test_contrastive_loss_of_known_unit_vectors(self):
        media, text = torch.eye(2).unsqueeze(1), torch.eye(2)
        scores = max_similarity(media, text)
        assert scores.tolist() == [[1.0, 0.0], [0.0, 1.0]]
        positives = torch.eye(2, dtype=torch.bool)
        right, wrong = math.log(1 + math.exp(-1)), 1 + math.log(1 + math.exp(-1))
        plain = contrastive_loss(scores, scores.T, positives, label_smoothing=0.0)
        assert plain.item() == pytest.approx(right, abs=1e-6)
        smoothed = contrastive_loss(scores, scores.T, positives, label_smoothing=0.1)
        assert smoothed.item() == pytest.approx(0.95 * right + 0.05 * wrong, abs=1e-6)

    def test_two_directions_are_averaged(self):
        positives = torch.eye(2, dtype=torch.bool)
        flat, sharp = torch.zeros(2, 2), 50 * torch.eye(2)
        assert contrastive_loss(flat, sharp, positives, 0.0).item() == pytest.approx(0.5 * math.log(2), abs=1e-6)

    def test_similarity_is_the_best_unmasked_query(self):
        media = torch.tensor([[[1.0, 0.0], [0.0, 1.0]]])
        text = torch.tensor([[0.0, 1.0]])
        assert max_similarity(media, text).item() == 1.0
        assert max_similarity(media, text, torch.tensor([[True, False]])).item() == 0.0

    def test_equal_texts_share_the_target(self):
        ids = torch.tensor([[5, 6], [7, 0], [5, 6]])
        positives = pair_positives(ids, ids, offset=0, equal_texts=True)
        assert positives.int().tolist() == [[1, 0, 1], [0, 1, 0], [1, 0, 1]]
        assert pair_positives(ids, ids, offset=0, equal_texts=False).equal(torch.eye(3, dtype=torch.bool))
        # Perfect scores: the two equal rows share the mass, so the best possible loss of a row is log 2.
        scores = 50.0 * positives
        best = contrastive_loss(scores, scores.T, positives, 0.0).item()
        assert best == pytest.approx(2 / 3 * math.log(2), abs=1e-5)

    def test_the_loss_of_two_ranks_is_the_mean_of_theirs(self):
        scores = torch.arange(16.0).sin().reshape(4, 4)
        ids = torch.tensor([[5], [6], [5], [7]])
        positives = pair_positives(ids, ids, offset=0, equal_texts=True)
        whole = contrastive_loss(scores, scores.T, positives, 0.1)
        parts = [contrastive_loss(scores[r], scores.T[r], positives[r], 0.1) for r in (slice(2), slice(2, 4))]
        torch.testing.assert_close(sum(parts) / 2, whole)

    def test_positives_of_a_later_rank_start_at_its_offset(self):
        ids = torch.tensor([[5], [6], [7], [8]])
        assert pair_positives(ids[2:], ids, 2, False).int().tolist() == [[0, 0, 1, 0], [0, 0, 0, 1]]

    def test_negatives_are_never_positives_and_follow_the_scores(self):
        torch.manual_seed(0)
        positives = torch.eye(4, dtype=torch.bool).repeat(500, 1)
        scores = torch.tensor([9.0, 9.0, 2.0, 0.0]).repeat(2000, 1)
        drawn, found = draw_hard_negatives(scores, positives)
        assert found.all()
        assert not positives.gather(1, drawn[:, None]).any()
        first_row = drawn[::4]  # own pair is column 0
        share = (first_row == 1).float().mean().item()
        assert share > 0.98
        hardest, _ = draw_hard_negatives(scores, positives, hardest=True)
        assert hardest[:4].tolist() == [1, 0, 0, 0]

    def test_the_floor_under_a_negative_by_hand(self):
        """Scores give the second pair a chance of 1e-4 and the third none: with 1e-4 more for each, 2 to 1."""
        torch.manual_seed(0)
        scores = torch.tensor([[1 - 1e-4, 1e-4, 0.0]]).log().expand(20_000, -1)
        drawn, _ = draw_hard_negatives(scores, torch.tensor([True, False, False]).expand(20_000, -1))
        assert (drawn == 1).float().mean().item() == pytest.approx(2 / 3, abs=0.02)

    def test_a_row_without_negatives_is_told(self):
        positives = torch.tensor([[True, True], [True, False]])
        drawn, found = draw_hard_negatives(torch.zeros(2, 2), positives)
        assert found.tolist() == [False, True]
        assert drawn[1].item() == 1

    def test_matching_loss_counts_kept_rows_only(self):
        logits = torch.tensor([[0.0, 0.0], [0.0, 100.0]])
        labels = torch.tensor([1, 0])
        assert matching_loss(logits, labels, torch.tensor([True, False])).item() == pytest.approx(math.log(2))
        assert matching_loss(logits, labels, torch.tensor([False, False])).item() == 0.0

    @pytest.mark.parametrize(("temperature", "used"), [(0.2, 0.2), (9.0, 0.5), (1e-9, 1e-3)])
    def test_contrastive_loss_of_a_batch_keeps_its_temperature_within_limits(self, temperature, used):
        model = shaken_model()
        with torch.no_grad():
            model.temperature.fill_(temperature)
            output = model(**batch())
        scores, own = output.similarities / used, torch.arange(4)
        both = [nn.functional.cross_entropy(one, own, label_smoothing=0.1) for one in (scores, scores.T)]
        torch.testing.assert_close(output.itc_loss, sum(both) / 2)

    def test_captioning_loss_of_two_words_by_hand(self):
        """Of one with 3/4 and one with 1/4; the smoothed part is shared by both."""
        likely, unlikely = -math.log(3 / 4), -math.log(1 / 4)
        logits = torch.tensor([[0.0, math.log(3)]] * 3)
        loss = captioning_loss(logits, torch.tensor([1, 1, 0]), label_smoothing=0.2)
        assert loss.item() == pytest.approx((1.9 * likely + 1.1 * unlikely) / 3)
        assert captioning_loss(logits[:0], torch.zeros(0, dtype=torch.long), label_smoothing=0.2).item() == 0.0


def start_interface(model, kind, published):
    """Copy what the converter's table takes of a published state dict."""
    source, target = SOURCES["qformer"][kind], model.interface_state_dict()
    found = {source.rename(key): value for key, value in published.items()}
    found = {f"model.interfaces.image.{key}": value for key, value in found.items() if key is not None}
    copy_tensors(
        found, {key: target[key] for key in target if re.match(rf"model.interfaces.image.({source.fills})", key)}, kind
    )


def start_whole(model, blip2):
    """Tower, interface, text side and heads of a published model."""
    start_from_blip2(model, blip2)
    start_interface(model, "blip-2", blip2.state_dict())
    model.model.vision_tower.load_state_dict(blip2.vision_model.state_dict())


class TestParity:
    """The text side computes what transformers' own BLIP-2 and BERT compute."""

    @pytest.fixture
    def blip2(self) -> Blip2ForImageTextRetrieval:
        torch.manual_seed(3)
        sizes = {"vocab_size": VOCAB, "max_position_embeddings": 16, "use_qformer_text_input": True}
        config = Blip2Config(
            vision_config=VISION,
            qformer_config={**QFORMER, **sizes},
            num_query_tokens=4,
            image_text_hidden_size=16,
            image_token_index=None,
        )
        source = Blip2ForImageTextRetrieval(config).eval()
        for parameter in source.parameters():
            nn.init.normal_(parameter, std=0.2)
        return source

    def test_itc_and_itm_equal_blip2_retrieval(self, blip2):
        model = tiny_model()
        start_whole(model, blip2)
        blip2.vision_model.post_layernorm.eps = model.model.vision_tower.post_layernorm.eps
        inputs = batch()
        with torch.no_grad():
            media = model.query_media(inputs["pixel_values"])
            text = model.embed_text(inputs["input_ids"], inputs["attention_mask"])
            expected = blip2(**inputs, use_image_text_matching_head=False).logits_per_image
            torch.testing.assert_close(max_similarity(model.embed_media(media), text), expected, atol=1e-5, rtol=1e-4)
            logits = model.match(media, inputs["input_ids"], inputs["attention_mask"])
            expected = blip2(**inputs, use_image_text_matching_head=True).logits_per_image
            torch.testing.assert_close(logits, expected, atol=1e-5, rtol=1e-4)
            assert expected.std() > 0.01

    def test_cached_queries_equal_one_pass_over_queries_and_text(self, blip2):
        """ITG over cached query states = one pass in which queries do not see the text and text is causal."""
        model = tiny_model()
        start_whole(model, blip2)
        inputs = batch()
        ids, N, L = inputs["input_ids"], 4, inputs["input_ids"].shape[1]
        with torch.no_grad():
            media = model.query_media(inputs["pixel_values"])
            hidden = model.caption_states(media, ids, inputs["attention_mask"])
            ids = ids.clone()
            ids[:, 0] = DEC
            embeds = blip2.embeddings(ids, query_embeds=blip2.query_tokens.expand(4, -1, -1))
            allowed = torch.ones(N + L, N + L, dtype=torch.bool).tril()
            allowed[:N, :N] = True
            keys = torch.cat([torch.ones(4, N), inputs["attention_mask"]], dim=1).bool()
            one_pass = blip2.qformer(
                query_embeds=embeds,
                query_length=N,
                attention_mask=additive_mask(allowed & keys[:, None, :], torch.float32),
                encoder_hidden_states=media.encoder_states[:, 0],
            ).last_hidden_state
        real = inputs["attention_mask"].bool()
        torch.testing.assert_close(hidden[real], one_pass[:, N:][real], atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(media.query_states[-1], one_pass[:, :N], atol=1e-5, rtol=1e-4)

    def test_text_side_started_from_bert_is_that_bert(self):
        sizes = {key: QFORMER[key] for key in QFORMER if key != "encoder_hidden_size"}
        bert = BertForMaskedLM(BertConfig(vocab_size=VOCAB - 1, max_position_embeddings=16, **sizes)).eval()
        for parameter in bert.parameters():
            nn.init.normal_(parameter, std=0.2)
        model = tiny_model()
        start_from_bert(model, bert)
        start_interface(model, "bert", bert.bert.state_dict())
        inputs = texts([CLS, 5, 6, SEP], [CLS, 7, SEP])
        with torch.no_grad():
            hidden = model.text_branch.encode(model.qformer, **inputs)
            expected = bert(**inputs, output_hidden_states=True)
            torch.testing.assert_close(hidden[0], expected.hidden_states[-1][0], atol=1e-5, rtol=1e-4)
            logits = model.text_branch.lm_logits(hidden)[..., : VOCAB - 1]
            torch.testing.assert_close(logits[0], expected.logits[0], atol=1e-4, rtol=1e-4)
        assert model.qformer.encoder.layer[0].intermediate_query.dense.weight.equal(
            bert.bert.encoder.layer[0].intermediate.dense.weight
        )

    def test_bert_leaves_the_interface_alone(self):
        model = tiny_model()
        before = {key: value.clone() for key, value in model.interface_state_dict().items()}
        sizes = {key: QFORMER[key] for key in QFORMER if key != "encoder_hidden_size"}
        start_from_bert(model, BertModel(BertConfig(vocab_size=30, max_position_embeddings=16, **sizes)))
        assert all(value.equal(before[key]) for key, value in model.interface_state_dict().items())

    def test_a_bert_of_other_sizes_is_refused(self):
        with pytest.raises(ValueError, match="hidden_size 32 .theirs 16"):
            start_from_bert(tiny_model(), BertModel(BertConfig(hidden_size=16, num_attention_heads=4)))

    @pytest.mark.parametrize(("words", "positions"), [(VOCAB + 1, 16), (VOCAB, 15)])
    def test_a_bert_of_more_words_or_fewer_positions_is_refused(self, words, positions):
        sizes = {key: QFORMER[key] for key in QFORMER if key != "encoder_hidden_size"}
        bert = BertModel(BertConfig(vocab_size=words, max_position_embeddings=positions, **sizes))
        with pytest.raises(ValueError, match=f"has {words} words and {positions} positions; expected at most"):
            start_from_bert(tiny_model(), bert)

    @pytest.mark.parametrize(("name", "size", "theirs"), [("text_vocab_size", 41, 40), ("text_max_positions", 17, 16)])
    def test_a_blip2_of_other_texts_is_refused(self, blip2, name, size, theirs):
        with pytest.raises(ValueError, match=rf"fit the Q-Former: {name} {size} \(theirs {theirs}\)$"):
            start_from_blip2(tiny_model(**{name: size}), blip2)


class TestMasks:
    def test_later_tokens_never_change_earlier_logits(self):
        model, inputs = tiny_model(), batch()
        media = model.query_media(inputs["pixel_values"])
        ids = torch.randint(3, 30, (4, 6))
        changed = ids.clone()
        changed[:, 4] = (changed[:, 4] + 1) % 30
        with torch.no_grad():
            before, after = (model.text_branch.lm_logits(model.caption_states(media, x)) for x in (ids, changed))
        assert before[:, :4].equal(after[:, :4])
        assert not before[:, 4:].allclose(after[:, 4:])

    def test_captions_depend_on_the_picture(self):
        model, inputs = tiny_model(), batch()
        ids = inputs["input_ids"]
        with torch.no_grad():
            one = model.caption_states(model.query_media(inputs["pixel_values"]), ids)
            other = model.caption_states(model.query_media(inputs["pixel_values"].flip(0)), ids)
        assert not one.allclose(other, atol=1e-4)

    def test_padding_changes_nothing(self):
        model, inputs = shaken_model(), batch()
        padded = {key: inputs[key] for key in inputs}
        padded["input_ids"] = nn.functional.pad(inputs["input_ids"], (0, 3), value=17)  # not even what pads hold
        padded["attention_mask"] = nn.functional.pad(inputs["attention_mask"], (0, 3))
        with torch.no_grad():
            expected, got = model(**inputs), model(**padded)
        for name in ("itc_loss", "itm_loss", "itg_loss", "similarities"):
            torch.testing.assert_close(got[name], expected[name], atol=1e-5, rtol=1e-5)

    def test_masked_frames_change_nothing(self):
        model, inputs = shaken_model("video"), batch("video")
        with torch.no_grad():  # a frame of zeros would now be the best answer to the first caption
            model.media_proj.bias.copy_(model.embed_text(inputs["input_ids"], inputs["attention_mask"])[0])
        longer = dict(inputs)
        longer["pixel_values_videos"] = torch.cat(
            [inputs["pixel_values_videos"], torch.full((4, 2, 3, 16, 16), float("nan"))], dim=1
        )
        longer["pixel_values_videos"][1, 1:] = float("nan")
        longer["video_frame_mask"] = nn.functional.pad(inputs["video_frame_mask"], (0, 2))
        with torch.no_grad():
            expected, got = model(**inputs), model(**longer)
        for name in ("itc_loss", "itm_loss", "itg_loss", "similarities"):
            torch.testing.assert_close(got[name], expected[name], atol=1e-5, rtol=1e-5)

    def test_queries_of_one_frame_do_not_see_other_frames(self):
        """Exact with two layers: the text has read no picture before the last self-attention."""
        model, inputs = tiny_model("video"), batch("video")
        media = model.query_media(**{k: inputs[k] for k in inputs if "video" in k})
        text = (inputs["input_ids"], inputs["attention_mask"], model.query_tokens)
        changed = media.encoder_states.clone()
        changed[:, 1:] += 1.0
        with torch.no_grad():
            before, after = (
                model.text_branch.match(model.qformer, *text, states, media.frame_mask)
                for states in (media.encoder_states, changed)
            )
        torch.testing.assert_close(after[:, :4], before[:, :4])
        assert not after[:, 4:].allclose(before[:, 4:], atol=1e-3)

    def test_video_similarity_is_the_best_real_frame(self):
        model, inputs = tiny_model("video"), batch("video")
        mask = inputs["video_frame_mask"].bool()
        with torch.no_grad():
            text = model.embed_text(inputs["input_ids"], inputs["attention_mask"])
            media = model.query_media(**{k: inputs[k] for k in inputs if "video" in k})
            got = max_similarity(model.embed_media(media), text, media.query_mask)
            for item, frames in enumerate(inputs["pixel_values_videos"]):
                media = model.query_media(pixel_values_videos=frames.unsqueeze(1))
                single = max_similarity(model.embed_media(media), text)
                best = single[mask[item]].max(dim=0).values
                torch.testing.assert_close(got[item], best, atol=1e-5, rtol=1e-5)

    def test_a_video_of_one_frame_is_an_image(self):
        image, video = tiny_model("image"), tiny_model("video")
        video.load_state_dict({**video.state_dict(), **image.state_dict()})
        with torch.no_grad():
            video.query_tokens.copy_(image.query_tokens)
            inputs = batch()
            expected = image(**inputs)
            inputs["pixel_values_videos"] = inputs.pop("pixel_values").unsqueeze(1)
            got = video(**inputs)
        torch.testing.assert_close(got.loss, expected.loss, atol=1e-5, rtol=1e-5)


class TestSounds:
    """A sound is read in windows of two frames (four vectors), or whole by several queries."""

    @pytest.fixture(params=[{}, {"frames_per_token": None, "num_query_tokens": 3}], ids=["windows", "whole"])
    def model(self, request, monkeypatch) -> XLLMForQFormerPreTraining:
        monkeypatch.setitem(ROWS, "sound", {**ROWS["sound"], **request.param})
        return shaken_model("sound")

    @staticmethod
    def media(inputs) -> dict[str, torch.Tensor]:
        return {key: value for key, value in inputs.items() if key.startswith("sound")}

    def test_it_is_read_as_the_converter_reads_it(self, model):
        media = self.media(batch("sound"))
        with torch.no_grad():
            queried = model.query_media(**media)
            hidden, mask = model.model.encode("sound", *media.values())
            read = model.model.interfaces["sound"].converter(hidden.last_hidden_state, mask)
        real = torch.ones(4, 3, dtype=torch.bool) if read.mask is None else read.mask
        assert queried.query_mask.equal(real)
        torch.testing.assert_close(queried.query_states[-1][real], read.embeddings[real], atol=1e-5, rtol=1e-5)

    def test_a_batch_is_its_sounds_alone(self, model):
        inputs = batch("sound")
        text = [inputs[name] for name in ("input_ids", "attention_mask")]
        with torch.no_grad():
            together = model.query_media(**self.media(inputs))
            for i, length in enumerate(LENGTHS):
                ids, attention_mask = (tensor[i : i + 1] for tensor in text)
                alone = model.query_media(
                    **{key: value[i : i + 1, : -(-length // 104) * 104] for key, value in self.media(inputs).items()}
                )
                for compute in (model.match, model.caption_states):
                    expected = compute(alone, ids, attention_mask)[0]
                    torch.testing.assert_close(compute(together, *text)[i], expected, atol=1e-5, rtol=1e-4)
                embeds = model.embed_media(together)[i][together.query_mask[i]]
                torch.testing.assert_close(embeds, model.embed_media(alone)[0][alone.query_mask[0]])

    def test_padding_changes_nothing(self, model):
        inputs = batch("sound")
        with torch.no_grad():  # a window of zeros would now be the best answer to the first caption
            model.media_proj.bias.copy_(model.embed_text(inputs["input_ids"], inputs["attention_mask"])[0])
        longer = dict(inputs)
        longer["sound_features"] = nn.functional.pad(inputs["sound_features"], (0, 0, 0, 104), value=float("nan"))
        longer["sound_features_mask"] = nn.functional.pad(inputs["sound_features_mask"], (0, 104))
        with torch.no_grad():
            expected, got = model(**inputs), model(**longer)
        for name in ("itc_loss", "itm_loss", "itg_loss", "similarities"):
            torch.testing.assert_close(got[name], expected[name], atol=1e-5, rtol=1e-5)

    def test_positions_behind_a_sound_are_not_matched(self, model):
        inputs = batch("sound")
        text = [inputs[name] for name in ("input_ids", "attention_mask")]
        with torch.no_grad():
            queried = model.query_media(**self.media(inputs))
            logits = model.match(queried, *text)
            queried.encoder_states[~queried.encoder_mask] += 9.0
            torch.testing.assert_close(model.match(queried, *text), logits)
            queried.encoder_states[queried.encoder_mask] += 9.0
            assert not model.match(queried, *text).allclose(logits, atol=1e-3)

    def test_feature_vectors_need_no_encoder_and_no_mask(self, monkeypatch):
        row = {"encoder": None, "encoder_hidden_size": 24, "frames_per_token": 1}
        monkeypatch.setitem(ROWS, "sound", {**ROWS["sound"], **row})
        inputs = {**texts([CLS, 5, SEP], [CLS, 6, SEP]), "sound_features": torch.randn(2, 3, 24)}
        for mask, expected in ((None, [3, 3]), (torch.tensor([[1, 1, 1], [1, 1, 0]]), [3, 2])):
            output = tiny_model("sound")(**inputs, sound_features_mask=mask)
            assert output.media_mask.sum(1).tolist() == expected
            assert output.loss.isfinite()

    def test_patches_behind_a_picture_are_not_read(self):
        """SigLIP 2 reads pictures of any shape: one of two patches is the same beside one of four."""
        sizes = {key: VISION[key] for key in VISION if key not in ("image_size", "initializer_range")}
        config = tiny_config()
        config.vision_config = Siglip2VisionConfig(**sizes, num_patches=16)
        torch.manual_seed(0)
        model = XLLMForQFormerPreTraining(config).eval()
        for parameter in model.parameters():
            nn.init.normal_(parameter.data, std=0.3)
        patches = torch.randn(2, 4, 3 * 8 * 8 + 2)
        patches[..., -2:] = torch.tensor([[[1, 1], [1, 2], [2, 1], [2, 2]], [[1, 1], [1, 2], [0, 0], [0, 0]]])
        text = texts([CLS, 5, 6, SEP], [CLS, 7, SEP])
        with torch.no_grad():
            together, alone = model.query_media(patches), model.query_media(patches[1:, :2])
            torch.testing.assert_close(together.query_states[-1][1], alone.query_states[-1][0], atol=1e-5, rtol=1e-4)
            expected = model.match(alone, **{key: value[1:] for key, value in text.items()})[0]
            torch.testing.assert_close(model.match(together, **text)[1], expected, atol=1e-5, rtol=1e-4)

    def test_a_picture_beside_larger_ones_of_another_rank_is_matched_as_alone(self, monkeypatch):
        """DINOv2 reads any size and gives no mask: what fills pictures up to the other's is none of them."""
        config = tiny_config()
        config.vision_config = Dinov2Config(**{key: VISION[key] for key in VISION if key != "intermediate_size"})
        torch.manual_seed(0)
        model, ids = XLLMForQFormerPreTraining(config).eval(), batch()["input_ids"]
        text = {"input_ids": ids, "attention_mask": (ids != PAD).long()}

        def gathered(rank: int, larger: int):
            def all_gather(parts, mine):  # the other rank holds the same, where this has five of anything it has more
                parts[rank].copy_(mine)
                parts[1 - rank].copy_(mine + larger * (mine.sign() * (mine.abs() == 5) if mine.dim() == 1 else 0))

            monkeypatch.setattr(qformer_objectives.distributed, "all_gather", all_gather)
            monkeypatch.setattr(qformer_objectives.distributed, "get_rank", lambda: rank)
            inputs, names = batch(), ("encoder_states", "encoder_mask", "frame_mask", "input_ids", "attention_mask")
            with torch.no_grad(), made_by_default("meta"):
                queried, output = model.query_media(inputs["pixel_values"]), model(**inputs, return_loss=False)
                everyone, offset = model._gather(queried, output, **text)
                own = slice(offset, offset + 4)
                of_this = (None if everyone[name] is None else everyone[name][own] for name in names)
                torch.testing.assert_close(model._match(*of_this), model.match(queried, **text))
            assert offset == 4 * rank
            for name, mine in {"media_embeds": output.media_embeds, "query_mask": queried.query_mask}.items():
                assert everyone[name].equal(torch.cat([mine, mine]))
            return everyone["encoder_mask"]

        monkeypatch.setattr(qformer_objectives, "world_size", lambda: 2)
        for rank in range(2):
            assert gathered(rank, larger=0) is None
            assert gathered(rank, larger=3).sum(-1).flatten().tolist() == [5] * 8


class TestLosses:
    @pytest.mark.parametrize("rows", [[[CLS, 5, SEP]], [[CLS, 5, SEP]] * 3], ids=["one pair", "one caption"])
    def test_matching_is_skipped_where_nothing_can_be_a_negative(self, rows):
        model = tiny_model().train()
        output = model(**texts(*rows), pixel_values=torch.randn(len(rows), 3, 16, 16))
        assert output.itm_loss.item() == 0.0
        assert torch.isfinite(output.loss)
        output.loss.backward()
        assert model.itm_head.weight.grad.abs().sum() == 0
        assert model.query_tokens.grad.abs().sum() > 0

    def test_the_loss_of_a_batch_is_that_of_its_pairs(self):
        """Own pairs, hard items and hard texts by the model's own answers; captions word by word."""
        model, inputs = shaken_model(), batch()
        text = [inputs["input_ids"], inputs["attention_mask"]]
        with torch.no_grad():
            output, media = model(**inputs), model.query_media(inputs["pixel_values"])
            others = output.similarities.masked_fill(torch.eye(4, dtype=torch.bool), -2.0)
            hard_text, hard_item = others.argmax(dim=1), others.argmax(dim=0)
            assert not hard_text.equal(hard_item)
            others = model.query_media(inputs["pixel_values"][hard_item])
            hard_texts = [tensor[hard_text] for tensor in text]
            pairs = [model.match(media, *text), model.match(others, *text), model.match(media, *hard_texts)]
            logits = model.text_branch.lm_logits(model.caption_states(media, *text))
        together = torch.tensor([1] * 4 + [0] * 8)
        torch.testing.assert_close(output.itm_loss, nn.functional.cross_entropy(torch.cat(pairs), together))
        losses = [
            nn.functional.cross_entropy(logits[row, place - 1], text[0][row, place], label_smoothing=0.1)
            for row in range(4)
            for place in range(1, int(text[1][row].sum()))
        ]
        torch.testing.assert_close(output.itg_loss, torch.stack(losses).mean())
        torch.testing.assert_close(output.loss, output.itc_loss + output.itm_loss + output.itg_loss)

    def test_what_pads_hold_does_not_make_captions_differ(self):
        inputs = texts([CLS, 5, SEP], [CLS, 5, SEP], [CLS, 5, 6, SEP])
        inputs = {key: value[:2] for key, value in inputs.items()}
        inputs["input_ids"][1, 3] = 17
        with torch.no_grad():
            assert tiny_model()(**inputs, pixel_values=torch.randn(2, 3, 16, 16)).itm_loss.item() == 0.0

    def test_a_step_checks_its_captions_once(self, monkeypatch):
        model, checks = tiny_model(), []
        check = model._check_text
        monkeypatch.setattr(model, "_check_text", lambda *args, **kwargs: checks.append(1) or check(*args, **kwargs))
        model(**batch())
        assert len(checks) == 1  # each reads a verdict back from the device

    def test_equal_captions_are_negatives_only_on_request(self):
        inputs = {**texts(*[[CLS, 5, SEP]] * 3), "pixel_values": torch.randn(3, 3, 16, 16)}
        with torch.no_grad():
            assert tiny_model(match_equal_texts=False)(**inputs).itm_loss.item() > 0.1

    def test_evaluation_repeats(self):
        model, inputs = tiny_model(), batch()
        with torch.no_grad():
            assert model(**inputs).loss.item() == model(**inputs).loss.item()

    @pytest.mark.parametrize("modality", ["image", "video", "sound"])
    def test_gradients_reach_the_interface_and_not_the_tower(self, modality):
        model, inputs = tiny_model(modality).train(), batch(modality)
        model(**inputs).loss.backward()
        tower = model.model.tower(model.config.row.encoder)
        assert not tower.training
        idle = [name for name, parameter in model.named_parameters() if parameter.grad is None]
        own = [name for name in idle if not name.startswith(("model.vision_tower.", "model.extra_towers."))]
        # The adapter, and the image row's own queries when the video row borrows its Q-Former, take no part.
        assert all(".adapter." in name or "interfaces.image.converter.query_tokens" in name for name in own), own
        assert all(parameter.grad is None for parameter in tower.parameters())

    def test_checkpointed_gradients_are_the_same(self):
        gradients = []
        for checkpointed in (False, True):
            model = tiny_model().train()
            if checkpointed:
                model.gradient_checkpointing_enable({"use_reentrant": False})
            torch.manual_seed(5)
            model(**batch()).loss.backward()
            gradients.append(model.query_tokens.grad)
        torch.testing.assert_close(*gradients, atol=1e-6, rtol=1e-4)

    def test_bfloat16_weights_run(self):
        model = tiny_model().to(torch.bfloat16)
        with torch.no_grad():
            low, full = model(**batch()).loss, tiny_model()(**batch()).loss
        assert low.item() == pytest.approx(full.item(), rel=0.05)

    def test_eager_equals_sdpa(self):
        losses = []
        for implementation in ("eager", "sdpa"):
            model = tiny_model("video")
            model.set_attn_implementation(implementation)
            with torch.no_grad():
                losses.append(model(**batch("video")).loss)
        torch.testing.assert_close(*losses, atol=1e-5, rtol=1e-5)


class TestCheckpoints:
    def test_the_interface_has_the_composites_keys_and_nothing_of_stage_1(self):
        model = tiny_model()
        composite = XLLMEncoderModel(
            XLLMConfig(**{key: getattr(model.config, key) for key in ("text_config", "vision_config", "modalities")})
        )
        keys = {f"model.{key}" for key in composite.state_dict()}
        heads, interface = model.heads_state_dict(), model.interface_state_dict()
        assert {key for key in model.state_dict() if key.startswith("model.")} == keys
        assert heads.keys() | keys == model.state_dict().keys()
        assert not heads.keys() & keys
        assert not [
            key for key in interface if ".intermediate." in key or ".output.dense" in key and "attention" not in key
        ]
        composite.interfaces.load_state_dict(
            {key.removeprefix("model.interfaces."): value for key, value in interface.items()}, strict=True
        )

    def test_heads_are_saved_beside_and_read_back(self, tmp_path):
        model, other = tiny_model(), tiny_model()
        with torch.no_grad():
            model.temperature.fill_(0.2)
            model.text_branch.lm_bias.fill_(1.0)
        path = model.save_heads(tmp_path)
        assert path.name == "qformer_pretraining_heads.safetensors"
        other.load_heads(tmp_path)
        assert other.temperature.item() == pytest.approx(0.2)
        assert other.text_branch.lm_bias.eq(1.0).all()
        with pytest.raises(ValueError, match="misshapen: media_proj.bias"):
            tiny_model(projection_size=8).load_heads(tmp_path)

    def test_round_trip_and_declared_missing_parts(self, tmp_path):
        model, inputs = tiny_model(), batch()
        model.save_pretrained(tmp_path)
        again = XLLMForQFormerPreTraining.from_pretrained(tmp_path).eval()
        with torch.no_grad():
            torch.testing.assert_close(again(**inputs).loss, model(**inputs).loss)
        assert again.config.modality == "image"
        assert again.config.text_bos_token_id == DEC
        assert list(again.config.modalities) == ["image"]
        interface_only = {key: value for key, value in model.state_dict().items() if key.startswith("model.")}
        started = XLLMForQFormerPreTraining.from_pretrained(None, config=model.config, state_dict=interface_only)
        assert started.temperature.item() == pytest.approx(0.07)
        assert started.query_tokens.equal(model.query_tokens)
        assert started.text_branch.lm_bias.eq(0).all()
        assert started.text_branch.embeddings.position_ids.equal(torch.arange(16)[None])
        assert all(torch.isfinite(value).all() for value in started.state_dict().values())

    def test_the_words_may_be_replaced(self):
        model = tiny_model()
        words = nn.Embedding.from_pretrained(2 * model.get_input_embeddings().weight.detach())
        model.set_input_embeddings(words)
        assert model.get_input_embeddings() is model.text_branch.embeddings.word_embeddings is words

    def test_only_the_chosen_interface_is_built(self):
        model = tiny_model("image")
        assert list(model.model.interfaces) == ["image"]
        assert list(tiny_model("video").model.interfaces) == ["image", "video"]
        assert model.model.audio_tower is None


class TestErrors:
    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"pixel_values": None}, "reads pixel_values, got no media"),
            ({"pixel_values_videos": torch.zeros(4, 1, 3, 16, 16)}, "reads pixel_values, got pixel_values and"),
            ({"pixel_values": torch.zeros(3, 3, 16, 16)}, "4 texts for 3 image items"),
            ({"attention_mask": torch.tensor([[0, 1, 1, 1, 1]] * 4)}, "pad the text on the right"),
            ({"attention_mask": torch.tensor([[1] * 5] * 3 + [[0] * 5])}, "pad the text on the right"),
            ({"attention_mask": torch.tensor([[1] * 5] * 3 + [[1, 0, 1, 1, 1]])}, "pad the text on the right"),
            ({"attention_mask": torch.ones(4, 9)}, "attention_mask is"),
            (
                {"input_ids": torch.ones(4, 17, dtype=torch.long), "attention_mask": None},
                "has 17 tokens, expected 2 to",
            ),
        ],
    )
    def test_wrong_input_is_named(self, changes, message):
        with pytest.raises(ValueError, match=message):
            tiny_model()(**batch(**changes))

    def test_a_text_of_another_item_is_told_apart_by_their_number(self):
        model, inputs = tiny_model(), batch()
        media = model.query_media(inputs["pixel_values"])
        for compute in (model.match, model.caption_states):
            with pytest.raises(ValueError, match="holds 3 texts for 4 image items; one text per item"):
                compute(media, inputs["input_ids"][:3], inputs["attention_mask"][:3])

    def test_a_text_may_be_its_first_token_alone(self):
        mask = torch.tensor([[1] * 5] * 3 + [[1, 0, 0, 0, 0]])
        assert tiny_model()(**batch(attention_mask=mask)).loss.isfinite()

    @pytest.mark.parametrize("silent", [slice(None), slice(2, 3)])
    def test_a_video_without_frames_is_refused(self, silent):
        inputs = batch("video")
        inputs["video_frame_mask"][silent] = 0
        with pytest.raises(ValueError, match="at least one real frame"):
            tiny_model("video")(**inputs)

    def test_a_sound_without_frames_and_other_media_are_refused(self):
        model, silent = tiny_model("sound"), torch.zeros(4, 208)
        with pytest.raises(ValueError, match="^sound_features_mask has a row of zeros: each sound needs at least one"):
            model(**batch("sound", sound_features_mask=silent))
        with pytest.raises(ValueError, match="^the 'sound' interface reads sound_features, got pixel_values$"):
            model(**batch())

    @pytest.mark.parametrize(
        ("fields", "message"),
        [
            ({"modality": "smell"}, "modality is 'smell'; the table has image, video, sound"),
            ({"text_bos_token_id": 40}, "text_bos_token_id is 40, outside text_vocab_size 40"),
            ({"text_eos_token_id": -1}, "text_eos_token_id is -1, outside text_vocab_size 40"),
            ({"max_text_length": 17}, "max_text_length is 17"),
            ({"max_text_length": 1}, "max_text_length is 1; expected 2 to"),
            ({"initial_temperature": 0.0}, "initial_temperature is 0.0"),
        ],
    )
    def test_wrong_config_is_named(self, fields, message):
        with pytest.raises(ValueError, match=message):
            tiny_config(**fields)

    @pytest.mark.parametrize("length", [2, 16])
    def test_texts_may_be_as_short_and_as_long_as_their_branch_reads(self, length):
        assert tiny_config(max_text_length=length).max_text_length == length
        losses = tiny_model()(**batch(**texts(*[[CLS] + [5] * (length - 1)] * 4)))
        assert losses.loss.isfinite()

    def test_speech_has_no_queries(self):
        with pytest.raises(ValueError, match="'speech' is a 'cformer' over input_features"):
            QFormerPreTrainingConfig(modality="speech")


class TestLearning:
    @pytest.mark.parametrize("modality", ["image", "video", "sound"])
    def test_eight_pairs_are_learned_by_heart(self, modality):
        torch.manual_seed(0)
        model = tiny_model(modality).train()
        captions = [[CLS, 4 + i % 4, 10 + i // 4, SEP] for i in range(8)]
        inputs = texts(*captions)
        if modality == "image":
            inputs["pixel_values"] = torch.randn(8, 3, 16, 16)
        elif modality == "video":
            inputs["pixel_values_videos"] = torch.randn(8, 2, 3, 16, 16)
        else:
            inputs["sound_features"] = torch.randn(8, 1, 26).expand(-1, 104, -1)  # a spectrum that does not change
        trained = [p for p in model.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(trained, lr=6e-3, weight_decay=0.0)
        first = None
        for _ in range(300):
            loss = model(**inputs).loss
            first = loss.item() if first is None else first
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        model.eval()
        media = model.query_media(
            **{key: value for key, value in inputs.items() if key.startswith(("pixel", "sound"))}
        )
        with torch.no_grad():
            output = model(**inputs)
            logits = model.match(media, **texts(*captions))
            wrong = model.match(media, **texts(*captions[1:], captions[0]))
        assert output.loss.item() < 0.5 * first
        for similarities in (output.similarities, output.similarities.T):
            assert similarities.argmax(1).tolist() == list(range(len(captions)))
        assert logits.argmax(1).eq(1).all()
        assert wrong.argmax(1).eq(0).all()
        ids = torch.tensor(captions)
        next_ids = model.text_branch.lm_logits(model.caption_states(media, ids)).argmax(-1)
        assert torch.equal(next_ids[:, :-1], ids[:, 1:])  # so a greedy search writes these captions


def test_a_step_of_one_pair_is_told_of(monkeypatch):
    told, model = [], tiny_model()
    monkeypatch.setattr(modeling_qformer_pretraining.logger, "warning_once", told.append)
    one = {name: value[:1] for name, value in batch().items()}
    model.train()(**batch())
    model.eval()(**one)
    assert told == []
    model.train()(**one)
    assert "raise per_device_train_batch_size" in told[0]


class TestTrainer:
    def train(self, folder: Path, accumulation: int) -> tuple[float, dict]:
        model = tiny_model()
        rows = [{key: value[i % 4] for key, value in batch().items()} for i in range(8)]
        arguments = TrainingArguments(
            output_dir=str(folder),
            per_device_train_batch_size=2,
            per_device_eval_batch_size=4,
            gradient_accumulation_steps=accumulation,
            learning_rate=0.0,
            num_train_epochs=1,
            report_to=[],
            use_cpu=True,
            disable_tqdm=True,
        )
        trainer = Trainer(model, arguments, train_dataset=rows, eval_dataset=rows)
        return trainer.train().training_loss, trainer.evaluate()

    def test_accumulated_losses_are_averaged(self, tmp_path):
        single, evaluation = self.train(tmp_path, accumulation=1)
        accumulated, _ = self.train(tmp_path, accumulation=2)
        assert accumulated == pytest.approx(single, rel=0.1)  # hard negatives are drawn; a sum would be twice as much
        assert evaluation["eval_loss"] == pytest.approx(single, rel=0.5)


@pytest.mark.slow
@pytest.mark.parametrize("modality", ["video", "sound"])
def test_two_ranks_equal_one_process_with_the_whole_batch(modality, tmp_path):
    """Mean loss and mean gradient over two ranks of two pairs = those of one process with four (negatives shared)."""
    script = Path(__file__).with_name("qformer_two_ranks.py")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = {**os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    ranks = [
        subprocess.Popen([sys.executable, str(script), str(rank), str(tmp_path), modality], env=environment)
        for rank in range(2)
    ]
    assert [rank.wait(timeout=240) for rank in ranks] == [0, 0]
    results = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)]
    model, inputs = tiny_model(modality), torch.load(tmp_path / "inputs.pt", weights_only=True)
    output = model(**inputs)
    output.loss.backward()
    for name in ("itc_loss", "itm_loss", "itg_loss"):
        torch.testing.assert_close((results[0][name] + results[1][name]) / 2, output[name].detach())
    assert results[0]["similarities"].shape == (2, 4)
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            mean = (results[0]["gradients"][name] + results[1]["gradients"][name]) / 2
            torch.testing.assert_close(
                mean, parameter.grad, atol=1e-5, rtol=1e-4, msg=lambda text, name=name: f"{name}: {text}"
            )


@pytest.mark.parametrize("changes", [("image", {}), ("video", {}), ("video", {"video_frame_mask": None})], ids=str)
def test_a_process_that_makes_other_tensors_by_default_learns_the_same(changes):
    modality, changes = changes
    model, inputs = shaken_model(modality), batch(modality, **changes)

    def numbers() -> dict:
        torch.manual_seed(0)
        return {"training": model.train()(**inputs).loss, "evaluation": model.eval()(**inputs).loss}

    assert_equal_whatever_is_made_by_default(numbers)


def test_default_sizes_are_those_of_blip_2_over_bert_base_uncased():
    assert default_numbers(QFormerPreTrainingConfig) == {
        "text_vocab_size": 30522 + 1, "text_pad_token_id": 0, "text_bos_token_id": 30522, "text_eos_token_id": 102,
        "text_max_positions": 512, "max_text_length": 32, "projection_size": 256, "initial_temperature": 0.07,
        "label_smoothing": 0.1, "match_equal_texts": True,
    }  # fmt: skip


def test_an_evaluation_draws_nothing():
    """Its negatives are the hardest, so that two evaluations of one model are the same."""
    model, inputs, losses = shaken_model(), batch(), {True: set(), False: set()}
    for seed in range(8):
        torch.manual_seed(seed)
        for training in losses:
            losses[training].add(model.train(training)(**inputs).itm_loss.item())
    assert [len(losses[training]) == 1 for training in (True, False)] == [False, True]


@torch.no_grad()
@pytest.mark.parametrize("modality", ["image", "video"])
def test_a_rank_matches_its_own_pairs_with_those_of_all(modality):
    """What two ranks gather is what one gathers of the whole batch."""
    model, inputs, gather, gathered = shaken_model(modality), batch(modality), XLLMForQFormerPreTraining._gather, []
    model._gather = lambda *mine: gathered.append(gather(model, *mine)) or gathered[0]
    whole, ranks = model(**inputs), []
    for offset in (0, 2):
        model._gather = lambda *mine, offset=offset: (gathered[0][0], offset)
        ranks.append(model(**{name: value[offset : offset + 2] for name, value in inputs.items()}))
    torch.testing.assert_close(torch.cat([rank.similarities for rank in ranks]), whole.similarities)
    for name in ("itc_loss", "itm_loss"):
        torch.testing.assert_close((ranks[0][name] + ranks[1][name]) / 2, whole[name])


def test_a_match_is_that_of_the_frame_that_speaks_most_for_it():
    class Head(nn.Module):
        def forward(self, hidden):  # (B, 3 frames of 4 queries, H)
            frames = torch.tensor([[5.0, 6.0], [0.0, 3.0], [9.0, 9.0]])
            return frames.repeat_interleave(4, 0).expand(len(hidden), -1, -1)

    model, inputs = tiny_model("video"), batch("video", video_frame_mask=torch.tensor([[1, 1, 1], [1, 0, 1]] * 2))
    model.itm_head = Head()
    media = model.query_media(**{name: inputs[name] for name in ("pixel_values_videos", "video_frame_mask")})
    assert model.match(media, inputs["input_ids"], inputs["attention_mask"]).tolist() == [[0, 3], [5, 6]] * 2
