"""LLaVA-like model from transformers' classes. The language model computes losses only at answers.

The vision tower is frozen. A projector maps its tokens to the language model, which reads them in place of `<image>`.
Source: Liu et al. 2023, LLaVA-1.5 (arXiv:2310.03744).
"""

# B sequences, T tokens, I images, N tokens of an image, D width of the tower, S side of an image

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoTokenizer,
    LlavaConfig,
    LlavaForConditionalGeneration,
    PreTrainedModel,
)
from transformers.models.llava.modeling_llava import LlavaMultiModalProjector
from transformers.utils import logging

from vfm.models import ClipModel, Preprocess, find_format, transformers_config, without_custom_code
from vfm.plugin import UserError
from vfm_diva.mllm.processor import chat_template, llava_processor, save_processor
from vfm_diva.mllm.prompts import QuestionTokenizer
from vfm_diva.mllm.stages import LanguageModel, MllmCheckpoint, Tokens


@contextmanager
def no_progress_bar() -> Iterator[None]:
    """Hide transformers' progress bars, since a run shows its own progress."""
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


@dataclass(frozen=True)
class Reading:
    """Rules by which a model reads an image and a question.

    Attributes:
        layer: Hidden state of the tower, as in transformers: 1 is the first block's output, -1 the last one's.
        tokens: Tokens of that layer.
        prompt: Text with `<image>` and `{question}`.
        pad: Pad images to squares with the mean colour, instead of a crop.
        later_prompt: Text with `{question}` around later questions of a conversation.
    """

    layer: int = -2
    tokens: Tokens = "patches"
    prompt: str = "USER: <image>\n{question} ASSISTANT:"
    pad: bool = True
    later_prompt: str = "USER: {question} ASSISTANT:"

    @property
    def prompt_words(self) -> str:
        """The prompts without questions."""
        return f"{self.prompt} {self.later_prompt}".replace("{question}", " ")


class Mllm(nn.Module):
    """Model with its tokenizer and preprocessing.

    Args:
        llava: Model of transformers with all weights.
        tokenizer: Tokenizer of the language model.
        facts: Facts of its artifact.
    """

    def __init__(self, llava: LlavaForConditionalGeneration, tokenizer: Any, facts: MllmCheckpoint) -> None:
        super().__init__()
        self.llava = llava
        self.tokenizer = tokenizer
        self.facts = facts
        self.preprocess = Preprocess.model_validate(facts.preprocess)
        text = llava.config.text_config
        self.encoder = QuestionTokenizer(
            tokenizer,
            facts.prompt,
            facts.later_prompt,
            llava.config.image_seq_length,
            text.max_position_embeddings,
        )

    @property
    def projector(self) -> nn.Module:
        """Map from the tower to the language model."""
        projector: nn.Module = self.llava.model.multi_modal_projector
        return projector

    def image_states(self, images: Tensor) -> Tensor:
        """Compute the tower's tokens of uint8 images (I, 3, S, S), (I, N, D)."""
        with torch.no_grad():
            tower = self.llava.model.vision_tower
            hidden_states = tower(self.preprocess.pixels(images), output_hidden_states=True).hidden_states
            states: Tensor = hidden_states[self.facts.layer]
        if self.facts.tokens == "all" or not has_class_token(self.llava.config.vision_config):
            return states
        if self.facts.tokens == "class":
            return states[:, :1]
        return states[:, 1:]

    def answer_losses(self, states: Tensor, ids: Tensor, answers: Tensor) -> Tensor:
        """Compute the negative log-likelihood of each token of the answers, row by row, (number of tokens,).

        Args:
            states: Tokens of each sequence's image, (B, N, D).
            ids: Token sequences, (B, T), padded on the right.
            answers: Mask of the tokens that count, bool (B, T).
        """
        model = self.llava.model
        embeds = model.get_input_embeddings()(ids)
        features = self.projector(states).to(embeds.dtype)
        embeds = embeds.masked_scatter((ids == self.encoder.image_token)[..., None], features)
        hidden = model.language_model(inputs_embeds=embeds, use_cache=False).last_hidden_state
        counted = answers[:, 1:]  # the token at t is predicted from the state at t - 1
        logits = self.llava.lm_head(hidden[:, :-1][counted])
        return F.cross_entropy(logits.float(), ids[:, 1:][counted], reduction="none")

    @no_progress_bar()
    def save(self, directory: Path) -> MllmCheckpoint:
        """Write the model in transformers' layout, and the artifact's facts.

        The folder has weights, configuration, tokenizer and processor. With `tokens: class` it has no processor,
        because transformers' `LlavaProcessor` does not support it.
        """
        directory.mkdir(parents=True, exist_ok=True)
        self.llava.save_pretrained(directory)
        self.tokenizer.save_pretrained(directory)
        if self.facts.tokens != "class":
            class_token = has_class_token(self.llava.config.vision_config)
            template = chat_template(self.facts.prompt, self.facts.later_prompt, self.tokenizer.eos_token)
            processor = llava_processor(
                self.llava.config, self.tokenizer, self.preprocess, template, class_token=class_token
            )
            save_processor(processor, directory)
        return MllmCheckpoint.create(directory, **self.facts.model_dump())


def has_class_token(vision_config: Any) -> bool:
    """Check whether the first token of a tower is a class token."""
    return bool(vision_config.model_type == "clip_vision_model")


