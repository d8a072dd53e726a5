# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""Stage 1 of a speech interface: its three losses by hand, what it hands over, and that it learns."""

import copy
import inspect

import pytest
import tiny
import torch
from torch.nn import functional as F
from transformers import Trainer, TrainingArguments

from xllm import X2LConfig, XLLMForSpeechRecognition
from xllm.modeling_xllm.stage1.configuration_speech_recognition import SpeechRecognitionConfig
from xllm.modeling_xllm.stage1.ctc_beam_search import ctc_prefix_beam_search


VOCABULARY = 11


def tiny_recogniser(**fields) -> XLLMForSpeechRecognition:
    base = tiny.tiny_config()
    config = SpeechRecognitionConfig(
        text_config=base.text_config,
        audio_config=base.audio_config,
        **{"modalities": tiny.tiny_rows(), "vocab_size": VOCABULARY, **fields},
    )
    model = XLLMForSpeechRecognition(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=0.15)
    return model


def labels_of(*rows: list[int]) -> torch.Tensor:
    return torch.nn.utils.rnn.pad_sequence([torch.tensor(row) for row in rows], batch_first=True, padding_value=-100)


def encode(model, inputs):
    outputs, mask = model.model.encode("speech", inputs["input_features"], inputs["input_features_mask"])
    return outputs.last_hidden_state, mask


def test_losses_are_sums_over_tokens():
    model = tiny_recogniser(label_smoothing=0.1, quantity_weight=2.0, ctc_weight=0.25)
    inputs, rows = tiny.speech(160, 90), [[3, 1, 4, 1], [5, 9]]
    out = model(**inputs, labels=labels_of(*rows))
    hidden, mask = encode(model, inputs)
    tokens = model.cformer(hidden, mask, torch.tensor([4, 2]))
    assert out.lengths.tolist() == [4, 2]
    torch.testing.assert_close(out.logits, model.token_head(tokens.embeddings))

    cross_entropy = 0.0
    for b, row in enumerate(rows):
        log_probs = out.logits[b, : len(row)].log_softmax(-1)
        for log_prob, token in zip(log_probs, row):
            cross_entropy -= 0.9 * log_prob[token] + 0.1 * log_prob.mean()
    torch.testing.assert_close(out.ce_loss, cross_entropy / 6)

    quantity = model.cformer.cif.predict_alphas(hidden, mask).sum(1)
    torch.testing.assert_close(out.quantity_loss, ((quantity[0] - 4).abs() + (quantity[1] - 2).abs()) / 6)

    ctc = 0.0
    for b, row in enumerate(rows):
        frames = int(mask[b].sum())
        log_probs = model.ctc_head(hidden[b, :frames]).log_softmax(-1)
        ctc += F.ctc_loss(
            log_probs, torch.tensor(row), [frames], [len(row)], blank=VOCABULARY, reduction="sum"
        )  # fmt: skip
    torch.testing.assert_close(out.ctc_loss, ctc / 6)
    torch.testing.assert_close(out.loss, out.ce_loss + 2.0 * out.quantity_loss + 0.25 * out.ctc_loss)


def test_one_word_is_a_batch():
    model, inputs = tiny_recogniser(label_smoothing=0.0), tiny.speech(160)
    out = model(**inputs, labels=labels_of([0]))
    torch.testing.assert_close(out.ce_loss, F.cross_entropy(out.logits[0], torch.tensor([0])))
    silent = model(**inputs, labels=torch.full((1, 3), -100))
    assert silent.ce_loss == 0
    torch.testing.assert_close(silent.loss, silent.quantity_loss + 0.5 * silent.ctc_loss)


def test_num_items_replaces_the_token_count():
    """Two accumulated micro-batches give the gradient of the whole batch."""
    model = tiny_recogniser()
    inputs, labels = tiny.speech(160, 160), labels_of([3, 1, 4, 1, 2], [5, 9])

    def gradient(rows, **kwargs):
        model.zero_grad()
        for row in rows:
            part = {name: value[row] for name, value in inputs.items()}
            model(**part, labels=labels[row], **kwargs).loss.backward()
        return [p.grad.clone() for p in model.parameters() if p.grad is not None]

    whole = gradient([slice(0, 2)])
    parts = gradient([slice(0, 1), slice(1, 2)], num_items_in_batch=torch.tensor(7))
    torch.testing.assert_close(parts, whole, atol=2e-5, rtol=1e-3)


