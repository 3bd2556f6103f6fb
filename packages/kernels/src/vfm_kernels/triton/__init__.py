"""Triton kernels and the functions that launch them, one op per file. Imported when the first kernel runs."""

from vfm_kernels.triton.add_layer_norm import add_layer_norm_backward, add_layer_norm_forward
from vfm_kernels.triton.attention import attention_backward, attention_forward
from vfm_kernels.triton.cosine import masked_cosine, masked_cosine_backward
from vfm_kernels.triton.embedding import mask_tokens, mask_tokens_backward
from vfm_kernels.triton.pair_rows import cross_entropy_rows, sigmoid_rows
from vfm_kernels.triton.pair_statistics import pair_gradients, pair_statistics
from vfm_kernels.triton.rope import rotate_into
from vfm_kernels.triton.swiglu import swiglu_backward, swiglu_forward
from vfm_kernels.triton.tokens import gather_tokens, scatter_tokens

__all__ = [
    "add_layer_norm_backward",
    "add_layer_norm_forward",
    "attention_backward",
    "attention_forward",
    "cross_entropy_rows",
    "gather_tokens",
    "mask_tokens",
    "mask_tokens_backward",
    "masked_cosine",
    "masked_cosine_backward",
    "pair_gradients",
    "pair_statistics",
    "rotate_into",
    "scatter_tokens",
    "sigmoid_rows",
    "swiglu_backward",
    "swiglu_forward",
]
