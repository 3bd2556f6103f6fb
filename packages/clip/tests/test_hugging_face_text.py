"""Text towers and tokenizers of Hugging Face, as in multilingual models: built, locked, trained, loaded again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from safetensors.torch import load_file

from clip_world import VIT, make_pool, plan, run_stage, tiny_task
from vfm.models import blueprint, build_clip, load_clip, save_clip, tower_layers
from vfm.plugin import FrozenWeights, LastBlocks, UserError
from vfm.train import prepare_towers
from vfm_clip import Tower
from vfm_clip.towers import trained_towers
from weight_decay_rule import assert_decays

transformers = pytest.importorskip("transformers")
tokenizers = pytest.importorskip("tokenizers")

SPECIAL = ["<s>", "<pad>", "</s>", "<unk>"]  # in XLM-R's order
WORDS = ["a", "picture", "of", "on", "red", "blue", "ein", "Bild"]
SIZES = {
    "xlm-roberta": {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 32},
    "mt5": {"d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 3, "num_heads": 2},
}


def configuration(folder: Path, kind: str) -> dict[str, Any]:
    """Return a model whose text tower and tokenizer are in a folder, in the hub's layout."""
    vocabulary = {word: index for index, word in enumerate(SPECIAL + WORDS)}
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="<unk>"))
    words.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    ends = [("<s>", 0), ("</s>", 2)]
    words.post_processor = tokenizers.processors.TemplateProcessing(single="<s> $A </s>", special_tokens=ends)
    names = {"bos": "<s>", "cls": "<s>", "eos": "</s>", "sep": "</s>", "pad": "<pad>", "unk": "<unk>"}
    special = {f"{name}_token": token for name, token in names.items()}
    transformers.PreTrainedTokenizerFast(tokenizer_object=words, **special).save_pretrained(folder)
    config = transformers.AutoConfig.for_model(kind, vocab_size=len(vocabulary), pad_token_id=1, **SIZES[kind])
    config.save_pretrained(folder)
    text = {"hf_model_name": str(folder), "hf_tokenizer_name": str(folder), "hf_proj_type": "mlp"}
    return {**VIT, "text_cfg": {**text, "hf_pooler_type": "mean_pooler", "context_length": 8}}


@pytest.mark.parametrize("kind", SIZES)
def test_a_text_tower_is_built_saved_and_loaded_with_its_tokenizer(kind: str, tmp_path: Path) -> None:
    config = configuration(tmp_path / "text", kind)
    model = build_clip(config, seed=0)
    assert model.tokenize(["ein Bild"]).tolist() == [[0, 10, 11, 2, 1, 1, 1, 1]]
    assert model.tokenize(["a picture of red on blue on red"])[0, -1] == 2  # cut, its end token kept
    again = load_clip(save_clip(model, tmp_path / "saved"))
    assert (tmp_path / "saved" / "tokenizer.json").is_file()
    peer = open_clip.create_model(f"local-dir:{tmp_path / 'saved'}").eval()
    tokens = open_clip.get_tokenizer(f"local-dir:{tmp_path / 'saved'}")(["ein Bild"])
    with torch.no_grad():
        torch.testing.assert_close(model.encode_texts(["ein Bild"]), peer.encode_text(tokens, normalize=True))
    assert torch.equal(again.encode_texts(["ein Bild"]), model.encode_texts(["ein Bild"]))
    assert all(weight.is_meta for weight in blueprint(config).module.parameters())


@pytest.mark.parametrize("unlocked", [1, 2, 3])
@pytest.mark.parametrize("kind", SIZES)
def test_a_lock_leaves_the_same_weights_free_as_open_clips(kind: str, unlocked: int, tmp_path: Path) -> None:
    ours, theirs = (build_clip(configuration(tmp_path, kind), seed=0) for _ in range(2))
    prepare_towers(trained_towers(ours, Tower(), Tower(trained=LastBlocks(blocks=unlocked))))
    theirs.module.lock_text_tower(unlocked_layers=unlocked)
    for (name, weight), peer in zip(ours.module.named_parameters(), theirs.module.parameters(), strict=True):
        assert weight.requires_grad == peer.requires_grad, name
    assert len(tower_layers(ours.module, "text")) == 4  # embeddings and three blocks
    prepare_towers(trained_towers(ours, Tower(), Tower(trained=FrozenWeights())))
    assert not any(weight.requires_grad for weight in ours.module.text.parameters())


@pytest.mark.parametrize(
    ("kind", "table"), [("xlm-roberta", "position_embeddings"), ("mt5", "relative_attention_bias")]
)
def test_its_tables_of_positions_are_not_decayed_as_in_open_clips_main_branch(
    kind: str, table: str, tmp_path: Path
) -> None:
    assert table in " ".join(assert_decays(tiny_task(configuration(tmp_path, kind))))


def test_it_is_trained_in_micro_batches_with_layer_decay_and_initialised_only_from_its_own_architecture(
    tmp_path: Path,
) -> None:
    config = configuration(tmp_path / "text", "xlm-roberta")
    donor = save_clip(build_clip(config, seed=3), tmp_path / "donor")
    locks = {"text": {"trained": {"type": "last_blocks", "blocks": 1, "layer_decay": 0.5}}}
    stage = plan(model=config, init_text="donor", steps=2, micro_batch_size=6, **locks)
    trained, _ = run_stage(stage, tmp_path, pool=make_pool(tmp_path / "pool"), donor=donor)
    before, after = (load_file(each.path / "open_clip_model.safetensors") for each in (donor, trained))
    same = {name for name in before if name.startswith("text.") and torch.equal(before[name], after[name])}
    assert "text.transformer.embeddings.word_embeddings.weight" in same
    assert "text.transformer.encoder.layer.1.output.dense.weight" in same
    assert not same & {"text.transformer.encoder.layer.2.output.dense.weight", "text.proj.0.weight"}
    with pytest.raises(UserError, match="cannot use the text tower of init_text 'donor': text_cfg"):
        run_stage(plan(model=VIT, init_text="donor"), tmp_path / "other", pool=make_pool(tmp_path / "p"), donor=donor)
