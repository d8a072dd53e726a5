# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""A data set of the Hub as a source: by its id alone, or with configuration, split and revision."""

import io

import datasets
import fsspec
import pytest
from datasets import Dataset
from huggingface_hub import CommitOperationAdd, HfApi

from xllm.training.data.sources import DataError, load_source
from xllm.training.recipes.recipe import SourceSpec


CARD = """---
configs:
- config_name: en
  data_files: [{split: train, path: en.parquet}, {split: test, path: zh.parquet}]
- config_name: zh
  data_files: zh.parquet
---
"""


@pytest.fixture
def rows(hub, tmp_path, monkeypatch):
    """The id of a data set with two configurations, of a red and of a blue picture."""
    monkeypatch.setattr(datasets.config, "HF_ENDPOINT", hub.url)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    api, files = HfApi(endpoint=hub.url), {"README.md": CARD.encode()}
    for name in ("en", "zh"):
        out = io.BytesIO()
        Dataset.from_list([{"image": {"bytes": name.encode(), "path": "a.png"}, "text": name}]).to_parquet(out)
        files[f"{name}.parquet"] = out.getvalue()
    api.create_repo("user/rows", repo_type="dataset")
    operations = [CommitOperationAdd(name, content) for name, content in files.items()]
    api.create_commit("user/rows", operations, commit_message="rows", repo_type="dataset")
    yield "user/rows"
    fsspec.get_filesystem_class("hf").clear_instance_cache()


def test_a_data_set_of_the_hub(rows, tmp_path, monkeypatch):
    def answers(path=rows, **spec):
        samples = load_source(SourceSpec(path=path, **spec))
        assert samples[0].media[0]["image"].read() == samples[0].answers[0].encode()  # the bytes stay in the cache
        return [sample.answers[0] for sample in samples]

    monkeypatch.chdir(tmp_path)
    assert answers(config="zh") == ["zh"]
    assert answers(f"hf://datasets/{rows}@main", config="en") == ["en"]
    assert answers(config="en", split="test") == ["zh"]
    for spec, message in (
        ({}, "user/rows: cannot be opened: Config name is missing.*'en', 'zh'"),
        ({"config": "de"}, "cannot be opened: BuilderConfig 'de' not found. Available: .*'en', 'zh'"),
        ({"config": "en", "split": "dev"}, "user/rows: no split 'dev'; set `split` to one of train, test"),
        ({"path": "user/none"}, "user/none: cannot be opened: .*doesn't exist on the Hub"),
    ):
        with pytest.raises(DataError, match=message):
            answers(**spec)
