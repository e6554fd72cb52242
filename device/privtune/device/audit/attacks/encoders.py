"""What the learned attacks read a record with: the pre-trained blocks above the cut, or a small new encoder.

B records, T rows a record, R rows, D hidden width.
"""

from __future__ import annotations

import copy
import math

import torch
from torch import Tensor, nn

from privtune.device.audit.victim import Seen


class NewEncoder(nn.Module):
    """Two transformer layers from scratch, for models whose own blocks see only what comes before."""

    def __init__(self, width: int) -> None:
        super().__init__()
        heads = math.gcd(width, 8)
        layer = nn.TransformerEncoderLayer(width, heads, 2 * width, 0.0, "gelu", batch_first=True, norm_first=True)
        self.layers = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)

    def forward(self, h_BTD: Tensor, mask_BT: Tensor, readout_N: Tensor) -> Tensor:
        """States at the flat positions b * T + t, as `privtune.shared.modeling.partition.Top` gives them."""
        out_BTD: Tensor = self.layers(h_BTD, src_key_padding_mask=~mask_BT.bool())
        return out_BTD.flatten(0, 1).index_select(0, readout_N)


def trainable(encoder: nn.Module | None, width: int) -> nn.Module:
    """A copy of the encoder that may be trained; a new one where there is none."""
    mine = NewEncoder(width) if encoder is None else copy.deepcopy(encoder)
    return mine.requires_grad_(True)


def encode(encoder: nn.Module, seen: Seen, rows_RD: Tensor) -> Tensor:
    """Final states at every released row, (R, D) float32; rows_RD: what the encoder reads in their places.

    In bfloat16 where the processor multiplies it (four times as fast, most of an attack's time goes here): attacks
    compare these states with nothing, they only learn from them.
    """
    width = int(seen.lengths_B.max())
    x_BTD = torch.zeros(len(seen), width, rows_RD.shape[1]).index_put((seen.record_R, seen.place_R), rows_RD)
    mask_BT = (torch.arange(width) < seen.lengths_B.unsqueeze(1)).long()
    with torch.autocast("cpu", torch.bfloat16, enabled=torch.cpu._is_avx512_bf16_supported()):
        states_RD: Tensor = encoder(x_BTD, mask_BT, seen.record_R * width + seen.place_R)
    return states_RD.float()
