"""Receptive fields, exactly: which input pixels each position of a feature map depends on, along one axis.

A strided network is not shift-invariant pixel by pixel, only by its total stride. So a map at scale 1/s of a
network of total stride ``PERIOD`` is described by PERIOD/s positions; all others repeat these, shifted by PERIOD.
"""

from __future__ import annotations

from dataclasses import dataclass

#: Total stride of MIMO-UNet: two halvings.
PERIOD = 4


@dataclass(frozen=True, slots=True)
class Reach:
    """First and last input pixel seen from each of the PERIOD/s positions of a map at scale 1/s."""

    first: tuple[int, ...] = tuple(range(PERIOD))
    last: tuple[int, ...] = tuple(range(PERIOD))

    def _seen(self, start: int, stop: int) -> tuple[int, int]:
        """First and last input pixel seen from positions start..stop, inclusive."""
        n = len(self.first)
        positions = range(start, stop + 1)
        return (
            min(self.first[p % n] + PERIOD * (p // n) for p in positions),
            max(self.last[p % n] + PERIOD * (p // n) for p in positions),
        )

    @classmethod
    def _from(cls, seen: list[tuple[int, int]]) -> Reach:
        return cls(tuple(a for a, _ in seen), tuple(b for _, b in seen))

    def conv(self, kernel: int, *, stride: int = 1, repeats: int = 1) -> Reach:
        """After ``repeats`` convolutions (odd kernel, padding kernel//2), the last of them strided."""
        r = kernel // 2 * repeats
        return self._from([self._seen(i * stride - r, i * stride + r) for i in range(len(self.first) // stride)])

    def subsample(self) -> Reach:
        """After taking every second position."""
        return self.conv(1, stride=2)

    def upsample(self, factor: int) -> Reach:
        """After nearest-neighbour upsampling."""
        return self._from([self._seen(i // factor, i // factor) for i in range(len(self.first) * factor)])

    def transposed_conv(self) -> Reach:
        """After a transposed convolution of kernel 4, stride 2, padding 1: output q = 2i - 1 + k, k in 0..3."""
        return self._from([self._seen((q - 1) // 2, (q + 1) // 2) for q in range(len(self.first) * 2)])

    def __or__(self, other: Reach) -> Reach:
        """Both maps used together (sum, product, concatenation)."""
        return Reach(tuple(map(min, self.first, other.first)), tuple(map(max, self.last, other.last)))

    @property
    def radius(self) -> int:
        """The furthest any output pixel looks; for a map at full scale."""
        if len(self.first) != PERIOD:
            raise ValueError("the radius in pixels is that of a map at full scale")
        return max(max(p - a, b - p) for p, (a, b) in enumerate(zip(self.first, self.last, strict=True)))
