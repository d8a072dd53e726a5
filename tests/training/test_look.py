# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""`xllm look`: nearest tokens against a direction that is known, attention against its formula, times of the CIF."""

import json
import re

import numpy as np
import pytest
import torch
from media_files import write_wav
from PIL import Image
from torch import nn

from xllm.assembly.opening import load_checkpoint
from xllm.cli import main
from xllm.modeling_xllm.converters import ConverterOutput
from xllm.training.evaluation.look_page import _sound_figure, far, terminal_lines
from xllm.training.evaluation.looking import Vocabulary, _grid, look


@pytest.fixture(scope="module")
def opened(tiny_checkpoint):
    return load_checkpoint(str(tiny_checkpoint))


def test_an_embedding_that_is_a_word(tiny, media):
    """With an adapter that says one word whatever it sees, this word is found, with a cosine of 1."""
    model, processor = tiny
    word = next(id for id in range(100, 200) if len(processor.tokenizer.decode([id]).strip()) > 1)
    adapter = model.model.interfaces["image"].adapter
    with torch.no_grad():
        adapter.weight.zero_()
        adapter.bias.copy_(model.get_input_embeddings().weight[word])
    found = look(model, processor, {"type": "image", "path": str(media / "red.png")}, top=3)
    for piece in found.rows[0].pieces:
        assert processor.tokenizer.convert_tokens_to_ids(piece.words[0][0]) == word or piece.words[0][0] in (
            processor.tokenizer.decode([word])
        )
        assert piece.words[0][1] == pytest.approx(1, abs=1e-5)
        assert piece.words[0][1] > piece.words[1][1] > piece.words[2][1]
        assert not far(piece, found.scale)


def test_the_scale_of_a_vocabulary(opened):
    """A random direction is no nearer to a word than 95 in 100 are, in about 95 of 100 cases."""
    model, processor = opened
    vocabulary = Vocabulary(model, processor)
    scale = vocabulary.scale()
    drawn = torch.randn(400, model.get_input_embeddings().weight.shape[1], generator=torch.Generator().manual_seed(9))
    pieces = vocabulary.pieces(drawn, 1)
    assert 0.9 < np.mean([far(piece, scale) for piece in pieces]) <= 0.99
    weight = model.get_input_embeddings().weight.float()[: len(processor.tokenizer)]
    expected = torch.cosine_similarity(drawn[:1], weight, dim=1)
    expected[processor.tokenizer.convert_tokens_to_ids([row.token for row in processor.rows.values()])] = -1
    assert pieces[0].words[0][1] == pytest.approx(float(expected.max()), abs=1e-5)
    assert scale == vocabulary.scale()


@pytest.mark.parametrize(("kind", "file"), [("image", "red.png"), ("video", "clip.mp4")])
def test_attention_is_that_of_the_formula(opened, media, kind, file):
    model, processor = opened
    qformer = next(m for m in model.modules() if type(m).__name__ == "Blip2QFormerModel")
    before = qformer.config._attn_implementation
    heard = {}
    crossing = [layer.crossattention.attention for layer in qformer.encoder.layer if layer.has_cross_attention]
    hooks = [
        part.register_forward_hook(lambda m, _, out, key=(n, name): heard.setdefault(key, out))
        for n, one in enumerate(crossing)
        for name, part in (("q", one.query), ("k", one.key))
    ]
    found = look(model, processor, {"type": kind, "path": str(media / file)})
    for hook in hooks:
        hook.remove()
    assert qformer.config._attn_implementation == before
    assert not qformer._forward_hooks
    assert not qformer._forward_pre_hooks
    heads, size = crossing[0].num_attention_heads, crossing[0].attention_head_size
    maps = []
    for n in range(len(crossing)):
        q, k = (heard[n, name].unflatten(-1, (heads, size)).transpose(1, 2) for name in ("q", "k"))
        maps.append((q @ k.transpose(-1, -2) / size**0.5).softmax(-1).mean(1))
    expected = torch.stack(maps).mean(0)  # (pictures, queries, vectors)
    [row] = found.rows
    assert len(row.pieces) == expected.shape[0] * expected.shape[1]
    heats = np.stack([piece.heat for piece in row.pieces])
    patches = heats[0].size
    np.testing.assert_allclose(heats.reshape(*expected.shape[:2], -1), expected[..., -patches:], atol=1e-5)
    if kind == "video":
        assert [piece.picture for piece in row.pieces[:: expected.shape[1]]] == list(range(expected.shape[0]))
    inputs = processor.encode_conversations(
        [[{"role": "user", "content": [{"type": kind, kind: processor.load(kind, str(media / file))}]}]]
    )
    own = model.config.modalities[kind]
    given = model.get_features(kind, inputs[own.input_name], inputs.get(own.mask_name) if own.mask_name else None)
    again = Vocabulary(model, processor).pieces(given.pooler_output[0].detach(), 5)  # by sdpa
    assert [piece.words[0][0] for piece in again] == [piece.words[0][0] for piece in row.pieces]


