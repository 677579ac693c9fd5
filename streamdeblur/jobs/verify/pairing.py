"""Which stream of the output is which of the source."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

import av.error
from av.stream import Disposition

from streamdeblur.video.opening import open_container
from streamdeblur.video.packets import StreamDigest
from streamdeblur.video.streams import StreamPlan, codec_name, mov_text_to_subrip, subrip_to_mov_text

#: Packets of a file that are looked through for the first one of each stream.
_LOOK = 4000


@dataclass(slots=True)
class Pairing:
    """pairs: (plan, index in the output) of streams that have a counterpart. absent: plans without one. extra: streams
    of the output without one. alike: source indices of pairs whose first packets are equal. shuffled: kinds of stream
    whose order is another one.
    """

    pairs: list[tuple[StreamPlan, int]] = field(default_factory=list)
    absent: list[StreamPlan] = field(default_factory=list)
    extra: list[int] = field(default_factory=list)
    alike: set[int] = field(default_factory=set)
    shuffled: list[str] = field(default_factory=list)


def payload(data: bytes, codec: str, plan: StreamPlan | None = None) -> bytes:
    """A packet as it is compared; ``plan``: what the job does to packets of the source. Empty: it says nothing."""
    if codec == "mov_text" and data == b"\0\0":
        return b""  # the muxer fills gaps with empty samples
    if plan is not None and plan.action == "subrip":
        return mov_text_to_subrip(data) or b""
    if plan is not None and plan.action == "mov_text":
        return subrip_to_mov_text(data)[0]
    return data


def target_codec(plan: StreamPlan) -> str:
    """The codec that a kept stream has in the output."""
    return plan.action if plan.action in ("subrip", "mov_text") else plan.codec


def is_cover(stream: Any) -> bool:
    return bool(stream.type == "video" and stream.disposition & Disposition.attached_pic)


def pair_streams(
    kept: list[StreamPlan], source: str, output: str, streams: list[Any], begin: Fraction | None
) -> Pairing:
    """Pair the streams that the plans keep with ``streams`` of the output.

    First those whose first packets are equal, then those of one codec, then those of one kind; each in their order.
    begin: seconds at which the part of the source begins that the output was made of, None for all of it.
    """
    plans = {p.index: p for p in kept}
    cover = {s.index for s in streams if is_cover(s)}
    firsts = _first_payloads(source, {p.index for p in kept if not p.cover}, lambda s: plans[s.index], begin)
    found = _first_payloads(output, {s.index for s in streams}, lambda s: None, None)
    for p in kept:
        if p.cover is not None:
            firsts[p.index] = StreamDigest(p.codec)
            firsts[p.index].add(p.cover.data)
    result = Pairing()
    free = {s.index: s for s in streams}
    open_plans = list(kept)

    def alike(p: StreamPlan, s: Any) -> bool:
        if p.kind == "attachment":
            return False
        x, y = firsts.get(p.index), found.get(s.index)
        return x is not None and y is not None and x.same(y)

    def one_codec(p: StreamPlan, s: Any) -> bool:
        return target_codec(p) == codec_name(s) and p.kind != "attachment"

    def one_name(p: StreamPlan, s: Any) -> bool:
        return p.kind == "attachment"

    for fits in (alike, one_codec, one_name, lambda p, s: True):
        for p in list(open_plans):
            for s in free.values():
                if s.type == p.kind and (s.index in cover) == (p.cover is not None) and fits(p, s):
                    result.pairs.append((p, s.index))
                    if fits is alike:
                        result.alike.add(p.index)
                    open_plans.remove(p)
                    del free[s.index]
                    break
    result.pairs.sort(key=lambda pair: pair[0].index)
    result.absent, result.extra = open_plans, sorted(free)
    for kind in dict.fromkeys(p.kind for p, _ in result.pairs if p.cover is None and p.kind != "attachment"):
        order = [i for p, i in result.pairs if p.kind == kind and p.cover is None]
        if order != sorted(order):
            result.shuffled.append(kind)
    return result


def _first_payloads(
    path: str, wanted: Collection[int], plan_of: Callable[[Any], StreamPlan | None], begin: Fraction | None
) -> dict[int, StreamDigest]:
    """A digest of the first packet of each stream that says something, from ``begin`` seconds on."""
    found: dict[int, StreamDigest] = {}
    with open_container(path) as container:
        streams = [s for s in container.streams if s.index in wanted and s.type != "attachment"]
        if not streams:
            return found
        try:
            if begin is not None:
                container.seek(int(begin * av.time_base), backward=True)
            for n, packet in enumerate(container.demux(*streams)):
                index = packet.stream.index
                stamp = packet.pts if packet.pts is not None else packet.dts
                early = begin is not None and (stamp is None or stamp * packet.time_base < begin)
                if early and not packet.stream.disposition & Disposition.attached_pic:
                    continue
                if packet.size and index not in found:
                    plan = plan_of(packet.stream)
                    name = codec_name(packet.stream)
                    data = payload(bytes(packet), name, plan)
                    if data:
                        found[index] = StreamDigest(target_codec(plan) if plan else name)
                        found[index].add(data)
                if n > _LOOK or len(found) == len(streams):
                    break
        except (av.error.FFmpegError, OSError, EOFError, ValueError):
            pass  # the pass over the whole file says what is wrong with it
    return found
