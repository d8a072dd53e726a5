# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""Language models as they are published, from `xllm init` over a step of stage 2 to an answer."""

import pytest
import torch
from PIL import Image
from published_encoders import ENCODERS
from published_language_models import LANGUAGE_MODELS, REFUSED
from stage_two import one_step
from transformers import AutoTokenizer

from xllm.cli import main


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sources") / "encoder"
    ENCODERS["SigLIP, SigLIP 2 of fixed size"].write(folder)
    return folder


def question(text, *pictures):
    parts = [{"type": "image", "image": picture} for picture in pictures]
    return [{"role": "user", "content": [*parts, {"type": "text", "text": text}]}]


@pytest.mark.parametrize("name", LANGUAGE_MODELS)
def test_from_a_published_folder_to_an_answer(encoder, tmp_path, name):
    family, picture = LANGUAGE_MODELS[name], Image.new("RGB", (40, 30), "red")
    published = family.write(tmp_path / "llm")
    command = ["init", str(tmp_path / "m"), "--language-model", str(tmp_path / "llm")]
    assert main([*command, "--encoder", f"image={encoder}"]) == 0
    answer = {"role": "assistant", "content": [{"type": "text", "text": "a cat"}]}
    samples = [{"messages": [*question("Which?", picture), answer]}, {"messages": [*question("Or not?"), answer]}]
    model, processor, batch = one_step(tmp_path / "m", "image", samples, tmp_path / "trained")
    same_text(model, processor, published, AutoTokenizer.from_pretrained(tmp_path / "llm"), family)
    same_answers(model, processor)

    ends = model.generation_config.eos_token_id
    for last in (int(row[row != -100][-1]) for row in batch["labels"]):
        assert processor.tokenizer.convert_ids_to_tokens(last) == family.stop
        assert last in (ends if isinstance(ends, list) else [ends])
    token = model.config.modalities["image"].token_id
    assert (token >= model.config.text_config.vocab_size) == family.full


@torch.no_grad()
def same_text(model, processor, published, tokenizer, family):
    """Prompts are the published template's, and so are the logits of a text, the head's scale and cap included."""
    messages = [{"role": "user", "content": "Which of the two?"}]
    prompt = processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    if family.template is not None:
        how = {"tokenize": False, "add_generation_prompt": True, "enable_thinking": False}
        assert prompt == tokenizer.apply_chat_template(messages, chat_template=family.template, **how)
    ids = processor.encode_conversations([messages])["input_ids"]
    theirs = published(input_ids=ids).logits
    torch.testing.assert_close(model(input_ids=ids).logits, theirs, atol=1e-4, rtol=1e-4)
    batch = processor.encode_conversations([messages, question("And? " * 12)])
    torch.testing.assert_close(model(**batch).logits[0, -1], theirs[0, -1], atol=1e-3, rtol=1e-3)


def same_answers(model, processor):
    """A row is answered the same alone as in a batch with padding on the left, over pictures too."""
    picture = Image.new("RGB", (40, 30), "red")
    rows = [question("What?", picture), question("What is it that one can see in here?", picture), question("And?")]
    mode = {"max_new_tokens": 4, "do_sample": False, "repetition_penalty": 1.3}
    batch = processor.encode_conversations(rows)
    together = model.generate(**batch, **mode)[:, batch["input_ids"].shape[1] :]
    for row, tokens in zip(rows, together):
        alone = processor.encode_conversations([row])
        answer = model.generate(**alone, **mode)[0, alone["input_ids"].shape[1] :]
        assert answer.tolist() == tokens[: len(answer)].tolist()


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_taken_is_one_line(encoder, tmp_path, capfd, name):
    _, make, reason, _ = REFUSED[name]
    make(288).save_pretrained(tmp_path / "llm")
    capfd.readouterr()
    command = ["init", str(tmp_path / "m"), "--language-model", str(tmp_path / "llm"), "--encoder", f"image={encoder}"]
    assert main(command) == 1
    (line,) = capfd.readouterr().err.splitlines()
    assert str(tmp_path / "llm") in line
    assert reason in line
    assert not (tmp_path / "m").exists()