def test_weights_and_times_of_a_cif(opened, media):
    model, processor = opened
    cif = model.model.interfaces["speech"].converter.cif
    bias = cif.weight_proj.bias.detach().clone()
    try:
        with torch.no_grad():
            cif.weight_proj.bias.fill_(3.0)  # almost a token per frame
        found = look(model, processor, {"type": "audio", "path": str(media / "low.wav")})
        [row] = found.rows
        assert len(row.pieces) > 1
        assert row.weights.sum() == pytest.approx(len(row.pieces), abs=1)
        ends = [piece.span[1] for piece in row.pieces]
        assert ends == sorted(ends)
        assert [piece.span[0] for piece in row.pieces] == [0.0, *ends[:-1]]
        assert 0 < ends[-1] <= 0.4 + row.step  # the clip has 0.4 s
        with torch.no_grad():
            cif.weight_proj.bias.fill_(-30.0)
        [row] = look(model, processor, {"type": "audio", "path": str(media / "low.wav")}).rows
        assert (row.pieces, row.notes) == ([], ["no token was fired: the language model reads nothing of it"])
    finally:
        cif.weight_proj.bias.data.copy_(bias)


def test_each_token_of_a_sound_has_its_seconds(tmp_path):
    """Of 2.3 s, as `xllm init` makes the row: windows of equal length, the last cut off where the sound ends."""
    assert main(["init", str(tmp_path / "model"), "--preset", "tiny", "--modality", "sound"]) == 0
    model, processor = load_checkpoint(str(tmp_path / "model"))
    write_wav(tmp_path / "long.wav", [np.sin(np.arange(36_800) / 5.0)])
    found = look(model, processor, {"type": "sound", "path": str(tmp_path / "long.wav")})
    [row] = found.rows
    starts, ends = zip(*(piece.span for piece in row.pieces))
    assert (starts[0], ends[-1]) == (0.0, pytest.approx(2.3))
    assert starts[1:] == pytest.approx(ends[:-1])
    lengths = np.subtract(ends, starts)
    assert lengths[:-1] == pytest.approx(lengths[0])
    assert 0 < lengths[-1] <= lengths[0] * 1.001
    drawn = _sound_figure(found, row)
    assert [len(axis.lines) for axis in drawn.axes] == [len(row.pieces) + 1, len(row.pieces)]
    assert f"{starts[1]:.2f}-{ends[1]:.2f} s" in "\n".join(terminal_lines(found))


def test_grids_of_encoders():
    class Config:
        model_type = "any"
        patch_size = 14

    picture = torch.zeros(1, 3, 28, 56)
    assert _grid(Config, picture, 9) == (1, 2, 4)
    assert _grid(Config, picture, 8) == (0, 2, 4)
    Config.patch_size = None  # a map of a convolution, one vector per 7 x 7
    assert _grid(Config, picture, 32) == (0, 4, 8)
    assert _grid(Config, torch.zeros(1, 100, 80), 25) is None  # sound
    Config.model_type = "siglip2_vision_model"
    patches = torch.zeros(1, 6, 5)
    patches[0, :4, -2:] = torch.tensor([[1, 1], [1, 2], [2, 1], [2, 2]])
    assert _grid(Config, patches, 6) == (0, 2, 2)


@pytest.mark.parametrize("file", ["red.png", "clip.mp4", "low.wav"])
def test_pages_and_pictures(tiny_checkpoint, media, tmp_path, file, capsys):
    asked = ["look", str(tiny_checkpoint), str(media / file), "--top", "2", "--output"]
    assert main([*asked, str(tmp_path / "look.html")]) == 0
    out = capsys.readouterr().out
    assert "The nearest token of a random direction has cosine" in out
    page = (tmp_path / "look.html").read_text(encoding="utf-8")
    assert not re.search(r"(src|href)=\"(?!data:|#)", page)
    assert ("<audio" in page) == (file == "low.wav")
    assert main([*asked, str(tmp_path / "look.png"), "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert page.count("<tr>") == len(rows[0]["embeddings"]) + 1
    if file == "red.png":
        assert page.count("<img") == 1 + 1 + len(rows[0]["embeddings"])
    with Image.open(tmp_path / "look.png") as picture:
        assert picture.width > 500


class Plain(nn.Module):
    """A converter of a user's own, without attention."""

    def forward(self, hidden, mask=None):
        return ConverterOutput(embeddings=hidden[:, :4, :1].expand(-1, -1, self.width))


def test_an_interface_that_tells_nothing(tiny, media):
    """The words alone, which is said."""
    model, processor = tiny
    interface = model.model.interfaces["image"]
    interface.converter = Plain()
    interface.converter.width = interface.adapter.in_features
    found = look(model, processor, {"type": "image", "path": str(media / "red.png")})
    assert len(found.rows[0].pieces) == 4
    assert found.rows[0].notes == ["a qformer converter tells neither attention over a picture nor weights in time"]
    assert any("note: " in line for line in terminal_lines(found))


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--output", "x.pdf"], "--output x.pdf: expected .html or .png"),
        (["--modality", "smell"], "no row of the model reads 'smell'"),
    ],
)
def test_what_cannot_be_looked_at(tiny_checkpoint, media, more, message, capsys):
    assert main(["look", str(tiny_checkpoint), str(media / "red.png"), *more]) == 1
    assert message in capsys.readouterr().err
    assert main(["look", str(tiny_checkpoint), str(media / "broken.wav")]) == 1
    assert "broken.wav" in capsys.readouterr().err
