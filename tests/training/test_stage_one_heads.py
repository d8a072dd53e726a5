# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""Stage-1 heads are read again: by `from_pretrained`, by the next stage 1, and the text side starts from a BERT."""

import warnings

import pytest
import torch
from safetensors.torch import load_file
from transformers import BertConfig, BertForMaskedLM, BertTokenizer

from xllm import XLLMForConditionalGeneration, XLLMForQFormerPreTraining, XLLMForSpeechRecognition
from xllm.assembly.opening import load_checkpoint
from xllm.cli import main
from xllm.training.stage_one import build_stage_one
from xllm.training.stages import StageError
from xllm.training.train import check, train


QUICK = [
    "trainer.max_steps=1",
    "trainer.per_device_train_batch_size=2",
    "trainer.save_strategy=no",
    "trainer.warmup_steps=0",
]
SPEECH, QFORMER = "speech_recognition_heads.safetensors", "qformer_pretraining_heads.safetensors"


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    """A tiny BERT of the Q-Former's sizes, with its tokenizer."""
    folder = tmp_path_factory.mktemp("bert")
    torch.manual_seed(11)
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "red", "blue", "a", "picture"]
    (folder / "vocab.txt").write_text("\n".join(words) + "\n")
    BertTokenizer(str(folder / "vocab.txt")).save_pretrained(folder)
    sizes = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 128}
    BertForMaskedLM(BertConfig(vocab_size=len(words), **sizes)).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def tables(media):
    (media / "speech.csv").write_text("file,text\nlow.wav,low\nhigh.wav,high\n")
    (media / "pictures.csv").write_text("file,text\nred.png,red picture\nblue.png,a blue picture\n")
    return media


def stage_one(model, output, row, tables, *more):
    train = tables / ("speech.csv" if row == "speech" else "pictures.csv")
    command = ["train", f"stage1_{row}", f"model={model}", f"train={train}", f"output_dir={output}"]
    assert main([*command, *QUICK, *more]) == 0
    return output / f"stage1-{row}"


def test_the_recogniser_of_a_run_is_what_was_trained(tiny_checkpoint, tables, tmp_path, capfd):
    first = stage_one(tiny_checkpoint, tmp_path / "a", "speech", tables)
    recogniser = XLLMForSpeechRecognition.from_pretrained(first)
    processor = load_checkpoint(str(first))[1]
    assert recogniser.config.vocab_size == len(processor.tokenizer)
    heads = load_file(first / SPEECH)
    assert all(torch.equal(value, heads[key]) for key, value in recogniser.heads_state_dict().items())
    whole = XLLMForConditionalGeneration.from_pretrained(first).state_dict()
    assert all(torch.equal(value, whole[key]) for key, value in recogniser.state_dict().items() if key in whole)
    inputs = processor(audio=[torch.zeros(16000).numpy()], return_tensors="pt")
    recogniser.transcribe(inputs["input_features"], inputs["input_features_mask"])

    # The next stage 1 goes on with these heads; without a step to take they are the same.
    capfd.readouterr()
    second = stage_one(
        first,
        tmp_path / "b",
        "speech",
        tables,
        "trainer.learning_rate=0.0",
        "trainer.lr_scheduler_type=constant",
        "trainer.lr_scheduler_kwargs={}",
    )
    assert f"stage 1 (speech): continues the heads of {first}" in capfd.readouterr().err
    again = load_file(second / SPEECH)
    assert all(torch.equal(value, heads[key]) for key, value in again.items())


def test_a_saved_recogniser_is_a_source_for_an_interface(tiny_checkpoint, tables, tmp_path):
    folder = stage_one(tiny_checkpoint, tmp_path / "a", "speech", tables)
    recogniser = XLLMForSpeechRecognition.from_pretrained(folder)
    recogniser.save_pretrained(tmp_path / "recogniser")
    model = XLLMForConditionalGeneration.from_towers(
        language_model=str(tiny_checkpoint),
        interfaces={"speech": str(tmp_path / "recogniser")},
        modalities={"speech": recogniser.config.modalities["speech"]},
    )
    tensors = model.state_dict()
    kept = {key: value for key, value in recogniser.state_dict().items() if key.startswith("model.")}
    assert all(torch.equal(value, tensors[key]) for key, value in kept.items())
    assert any(".audio_tower." in key for key in kept)


def test_a_folder_without_heads_is_no_recogniser(tiny_checkpoint, tmp_path):
    with pytest.raises(
        ValueError, match="has no speech_recognition_heads.safetensors, so it was not trained in stage 1"
    ):
        XLLMForSpeechRecognition.from_pretrained(tiny_checkpoint)


