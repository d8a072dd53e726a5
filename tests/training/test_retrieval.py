# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""R@k of stage 1: ranks that can be counted by hand, and a table of pictures through the command."""

import json
import re
import shutil

import pytest
import torch

from xllm.assembly.opening import load_checkpoint
from xllm.cli import main
from xllm.training.batches.collator import XLLMDataCollator
from xllm.training.data.media_rows import DataError
from xllm.training.data.samples import Sample
from xllm.training.evaluation.retrieval import recalls, run_retrieval
from xllm.training.stage_one import build_stage_one, open_stage_one, save_stage_one


def test_ranks_by_hand():
    """Three pictures, six texts: the first right text is at places 1, 3 and 6."""
    similarities = torch.tensor([
        [0.9, 0.8, 0.1, 0.2, 0.3, 0.4],
        [0.5, 0.1, 0.3, 0.4, 0.2, 0.0],
        [0.6, 0.5, 0.4, 0.3, 0.2, 0.1],
    ])  # fmt: skip
    positives = torch.tensor([
        [True, True, False, False, False, False],
        [False, False, True, False, True, False],
        [False, False, False, False, False, True],
    ])  # fmt: skip
    found = recalls(similarities, positives)
    assert [found[f"R@{k}"] for k in (1, 5, 10)] == pytest.approx([1 / 3, 2 / 3, 1])
    assert found["n"] == 3
    level = recalls(torch.zeros(2, 12), torch.eye(2, 12, dtype=torch.bool))  # nothing is told from anything
    assert [level[f"R@{k}"] for k in (1, 5, 10)] == [0, 0, 0]


@pytest.fixture(scope="module")
def trained(tiny_checkpoint, tmp_path_factory):
    """A checkpoint with the heads of stage 1 of its pictures beside it."""
    folder = tmp_path_factory.mktemp("stage1")
    model, processor = load_checkpoint(str(tiny_checkpoint))
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    torch.manual_seed(0)
    save_stage_one(build_stage_one(model, processor, "image"), processor, folder)
    return folder


def test_a_table_of_pictures(trained, media, tmp_path, capsys):
    """Against the similarities of the model itself, a pair at a time; two captions of one picture are one row."""
    rows = [("red.png", "a red field"), ("blue.png", "the sea"), ("red.png", "fire")]
    table = tmp_path / "captions.csv"
    table.write_text("image,caption\n" + "".join(f"{file},{text}\n" for file, text in rows))
    asked = ["evaluate", str(trained), "--task", "retrieval", "--data", str(table)]
    asked += ["--media-root", str(media)]
    assert main([*asked, "--json", "--batch-size", "1"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["media"], found["texts"]) == (2, 3)
    model, processor = load_checkpoint(str(trained))
    learner = open_stage_one(model, processor, None, str(trained))
    collator = XLLMDataCollator(processor, task="contrast", modality="image")
    values = {}
    for file in ("red.png", "blue.png"):
        for _, text in rows:
            picture = processor.load("image", str(media / file))
            content = [{"type": "image", "image": picture}]
            messages = [
                {"role": "user", "content": content},
                {"role": "assistant", "content": [{"type": "text", "text": text}]},
            ]
            batch = collator([{"messages": messages, "where": file}])
            with torch.no_grad():
                values[file, text] = learner(**batch, return_loss=False).similarities.item()
    right = {(file, text) for file, text in rows}
    first = [max(((file, text) for _, text in rows), key=values.get) in right for file in ("red.png", "blue.png")]
    assert found["media_to_text"]["R@1"] == sum(first) / 2
    first = [max(((file, text) for file in ("red.png", "blue.png")), key=values.get) in right for _, text in rows]
    assert found["text_to_media"]["R@1"] == pytest.approx(sum(first) / 3)
    assert found["text_to_media"]["R@5"] == 1
    assert main(asked) == 0
    assert "text to media: R@1 " in capsys.readouterr().out


def test_what_the_folder_holds_and_rows_that_cannot_be_used(trained, media, tmp_path, capsys):
    """A picture that is none has two rows, and one row no caption: all three are listed, wherever figures stand."""
    shutil.copytree(media, tmp_path / "data")
    (tmp_path / "data/torn.png").write_bytes((media / "red.png").read_bytes()[:40])
    rows = [("red.png", "red"), ("torn.png", "a"), ("blue.png", "blue"), ("torn.png", "b"), ("blue.png", "")]
    table = tmp_path / "data/captions.csv"
    table.write_text("image,caption\n" + "".join(f"{file},{text}\n" for file, text in rows))
    folder = tmp_path / "out"
    asked = ["evaluate", str(trained), "--task", "retrieval", "--data", str(table), "--output", str(folder)]
    assert main(asked) == 1
    assert re.search(r"captions\.csv:6: .*caption", capsys.readouterr().err)
    assert not folder.exists()
    assert main([*asked, "--on-error", "skip", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["media"], found["texts"], found["skipped"]) == (2, 2, 3)
    lines = [json.loads(line) for line in (folder / "samples_retrieval.jsonl").read_text().splitlines()]
    assert sorted(line["where"].rpartition(":")[2] for line in lines if "skipped" in line) == ["3", "5", "6"]
    assert [line["direction"] for line in lines if "rank" in line] == ["media_to_text"] * 2 + ["text_to_media"] * 2
    first = [line for line in lines if line.get("direction") == "media_to_text"]
    assert [(line["n"], line["right"]) for line in first] == [(0, ["red"]), (2, ["blue"])]
    assert sum(line["rank"] == 1 for line in first) / 2 == found["media_to_text"]["R@1"]
    for line in first:
        assert (line["found"][0][0] in line["right"]) == (line["rank"] == 1)
    results = json.loads((folder / "results.json").read_text())
    assert results["results"]["retrieval-media_to_text"]["R@1,none"] == found["media_to_text"]["R@1"]
    assert results["results"]["retrieval-text_to_media"]["R@5,none"] == found["text_to_media"]["R@5"]
    assert results["n-samples"]["retrieval-media_to_text"] == {"original": 5, "effective": 2}
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert page.count("<img") == 2
    assert "torn.png" in page
    assert main(["score", "table", str(folder)]) == 0
    assert "retrieval-text_to_media" in capsys.readouterr().out


def test_tables_that_cannot_be_retrieved_from(trained, tiny_checkpoint, media, tmp_path, capsys):
    table = tmp_path / "one.csv"
    table.write_text("image,caption\nred.png,red\n")
    asked = ["--task", "retrieval", "--data", str(table), "--media-root", str(media)]
    assert main(["evaluate", str(trained), *asked]) == 1
    assert "retrieval is among several media, and there is 1" in capsys.readouterr().err
    assert main(["evaluate", str(tiny_checkpoint), *asked]) == 1
    assert "the heads of stage 1 do not lie beside the checkpoint" in capsys.readouterr().err
    assert main(["evaluate", str(trained), *asked, "--modality", "speech"]) == 1
    assert "it has only those of image" in capsys.readouterr().err
    with pytest.raises(DataError, match="a:1: has 0 media"):
        run_retrieval(None, None, [Sample("a:1", answers=["x"])])
