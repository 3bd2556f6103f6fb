"""EVA-01's segmenter for its released weights, with a ViT-Adapter and Mask2Former's decoders.

The decoders are transformers' classes. To train new segmenters, use queries in the last blocks (`queries.py`).
Sources: Cheng et al. 2022, Mask2Former (arXiv:2112.01527), with the sizes of EVA-01 (arXiv:2211.07636).
"""

# B images, H and W sides of an image

from __future__ import annotations

from torch import Tensor, nn

from vfm.plugin import UserError
from vfm_eva.dense.adapter import ViTAdapter
from vfm_eva.dense.encoder import DenseEncoder
from vfm_eva.dense.segment.queries import QueryPredictions
from vfm_eva.dense.segment.stages import Mask2FormerSegmentation
from vfm_eva.dense.transformers_parts import modeling

NORM_GROUPS = 32  # groups of the norms in transformers' pixel decoder


class Mask2FormerHead(nn.Module):
    """The adapter, the pixel decoder, the transformer decoder of the queries and the classifier.

    Args:
        encoder: The encoder whose features are decoded. It is not a submodule.
        settings: Sizes of the parts.
        num_classes: Number of classes without the class `none`.
    """

    def __init__(self, encoder: DenseEncoder, settings: Mask2FormerSegmentation, num_classes: int) -> None:
        super().__init__()
        width = settings.channels
        parts = modeling("mask2former")
        config = parts.Mask2FormerConfig(
            feature_size=width,
            mask_feature_size=width,
            hidden_dim=width,
            encoder_layers=settings.pixel_layers,
            encoder_feedforward_dim=4 * width,
            decoder_layers=settings.num_layers + 1,  # transformers counts predictions, including one before the layers
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

    def forward(self, encoder: DenseEncoder, images: Tensor) -> QueryPredictions:
        """Compute the last layer's predictions for normalised images, (B, 3, H, W). Masks have stride 4."""
        pixels = self.pixel_decoder(self.adapter(encoder, images), return_dict=True)
        decoded = self.transformer(list(pixels.multi_scale_features), pixels.mask_features)
        classes = self.classify(decoded.intermediate_hidden_states[-1].transpose(0, 1))
        return QueryPredictions(classes, decoded.masks_queries_logits[-1])


class Mask2FormerSegmenter(nn.Module):
    """An encoder with a Mask2Former head.

    Args:
        encoder: Encoder without prefix tokens, since the adapter adds the class token.
        head: Head that was built for this encoder.
    """

    def __init__(self, encoder: DenseEncoder, head: Mask2FormerHead) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = head

    def forward(self, images: Tensor) -> list[QueryPredictions]:
        """Compute the predictions for normalised images, (B, 3, H, W), with sides that are multiples of 32."""
        return [self.head(self.encoder, images)]


def build_mask2former(
    settings: Mask2FormerSegmentation, encoder: nn.Module, num_classes: int, *, frozen: bool
) -> Mask2FormerSegmenter:
    """Build a segmenter around a timm encoder.

    Args:
        settings: Sizes of the head.
        encoder: The timm model.
        num_classes: Number of classes without the class `none`.
        frozen: Freeze all weights.

    Raises:
        UserError: If the encoder does not suit the adapter, the channels are not divisible among heads or groups of the
            norms, or transformers is not installed.
    """
    for field, divisor in (("num_heads", settings.num_heads), ("channels", NORM_GROUPS)):
        if settings.channels % divisor:
            raise UserError(
                f"head.{field}: expected channels that are a multiple of {divisor}, got {settings.channels}"
            )
    # The adapter adds the class token itself, after it has changed the patches.
    dense = DenseEncoder(encoder, prefix=False)
    return Mask2FormerSegmenter(dense, Mask2FormerHead(dense, settings, num_classes)).requires_grad_(not frozen)
