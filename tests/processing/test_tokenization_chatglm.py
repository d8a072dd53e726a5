# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""ChatGLMTokenizer against sentencepiece itself, on models of the published kinds (without ice_text.model)."""

import copy
import json
import pickle

import pytest
import sentencepiece
import torch
from transformers import AutoTokenizer

from xllm import ChatGLMTokenizer
from xllm.assembly.tiny import PUBLISHED, train_sentencepiece, train_text_pieces
from xllm.processing.tokenization_chatglm import append_pieces


SENTENCES = [
    "seven dogs ran to the left of a red square",
    "turn right at 3 then 7 then 42",
    "问：图中有什么？ 答：一只狗。",
    "请详细描述这张图片",
    "[Round 0] <Image> </Image>",
]
TEXTS = [
    "seven dogs",
    "a red\nsquare\n\n",
    "left\tright",
    "a  b   c" + " " * 9 + "d",
    "问：图中有什么？\n答：",
    "x" * 5 + "é😀",
    " dogs ",
    "",
]


@pytest.fixture(scope="module")
def model_file(tmp_path_factory):
    return train_sentencepiece(SENTENCES, tmp_path_factory.mktemp("sp"), 160, byte_fallback=True, max_blank_length=80)


@pytest.fixture(scope="module")
def tokenizer(model_file):
    return ChatGLMTokenizer(str(model_file))


def published_encode(model_file, text: str, offset: int = 0) -> list[int]:
    """The published preprocessing, then sentencepiece."""
    text = text.replace("\n", "<n>").replace("\t", "<|tab|>")
    for length in range(80, 1, -1):
        text = text.replace(" " * length, f"<|blank_{length}|>")
    return [piece + offset for piece in sentencepiece.SentencePieceProcessor(model_file=str(model_file)).encode(text)]


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("offset", [0, 20000])
@pytest.mark.parametrize("byte_fallback", [True, False])
@pytest.mark.parametrize("kind", [{}, {"normalization_rule_name": "nmt_nfkc"}, {"model_type": "bpe"}], ids=str)
def test_ids_equal_sentencepiece(kind, byte_fallback, text, offset, tmp_path):
    model_file = tmp_path / "ice_text.model"
    trained = train_text_pieces(SENTENCES, 160, **{**PUBLISHED, **kind})
    model_file.write_bytes(append_pieces(trained, byte_fallback=byte_fallback))
    tokenizer = ChatGLMTokenizer(str(model_file), num_image_tokens=offset)
    assert tokenizer(text, add_special_tokens=False)["input_ids"] == published_encode(model_file, text, offset)


@pytest.mark.parametrize("length", [2, 79, 80, 81, 82, 83, 160, 161, 250])
def test_long_runs_of_spaces_equal_the_published_replacements(model_file, tokenizer, length):
    text = "a" + " " * length + "b"
    assert tokenizer(text, add_special_tokens=False)["input_ids"] == published_encode(model_file, text)


@pytest.mark.parametrize("text", [text for text in TEXTS if text == text.strip(" ")])
def test_text_comes_back(tokenizer, text):
    assert tokenizer.decode(tokenizer(text, add_special_tokens=False)["input_ids"]) == text
    assert tokenizer.decode(tokenizer(text)["input_ids"], skip_special_tokens=True) == text
    pair = tokenizer(text, "seven dogs")["input_ids"]
    assert tokenizer.decode(pair) == f"{text}[gMASK]<sop>seven dogs<eop>"


def test_prompt_and_answer_layout(tokenizer):
    gmask, sop, eop = (tokenizer.convert_tokens_to_ids(token) for token in ("[gMASK]", "<sop>", "<eop>"))
    prompt = tokenizer("seven dogs", add_special_tokens=False)["input_ids"]
    answer = tokenizer("left", add_special_tokens=False)["input_ids"]
    assert tokenizer("seven dogs")["input_ids"] == [*prompt, gmask, sop]
    pair = tokenizer("seven dogs", "left", return_token_type_ids=True, return_special_tokens_mask=True)
    assert pair["input_ids"] == [*prompt, gmask, sop, *answer, eop]
    assert pair["token_type_ids"] == [0] * (len(prompt) + 1) + [1] * (len(answer) + 2)
    assert pair["special_tokens_mask"] == [0] * len(prompt) + [1, 1] + [0] * len(answer) + [1]
    assert tokenizer("seven dogs[gMASK]<sop>")["input_ids"] == [*prompt, gmask, sop]  # never twice
    short = tokenizer("seven dogs ran to the left", truncation=True, max_length=6)["input_ids"]
    assert short == [*tokenizer("seven dogs ran to the left", add_special_tokens=False)["input_ids"][:4], gmask, sop]
    assert (tokenizer.gmask_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id) == (gmask, sop, eop)
    assert (tokenizer.unk_token_id, tokenizer.pad_token_id) == (0, 3)


