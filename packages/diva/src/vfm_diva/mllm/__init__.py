"""Multimodal language models over a frozen vision tower: training, evaluation, and what they are evaluated on.

`model` is LLaVA from transformers' own classes, `task` and `batches` its training by `vfm.train.fit`, `evaluation` the
likelihood of options. `pope` and `question_files` make questions; `lmms` runs lmms-eval, `lmms_logs` reads its logs.
"""
