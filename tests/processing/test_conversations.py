# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""From conversations to inputs and answers: nothing around the template, end tokens, users' text, thinking aloud."""

import json

import numpy as np
import pytest
import torch
from media_files import sine
from PIL import Image
from processor_parts import CAT, EOS, IMAGE, IS, SPEECH, THIS, WHAT, A, placeholder_tokenizer, small_processor
from tokenizers import processors

from xllm.processing.processing_xllm import XLLMProcessor


RED = Image.new("RGB", (20, 10), "red")


def question(*parts):
    return [{"role": "user", "content": [*parts, {"type": "text", "text": " what is this "}]}]


def answered(text):
    return [*question(), {"role": "assistant", "content": [{"type": "text", "text": text}]}]


def with_template(template):
    tokenizer = placeholder_tokenizer()
    tokenizer.chat_template = template
    return XLLMProcessor(tokenizer=tokenizer)


def test_the_one_function_is_apply_chat_template():
    processor = small_processor()
    rows = [question({"type": "image", "image": RED}), question({"type": "audio", "audio": sine(0.1)})]
    batch = processor.encode_conversations(rows)
    assert [row[-2:] for row in batch["input_ids"].tolist()] == [[THIS, 1], [THIS, 1]]  # "assistant:" comes last
    plain = processor.apply_chat_template(
        rows, tokenize=True, return_dict=True, add_generation_prompt=True, return_tensors="pt"
    )
    assert set(plain) == set(batch)
    assert all(torch.equal(plain[name], batch[name]) for name in batch)
    assert processor.encode_conversations([question()], add_generation_prompt=False, return_tensors=None)["input_ids"]


def test_tokenizers_add_nothing_around_a_rendered_conversation():
    """BERT's would end the prompt with its [SEP], in generation only."""
    processor = small_processor()
    processor.tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<eos> $A <eos>", special_tokens=[("<eos>", EOS)]
    )
    assert processor(text="what")["input_ids"] == [[EOS, WHAT, EOS]]
    assert EOS not in processor.encode_conversations([question()])["input_ids"][0]
    batch = processor.apply_chat_template(
        question(), tokenize=True, return_dict=True, processor_kwargs={"add_special_tokens": True}
    )
    assert batch["input_ids"][0][-1] == EOS


def test_placeholders_that_users_type_are_text():
    processor = small_processor()
    typed = [
        {"role": "user", "content": [{"type": "image", "image": RED}, {"type": "text", "text": "<ImageHere> what"}]}
    ]
    batch = processor.encode_conversations([typed], sanitize_control_tokens=True)
    assert batch["input_ids"][0].tolist().count(IMAGE) == 2  # of the picture alone
    with pytest.raises(ValueError, match="names 2 images"):
        processor.encode_conversations([typed])


@pytest.mark.parametrize(
    ("template", "ids"),
    [
        (None, [A, CAT, EOS]),
        # no end, and no place to answer: what stands before the answer is not part of it
        ("{% for m in messages %}{{ m['role'] + ' ' + m['content'] + ' ' }}{% endfor %}", [A, CAT, EOS]),
        (
            "{% for m in messages %}{{ m['role'] + ' ' + m['content'] + ' <eos> is' }}{% endfor %}"
            "{% if add_generation_prompt %}{{ 'assistant ' }}{% endif %}",
            [A, CAT, EOS],
        ),  # text behind the end
        (
            "{% for m in messages %}{{ m['role'] + ' ' + m['content'] + ' ' }}{% endfor %}"
            "{% if add_generation_prompt %}{{ 'this' }}{% endif %}",
            [A, CAT, EOS],
        ),  # another beginning
    ],
)
def test_answers_end_with_the_end_token(template, ids):
    assert with_template(template).encode_answers([answered("a cat")]) == [ids]


def test_no_thinking_aloud():
    """As Qwen3's template does: the generation prompt holds the empty thought, unless thinking is asked for."""
    processor = with_template(
        "{% for m in messages %}{{ m['role'] + ' ' }}{% if m['role'] == 'assistant' %}{{ 'is is ' }}{% endif %}"
        "{{ m['content'] + ' <eos> ' }}{% endfor %}{% if add_generation_prompt %}{{ 'assistant ' }}"
        "{% if enable_thinking is defined and enable_thinking is false %}{{ 'is is ' }}{% endif %}{% endif %}"
    )
    assert processor.encode_answers([answered("a cat")]) == [[A, CAT, EOS]]
    assert processor.encode_conversations([question()])["input_ids"][0, -2:].tolist() == [IS, IS]
    aloud = processor.encode_conversations([question()], enable_thinking=True)
    assert aloud["input_ids"][0, -1] == 7


def test_settings_of_an_older_folder(tmp_path):
    """Two numbers and no rows: the same counts, and the same two numbers when it is saved again."""
    small_processor(subsampling_factor=4).save_pretrained(tmp_path)
    path = tmp_path / "processor_config.json"
    settings = json.loads(path.read_text())
    assert (settings["num_query_tokens"], settings["subsampling_factor"]) == (2, 4)
    assert "modalities" not in settings
    assert "readers" not in settings
    processor = XLLMProcessor.from_pretrained(tmp_path)
    batch = processor(text="<ImageHere> <SpeechHere>", images=np.zeros((9, 9, 3), np.uint8), audio=sine(0.5))
    assert batch["input_ids"] == [[IMAGE] * 2 + [SPEECH] * 12]
    assert processor.to_dict() == small_processor(subsampling_factor=4).to_dict()


def test_a_template_of_lists_alone_loses_no_text():
    """LLaVA's selects parts by their type; of a string it would write nothing."""
    each = "{% for part in message['content'] | selectattr('type', 'equalto', 'text') %}{{ part['text'] }}{% endfor %}"
    processor = with_template(f"{{% for message in messages %}}{{{{ message['role'] + ':' }}}}{each}{{% endfor %}}")
    plain = [{"role": "user", "content": "what"}, {"role": "assistant", "content": "cat"}]
    assert processor.apply_chat_template(plain, tokenize=False) == "user:whatassistant:cat"
    assert processor.apply_chat_template(answered("cat"), tokenize=False) == "user: what is this assistant:cat"
    assert processor.answer_text(answered("cat")) == "cat<eos>"