def test_batches_are_padded_on_the_left(tokenizer):
    batch = tokenizer(["seven", "seven dogs ran to the left"], padding=True, return_tensors="pt")
    alone = tokenizer("seven")["input_ids"]
    gap = batch["input_ids"].shape[1] - len(alone)
    assert batch["input_ids"][0].tolist() == [3] * gap + alone
    assert batch["attention_mask"][0].tolist() == [0] * gap + [1] * len(alone)
    assert batch["attention_mask"][1].min() == 1


def test_decoding_is_safe_for_any_id(tokenizer):
    assert tokenizer.decode(range(len(tokenizer) + 200), skip_special_tokens=True)
    beyond = len(tokenizer) + 5
    assert tokenizer.decode([beyond]) == ""
    assert tokenizer.convert_ids_to_tokens([beyond]) == ["<unk>"]
    assert tokenizer.decode(torch.tensor([tokenizer.image_token_id, 3]), skip_special_tokens=True) == ""
    offset = ChatGLMTokenizer(tokenizer.vocab_file, num_image_tokens=50)
    assert offset.convert_ids_to_tokens(7) == "<image_7>"
    assert offset.decode([7, *offset("left", add_special_tokens=False)["input_ids"]]) == "left"


@pytest.mark.parametrize("offset", [0, 20000])
def test_placeholders_take_ids_that_no_piece_has(model_file, offset):
    tokenizer = ChatGLMTokenizer(str(model_file), num_image_tokens=offset)
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(model_file)).get_piece_size()
    ids = [tokenizer.image_token_id, tokenizer.video_token_id, tokenizer.audio_token_id]
    assert ids == [offset + pieces, offset + pieces + 1, offset + pieces + 2]
    assert len(tokenizer) == ids[-1] + 1
    assert [tokenizer.image_token, tokenizer.video_token, tokenizer.audio_token] == [
        "<ImageHere>", "<VideoHere>", "<SpeechHere>",
    ]  # fmt: skip
    assert set(ids) <= set(tokenizer.all_special_ids)
    tokenizer.add_tokens(["[unheard]", "<n>"])
    assert tokenizer.convert_tokens_to_ids(["[unheard]", "<n>"]) == [ids[-1] + 1, 4 + offset]


def test_wrappers_are_encoded_apart_as_the_authors_did(model_file, tmp_path):
    plain = train_sentencepiece(SENTENCES, tmp_path, 160, byte_fallback=True, user_defined_symbols=())
    tokenizer = ChatGLMTokenizer(str(plain))
    parts = ["<Image>", "</Image>", "<Speech>", "</Speech>", "seven dogs"]
    pieces = [published_encode(plain, part) for part in parts]
    expected = [
        *pieces[0], *[tokenizer.image_token_id] * 3, *pieces[1], *pieces[2],
        tokenizer.audio_token_id, *pieces[3], *pieces[4],
    ]  # fmt: skip
    text = "<Image>" + "<ImageHere>" * 3 + "</Image><Speech><SpeechHere></Speech>seven dogs"
    assert tokenizer(text, add_special_tokens=False)["input_ids"] == expected
    assert tokenizer("a<Image>b", add_special_tokens=False)["input_ids"] == published_encode(plain, "a<Image>b")


def test_the_first_release_gets_its_missing_pieces(tmp_path):
    """March 2023: no special pieces, blanks or bytes in the file; 20000 image ids before the text."""
    full = train_sentencepiece(SENTENCES, tmp_path, 160, max_blank_length=0, user_defined_symbols=())
    proto = full.read_bytes()
    raw = tmp_path / "raw.model"
    tail = append_pieces(b"", max_blank_length=0)
    assert proto.endswith(tail)
    raw.write_bytes(proto[: -len(tail)])
    text_pieces = sentencepiece.SentencePieceProcessor(model_file=str(raw)).get_piece_size()
    tokenizer = ChatGLMTokenizer(str(raw), num_image_tokens=20000)
    names = ["[MASK]", "[gMASK]", "<sop>", "<eop>", "<|tab|>", "<|blank_2|>", "<|blank_80|>", "<0x00>", "<0xFF>"]
    first = 20000 + text_pieces
    assert tokenizer.convert_tokens_to_ids(names) == [first + step for step in (0, 1, 4, 5, 8, 9, 87, 88, 343)]
    assert tokenizer.image_token_id == first + 344
    text = "dogs\tè  x"
    assert tokenizer.decode(tokenizer(text)["input_ids"], skip_special_tokens=True) == text


