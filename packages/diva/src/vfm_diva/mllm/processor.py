"""Files that let other programs prepare images and prompts as in a model's training."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from transformers import LlavaConfig, LlavaImageProcessor, LlavaProcessor

from vfm.models import Preprocess

RESAMPLE = {"bilinear": 2, "bicubic": 3}  # PIL's numbers


def llava_processor(
    config: LlavaConfig, tokenizer: Any, preprocess: Preprocess, template: str, *, class_token: bool
) -> LlavaProcessor:
    """Build the processor of a model.

    Args:
        config: Configuration of the model.
        tokenizer: Tokenizer of its language model.
        preprocess: Preprocessing of its images.
        template: Chat template (Jinja).
        class_token: Whether the first token of the tower is a class token.
    """
    return LlavaProcessor(
        image_processor(preprocess),
        tokenizer,
        patch_size=config.vision_config.patch_size,
        vision_feature_select_strategy=config.vision_feature_select_strategy,
        num_additional_image_tokens=int(class_token),
        chat_template=template,
    )


def save_processor(processor: LlavaProcessor, directory: Path) -> None:
    """Write a processor.

    Its image processor is also written to a separate file, because transformers 4 reads that file.
    """
    processor.save_pretrained(directory)
    processor.image_processor.save_pretrained(directory)


def image_processor(preprocess: Preprocess) -> LlavaImageProcessor:
    """Build transformers' image processor for a preprocessing. It pads an image before it resizes it."""
    side = preprocess.image_size
    resized = int(preprocess.image_size / preprocess.crop_pct)
    squash = preprocess.resize_mode == "squash"
    return LlavaImageProcessor(
        do_pad=preprocess.resize_mode == "longest",
        size={"height": resized, "width": resized} if squash else {"shortest_edge": resized},
        resample=RESAMPLE[preprocess.interpolation],
        crop_size={"height": side, "width": side},
        image_mean=list(preprocess.mean),
        image_std=list(preprocess.std),
    )


def chat_template(prompt: str, later_prompt: str, end: str) -> str:
    """Build the chat template (Jinja) of a conversation about an image.

    The image is in the first message.

    Args:
        prompt: Text around the first question, with `<image>` and `{question}`.
        later_prompt: Text around later questions, with `{question}`.
        end: The tokenizer's end token. It follows each answer.
    """
    words = "{{ message.content | selectattr('type', 'equalto', 'text') | map(attribute='text') | join('\\n') }}"
    first = _template_around(words, prompt)
    later = _template_around(words, later_prompt)
    answer = _template_around(words, " {question}" + end)
    return (
        "{% for message in messages %}"
        "{% if message.role == 'assistant' %}"
        + answer
        + "{% elif loop.first %}"
        + first
        + "{% else %}"
        + later
        + "{% endif %}{% endfor %}"
    )


def _template_around(words: str, text: str) -> str:
    """Put a template in the place of `{question}` in a text."""
    before, after = text.split("{question}")
    return "{{ " + json.dumps(before) + " }}" + words + "{{ " + json.dumps(after) + " }}"