def test_the_text_side_starts_from_a_bert_and_is_continued(tiny_checkpoint, tables, bert, tmp_path, capfd):
    first = stage_one(
        tiny_checkpoint,
        tmp_path / "a",
        "image",
        tables,
        f"text_side={bert}",
        "trainer.learning_rate=0.0",
        "trainer.lr_scheduler_type=constant",
        "trainer.lr_scheduler_kwargs={}",
    )
    assert f"stage 1 (image): the text side starts from {bert}" in capfd.readouterr().err
    learner = XLLMForQFormerPreTraining.from_pretrained(first)
    assert learner.config.text_vocab_size == 10  # BERT's 9 words and [DEC]
    words = BertForMaskedLM.from_pretrained(bert).bert.embeddings.word_embeddings.weight
    assert torch.equal(learner.text_branch.embeddings.word_embeddings.weight[:9], words)
    assert (first / "text_side" / "tokenizer_config.json").exists()
    heads = load_file(first / QFORMER)
    second = stage_one(
        first,
        tmp_path / "b",
        "image",
        tables,
        "trainer.learning_rate=0.0",
        "trainer.lr_scheduler_type=constant",
        "trainer.lr_scheduler_kwargs={}",
    )
    assert f"stage 1 (image): continues the heads of {first}" in capfd.readouterr().err
    again = load_file(second / QFORMER)
    assert all(torch.equal(value, heads[key]) for key, value in again.items())
    assert (second / "text_side" / "tokenizer_config.json").exists()


def test_new_heads_say_so(tiny_checkpoint, tables, tmp_path, capfd):
    stage_one(tiny_checkpoint, tmp_path, "image", tables)
    assert "stage 1 (image): new heads over the language model's " in capfd.readouterr().err


@pytest.mark.parametrize(
    ("row", "settings", "message"),
    [
        ("speech", ["text_side=bert"], "text_side: stage 1 of speech reads no text; leave it out"),
        ("image", ["stage=2", "text_side=bert"], "text_side belongs to stage 1"),
        ("image", ["text_side=/nowhere"], "cannot read the config of /nowhere"),
        ("image", ["text_side=MODEL"], "a xllm checkpoint has no text side for stage 1"),
    ],
)
def test_bad_text_sides_are_one_line(tiny_checkpoint, tables, tmp_path, capfd, row, settings, message):
    train = tables / ("speech.csv" if row == "speech" else "pictures.csv")
    settings = [setting.replace("MODEL", str(tiny_checkpoint)) for setting in settings]
    command = [
        "train",
        f"stage1_{row}",
        f"model={tiny_checkpoint}",
        f"train={train}",
        f"output_dir={tmp_path / 'out'}",
    ]
    assert main([*command, *settings, "objective={}"]) == 1
    err = capfd.readouterr().err
    assert message in err
    assert len(err.splitlines()) == 1


def test_a_text_side_of_a_later_stage_is_checked_before_the_first_is_trained(tiny_checkpoint, tables, bert, tmp_path):
    """A BERT of the wrong width, in the second stage; a right one passes and nothing of the model has moved."""
    wide = BertForMaskedLM(BertConfig(vocab_size=9, hidden_size=32, num_attention_heads=4, num_hidden_layers=1))
    wide.save_pretrained(tmp_path / "wide")
    BertTokenizer.from_pretrained(bert).save_pretrained(tmp_path / "wide")

    def recipe(text_side):
        stages = [
            {"stage": 1, "modalities": ["speech"], "data": {"train": [str(tables / "speech.csv")]}},
            {
                "stage": 1,
                "modalities": ["image"],
                "data": {"train": [str(tables / "pictures.csv")]},
                "text_side": text_side,
            },
        ]
        return {"model": str(tiny_checkpoint), "output_dir": str(tmp_path / "out"), "stages": stages}

    for run in (train, check):
        with pytest.raises(ValueError, match=r"this BERT does not fit the Q-Former: hidden_size 64 \(theirs 32\)"):
            run(recipe(str(tmp_path / "wide")))
    assert not (tmp_path / "out").exists()
    with warnings.catch_warnings(action="error"):
        assert len(check(recipe(str(bert)))) == 2


def test_heads_of_another_vocabulary_are_refused(tiny, bert, tmp_path):
    model, processor = tiny
    learner = build_stage_one(model, processor, "image", text_side=str(bert))
    learner.save_heads(tmp_path)
    with pytest.raises(StageError, match=r"has 10 words, the tokenizer \d+; name the tokenizer it was trained with"):
        build_stage_one(model, processor, "image", heads=tmp_path)
    again = build_stage_one(model, processor, "image", heads=tmp_path, text_tokenizer=str(bert))
    assert torch.equal(again.itm_head.weight, learner.itm_head.weight)
