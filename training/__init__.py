# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""The three stages of the paper: what trains, on which data, and one command that runs them.

`stages` what each stage trains · `recipe` YAML recipes · `sources`, `data`, `augmentation` samples and media ·
`collator` batches · `trainer`, `callbacks`, `plots` glue for the HF Trainer · `train` the runner · `evaluation`,
`metrics`. Nothing here goes to the Hub.
"""