def test_trainer_accumulates_exactly(tmp_path):
    """One optimizer step of the plain Trainer: four clips at once, or two by two, move the weights alike."""
    rows = tiny.tiny_rows()
    for name in ("cif_dropout", "hidden_dropout_prob", "attention_probs_dropout_prob"):
        setattr(rows["speech"].cformer_config, name, 0.0)
    inputs, labels = tiny.speech(160, 160, 160, 160), labels_of([3, 1, 4, 1], [5, 9], [2], [6, 5, 3])
    clips = [{**{key: value[i] for key, value in inputs.items()}, "labels": labels[i]} for i in range(4)]
    start = tiny_recogniser(modalities=rows)
    after = []
    for size in (4, 2):
        model = tiny_recogniser(modalities=rows)
        model.load_state_dict(start.state_dict())
        model.model.audio_tower.requires_grad_(False)
        arguments = TrainingArguments(
            output_dir=str(tmp_path), per_device_train_batch_size=size, gradient_accumulation_steps=4 // size,
            max_steps=1, optim="sgd", learning_rate=0.1, lr_scheduler_type="constant", max_grad_norm=0.0,
            save_strategy="no", report_to=[], use_cpu=True, disable_tqdm=True, per_device_eval_batch_size=4,
        )  # fmt: skip
        trainer = Trainer(model, arguments, train_dataset=clips, eval_dataset=clips)
        trainer.train()
        assert trainer.evaluate()["eval_loss"] < float("inf")
        after.append(model.state_dict())
    moved = [key for key, value in after[0].items() if not torch.equal(value, start.state_dict()[key])]
    assert "model.interfaces.speech.converter.cif.weight_proj.weight" in moved
    assert not any("audio_tower" in key for key in moved)
    torch.testing.assert_close(after[1], after[0], atol=1e-5, rtol=1e-4)


def test_labels_may_be_padded_anywhere():
    model, inputs = tiny_recogniser(), tiny.speech(160, 90)
    right = model(**inputs, labels=torch.tensor([[3, 1, 4, 1], [5, 9, -100, -100]]))
    left = model(**inputs, labels=torch.tensor([[3, 1, 4, 1], [-100, 5, -100, 9]]))
    torch.testing.assert_close(left.loss, right.loss)


def test_transcribes_without_targets():
    model, inputs = tiny_recogniser(), tiny.speech(200, 90)
    out = model(**inputs)
    assert out.loss is None
    ids = model.transcribe(**inputs)
    assert [len(row) for row in ids] == out.lengths.tolist()
    assert ids[1] == out.logits[1, : out.lengths[1]].argmax(-1).tolist()
    alone = model.transcribe(inputs["input_features"][1:, :90])
    assert alone == ids[1:]


def test_ctc_path_drops_repeats_and_blanks():
    model, inputs = tiny_recogniser(ctc_blank_id=0), tiny.speech(64, 40)
    hidden, mask = encode(model, inputs)
    assert mask.sum(1).tolist() == [8, 5]
    path = torch.tensor([[4, 4, 0, 4, 2, 2, 0, 0], [0, 7, 0, 7, 7, 9, 9, 9]])
    path_logits = F.one_hot(path, VOCABULARY).float()

    class Path(torch.nn.Module):
        def forward(self, hidden):
            return path_logits

    model.ctc_head = Path()
    assert model.transcribe(**inputs, decode="ctc") == [[4, 4, 2], [7, 7]]


def test_a_beam_is_ranked_by_both_heads():
    """Every transcript of the beam scored on its own, by CTC and by the cross-entropy that training would give it."""
    best: dict[float, list] = {0.0: [], 0.3: [], 2.0: []}
    for seed in range(4):
        torch.manual_seed(seed)
        model = tiny_recogniser(label_smoothing=0.0)
        with torch.no_grad():
            model.token_head.weight.mul_(4)  # so that the two heads disagree
        inputs = tiny.speech(64, 40)
        hidden, mask = encode(model, inputs)
        for weight, found in best.items():
            found += model.transcribe(**inputs, decode="beam", num_beams=6, cif_weight=weight)
        for b in range(2):
            beams = ctc_prefix_beam_search(model.ctc_head(hidden[b][mask[b]]).log_softmax(-1), VOCABULARY, 6)
            clip = {name: value[b : b + 1] for name, value in inputs.items()}
            cif = [-float(model(**clip, labels=labels_of(ids)).ce_loss.detach()) * len(ids) for ids, _ in beams]
            for weight, found in best.items():
                scores = {tuple(ids): score + weight * own for (ids, score), own in zip(beams, cif)}
                assert found[2 * seed + b] == list(max(scores, key=scores.get))
    assert best[0.0] != best[2.0]