@no_progress_bar()
def build_mllm(clip: ClipModel, part: LanguageModel, texts: Iterable[str], reading: Reading, seed: int) -> Mllm:
    """Build a model over a CLIP's vision tower, with a projector of random weights.

    Language model and data order depend on the seed but not on the tower.

    Args:
        clip: CLIP model, in a layout that transformers has.
        part: Configuration of the language model.
        texts: Texts for a vocabulary of words. The prompt's words are added.
        reading: Rules by which the model reads an image and a question.
        seed: Seed of the random weights.

    Raises:
        UserError: If transformers has no such tower, or it has no such layer or token.
    """
    tower = _vision_tower(clip)
    language_model, tokenizer = part.build([*texts, reading.prompt_words], seed)
    return join_parts(clip, tower, language_model, tokenizer, reading, seed)


def join_parts(
    clip: ClipModel,
    tower: PreTrainedModel,
    language_model: PreTrainedModel,
    tokenizer: Any,
    reading: Reading,
    seed: int = 0,
) -> Mllm:
    """Join a vision tower and a language model with a new projector.

    Args:
        clip: CLIP model of the tower.
        tower: Vision tower in transformers' form.
        language_model: As in `build_mllm`.
        tokenizer: As in `build_mllm`.
        reading: As in `build_mllm`.
        seed: Seed of the projector's weights.
    """
    vision = tower.config
    _check_reading(reading, vision, clip.name)
    side = vision.image_size // vision.patch_size
    count = {"patches": side**2, "all": side**2 + has_class_token(vision), "class": 1}[reading.tokens]
    config = LlavaConfig(
        vision_config=vision,
        text_config=language_model.config,
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        image_seq_length=count,
        vision_feature_layer=reading.layer,
        vision_feature_select_strategy=(
            "default" if reading.tokens == "patches" and has_class_token(vision) else "full"
        ),
    )
    with torch.device("meta"):  # only the frame: every part has weights already, or gets them here
        llava = LlavaForConditionalGeneration(config)
    # Only the projector is random, and the run's random state does not change.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        llava.model.multi_modal_projector = LlavaMultiModalProjector(config)
    llava.model.vision_tower = tower
    llava.model.language_model = language_model.model
    llava.lm_head = language_model.get_output_embeddings()
    facts = MllmCheckpoint(
        tower=clip.name,
        layer=reading.layer,
        tokens=reading.tokens,
        prompt=reading.prompt,
        later_prompt=reading.later_prompt,
        preprocess=_preprocess(clip.preprocess, pad=reading.pad).model_dump(mode="json"),
    )
    return Mllm(llava, tokenizer, facts).eval()


@no_progress_bar()
def load_mllm(checkpoint: MllmCheckpoint) -> Mllm:
    """Load a model, in evaluation mode.

    Raises:
        UserError: If the weights or the tokenizer cannot be read.
    """
    with _reading_llava(checkpoint):
        llava = LlavaForConditionalGeneration.from_pretrained(checkpoint.path, dtype=torch.float32)
        tokenizer = AutoTokenizer.from_pretrained(checkpoint.path)
    return Mllm(llava, tokenizer, checkpoint).eval()


def empty_mllm(checkpoint: MllmCheckpoint) -> Mllm:
    """Build a model with random weights on torch's default device, for an estimate.

    Raises:
        UserError: If the configuration or the tokenizer cannot be read.
    """
    with _reading_llava(checkpoint):
        tokenizer = AutoTokenizer.from_pretrained(checkpoint.path)
        return Mllm(LlavaForConditionalGeneration(LlavaConfig.from_pretrained(checkpoint.path)), tokenizer, checkpoint)


@contextmanager
def _reading_llava(checkpoint: MllmCheckpoint) -> Iterator[None]:
    try:
        with without_custom_code(checkpoint.path):
            yield
    except UserError:
        raise
    except Exception as error:  # the libraries raise errors of many types on damaged files
        raise UserError(f"{checkpoint.path}: no LLaVA model: {' '.join(str(error).split())[:300]}") from None


def _vision_tower(clip: ClipModel) -> PreTrainedModel:
    """Convert the vision tower of a CLIP model to transformers."""
    with TemporaryDirectory() as folder:
        find_format("hf", clip, clip.name).write(clip, Path(folder))
        whole = AutoModel.from_pretrained(folder)
    tower = empty_tower(clip)
    getattr(tower, "vision_model", tower).load_state_dict(whole.vision_model.state_dict())  # transformers 4 and 5
    return tower


def empty_tower(clip: ClipModel) -> PreTrainedModel:
    """Build the vision tower of a CLIP model in transformers with random weights, as LLaVA builds its tower.

    Raises:
        UserError: If transformers has no such tower.
    """
    config = AutoConfig.for_model(**transformers_config(clip, clip.name))
    tower: PreTrainedModel = AutoModel.from_config(config.vision_config)
    return tower


def _check_reading(reading: Reading, vision: Any, name: str) -> None:
    depth = vision.num_hidden_layers
    if not 1 <= abs(reading.layer) <= depth:
        raise UserError(
            f"layer: expected 1 to {depth}, or -{depth} to -1, for {name} with {depth} blocks, got {reading.layer}"
        )
    if reading.tokens == "class" and not has_class_token(vision):
        raise UserError(f"tokens: class needs a class token, which {name} does not have")


def _preprocess(preprocess: Preprocess, *, pad: bool) -> Preprocess:
    if not pad:
        return preprocess
    mean = tuple(int(255 * value) for value in preprocess.mean)  # rounded down, as LLaVA does
    return preprocess.model_copy(update={"resize_mode": "longest", "pad_color": mean, "crop_pct": 1.0})
