# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""Published `.pth` files: same numbers before and after, and nothing that is not declared."""

import pickle
import sys
import types
from pathlib import Path

import pytest
import torch
from fixtures import published_weights as published

from xllm import X2LConfig, XLLMForQFormerPreTraining
from xllm.modeling_xllm.cformer import CFormer
from xllm.modeling_xllm.configuration_cformer import CFormerConfig
from xllm.modeling_xllm.conversion.convert import ConversionError, convert, open_published
from xllm.modeling_xllm.conversion.output import write_parts
from xllm.modeling_xllm.conversion.pth_files import read_pth
from xllm.modeling_xllm.modeling_encoders import XLLMEncoderModel
from xllm.modeling_xllm.stage1.configuration_speech_recognition import SpeechRecognitionConfig
from xllm.modeling_xllm.weight_files import StageCheckpointError


PICTURES = torch.randn(2, 3, published.PIXELS, published.PIXELS, generator=torch.Generator().manual_seed(9))


def close(ours, theirs):
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """One file of each kind; the ViT is EVA-CLIP's, bare."""
    folder = tmp_path_factory.mktemp("published")
    torch.save(published.vit(prefix=""), folder / "eva_vit_g.pth")
    states = {
        "image": published.image_stage2(),
        "video": published.video_stage2(),
        "speech": published.speech_stage2(),
        "stage3": published.stage3(),
        "stage1": published.qformer(with_text=True),
    }
    paths = {name: published.save(folder / f"{name}.pth", state) for name, state in states.items()}
    return {**paths, "eva": str(folder / "eva_vit_g.pth")}


def write(paths, folder, model_class=XLLMEncoderModel):
    write_parts(convert(paths), folder)
    return model_class.from_pretrained(folder).eval()


def test_lavis_stage_2_computes_the_same(files, tmp_path):
    model = write([files["image"], files["eva"]], tmp_path / "out")
    vit, image = published.vit(), published.image_stage2()
    with torch.no_grad():
        theirs = published.run_vit(vit, PICTURES, norm=image)
        features = model.get_image_features(PICTURES)
        close(features.last_hidden_state, theirs)
        close(features.embeddings, published.project(image, "opt_proj", published.run_queries(image, theirs)[-1]))


def test_a_file_may_hold_the_image_encoder_too(tmp_path):
    state = {**published.vit(), **published.image_stage2()}
    model = write([published.save(tmp_path / "all.pth", state)], tmp_path / "out")
    with torch.no_grad():
        close(model.get_image_features(PICTURES).last_hidden_state, published.run_vit(state, PICTURES))


def test_block_39_norm_and_head_of_eva_are_left_out(files, tmp_path):
    state = published.vit(depth=40, prefix="", mlp=4)
    extra = {"norm.weight": torch.ones(176), "fc_norm.bias": torch.ones(176), "head.weight": torch.ones(2, 176)}
    torch.save({**state, **extra}, tmp_path / "eva.pth")
    result = convert([str(tmp_path / "eva.pth"), files["image"]])
    assert result.config.vision_config.num_hidden_layers == 39
    left_out = result.left_out[str(tmp_path / "eva.pth")]
    assert {name.split(".", 2)[1] for name in left_out} == {"norm", "fc_norm", "head", "blocks"}
    assert not [name for name in left_out if name.startswith("visual_encoder.blocks.38")]


def test_lavis_stage_1_computes_the_same(files, tmp_path):
    model = write([files["stage1"], files["eva"]], tmp_path / "out", XLLMForQFormerPreTraining)
    state = published.qformer(with_text=True)
    ids = torch.randint(5, published.WORDS - 1, (2, 6))
    with torch.no_grad():
        encoder = published.run_vit(published.vit(), PICTURES, norm=state)
        similarities, itm, words = published.run_stage1(state, encoder, ids)
        close(model(input_ids=ids, pixel_values=PICTURES, return_loss=False).similarities, similarities)
        media = model.query_media(PICTURES)
        close(model.match(media, ids), itm)
        close(model.text_branch.lm_logits(model.caption_states(media, ids)), words)
    assert model.temperature.tolist() == [state["temp"].item()]
    assert (model.config.text_bos_token_id, model.config.text_max_positions) == (
        published.WORDS - 1,
        published.POSITIONS,
    )


def test_the_authors_three_stages_laid_over_each_other(files, tmp_path):
    order = ["stage3", "image", "eva", "video", "speech"]  # any
    model = write([files[name] for name in order], tmp_path / "out")
    image = {**published.image_stage2(), **published.stage3()}
    speech = {**published.speech_stage2(), **published.stage3()}
    vectors, mask = torch.randn(2, 5, published.FEATURES), torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])
    with torch.no_grad():
        seen = published.run_vit(published.vit(), PICTURES, norm=image)
        close(model.get_image_features(PICTURES).last_hidden_state, seen)
        for name, queries, adapter in (
            ("image", "query_tokens", "opt_proj"),
            ("video", "video_query_tokens", "video_proj"),
        ):
            pictures = PICTURES if name == "image" else PICTURES[None]  # one video of two frames
            theirs = published.project(image, adapter, published.run_queries(image, seen, queries)[-1])
            features = model.get_features(name, pictures)
            close(torch.cat(features.pooler_output), theirs.flatten(0, 1))
        heard = published.run_speech(speech, vectors, mask)
        tokens = model.get_audio_features(vectors, mask).pooler_output
        close(tokens[0], heard[0])
        close(tokens[1], heard[1, :3])
    assert min(tensor.min() for tensor in tokens) == 0  # ReLU after the S-Adapter