def test_a_beam_of_one_is_followed_and_eight_are_by_default():
    model, inputs = tiny_recogniser(), tiny.speech(64, 40)
    hidden, mask = encode(model, inputs)
    paths = [model.ctc_head(row[real]).log_softmax(-1) for row, real in zip(hidden, mask)]
    one = model.transcribe(**inputs, decode="beam", num_beams=1)
    assert one == [ctc_prefix_beam_search(path, VOCABULARY, 1)[0][0] for path in paths]
    defaults = {name: one.default for name, one in inspect.signature(model.transcribe).parameters.items()}
    own = {"decode": "cif", "num_beams": 8, "cif_weight": 1.0, "return_fire_frames": False}
    assert {name: defaults[name] for name in own} == own


@pytest.mark.parametrize("encoder", ["audio", None])
def test_clips_without_a_mask_are_real_to_their_end(encoder):
    """Whether a tower reads them, or their features are the frames."""
    rows = tiny.tiny_rows()
    if encoder is None:
        rows["speech"] = X2LConfig(**{**rows["speech"].to_dict(), "encoder": None, "encoder_hidden_size": tiny.MELS})
    model, labels = tiny_recogniser(modalities=rows), labels_of([3, 1, 4], [5])
    features, mask = tiny.speech(40, 40).values()
    with tiny.made_by_default("meta"):
        torch.testing.assert_close(model(features, labels=labels).loss, model(features, mask, labels).loss)
        for decode in ("cif", "ctc", "beam"):
            assert model.transcribe(features, decode=decode) == model.transcribe(features, mask, decode=decode)


def test_fire_frames_come_with_every_way_to_decode():
    model, inputs = tiny_recogniser(), tiny.speech(160, 90)
    out = model(**inputs)
    ids, frames = model.transcribe(**inputs, return_fire_frames=True)
    for row, expected, length in zip(frames, out.fire_frames.tolist(), out.lengths.tolist()):
        assert row == pytest.approx(expected[:length])
    for decode in ("ctc", "beam"):
        ids, frames = model.transcribe(**inputs, decode=decode, return_fire_frames=True)
        assert [len(row) for row in ids] == [len(row) for row in frames]
        assert any(ids)
        for row, encoder_frames in zip(frames, (20, 12)):
            assert row == sorted(row)
            assert not row or row[-1] == pytest.approx(encoder_frames)  # the last token closes at the clip's end


def test_blank_is_an_extra_class_unless_named():
    assert tiny_recogniser().ctc_head.out_features == VOCABULARY + 1
    assert tiny_recogniser(ctc_blank_id=0).ctc_head.out_features == VOCABULARY
    model = tiny_recogniser(ctc_weight=0.0)
    assert model.ctc_head is None
    out = model(**tiny.speech(80), labels=labels_of([1, 2]))
    assert out.ctc_loss is None
    torch.testing.assert_close(out.loss, out.ce_loss + out.quantity_loss)
    for decode in ("ctc", "beam"):
        with pytest.raises(ValueError, match="ctc_weight=0"):
            model.transcribe(**tiny.speech(80), decode=decode)
    assert len(model.transcribe(**tiny.speech(80))) == 1


def test_clips_without_speech():
    model, inputs = tiny_recogniser(), tiny.speech(160, 90)
    with torch.no_grad():
        model.cformer.cif.weight_proj.bias.fill_(-20.0)
    assert model.transcribe(**inputs) == [[], []]
    assert model(**inputs).logits.shape == (2, 0, VOCABULARY)
    loss = model(**inputs, labels=labels_of([1, 2], [])).loss  # a transcript may be empty
    assert loss.isfinite()


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (labels_of([1] * 9, [2]), r"target_lengths\[0\] is 9 but the row has 8 real frames"),
        (labels_of([1], [VOCABULARY]), "labels hold the id 11, but config.vocab_size is 11"),
        (labels_of([1], [-1]), "labels hold the id -1"),
        (labels_of([1]), "labels must have shape .* with 2 clips"),
        (torch.tensor([1, 2]), "labels must have shape"),
    ],
)
def test_bad_labels_are_named(labels, message):
    with pytest.raises(ValueError, match=message):
        tiny_recogniser()(**tiny.speech(64, 40), labels=labels)


