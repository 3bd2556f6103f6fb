"""The multimodal language model equals transformers' LlavaForConditionalGeneration, and only its own parts train."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

import diva_toy
from vfm.models import Preprocess, build_clip
from vfm.plugin import UserError

transformers = pytest.importorskip("transformers")

from vfm_diva.mllm.evaluation import option_likelihoods  # noqa: E402
from vfm_diva.mllm.language_models import planned_language_model  # noqa: E402
from vfm_diva.mllm.model import Mllm, Reading, build_mllm, load_mllm  # noqa: E402
from vfm_diva.mllm.processor import image_processor  # noqa: E402
from vfm_diva.mllm.stages import MllmCheckpoint, PretrainedLanguageModel, SmallLlama  # noqa: E402

LLAMA = SmallLlama(layers=2, width=32, heads=2)
TEXTS = ["what colour is it ?", "red", "blue", "dark blue"]
PROMPT = "USER: <image>\n{question} ASSISTANT:"


def made(seed: int = 0, clip_seed: int = 0, **changes: Any) -> Mllm:
    vision = {**diva_toy.CLIP["vision_cfg"], "layers": 3}
    clip = build_clip({**diva_toy.CLIP, "vision_cfg": vision}, seed=clip_seed)
    return build_mllm(clip, LLAMA, TEXTS, Reading(**{"prompt": PROMPT, **changes}), seed)


def images(count: int = 3) -> Tensor:
    return torch.randint(256, (count, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def pairs(count: int = 3) -> list[tuple[str, str]]:
    return [("what colour is it ?", ("red", "dark blue", "blue")[number % 3]) for number in range(count)]


@pytest.mark.parametrize(("layer", "tokens"), [(-2, "patches"), (-1, "all")])
def test_loss_and_logits_are_those_of_transformers(layer: int, tokens: str) -> None:
    model = made(layer=layer, tokens=tokens)
    sequences = model.encoder.sequences(pairs())
    losses = model.answer_losses(model.image_states(images()), sequences.ids, sequences.answers)
    labels = sequences.ids.masked_fill(~sequences.answers, -100)
    theirs = model.llava(
        input_ids=sequences.ids,
        pixel_values=model.preprocess.pixels(images()),
        attention_mask=(sequences.ids != model.encoder.pad_token).long(),
        labels=labels,
    )
    torch.testing.assert_close(losses.mean(), theirs.loss)
    counted = sequences.answers[:, 1:]
    log_probabilities = theirs.logits[:, :-1].log_softmax(-1)
    own = log_probabilities.gather(-1, sequences.ids[:, 1:, None])[..., 0][counted]
    torch.testing.assert_close(-losses, own)


def test_the_gradient_is_that_of_transformers() -> None:
    model = made()
    sequences, trained = model.encoder.sequences(pairs()), model.projector.linear_1.weight
    losses = model.answer_losses(model.image_states(images()), sequences.ids, sequences.answers)
    (own,) = torch.autograd.grad(losses.mean(), trained)
    labels = sequences.ids.masked_fill(~sequences.answers, -100)
    theirs = model.llava(input_ids=sequences.ids, pixel_values=model.preprocess.pixels(images()), labels=labels).loss
    (expected,) = torch.autograd.grad(theirs, trained)
    torch.testing.assert_close(own, expected)


def test_a_saved_model_is_one_of_transformers_and_loads_again(tmp_path: Path) -> None:
    model = made()
    saved = model.save(tmp_path)
    again = load_mllm(MllmCheckpoint.load(tmp_path))
    assert again.facts == saved
    sequences = model.encoder.sequences(pairs())
    states = model.image_states(images())
    assert torch.equal(again.image_states(images()), states)
    assert torch.equal(
        again.answer_losses(states, sequences.ids, sequences.answers),
        model.answer_losses(states, sequences.ids, sequences.answers),
    )
    theirs = transformers.LlavaForConditionalGeneration.from_pretrained(tmp_path).eval()
    asked = sequences.ids[:1, : int(sequences.answers[0].nonzero()[0])]
    with torch.no_grad():
        logits = theirs(input_ids=asked, pixel_values=model.preprocess.pixels(images(1))).logits[0, -1]
    likeliest = logits.argmax()
    loss = model.answer_losses(states[:1], torch.cat([asked, likeliest[None, None]], dim=1), _last(asked))
    torch.testing.assert_close(-loss[0], logits.log_softmax(-1)[likeliest])


@pytest.mark.parametrize(("layer", "tokens", "pad"), [(-2, "patches", True), (-1, "all", False)])
@pytest.mark.parametrize("size", [(16, 16), (32, 20)])
def test_other_programs_read_the_model_by_its_processor(
    tmp_path: Path, layer: int, tokens: str, pad: bool, size: tuple[int, int]
) -> None:
    model = made(layer=layer, tokens=tokens, pad=pad)
    model.save(tmp_path)
    processor = transformers.AutoProcessor.from_pretrained(tmp_path)
    theirs = transformers.LlavaForConditionalGeneration.from_pretrained(tmp_path).eval()
    pixels = torch.randint(256, (*size, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    image = Image.fromarray(pixels.numpy())
    content = [{"type": "image"}, {"type": "text", "text": "what colour is it ?"}]
    asked = [{"role": "user", "content": content}]
    text = processor.apply_chat_template(asked, tokenize=False, add_generation_prompt=True)
    assert text == "USER: <image>\nwhat colour is it ? ASSISTANT:"
    inputs = processor(images=[image], text=text, return_tensors="pt")
    fitted = torch.from_numpy(model.preprocess.fit(image)).permute(2, 0, 1)[None]
    far = (inputs["pixel_values"] - model.preprocess.pixels(fitted)).abs()
    levels = 255 * far * torch.tensor(model.preprocess.std).view(3, 1, 1)
    assert levels.max() < (0.01 if size == (16, 16) else 24)  # padded before it is resized, so that edges differ
    assert levels.median() < 1.01
    made_by_it = theirs.generate(
        **inputs, max_new_tokens=2, do_sample=False, output_scores=True, return_dict_in_generate=True, eos_token_id=99
    )
    first = made_by_it.sequences[0, -2]
    ids = torch.cat([inputs["input_ids"], first[None, None]], dim=1)
    sequences = model.encoder.sequences([("what colour is it ?", "red")])
    start = int(sequences.answers[0].nonzero()[0])
    assert torch.equal(ids[:, :-1], sequences.ids[:, :start])
    if size == (16, 16):
        loss = model.answer_losses(model.image_states(fitted), ids, _last(ids[:, :-1]))
        torch.testing.assert_close(-loss[0], made_by_it.scores[0][0].log_softmax(-1)[first])


@pytest.mark.parametrize("changes", [{"resize_mode": "squash"}, {"crop_pct": 0.875, "interpolation": "bilinear"}])
def test_the_image_processor_is_the_preprocessing(changes: dict[str, Any]) -> None:
    preprocess = Preprocess(image_size=28, **changes)
    pixels = torch.randint(256, (48, 64, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    theirs = image_processor(preprocess)(Image.fromarray(pixels.numpy()), return_tensors="pt")["pixel_values"]
    own = preprocess.inputs([pixels.numpy()], torch.device("cpu"))
    torch.testing.assert_close(theirs, own, rtol=0, atol=2.5 / 255 / 0.26)  # levels of 255, rounded at other places


def test_a_model_of_the_class_token_has_no_processor(tmp_path: Path) -> None:
    made(layer=-1, tokens="class").save(tmp_path)
    assert (tmp_path / "tokenizer.json").is_file()
    assert not list(tmp_path.glob("*processor_config.json"))


def _last(asked: Tensor) -> Tensor:
    return torch.tensor([[False] * asked.shape[1] + [True]])


def test_the_language_model_does_not_depend_on_the_tower_and_the_last_block_is_not_read() -> None:
    one, other = made(clip_seed=0), made(clip_seed=1)
    first, second = (diva_toy.weights(model.llava.model.language_model) for model in (one, other))
    assert diva_toy.same(first, second)
    assert diva_toy.same(diva_toy.weights(one.projector), diva_toy.weights(other.projector))
    before = one.image_states(images())
    tower = one.llava.model.vision_tower
    for name, param in tower.named_parameters():
        if "layers.2." in name or "post_layernorm" in name:
            param.data.normal_()
    assert torch.equal(one.image_states(images()), before)  # layer -2: what LLaVA reads
    next(param for name, param in tower.named_parameters() if "layers.1." in name).data.normal_()
    assert not torch.equal(one.image_states(images()), before)


def test_tokens_of_an_image_are_those_that_were_chosen() -> None:
    every = made(layer=-1, tokens="all").image_states(images())
    assert every.shape == (3, 5, 32)
    assert torch.equal(made(layer=-1, tokens="patches").image_states(images()), every[:, 1:])
    assert torch.equal(made(layer=-1, tokens="class").image_states(images()), every[:, :1])


def test_likelihood_of_an_option_is_that_of_its_tokens_and_the_end() -> None:
    from vfm.data import Question

    model = made()
    asked = [Question(f"q{n}", n, "what colour is it ?", ["red", "dark blue", "blue"], 0) for n in range(3)]
    found = option_likelihoods(model, images(), asked)
    alone = [option_likelihoods(model, images()[n : n + 1], asked[n : n + 1])[0] for n in range(3)]
    torch.testing.assert_close(torch.tensor(found), torch.tensor(alone))  # neither batch nor padding matters
    tokens = model.encoder.sequence(("what colour is it ?", "dark blue"))
    inputs, start = torch.tensor([tokens.ids]), tokens.is_answer.index(True)
    with torch.no_grad():
        logits = model.llava(input_ids=inputs, pixel_values=model.preprocess.pixels(images(1))).logits
    chances = logits.log_softmax(-1)[0, start - 1 : -1].gather(-1, inputs[0, start:, None])
    assert len(chances) == 3  # dark, blue, end
    torch.testing.assert_close(torch.tensor(found[0][1]), chances.sum())


CONVERSATION = ["what colour is it ?", "dark blue", "what colour is it ?", "red"]


def test_a_conversation_trains_each_answer_as_transformers_does_on_its_own_template(tmp_path: Path) -> None:
    model = made(later_prompt="THEN {question} SAY:")
    model.save(tmp_path)
    processor = transformers.AutoProcessor.from_pretrained(tmp_path)
    messages = []
    for index, text in enumerate(CONVERSATION):
        image = [{"type": "image"}] if index == 0 else []
        role = "assistant" if index % 2 else "user"
        messages.append({"role": role, "content": [*image, {"type": "text", "text": text}]})
    text = processor.apply_chat_template(messages, tokenize=False)
    assert text == ("USER: <image>\nwhat colour is it ? ASSISTANT: dark blue</s>THEN what colour is it ? SAY: red</s>")
    inputs = processor(images=[Image.new("RGB", (16, 16))], text=text, return_tensors="pt")
    sequences = model.encoder.sequences([CONVERSATION])
    assert torch.equal(sequences.ids, inputs["input_ids"])
    answers = sequences.ids[sequences.answers]
    assert model.tokenizer.decode(answers) == "dark blue </s> red </s>"
    losses = model.answer_losses(model.image_states(images(1)), sequences.ids, sequences.answers)
    labels = sequences.ids.masked_fill(~sequences.answers, -100)
    pixels = model.preprocess.pixels(images(1))
    torch.testing.assert_close(
        losses.mean(), model.llava(input_ids=sequences.ids, pixel_values=pixels, labels=labels).loss
    )


def test_likelihoods_after_earlier_turns_are_of_the_last_answer_alone() -> None:
    from vfm.data import Question

    model = made()
    question = Question("q", 0, "what colour is it ?", ["red", "blue"], 0, history=CONVERSATION[:2])
    both = model.encoder.sequences([[*CONVERSATION[:3], option] for option in question.options])
    states = model.image_states(images(1)).repeat_interleave(2, dim=0)
    per_token = -model.answer_losses(states, both.ids, both.answers).reshape(2, -1)
    measured = torch.tensor(option_likelihoods(model, images(1), [question])[0])
    torch.testing.assert_close(measured, per_token[:, -2:].sum(dim=1))  # the option and its end
    without = option_likelihoods(model, images(1), [Question("q", 0, "what colour is it ?", ["red", "blue"], 0)])
    assert not torch.allclose(measured, torch.tensor(without[0]))


def test_a_pretrained_language_model_gets_a_token_for_images(tmp_path: Path) -> None:
    model = made()
    language_model = transformers.LlamaForCausalLM(model.llava.config.text_config)
    language_model.save_pretrained(tmp_path)
    words = transformers.PreTrainedTokenizerFast(
        tokenizer_object=_without_image(model.tokenizer), unk_token="<unk>", eos_token="</s>", pad_token="<pad>"
    )
    words.save_pretrained(tmp_path)
    clip = build_clip(diva_toy.CLIP, seed=0)
    built = build_mllm(clip, PretrainedLanguageModel(source=str(tmp_path)), [], Reading(), seed=0)
    old = language_model.model.embed_tokens.weight
    assert torch.equal(built.llava.get_input_embeddings().weight[: len(words)], old[: len(words)])
    sequences = built.encoder.sequences(pairs(1))
    assert (sequences.ids == built.encoder.image_token).sum() == 4
    with pytest.raises(UserError, match="no language model"):
        build_mllm(clip, PretrainedLanguageModel(source=str(tmp_path / "none")), [], Reading(), seed=0)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"empty: no language model: "):
        planned_language_model(PretrainedLanguageModel(source=str(tmp_path / "empty")), [])


def _without_image(tokenizer: Any) -> Any:
    import tokenizers

    words = sorted(tokenizer.get_vocab(), key=tokenizer.get_vocab().get)
    kept = [word for word in words if word != "<image>"]
    made = tokenizers.Tokenizer(
        tokenizers.models.WordLevel({word: n for n, word in enumerate(kept)}, unk_token="<unk>")
    )
    made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    return made


def test_what_does_not_fit_is_one_line() -> None:
    with pytest.raises(UserError, match=r"expected 1 to 3, or -3 to -1, for .* got -5"):
        made(layer=-5)
    with pytest.raises(UserError, match="vocabulary lacks a word"):
        made().encoder.sequences([("what colour is it ?", "green")])
    for question, answer in (("<image> what colour is it ?", "red"), ("what colour is it ?", "red <image>")):
        with pytest.raises(UserError, match=r"expected no <image> in a question or an answer, got '.*<image>"):
            made().encoder.sequences([(question, answer)])
    model = made()
    model.encoder.max_length = 8
    with pytest.raises(UserError, match="expected at most 8 tokens"):
        model.encoder.sequences(pairs())
    timm = {**diva_toy.CLIP, "vision_cfg": {"image_size": 32, "timm_model_name": "vit_pico_patch8_32"}}
    with pytest.raises(UserError, match="not open_clip's ViT"):
        build_mllm(build_clip({**timm, "custom_text": True}, seed=0), LLAMA, TEXTS, Reading(), seed=0)
