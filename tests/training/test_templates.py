# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""Chat templates as published families write them: what is prompt, what is label, and where a model stops.

The templates are short ones with the same marks and the same logic around an answer as the published ones.
"""

import json
import pickle
import shutil
from datetime import datetime

import numpy as np
import pytest
import torch
from PIL import Image
from processor_parts import composed
from torch.nn import functional as F
from transformers.utils import chat_template_utils

from xllm import XLLMForConditionalGeneration
from xllm.cli import main
from xllm.training.batches import collator
from xllm.training.batches.collator import XLLMDataCollator
from xllm.training.data.augmentation import Augmentation


EACH = "{% for m in messages %}"
QWEN3 = (
    "{% set ns = namespace(last=0) %}"
    "{% for m in messages %}{% if m.role == 'user' %}{% set ns.last = loop.index0 %}{% endif %}{% endfor %}" + EACH +
    "{{ '<|im_start|>' + m.role + '\n' }}"
    "{% if m.role == 'assistant' and loop.index0 > ns.last %}{{ '<think>\n\n</think>\n\n' }}{% endif %}"
    "{{ m.content + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}THINK{% endif %}"
)  # fmt: skip
SWITCH = "{% if enable_thinking is defined and enable_thinking is false %}{{ '<think>\n\n</think>\n\n' }}{% endif %}"
CHATML = (
    EACH + "{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
GLM4 = (
    "{{ '[gMASK]<sop>' }}" + EACH + "{{ '<|' + m.role + '|>\n' + m.content }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
GEMMA = (
    EACH + "{{ '<start_of_turn>' + ('model' if m.role == 'assistant' else m.role) + '\n' + m.content | trim + "
    "'<end_of_turn>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
LLAMA2 = (
    EACH + "{% if m.role == 'user' %}{{ '<s>[INST] ' + m.content + ' [/INST]' }}"
    "{% else %}{{ ' ' + m.content + ' </s>' }}{% endif %}{% endfor %}"
)
PHI4 = (
    EACH + "{{ '<|im_start|>' + m.role + '<|im_sep|>' + m.content + '<|im_end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant<|im_sep|>' }}{% endif %}"
)
# The system message stands in the last question, and in a conversation that ends with an answer nowhere.
MISTRAL = (
    "{% set ns = namespace(text='') %}" + EACH + "{% if m.role == 'system' %}{% set ns.text = m.content + '\n\n' %}"
    "{% elif m.role == 'user' %}{{ '[INST] ' + (ns.text if loop.last else '') + m.content + '[/INST]' }}"
    "{% else %}{{ ' ' + m.content | trim + '</s>' }}{% endif %}{% endfor %}"
)
DATED = (
    "{% set today = strftime_now('%d %B %Y') if strftime_now is defined else '26 July 2024' %}"
    "{{ '<|im_start|>system\nToday is ' + today + '<|im_end|>\n' }}" + CHATML
)
STRICT = (
    EACH + "{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate, the user first') }}{% endif %}{% endfor %}"
)
# Template, special tokens (the end token first), and what the answer " zero" becomes.
FAMILIES = {
    "Qwen3": (QWEN3.replace("THINK", SWITCH), ["<|im_end|>", "<|im_start|>"], "zero<|im_end|>"),
    "Qwen3, thoughts in history only": (QWEN3.replace("THINK", ""), ["<|im_end|>"], "zero<|im_end|>"),
    "a base model's end": (CHATML, ["<|endoftext|>", "<|im_end|>"], "zero<|im_end|><|endoftext|>"),
    "GLM-4": (GLM4, ["<|endoftext|>", "<|user|>", "<|assistant|>"], "\nzero<|endoftext|>"),
    "Gemma": (GEMMA, ["<eos>", "<end_of_turn>", "<start_of_turn>"], "zero<end_of_turn><eos>"),
    "Llama 2": (LLAMA2, ["</s>", "<s>"], " zero </s>"),
    "Phi-4": (PHI4, ["<|im_end|>", "<|im_start|>", "<|im_sep|>"], "zero<|im_end|>"),
    "Mistral": (MISTRAL, ["</s>", "<s>"], " zero</s>"),
    "none": (None, ["</s>"], "zero</s>"),
}  # fmt: skip


def turn(role, *parts, **fields):
    content = [{"type": "text", "text": part} if isinstance(part, str) else part for part in parts]
    return {"role": role, "content": content, **fields}


def labels_of(processor, batch, row=0):
    return processor.tokenizer.decode([token for token in batch["labels"][row].tolist() if token != -100])


@pytest.mark.parametrize("name", FAMILIES)
def test_the_answer_is_the_answer(name):
    template, special, wanted = FAMILIES[name]
    _, processor = composed(template, special)
    messages = [turn("user", "Which?"), turn("assistant", "zero")]
    batch = XLLMDataCollator(processor)([{"messages": messages}, {"messages": [turn("user", "?"), messages[1]]}])
    assert [labels_of(processor, batch, row) for row in (0, 1)] == [wanted, wanted]
    prompt = processor.encode_conversations([messages[:-1]])["input_ids"][0]
    assert torch.equal(batch["input_ids"][0, : len(prompt)], prompt)  # what generation starts with
    assert (batch["labels"][0, : len(prompt)] == -100).all()
    assert batch["labels"][0, -1].item() == processor.tokenizer.eos_token_id
    assert batch["attention_mask"].sum(1).tolist() == [len(row[row != -100]) + n for row, n in zip(
        batch["labels"], (len(prompt), len(processor.encode_conversations([[turn("user", "?")]])["input_ids"][0]))
    )]  # fmt: skip
    text = processor.tokenizer.decode(processor.encode_answers([messages])[0], skip_special_tokens=True)
    assert text.strip() == "zero"  # what evaluation compares


def test_a_token_that_generation_stops_at_ends_an_answer():
    template, special, _ = FAMILIES["Gemma"]
    _, processor = composed(template, special)
    stop = processor.tokenizer.convert_tokens_to_ids("<end_of_turn>")
    messages = [turn("user", "Which?"), turn("assistant", " zero ")]
    batch = XLLMDataCollator(processor, stop_ids=[stop])([{"messages": messages}])
    assert labels_of(processor, batch) == "zero<end_of_turn>"


def test_a_system_message_that_stands_in_the_last_question_is_prompt():
    """And is read before every answer that is learnt, as before every answer that is asked for."""
    _, processor = composed(MISTRAL, ["</s>", "<s>"])
    turns = [turn("user", "Which?"), turn("assistant", " zero "), turn("user", "And?"), turn("assistant", "one")]
    messages = [turn("system", "Be short."), *turns]
    batch = XLLMDataCollator(processor, loss_on="all", causal=True)([{"messages": messages}])
    assert [labels_of(processor, batch, row) for row in (0, 1)] == [" zero</s>", " one</s>"]
    for row, end in ((0, -3), (1, -1)):
        prompt = processor.encode_conversations([messages[:end]])["input_ids"][0]
        assert torch.equal(batch["input_ids"][row, : len(prompt)], prompt)
        assert processor.tokenizer.decode(prompt).count("Be short.") == 1


@pytest.mark.parametrize("dated", [DATED, "{% set how = '%d %B %Y' %}" + DATED.replace("'%d %B %Y'", "how")])
def test_the_date_in_prompts_is_the_same_on_every_day_of_training(monkeypatch, caplog, dated):
    """A run that goes on tomorrow learns from the same prompts; who asks the model is told the day."""

    days = [1, 22]

    class Clock(datetime):
        @classmethod
        def now(cls, *args):
            return cls(2031, 5, days[0])

    monkeypatch.setattr(chat_template_utils, "datetime", Clock)
    collator.logger.warning_once.cache_clear()
    _, processor = composed(dated, ["<|im_end|>", "<|im_start|>"])
    turns = [turn("user", "Which?"), turn("assistant", "zero"), turn("user", "And?"), turn("assistant", "one")]
    batches, prompts = [], []
    while days:
        collate = pickle.loads(pickle.dumps(XLLMDataCollator(processor, loss_on="all", causal=True)))  # a worker's
        batches.append(collate([{"messages": turns}]))
        prompts.append(processor.tokenizer.decode(processor.encode_conversations([turns[:1]])["input_ids"][0]))
        days.pop(0)
    assert ["Today is 01 May 2031" in prompts[0], "Today is 22 May 2031" in prompts[1]] == [True, True]
    assert torch.equal(batches[0]["input_ids"], batches[1]["input_ids"])
    assert "Today is 26 July 2024" in processor.tokenizer.decode(batches[0]["input_ids"][0])
    assert labels_of(processor, batches[0]) == "zero<|im_end|>one<|im_end|>"
    assert processor.chat_template.endswith(dated)  # the one given is as it was
    assert [message.count("it is always 26 July 2024") for message in caplog.messages] == [1]


@pytest.mark.parametrize("on_error", ["raise", "skip"])
def test_what_a_template_refuses_is_named_by_its_row(tiny_checkpoint, tmp_path, capfd, caplog, on_error):
    """The second of three lines begins with the assistant."""
    shutil.copytree(tiny_checkpoint, tmp_path / "model")
    template = tmp_path / "model" / "chat_template.jinja"
    template.write_text(STRICT + template.read_text())
    answer = {"role": "assistant", "content": "zero"}
    rows = [[{"role": "user", "content": f"Which of {number}?"}, answer] for number in range(3)]
    rows[1].insert(0, answer)
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({"messages": row}) + "\n" for row in rows))
    recipe = {"model": str(tmp_path / "model"), "stages": [{"stage": "text"}]}
    recipe |= {"data": {"train": str(path), "on_error": on_error}, "output_dir": str(tmp_path / "out")}
    recipe["trainer"] = {"max_steps": 2, "per_device_train_batch_size": 3, "use_cpu": True}
    (tmp_path / "recipe.yaml").write_text(json.dumps(recipe))
    assert main(["check", str(tmp_path / "recipe.yaml"), "--workers", "0", "--json"]) == 1
    assert json.loads(capfd.readouterr().out)["groups"][0]["reasons"] == {"sample": 1}
    status = main(["train", str(tmp_path / "recipe.yaml")])
    problem = f"{path}:2: the chat template cannot write this conversation: roles must alternate, the user first"
    err = capfd.readouterr().err
    if on_error == "raise":
        assert status == 1
        assert err.splitlines()[-1] == f"xllm train: {problem}"
    else:
        assert status == 0, err
        assert f"skipped {problem}" in caplog.messages


def test_nothing_that_ends_an_answer_is_an_error():
    _, processor = composed(EACH + "{{ m.content }}{% endfor %}", ["<x>"], eos_token=None, pad_token="<x>")
    with pytest.raises(ValueError, match="nothing ends an answer: .*set `eos_token` in tokenizer_config.json"):
        XLLMDataCollator(processor)([{"messages": [turn("user", "a"), turn("assistant", "b")]}])


def test_a_folder_without_a_padding_token_opens_and_pads(tmp_path):
    """As six of fourteen families come; such folders exist already."""
    _, processor = composed(CHATML, ["<|im_end|>"])
    processor.tokenizer.pad_token = None
    processor.save_pretrained(tmp_path)
    assert '"pad_token": "' not in (tmp_path / "tokenizer_config.json").read_text()
    opened = type(processor).from_pretrained(tmp_path)
    batch = opened.encode_conversations([[turn("user", "a")], [turn("user", "longer")]])
    assert batch["attention_mask"].sum(1).tolist() == [
        len(row[row != opened.tokenizer.pad_token_id]) + 1 for row in batch["input_ids"]
    ]


# ---- several answers of one conversation ---------------------------------------------------------------------------


def conversation(**first):
    picture = {"type": "image", "image": Image.new("RGB", (40, 30), "red")}
    clip = {"type": "audio", "audio": np.sin(np.arange(6400) ** 1.5).astype(np.float32)}
    return [
        turn("user", picture, "What?"), turn("assistant", "red", **first),
        turn("user", clip, "And this?"), turn("assistant", "a tone"),
        turn("user", "Sure?"), turn("assistant", "yes"),
    ]  # fmt: skip


def losses(model, batch):
    """Sum of the losses of all targets."""
    with torch.no_grad():
        logits = model.eval()(**{key: value for key, value in batch.items() if key != "labels"}).logits
    return F.cross_entropy(logits[:, :-1].flatten(0, 1), batch["labels"][:, 1:].flatten(), reduction="sum")


def test_all_answers_of_a_causal_model_are_one_row_with_the_same_losses():
    config, processor = composed(CHATML, ["<|im_end|>", "<|im_start|>"])
    torch.manual_seed(0)
    model = XLLMForConditionalGeneration(config)
    sample = {"messages": conversation()}
    rows = XLLMDataCollator(processor, loss_on="all")([sample])
    one = XLLMDataCollator(processor, loss_on="all", causal=True)([sample])
    assert (len(rows["input_ids"]), len(rows["pixel_values"]), len(rows["input_features"])) == (3, 3, 2)
    assert (len(one["input_ids"]), len(one["pixel_values"]), len(one["input_features"])) == (1, 1, 1)
    assert torch.equal(one["input_ids"][0], rows["input_ids"][2])
    assert labels_of(processor, one) == "red<|im_end|>a tone<|im_end|>yes<|im_end|>"
    assert (one["labels"] != -100).sum() == (rows["labels"] != -100).sum()
    assert torch.allclose(losses(model, one), losses(model, rows), rtol=1e-5)


@pytest.mark.parametrize(("flags", "wanted"), [({"loss": False}, "a tone yes"), ({"loss": True}, "red a tone yes")])
def test_a_turn_says_whether_it_carries_loss(flags, wanted):
    _, processor = composed(CHATML, ["<|im_end|>", "<|im_start|>"])
    batch = XLLMDataCollator(processor, loss_on="all", causal=True)([{"messages": conversation(**flags)}])
    assert labels_of(processor, batch).replace("<|im_end|>", " ").strip() == wanted
    batch = XLLMDataCollator(processor, causal=True)([{"messages": conversation(**flags)}])
    assert labels_of(processor, batch).replace("<|im_end|>", " ").strip() == ("red yes" if flags["loss"] else "yes")
    silent = [turn("user", "a"), turn("assistant", "b", loss=False)]
    with pytest.raises(ValueError, match="no answer of a sample carries loss"):
        XLLMDataCollator(processor)([{"messages": silent}])


def test_where_a_template_rewrites_history_each_answer_has_its_row():
    template, special, _ = FAMILIES["Qwen3"]
    _, processor = composed(template, special)
    batch = XLLMDataCollator(processor, loss_on="all", causal=True)([{"messages": conversation()}])
    assert [labels_of(processor, batch, row) for row in range(3)] == [
        f"{text}<|im_end|>" for text in ("red", "a tone", "yes")
    ]


def test_a_conversation_that_is_too_long_for_one_row_is_taken_apart():
    _, processor = composed(CHATML, ["<|im_end|>", "<|im_start|>"])
    messages = [message for n in range(3) for message in (turn("user", "a" * 40), turn("assistant", f"{n}" * 5))]
    collate = XLLMDataCollator(processor, loss_on="all", causal=True, max_length=150)
    batch = collate([{"messages": messages}])
    assert [labels_of(processor, batch, row) for row in range(3)] == [f"{n}" * 5 + "<|im_end|>" for n in "012"]
    assert batch["attention_mask"].sum(1).max() <= 150
    assert collate.cuts() == {"turns": 1}  # the third row lost its first turn


@pytest.mark.parametrize("causal", [False, True])
def test_features_of_several_answers_are_augmented_alike(causal):
    _, processor = composed(CHATML, ["<|im_end|>", "<|im_start|>"])
    augmentation = Augmentation.from_spec(["spec_augment"])
    messages = [*conversation()[2:4], *conversation()[4:]]
    collate = XLLMDataCollator(processor, loss_on="all", augmentation=augmentation, causal=causal)
    clips = collate([{"messages": messages, "seed": 5}])["input_features"]
    assert len(clips) == (1 if causal else 2)
    assert all(torch.equal(clip, clips[0]) for clip in clips)
    plain = XLLMDataCollator(processor, loss_on="all", causal=causal)([{"messages": messages}])["input_features"]
    assert not torch.equal(clips, plain)