def test_the_fc_variant_of_speech(tmp_path):
    state = published.speech_stage2(fc=True)
    model = write([published.save(tmp_path / "fc.pth", state)], tmp_path / "out")
    vectors = torch.randn(1, 4, published.FEATURES)
    with torch.no_grad():
        close(model.get_audio_features(vectors).embeddings, published.run_speech(state, vectors, None))


def test_a_merged_file_is_its_parts(files, tmp_path):
    merged = {**published.speech_stage2(), **published.image_stage2(), **published.video_stage2()}
    together = convert([published.save(tmp_path / "merged.pth", merged), files["eva"]])
    apart = convert([files[name] for name in ("image", "video", "speech", "eva")])
    assert together.tensors.keys() == apart.tensors.keys()
    assert all(torch.equal(value, apart.tensors[key]) for key, value in together.tensors.items())


def test_what_the_speech_run_never_trained_is_dropped(files):
    result = convert([files["speech"]])
    assert {key.split(".")[2] for key in result.tensors} == {"speech"}
    assert {"query_tokens", "ln_vision.weight"} <= {*result.left_out[files["speech"]]}
    # With an image file beside it, whichever comes first, queries and ln_vision are the image's.
    result = convert([files["image"], files["speech"], files["eva"]])
    queries = result.tensors["model.interfaces.image.converter.query_tokens"]
    assert torch.equal(queries, published.image_stage2()["query_tokens"])
    assert result.origin["model.vision_tower.post_layernorm.weight"] == files["image"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("Qformer.bert.encoder.layer.1.attention.self.key.bias"), "1 names are missing: Qformer.bert.enc"),
        (lambda s: s.update(surprise=torch.ones(1)), "1 names are unexpected: surprise"),
        (lambda s: [s.pop(f"opt_proj.{w}") for w in ("weight", "bias")], "2 names are unexpected: ln_vision.bias|another architecture"),
        (lambda s: s.update({"opt_proj.bias": torch.ones(7)}), r"1 misshapen: .*adapter.bias \(\[7\], expected \[32\]\)"),
        (lambda s: s.pop("query_tokens"), "missing, the first being query_tokens"),
    ],
)  # fmt: skip
def test_names_and_shapes_are_declared(files, tmp_path, change, message):
    state = published.image_stage2()
    change(state)
    with pytest.raises(StageCheckpointError, match=message):
        convert([published.save(tmp_path / "image.pth", state), files["eva"]])


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["image"], "image encoder is in LAVIS's eva_vit_g.pth"),
        (["eva"], "ln_vision is in BLIP-2's files"),
        (["eva", "video"], "no such modality, .* 3 without a place"),
        (["eva", "image", "stage3"], "2 without a place"),
        (["image", "image", "eva"], "both BLIP-2 stage 2"),
        (["stage1", "image"], "only eva_vit_g.pth goes with it"),
    ],
)
def test_a_missing_part_is_named(files, names, message):
    with pytest.raises(StageCheckpointError, match=message):
        convert([files[name] for name in names])


def test_a_captioning_head_of_its_own_is_refused(tmp_path):
    state = published.qformer(with_text=True)
    state["Qformer.cls.predictions.decoder.weight"] += 1
    with pytest.raises(ConversionError, match="decoder.weight differs from"):
        open_published(published.save(tmp_path / "stage1.pth", state))


def test_objects_in_a_file_are_neither_imported_nor_run(tmp_path, monkeypatch):
    """The config of the authors' runner may be of a class that is not installed here, or a trap."""
    module = types.ModuleType("omegaconf_like")
    exec("class DictConfig(dict):\n    pass", module.__dict__)
    monkeypatch.setitem(sys.modules, "omegaconf_like", module)

    class Trap:
        def __reduce__(self):
            return pickle.loads, (b"never read",)

    config = {"run": module.DictConfig(lr=1.0), "trap": Trap()}
    path = published.save(tmp_path / "image.pth", published.image_stage2(), config)
    monkeypatch.delitem(sys.modules, "omegaconf_like")
    assert torch.equal(read_pth(path)["query_tokens"], published.image_stage2()["query_tokens"])
    path = published.save(tmp_path / "bad.pth", {**published.image_stage2(), "query_tokens": Trap()})
    with pytest.raises(ConversionError, match="1 of its weights are not tensors: query_tokens"):
        read_pth(path)


def test_damaged_and_foreign_files(files, tmp_path):
    content = Path(files["image"]).read_bytes()
    (tmp_path / "half.pth").write_bytes(content[: len(content) // 2])
    (tmp_path / "text.pth").write_text("not weights")
    torch.save({"layer.weight": torch.ones(2), "head.bias": torch.ones(2)}, tmp_path / "other.pth")
    torch.save([1, 2], tmp_path / "list.pth")
    for name, message in {
        "half": "cut short",
        "text": "cut short",
        "other": "another architecture: its names start with head, layer",
        "list": "holds a list, expected a state dict",
        "absent": "no such file",
    }.items():
        with pytest.raises(StageCheckpointError, match=message):
            open_published(str(tmp_path / f"{name}.pth"))


def test_files_of_the_older_torch_format(tmp_path):
    torch.save({"model": published.stage3()}, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    assert open_published(str(tmp_path / "old.pth")).kind == "xllm-stage3"


def test_a_c_former_without_a_cif():
    with pytest.raises(ValueError, match="encoder_hidden_size 512 must be cif_hidden_size 256"):
        CFormer(CFormerConfig(cif_predictor="none", cif_hidden_size=256))
    row = X2LConfig(
        encoder=None, encoder_hidden_size=512, converter="cformer", cformer_config={"cif_predictor": "none"}
    )
    with pytest.raises(ValueError, match="'speech' has no CIF"):
        SpeechRecognitionConfig(modalities={"speech": row})
    again = X2LConfig(**row.to_dict())
    assert (again.encoder, again.cformer_config.cif_predictor) == (None, "none")
