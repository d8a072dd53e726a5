# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""The three stages of the paper: what trains, on which data, and one command that runs them.

`stages` what each stage trains · `train` the runner · `preparing` a stage before it runs · `running` a stage that runs
· `recipes` the YAML and how it is read · `data` rows, samples, augmentation · `streams` data never read whole ·
`batches` what is drawn together, and the collator · `trainers` glue for the HF Trainer · `saving` checkpoints, resume,
lineage · `inspection` check, explain, estimate, report · `instructions` data made · `evaluation`. Nothing here goes to
the Hub.
"""
