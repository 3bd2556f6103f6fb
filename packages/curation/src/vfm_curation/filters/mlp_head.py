"""Filter by a small network of the user on image embeddings."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from vfm.plugin import UserError
from vfm_curation.filters.head_filters import MlpScore
from vfm_curation.filters.head_layers import layers_of
from vfm_curation.filters.run import FilterRun
from vfm_curation.filters.scores import cut

ACTIVATIONS = {"none": nn.Identity, "relu": nn.ReLU, "gelu": nn.GELU}


def mlp_score_passes(config: MlpScore, run: FilterRun) -> Iterator[NDArray[np.bool_]]:
    """Yield a mask for each batch: the images that pass by the network's score.

    Raises:
        UserError: If the network does not fit the model's embeddings, or a score is not finite.
    """
    network = read_network(config)

    def scores() -> Iterator[NDArray[np.float32]]:
        for _, vectors in run.embeddings(config.clip):  # (N, D)
            yield network_scores(network, torch.from_numpy(vectors), config.head)

    return cut(config, scores, run.num_units("image"))


def network_scores(network: nn.Sequential, vectors: Tensor, head: str) -> NDArray[np.float32]:
    """Compute the score of each embedding.

    Args:
        network: Layers of the head.
        vectors: Embeddings, (N, D).
        head: Name of the head, for the error.

    Returns:
        (N,).
    """
    first = network[0]
    assert isinstance(first, nn.Linear)
    if vectors.shape[1] != first.in_features:
        raise UserError(f"{head}: takes embeddings of width {first.in_features}, got {vectors.shape[1]}")
    with torch.no_grad():
        scores = network(vectors).squeeze(1)
    if not scores.isfinite().all():
        raise UserError(f"{head}: expected finite scores, got {scores[~scores.isfinite()][0]}")
    values: NDArray[np.float32] = scores.numpy()
    return values


def read_network(config: MlpScore) -> nn.Sequential:
    """Build the network in fp32 from its file.

    Raises:
        UserError: If the file is no such network, as for `layers_of`.
    """
    from safetensors.torch import load_file  # of the extra `clip`

    file = Path(config.head)
    layers = layers_of(file)
    tensors = load_file(file)
    modules: list[nn.Module] = []
    for layer in layers:
        linear = nn.Linear(layer.width, layer.outputs, bias=layer.bias is not None)
        state = {"weight": tensors[layer.weight].float()}
        if layer.bias:
            state["bias"] = tensors[layer.bias].float()
        linear.load_state_dict(state)
        modules += [linear, ACTIVATIONS[config.activation]()]
    modules.pop()  # no activation after the last layer
    if config.sigmoid:
        modules.append(nn.Sigmoid())
    return nn.Sequential(*modules)