def test_a_published_folder_loads_by_auto_tokenizer(model_file, tmp_path):
    """tokenizer_config.json as THUDM wrote it, remote code named but not run; saved again and loaded again."""
    (tmp_path / "ice_text.model").write_bytes(model_file.read_bytes())
    settings = {
        "name_or_path": "THUDM/chatglm-6b",
        "bos_token": "<sop>",
        "eos_token": "<eop>",
        "end_token": "</s>",
        "gmask_token": "[gMASK]",
        "mask_token": "[MASK]",
        "pad_token": "<pad>",
        "unk_token": "<unk>",
        "remove_space": False,
        "do_lower_case": False,
        "tokenizer_class": "ChatGLMTokenizer",
        "num_image_tokens": 0,
        "auto_map": {"AutoTokenizer": ["tokenization_chatglm.ChatGLMTokenizer", None]},
    }
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "chatglm"}), encoding="utf-8")
    (tmp_path / "tokenization_chatglm.py").write_text("raise RuntimeError('remote code was run')", encoding="utf-8")
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    expected = ChatGLMTokenizer(str(model_file))
    assert type(loaded) is ChatGLMTokenizer
    assert "</s>" not in loaded.all_special_tokens
    loaded.save_pretrained(tmp_path / "saved")
    again = AutoTokenizer.from_pretrained(tmp_path / "saved")
    for one in (loaded, again, pickle.loads(pickle.dumps(again)), copy.deepcopy(again)):
        assert type(one) is ChatGLMTokenizer
        assert one.get_vocab() == expected.get_vocab()
        assert one("seven dogs\n<Image><ImageHere></Image>") == expected("seven dogs\n<Image><ImageHere></Image>")
        assert one.chat_template == expected.chat_template


def test_the_april_release_stops_at_its_eop_token(model_file):
    tokenizer = ChatGLMTokenizer(str(model_file), eos_token="</s>", eop_token="<eop>")
    assert tokenizer.eos_token == "<eop>"


def test_a_folder_without_ice_text_is_refused(tmp_path):
    (tmp_path / "tokenizer_config.json").write_text("{}", encoding="utf-8")
    with pytest.raises((ValueError, OSError), match=r"ice_text\.model|ChatGLMTokenizer"):
        ChatGLMTokenizer.from_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"no ice_text\.model"):
        ChatGLMTokenizer(None)


def test_a_plain_tokenizer_model_is_refused(model_file, tmp_path):
    """transformers falls back to that name, and the pieces that ChatGLM2 lacks would be invented."""
    (tmp_path / "tokenizer.model").write_bytes(model_file.read_bytes())
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "ChatGLMTokenizer"}', encoding="utf-8")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "chatglm"}), encoding="utf-8")
    with pytest.raises(ValueError, match=r"tokenizer\.model: the vocabulary of ChatGLM2 or later"):
        AutoTokenizer.from_pretrained(tmp_path)


def test_only_blanks_that_are_pieces_become_spaces(tokenizer):
    pieces = ["a", "<|blank_80|>", "<|blank_2|>", "b"]
    assert tokenizer.convert_tokens_to_string(pieces) == "a" + " " * 82 + "b"
    for text in ("<|blank_81|>", "<|blank_1000000000|>", "<|blank_1|>", "<|blank_05|>"):
        ids = tokenizer("x" + text, add_special_tokens=False)["input_ids"]
        assert tokenizer.decode(ids) == "x" + text


# ---- chat -----------------------------------------------------------------------------------------------------------

IMAGE = {"type": "image", "image": "x.jpg"}


def text(value: str) -> dict:
    return {"type": "text", "text": value}


@pytest.mark.parametrize(
    ("messages", "generation_prompt", "expected"),
    [
        ([("user", "你好")], True, "你好[gMASK]<sop>"),
        ([("user", "你好")], False, "你好"),
        ([("user", "你好"), ("assistant", "您好")], False, "你好[gMASK]<sop>您好<eop>"),
        (
            [("user", "a"), ("assistant", "b"), ("user", "c")],
            True,
            "[Round 0]\n问：a\n答：b\n[Round 1]\n问：c\n答：[gMASK]<sop>",
        ),
        (
            [("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d")],
            False,
            "[Round 0]\n问：a\n答：b\n[Round 1]\n问：c\n答：[gMASK]<sop>d<eop>",
        ),
        ([("system", "s"), ("user", "a")], True, "s\na[gMASK]<sop>"),
        ([("user", [text("a"), IMAGE, text("b")])], True, "<Image><ImageHere></Image>ab[gMASK]<sop>"),
        (
            [("user", "a"), ("assistant", "b"), ("user", [text("c"), {"type": "audio"}, {"type": "video"}])],
            True,
            "<Speech><SpeechHere></Speech><Video><VideoHere></Video>[Round 0]\n问：a\n答：b\n[Round "
            "1]\n问：c\n答：[gMASK]<sop>",
        ),
    ],
)
def test_chat_template(tokenizer, messages, generation_prompt, expected):
    messages = [{"role": role, "content": content} for role, content in messages]
    got = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=generation_prompt)
    assert got == expected


