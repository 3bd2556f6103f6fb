"""Names of metrics in words, for people who do not know the names in result files."""

from __future__ import annotations

import re

# CLIP_benchmark's names and ours. A pattern's groups go into the words.
WORDS = [
    (r"acc(\d+)", r"top-\1 accuracy"),
    (r"acc", "accuracy"),
    (r"fs(\d+)_acc1", r"top-1 accuracy from \1 images of a class"),
    (r"lp_acc(\d+)", r"top-\1 accuracy of a linear probe"),
    (r"lp_mean_per_class_recall", "mean recall of the classes by a linear probe"),
    (r"mean_per_class_recall", "mean recall of the classes"),
    (r"mean_average_precision", "mean average precision"),
    (r"(image|text)_retrieval_recall@(\d+)", r"\1 retrieval, recall at \2"),
    (r"pair_accuracy", "pairs with both items right"),
    (r"diva_pair_accuracy", "pairs right by DIVA's script"),
    (r"statement_accuracy", "statements right"),
    (r"aligned_pairs", "pairs assigned right by the sum"),
    (r"circular_accuracy", "questions right in every order of the answers"),
    (r"(text|image)_acc", r"\1 score"),
    (r"(box|mask)_ap", r"\1 AP"),
    (r"(box|mask)_ap(\d\d)", r"\1 AP at IoU 0.\2"),
    (r"(box|mask)_ap_(\w+)", r"\1 AP, \2"),
    (r"mIoU|miou", "mean IoU"),
    (r"PQ|pq", "panoptic quality"),
    (r"sq", "segmentation quality"),
    (r"rq", "recognition quality"),
]


def metric_in_words(metric: str) -> str:
    """Name a metric in words, such as "top-1 accuracy, tail" for `acc1/tail`."""
    name, *groups = metric.split("/")
    for pattern, words in WORDS:
        if match := re.fullmatch(pattern, name):
            name = match.expand(words)
            break
    else:
        name = name.replace("_", " ")
    return ", ".join([name, *groups])
