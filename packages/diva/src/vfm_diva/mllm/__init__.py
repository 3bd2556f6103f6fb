"""Train and evaluate multimodal language models over a frozen vision tower.

`model` is LLaVA from transformers' own classes. `task` and `batches` train it with `vfm.train.fit`, and `evaluation`
compares the likelihood of options. `pope` and `question_files` make questions. `lmms` runs lmms-eval, `lmms_logs`
reads its logs, and `lmms_rules` scores the replies in them.
"""
