"""Where the noise comes from: a cryptographic generator seeded by the OS, never a plain PRNG.

torch's own CPU generator is a Mersenne Twister that keeps 32 bits of its seed: a cloud that knows one clean vector
([CLS] at cut 0, say) could try all seeds, or solve for the generator's state, and subtract the noise of a whole job.
Here every bit comes from OpenSSL's generator (AES-CTR DRBG, seeded and reseeded by the OS, fork-safe; about 15 times
faster than asking the OS for each byte). Normals come from 32-bit uniforms by Box-Muller, so tails end at 6.6 sigma.
"""

from __future__ import annotations

import math
import os
import ssl
from abc import ABC, abstractmethod

import numpy as np
import torch
from torch import Tensor

from privtune.shared.errors import InvalidInput, PolicyRefused

UNSAFE_SEED_ENV = "PRIVTUNE_UNSAFE_TEST_SEED"
_CHUNK = 1 << 18  # elements transformed at once: fits in the CPU cache
_SCALE = 2.0**-31


class NoiseSource(ABC):
    """A stream of random numbers. unsafe: somebody else could reproduce it."""

    unsafe: bool

    @abstractmethod
    def random_bytes(self, count: int) -> bytes:
        """`count` unpredictable bytes."""

    def normal(self, *shape: int) -> Tensor:
        """Independent standard normals, float32."""
        total = math.prod(shape)
        out = torch.empty(total + total % 2, dtype=torch.float32)
        for start in range(0, out.numel(), _CHUNK):
            self._fill_normal(out[start : start + _CHUNK])
        return out[:total].view(shape)

    def _fill_normal(self, out: Tensor) -> None:
        bits = torch.frombuffer(bytearray(self.random_bytes(4 * out.numel())), dtype=torch.int32).to(torch.float32)
        radius, angle = bits.view(2, -1)
        # |bits| + 1/2 is in (0, 2^31]: the logarithm is never infinite.
        radius.abs_().add_(0.5).mul_(_SCALE).log_().mul_(-2).sqrt_()
        angle.mul_(math.pi * _SCALE)
        half = radius.numel()
        torch.mul(radius, angle.cos(), out=out[:half])
        torch.mul(radius, angle.sin(), out=out[half:])

    def uniform(self, *shape: int) -> Tensor:
        """Independent uniforms in [0, 1), float64 with 53 random bits."""
        bits = np.frombuffer(self.random_bytes(8 * math.prod(shape)), dtype=np.uint64) >> np.uint64(11)
        return torch.from_numpy(bits.astype(np.float64) * 2.0**-53).view(shape)

    def gamma(self, shape_parameter: float, *shape: int) -> Tensor:
        """Independent Gamma(shape_parameter, scale 1), float64, shape_parameter >= 1 (Marsaglia & Tsang 2000)."""
        if shape_parameter < 1:
            raise InvalidInput(f"gamma needs a shape parameter of at least 1, not {shape_parameter}")
        d = shape_parameter - 1 / 3
        out = torch.empty(math.prod(shape), dtype=torch.float64)
        todo = torch.arange(out.numel())
        while todo.numel():
            x = self.normal(todo.numel()).to(torch.float64)
            u = self.uniform(todo.numel()).clamp_(min=2.0**-54)
            v = (1 + x / math.sqrt(9 * d)) ** 3
            good = (v > 0) & (u.log() < 0.5 * x * x + d - d * v + d * v.clamp(min=1e-300).log())
            out[todo[good]] = d * v[good]
            todo = todo[~good]
        return out.view(shape)

    def dchi(self, eta: float, *shape: int) -> Tensor:
        """Noise of density ~ exp(-eta ||z||) over the last dimension, radius Gamma(D, 1/eta) per vector; float32."""
        z = self.normal(*shape)
        radius = self.gamma(shape[-1], *shape[:-1]) / eta
        return z.mul_((radius / z.norm(dim=-1).clamp_(min=1e-30)).to(torch.float32).unsqueeze(-1))

    def laplace(self, scale: float, *shape: int) -> Tensor:
        """Independent Laplace variates of this scale, float64; a 64-bit integer gives the sign and the exponential."""
        bits = np.frombuffer(self.random_bytes(8 * math.prod(shape)), dtype=np.int64)
        signed = torch.from_numpy(bits.astype(np.float64))
        # |bits| + 1/2 is in (0, 2^63]: the logarithm is never infinite.
        length = signed.abs().add_(0.5).mul_(2.0**-63).log_().mul_(-scale)
        return length.copysign_(signed).view(shape)

    def choice(self, probabilities_NK: Tensor) -> Tensor:
        """One index for each row, drawn with the row's weights (need not sum to one); int64, shape N."""
        cumulative_NK = probabilities_NK.to(torch.float64).cumsum(dim=-1)
        draw_N1 = self.uniform(cumulative_NK.shape[0], 1) * cumulative_NK[:, -1:]
        index_N = torch.searchsorted(cumulative_NK, draw_N1, right=True).squeeze(-1)
        return index_N.clamp_(max=cumulative_NK.shape[-1] - 1)

    def integers(self, high: int, *shape: int) -> Tensor:
        """Uniform integers in [0, high), int64."""
        return (self.uniform(*shape) * high).to(torch.int64).clamp_(max=high - 1)

    def randomised_response(self, category: Tensor, categories: int, epsilon: float) -> Tensor:
        """k-ary randomised response: each category reported truthfully, or replaced by a uniform one; int64.

        With probability k / (e^epsilon + k - 1) the report is uniform over all k categories, the true one included.
        """
        chance = categories / (np.expm1(epsilon) + categories)
        replaced = self.uniform(*category.shape) < chance
        return torch.where(replaced, self.integers(categories, *category.shape), category)


class OsNoise(NoiseSource):
    """The only source for real runs. Forks and threads never repeat each other."""

    unsafe = False

    def random_bytes(self, count: int) -> bytes:
        """From OpenSSL's generator."""
        return ssl.RAND_bytes(count)


class SeededNoise(NoiseSource):
    """Reproducible, therefore no protection at all. Tests only."""

    unsafe = True

    def __init__(self, seed: int) -> None:
        self._generator = np.random.Generator(np.random.PCG64(seed))

    def random_bytes(self, count: int) -> bytes:
        """The next bytes of the seeded stream."""
        return self._generator.bytes(count)


def noise_source(unsafe_seed: int | None = None) -> NoiseSource:
    """The source for a process or job: OS entropy, unless a test explicitly asks for a fixed seed.

    Raises PolicyRefused for a fixed seed unless PRIVTUNE_UNSAFE_TEST_SEED=1 is set in the environment.
    """
    if unsafe_seed is None:
        return OsNoise()
    if os.environ.get(UNSAFE_SEED_ENV) != "1":
        raise PolicyRefused(
            "a fixed noise seed lets anyone subtract the noise, so it is refused. Leave the seed out "
            f"(tests may set {UNSAFE_SEED_ENV}=1)"
        )
    return SeededNoise(unsafe_seed)
