"""The encoders of the learned attacks: the pre-trained blocks above the cut, or a small new encoder.

B records, T rows per record, R rows, D hidden width.
"""

from __future__ import annotations

import copy
import math

import torch
from torch import Tensor, nn

from privtune.device.audit.observed import Seen


class NewEncoder(nn.Module):
    """Two new transformer layers, for models whose own blocks see only what precedes."""

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
    """A trainable copy of the encoder; a new one if there is none."""
    mine = NewEncoder(width) if encoder is None else copy.deepcopy(encoder)
    return mine.requires_grad_(True)


def encode(encoder: nn.Module, seen: Seen, rows_RD: Tensor) -> Tensor:
    """Final states at every released row, (R, D) float32. rows_RD: the encoder's input at these rows.

    Runs in bfloat16 if the processor supports it: four times as fast, and most of an attack's time is spent here.
    Precision is enough, since attacks only learn from these states and never compare them.
    """
    width = int(seen.lengths_B.max())
    x_BTD = torch.zeros(len(seen), width, rows_RD.shape[1]).index_put((seen.record_R, seen.place_R), rows_RD)
    mask_BT = (torch.arange(width) < seen.lengths_B.unsqueeze(1)).long()
    with torch.autocast("cpu", torch.bfloat16, enabled=torch.cpu._is_avx512_bf16_supported()):
        states_RD: Tensor = encoder(x_BTD, mask_BT, seen.record_R * width + seen.place_R)
    return states_RD.float()