def test_more_labels_than_frames_with_several_tokens_per_frame():
    rows = tiny.tiny_rows()
    rows["speech"].cformer_config.cif_one_token_per_frame = False
    out = tiny_recogniser(modalities=rows)(**tiny.speech(64, 40), labels=labels_of([1] * 11, [2]))
    assert out.lengths.tolist() == [11, 1]  # of 8 and 5 frames
    assert out.loss.isfinite()


def test_nan_features_and_unknown_decoding_are_named():
    model, inputs = tiny_recogniser(), tiny.speech(64)
    with pytest.raises(ValueError, match="decode must be 'cif', 'ctc' or 'beam', got 'greedy'"):
        model.transcribe(**inputs, decode="greedy")
    with pytest.raises(ValueError, match="num_beams must be positive and cif_weight not negative, got 0, 1.0"):
        model.transcribe(**inputs, decode="beam", num_beams=0)
    with pytest.raises(ValueError, match="got 1, -0.5"):
        model.transcribe(**inputs, decode="beam", num_beams=1, cif_weight=-0.5)
    inputs["input_features"][0, 10, 3] = float("nan")
    with pytest.raises(ValueError, match="NaN"):
        model.transcribe(**inputs)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"modality": "sound"}, "modality is 'sound'; the table has image, video, speech"),
        ({"modality": "image"}, "modality 'image' is a 'qformer'"),
        ({"vocab_size": 0}, "vocab_size"),
        ({"label_smoothing": 1.0}, "label_smoothing"),
        ({"ctc_weight": -1.0}, "ctc_weight must not be negative"),
        ({"ctc_blank_id": VOCABULARY}, "ctc_blank_id is 11, outside vocab_size 11"),
    ],
)
def test_bad_config_is_named(fields, message):
    with pytest.raises(ValueError, match=message):
        tiny_recogniser(**fields)


@pytest.mark.parametrize(
    "fields",
    [{"vocab_size": 1}, {"label_smoothing": 0}, {"quantity_weight": 0}, {"ctc_weight": 0}, {"ctc_blank_id": 0}],
    ids=str,
)
def test_what_a_config_may_just_have(fields):
    config = tiny_recogniser(**fields).config
    assert {name: getattr(config, name) for name in fields} == fields


def test_the_weights_of_the_losses_are_the_published_ones():
    config = SpeechRecognitionConfig()
    assert (config.label_smoothing, config.quantity_weight, config.ctc_weight) == (0.1, 1.0, 0.5)
    assert (config.vocab_size, config.ctc_classes, config.ctc_blank) == (21128, 21129, 21128)  # bert-base-chinese


def test_a_c_former_of_its_own_is_needed():
    rows = tiny.tiny_rows()
    for name, shared in (("image", ";"), ("sound", " shared with 'speech';")):
        rows["sound"] = X2LConfig(shares_converter_with="speech", token_id=tiny.STATUS)
        with pytest.raises(ValueError, match=rf"modality '{name}' is a '\w+'{shared} recognition needs a row with"):
            tiny_recogniser(modalities=rows, modality=name)


def test_only_the_speech_side_is_built():
    model = tiny_recogniser()
    assert model.model.vision_tower is None
    assert list(model.model.interfaces) == ["speech"]


def test_a_frozen_tower_gets_no_gradient_and_a_trained_one_does():
    inputs, labels = tiny.speech(160, 90), labels_of([3, 1], [5])
    for frozen in (True, False):
        model = tiny_recogniser().train()
        model.model.audio_tower.requires_grad_(not frozen)
        model.train()
        model(**inputs, labels=labels).loss.backward()
        gradients = [p.grad for p in model.model.audio_tower.parameters()]
        assert all(g is None for g in gradients) if frozen else any(g is not None and g.any() for g in gradients)
        assert model.model.audio_tower.training is not frozen
        trained = [*model.cformer.named_parameters(), *model.token_head.named_parameters()]
        assert all(p.grad is not None for _, p in trained)


