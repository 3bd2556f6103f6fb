"""Which parameters open_clip decays, written out for the tests that compare with it."""

from __future__ import annotations

from fnmatch import fnmatchcase

from torch import nn

from vfm_clip.task import ClipTask


def decays(name: str, param: nn.Parameter, model: nn.Module) -> bool:
    """Return whether a parameter is decayed by the rule of open_clip's main branch (4.2.0.dev0, `make_wd_exclude`).

    Vectors and scalars are not, nor what a part of the model lists in `no_weight_decay` (positional and class
    embeddings), nor Hugging Face's tables of positions and token types. The release 3.3.0 decays all matrices.
    """
    listed = {
        f"{path}.{own}" if path else own
        for path, part in model.named_modules()
        if callable(getattr(part, "no_weight_decay", None))
        for own in part.no_weight_decay()
    }
    tables = ["*position_embeddings*", "*token_type_embeddings*", "*relative_attention_bias*", "*embed_positions*"]
    return param.ndim > 1 and name not in listed and not any(fnmatchcase(name, f"text.{table}") for table in tables)


def assert_decays(task: ClipTask) -> list[str]:
    """Assert which parameters are decayed; return the names of the matrices that are not."""
    decayed, plain = ({id(p) for p in group.params} for group in task.parameter_groups())
    named = dict(task.module.named_parameters())
    assert decayed | plain == {id(param) for param in named.values()}
    assert decayed == {id(param) for name, param in named.items() if decays(name, param, task.module)}
    return [name for name, param in named.items() if id(param) in plain and param.ndim > 1]
