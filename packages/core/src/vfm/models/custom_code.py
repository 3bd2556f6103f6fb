"""Loading of models from Hugging Face's libraries without the Python code that their files may name."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from vfm.base import UserError


@contextmanager
def without_custom_code(where: object) -> Iterator[None]:
    """Refuse a model whose files need their own Python code (`auto_map`).

    transformers would offer to run that code. Without an answer to `trust_remote_code`, and a part of a model never has
    one, transformers asks for it on the standard input. A waiting time of zero turns the question into an error.
    Callers leave `trust_remote_code` out.

    Args:
        where: The model, for the error.

    Raises:
        UserError: If the model cannot be loaded with the classes of transformers alone.
    """
    try:
        from transformers import dynamic_module_utils  # an optional extra, half a second
    except ImportError:  # without it, none of its models is loaded
        yield
        return
    seconds = dynamic_module_utils.TIME_OUT_REMOTE_CODE
    dynamic_module_utils.TIME_OUT_REMOTE_CODE = 0
    try:
        yield
    except ValueError as error:
        if "trust_remote_code" not in str(error):
            raise
        raise UserError(
            f"{where}: its files name Python code of their own (auto_map), which vfm never runs; use a model of a type"
            " that transformers has"
        ) from None
    finally:
        dynamic_module_utils.TIME_OUT_REMOTE_CODE = seconds
