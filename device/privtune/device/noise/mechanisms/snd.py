"""`snd`: the noise of Split-N-Denoise."""

from __future__ import annotations

from typing import ClassVar

from privtune.device.noise.context import NoiseContext
from privtune.device.noise.mechanisms.dchi import DChi
from privtune.device.noise.params import DChiParams, SndParams


class SplitNDenoise(DChi):
    """Split-N-Denoise (Mai et al. 2023, arXiv 2310.09130), its noise: d_chi on clipped token embeddings.

    Loss: eta * distance, at most 2 * eta * R. The paper's public code multiplies a Gamma draw for each coordinate by a
    uniform one (which has neither the distribution nor the length that the bound needs) and clips only after the
    noise; ours draws one radius and one direction per token, after clipping.
    Departure: the paper's pre-trained denoiser, which the device would run on the cloud's answer and its own clean
    vectors, is not built. A job's tail with a skip reads both and learns from the records; a head alone learns on
    noised answers.
    """

    name: ClassVar[str] = "snd"

    def __init__(self, params: SndParams, context: NoiseContext) -> None:
        same = {"noise_ratio": params.noise_ratio, "clip_ratio": params.clip_ratio}
        super().__init__(DChiParams(injection="embedding", **same), context)