def test_chat_ids_equal_prompt_and_answer_encoded_apart(tokenizer):
    messages = [{"role": "user", "content": "seven dogs\nran"}, {"role": "assistant", "content": "left\n"}]
    ids = tokenizer.apply_chat_template(messages)["input_ids"]
    assert ids == tokenizer("seven dogs\nran", "left\n")["input_ids"]
    prompt = tokenizer.apply_chat_template(messages[:1], add_generation_prompt=True)["input_ids"]
    assert prompt == tokenizer("seven dogs\nran")["input_ids"] == ids[: len(prompt)]


@pytest.mark.parametrize("offset", [0, 20000])
def test_several_rounds_are_written_as_the_published_chat_did(model_file, offset):
    tokenizer = ChatGLMTokenizer(str(model_file), num_image_tokens=offset)
    history = [("你好", "您好\n"), ("turn  right", "left\tat 3"), ("图中有什么？", "一只狗。")]
    question = "seven dogs"
    prompt = "".join(f"[Round {number}]\n问：{asked}\n答：{said}\n" for number, (asked, said) in enumerate(history))
    prompt += f"[Round {len(history)}]\n问：{question}\n答："
    messages = [
        {"role": role, "content": text} for turn in history for role, text in zip(("user", "assistant"), turn)
    ] + [{"role": "user", "content": question}]
    encoded = tokenizer.apply_chat_template(messages, add_generation_prompt=True)
    assert encoded["input_ids"] == published_encode(model_file, prompt, offset) + [
        tokenizer.gmask_token_id,
        tokenizer.bos_token_id,
    ]
    answered = tokenizer.apply_chat_template([*messages, {"role": "assistant", "content": "ran"}])["input_ids"]
    start = len(encoded["input_ids"])
    assert answered[:start] == encoded["input_ids"]
    assert answered[start:] == [*published_encode(model_file, "ran", offset), tokenizer.eos_token_id]
    types = tokenizer.create_token_type_ids_from_sequences(
        published_encode(model_file, prompt, offset), published_encode(model_file, "ran", offset)
    )
    assert types == [0] * (start - 1) + [1] * (len(answered) - start + 1)  # the model's answer begins at <sop>
    assert tokenizer.decode(answered[:start], skip_special_tokens=True) == prompt
    assert tokenizer.decode(answered[start:], skip_special_tokens=True) == "ran"


def test_chat_template_marks_the_answer_and_rejects_unknown_parts(tokenizer):
    assert tokenizer.chat_template.count("{%- generation -%}") == 1
    with pytest.raises(Exception, match="content part of type smell"):
        tokenizer.apply_chat_template([{"role": "user", "content": [{"type": "smell"}]}])


# ---- tiny vocabularies ----------------------------------------------------------------------------------------------


def test_word_level_vocabulary(tmp_path):
    tokenizer = ChatGLMTokenizer(str(train_sentencepiece(SENTENCES, tmp_path, 100, word_level=True)))
    assert tokenizer.tokenize("turn left at 42 then 7") == ["▁turn", "▁left", "▁at", "▁4", "2", "▁then", "▁7"]
    assert tokenizer.tokenize("square\nsquare") == ["▁square", "<n>", "square"]
    assert tokenizer.decode(tokenizer("seven dogs ran to the left")["input_ids"], skip_special_tokens=True) == (
        "seven dogs ran to the left"
    )
    assert len(tokenizer.tokenize("dogsran")) < len("dogsran")  # unseen words fall apart into known pieces
    assert tokenizer.unk_token_id in tokenizer("zzz Ω")["input_ids"]


def test_training_is_deterministic_and_checks_its_arguments(tmp_path):
    one = train_sentencepiece(SENTENCES, tmp_path / "a.model", 100, word_level=True).read_bytes()
    two = train_sentencepiece(SENTENCES, tmp_path / "b.model", 100, word_level=True).read_bytes()
    assert one == two
    assert train_sentencepiece(SENTENCES, tmp_path, 100).name == "ice_text.model"
    with pytest.raises(ValueError, match="sentences: got none with text"):
        train_sentencepiece([" "], tmp_path)
    with pytest.raises(ValueError, match="vocab_size: got 20, expected at least"):
        train_sentencepiece(SENTENCES, tmp_path, 20)