def test_round_trip_and_heads(tmp_path):
    model, inputs = tiny_recogniser(ctc_blank_id=3), tiny.speech(160, 90)
    model.save_pretrained(tmp_path / "model")
    loaded = XLLMForSpeechRecognition.from_pretrained(tmp_path / "model")
    assert loaded.config.ctc_blank_id == 3
    assert torch.equal(loaded(**inputs).logits, model(**inputs).logits)
    assert model.save_heads(tmp_path / "heads").name == "speech_recognition_heads.safetensors"
    other = tiny_recogniser(ctc_blank_id=3)
    other.load_heads(tmp_path / "heads")
    assert torch.equal(other.token_head.weight, model.token_head.weight)
    with pytest.raises(ValueError, match="misshapen: ctc_head.bias, .*token_head"):
        tiny_recogniser(ctc_blank_id=3, vocab_size=12).load_heads(tmp_path / "heads")
    with pytest.raises(ValueError, match="2 without a place: ctc_head.bias, ctc_head.weight"):
        tiny_recogniser(ctc_weight=0.0).load_heads(tmp_path / "heads")


def test_a_composite_of_stage_one_is_opened_with_its_heads(tmp_path):
    """Tower and interface are the composite's, the heads those beside them."""
    composite, model = tiny.tiny_model(seed=1), tiny_recogniser(ctc_blank_id=3)
    composite.save_pretrained(tmp_path)
    with pytest.raises(
        ValueError, match="has no speech_recognition_heads.safetensors, so it was not trained in stage 1"
    ):
        XLLMForSpeechRecognition.from_pretrained(tmp_path)
    model.save_heads(tmp_path)
    opened = XLLMForSpeechRecognition.from_pretrained(tmp_path)
    assert opened.config.ctc_blank_id == 3
    found, heads, theirs = opened.state_dict(), model.heads_state_dict(), composite.state_dict()
    assert all(torch.equal(found[key], value) for key, value in heads.items())
    rest = found.keys() - heads.keys()
    assert {key.split(".")[1] for key in rest} == {"audio_tower", "interfaces"}
    assert all(torch.equal(found[key], theirs[key]) for key in rest)


def synthetic_speech(count: int, seed: int):
    """Clips in which each token is a pattern over mel bins, held for 24 to 40 frames, then 8 frames of silence."""
    generator = torch.Generator().manual_seed(seed)
    patterns = torch.randn(VOCABULARY, tiny.MELS, generator=torch.Generator().manual_seed(7)) * 2
    samples = []
    for _ in range(count):
        ids = torch.randint(VOCABULARY, (int(torch.randint(2, 6, (), generator=generator)),), generator=generator)
        pieces = []
        for token in ids:
            held = int(torch.randint(24, 41, (), generator=generator))
            pieces.extend([patterns[token].expand(held, -1), torch.zeros(8, tiny.MELS)])
        clip = torch.cat(pieces)
        samples.append((clip + 0.1 * torch.randn(clip.shape, generator=generator), ids))
    pad = torch.nn.utils.rnn.pad_sequence
    features = pad([clip for clip, _ in samples], batch_first=True)
    mask = torch.arange(features.shape[1]) < torch.tensor([len(clip) for clip, _ in samples])[:, None]
    labels = pad([ids for _, ids in samples], batch_first=True, padding_value=-100)
    return {"input_features": features, "input_features_mask": mask.long()}, labels


def learn(model, inputs, labels, steps, lr):
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr)
    model.train()
    for _ in range(steps):
        loss = model(**inputs, labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    model.eval()


def test_learns_a_handful_of_clips():
    inputs, labels = synthetic_speech(6, seed=0)
    truth = [row[row >= 0].tolist() for row in labels]
    torch.manual_seed(0)
    model = tiny_recogniser(label_smoothing=0.0)
    assert model.transcribe(**inputs) != truth
    learn(model, inputs, labels, steps=300, lr=5e-3)
    assert model.transcribe(**inputs) == truth
    out = model(**inputs)
    assert out.lengths.tolist() == [len(row) for row in truth]


def test_a_process_that_makes_other_tensors_by_default_recognises_the_same():
    model, inputs, labels = tiny_recogniser(), tiny.speech(160, 90), labels_of([3, 1, 4], [5])

    def numbers() -> dict:
        torch.manual_seed(0)
        found = {"loss": copy.deepcopy(model).train()(**inputs, labels=labels).loss}  # whose batch norms count
        for decode in ("cif", "ctc", "beam"):
            rows, frames = model.transcribe(**inputs, decode=decode, return_fire_frames=True)
            found |= {f"{decode} {n}": torch.tensor(row, device="cpu", dtype=torch.float64)
                      for n, row in enumerate(rows + frames)}  # fmt: skip
        return found

    tiny.assert_equal_whatever_is_made_by_default(numbers)
