"""Multimodal language models over a frozen vision tower: training, evaluation, and their data and benchmarks.

`model` is LLaVA from transformers' own classes. `task` and `batches` train it with `vfm.train.fit`, and `evaluation`
compares the likelihood of options. `pope` and `question_files` make questions. `lmms` runs lmms-eval, `lmms_logs`
reads its logs, and `lmms_rules` scores the replies in them.
"""
