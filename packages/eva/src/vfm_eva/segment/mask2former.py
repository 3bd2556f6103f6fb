"""EVA-01's segmenter: a ViT-Adapter around the encoder and Mask2Former's decoders on its maps, to read released files.

Sources: Cheng et al. 2022, Mask2Former (arXiv:2112.01527), by transformers' classes; the sizes are those of EVA-01
(arXiv:2211.07636). Here a segmenter is trained with queries in the last blocks instead, as EoMT (arXiv:2503.19108).
"""

# B images, Q queries, K classes, D width of the encoder, H and W sides of an image

from __future__ import annotations

from torch import Tensor, nn

from vfm.plugin import UserError
from vfm_eva.dense.adapter import ViTAdapter
from vfm_eva.dense.encoder import DenseEncoder
from vfm_eva.dense.transformers_parts import modeling
from vfm_eva.segment.queries import Predictions
from vfm_eva.stages_segment import Mask2FormerSegmentation

NORM_GROUPS = 32  # of transformers' pixel decoder


class Mask2FormerHead(nn.Module):
    """All but the encoder: the adapter, the pixel decoder, the transformer of the queries and the classifier."""

    def __init__(self, encoder: DenseEncoder, settings: Mask2FormerSegmentation, num_classes: int) -> None:
        super().__init__()
        width, parts = settings.channels, modeling("mask2former")
        config = parts.Mask2FormerConfig(
            feature_size=width,
            mask_feature_size=width,
            hidden_dim=width,
            encoder_layers=settings.pixel_layers,
            encoder_feedforward_dim=4 * width,
            decoder_layers=settings.num_layers + 1,  # transformers counts the predictions
            dim_feedforward=4 * width,
            num_attention_heads=settings.num_heads,
            num_queries=settings.num_queries,
            dropout=0.0,
        )
        self.adapter = ViTAdapter(
            encoder, settings.adapter_heads, settings.adapter_channels, relative=settings.relative
        )
        self.pixel_decoder: nn.Module = parts.Mask2FormerPixelDecoder(config, [encoder.width] * 4)
        self.transformer: nn.Module = parts.Mask2FormerTransformerModule(width, config)
        self.classify = nn.Linear(width, num_classes + 1)

    def forward(self, encoder: DenseEncoder, images: Tensor) -> Predictions:
        """Return the predictions of the last layer for normalised images, masks of stride 4."""
        pixels = self.pixel_decoder(self.adapter(encoder, images), return_dict=True)
        found = self.transformer(list(pixels.multi_scale_features), pixels.mask_features)
        classes = self.classify(found.intermediate_hidden_states[-1].transpose(0, 1))
        return Predictions(classes, found.masks_queries_logits[-1])


class Mask2FormerSegmenter(nn.Module):
    """An encoder with a Mask2Former.

    Args:
        encoder: without prefix tokens, since the adapter puts the class token before the patches.
        head: all else.
    """

    def __init__(self, encoder: DenseEncoder, head: Mask2FormerHead) -> None:
        super().__init__()
        self.encoder, self.head = encoder, head

    def forward(self, images: Tensor) -> list[Predictions]:
        """Return the predictions for normalised images, (B, 3, H, W), whose sides divide by 32."""
        return [self.head(self.encoder, images)]


def build_mask2former(
    settings: Mask2FormerSegmentation, encoder: nn.Module, num_classes: int, *, frozen: bool
) -> Mask2FormerSegmenter:
    """Return an encoder with a Mask2Former.

    Raises:
        UserError: the encoder takes no adapter, the widths do not divide, or transformers is not installed.
    """
    for field, divisor in (("num_heads", settings.num_heads), ("channels", NORM_GROUPS)):
        if settings.channels % divisor:
            raise UserError(
                f"head.{field}: expected channels that are a multiple of {divisor}, got {settings.channels}"
            )
    dense = DenseEncoder(encoder, prefix=False)
    return Mask2FormerSegmenter(dense, Mask2FormerHead(dense, settings, num_classes)).requires_grad_(not frozen)
