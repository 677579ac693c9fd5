"""What becomes of the streams that are not restored: copied, converted without loss, or dropped with a reason.

Whether a container takes a stream is found out by writing it: a header, one packet and a trailer into memory. FFmpeg's
own table (``avformat_query_codec``) is too hopeful (AAC-LATM in MP4) and too shy, and a refusal after the real header
was written would cost the whole job.
"""

from __future__ import annotations

import io
import logging
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import av
import av.error
from av.stream import Discard, Disposition

from streamdeblur.video.opening import open_container, reason
from streamdeblur.video.ranges import Keyframes

log = logging.getLogger(__name__)

#: Containers with an edit list, which hides what comes before zero.
BEFORE_ZERO = frozenset(("mp4", "mov", "3gp"))

#: Containers that are recommended for what another one can't hold, best first, and the endings of their names.
_KEEPERS = {"matroska": ".mkv", "mp4": ".mp4", "mov": ".mov", "mpegts": ".ts", "avi": ".avi", "nut": ".nut"}

Action = Literal["copy", "acm", "attach", "subrip", "mov_text", "drop"]

#: Codecs of WAV that Matroska holds by their WAVEFORMATEX, and FFmpeg's muxer refuses.
_ACM = re.compile(r"wma(v1|v2|pro|lossless|voice)|adpcm_\w+|pcm_(mulaw|alaw)|gsm_ms|truespeech")

_NAMELESS = {"bin_data", "unknown"}
_TEXT = {"subrip", "srt", "text"}
#: Metadata that describes the old file and not the picture; the muxer writes its own.
_CONTAINER_KEYS = {"major_brand", "minor_version", "compatible_brands", "encoder", "duration"}
_STATISTICS = re.compile(r"^(_statistics|bps|duration|number_of_(frames|bytes)|encoder|vendor_id)", re.IGNORECASE)
#: What FFmpeg's MP4 muxer stores under iTunes names; any other key needs ``movflags=use_metadata_tags``.
_ITUNES = {
    "title", "artist", "album_artist", "composer", "album", "date", "comment", "genre", "copyright", "grouping",
    "lyrics", "description", "synopsis", "show", "episode_id", "network", "keywords", "episode_sort", "season_number",
    "media_type", "hd_video", "gapless_playback", "compilation", "track", "disc", "tmpo", "creation_time", "timecode",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Cover:
    """A cover picture: file name, MIME type and the file itself."""

    name: str
    mime: str
    data: bytes


@dataclass(frozen=True, slots=True)
class StreamPlan:
    """index: of the stream in the source. why: only for "drop", for the reader; keeper: ending of a file that would
    hold it, if known. cover: set for a cover picture. wave: of sound that Matroska holds by its WAVEFORMATEX ("acm").
    """

    index: int
    kind: str
    codec: str
    action: Action
    why: str = ""
    cover: Cover | None = None
    keeper: str = ""
    wave: bytes | None = None

    @property
    def label(self) -> str:
        return f"stream {self.index} ({self.kind}, {self.codec})"


def codec_name(stream: Any) -> str:
    """FFmpeg's name of a stream's codec, "unknown" where it has none."""
    context = stream.codec_context
    if context is not None:
        return str(context.codec.canonical_name)
    return str(stream.name) if getattr(stream, "name", None) else "unknown"


def is_chapter_track(stream: Any) -> bool:
    """True for the text track in which MP4 and MOV keep chapters, whose packets FFmpeg's demuxer keeps to itself."""
    return bool(stream.type == "data" and codec_name(stream) == "bin_data" and stream.discard == Discard.all)


def plan_streams(source: Any, chosen: int, container: str, path: str) -> list[StreamPlan]:
    """A plan for every stream of ``source`` but number ``chosen``, for FFmpeg's output format ``container``."""
    plans: list[StreamPlan] = []
    samples: dict[int, Any] | None = None
    for stream in source.streams:
        if stream.index == chosen:
            continue
        name = codec_name(stream)

        def plan(
            action: Action,
            why: str = "",
            s: Any = stream,
            n: str = name,
            cover: Cover | None = None,
            keeper: str = "",
            wave: bytes | None = None,
        ) -> None:
            plans.append(StreamPlan(s.index, s.type, n, action, why, cover, keeper, wave))

        if stream.type == "attachment":
            if container == "matroska":
                plan("attach")
            else:
                plan("drop", f"{container} holds no attachments", keeper=".mkv")
            continue
        if is_chapter_track(stream):
            plan("drop")  # they are kept as chapters
            continue
        if stream.type == "data" and "timecode" in stream.metadata:
            # The tag makes the muxer of MP4 and MOV write the track anew.
            plan("drop", "" if container in ("mp4", "mov") else "its start is kept as a timecode tag")
            continue
        if samples is None:
            samples = _first_packets(path, chosen)
        if stream.type == "video" and stream.disposition & Disposition.attached_pic:
            cover = _cover(stream, name, samples.get(stream.index))
            if container == "matroska" and cover is not None:
                plan("attach", cover=cover)  # Matroska keeps pictures as attachments, FFmpeg shows them as streams
                continue
            if container != "mp4" or cover is None:
                lacks = f"{container} holds no cover picture"
                plan("drop", lacks if cover else "it is empty", keeper=".mkv" if cover else "")
                continue
            why = _refusal(stream, container, samples.get(stream.index))
            plan("copy" if why is None else "drop", (why and f"{container} can't hold it ({why})") or "", cover=cover)
            continue
        why = _refusal(stream, container, samples.get(stream.index))
        if why is None:
            plan("copy")
        elif container == "matroska" and (wave := _wave_format(stream, name)) is not None:
            plan("acm", wave=wave)
        elif stream.type == "subtitle" and name == "mov_text" and container == "matroska":
            plan("subrip")
        elif stream.type == "subtitle" and name in _TEXT and container in ("mp4", "mov"):
            plan("mov_text")
        else:
            keeper = _keeper(stream, name, container, samples.get(stream.index))
            plan("drop", f"{container} can't hold it ({why})", keeper=keeper)
    return plans


def _wave_format(stream: Any, codec: str) -> bytes | None:
    """The WAVEFORMATEX of sound that Matroska holds by it, as FFmpeg's own muxer of WAV writes it; None for others."""
    if stream.type != "audio" or not _ACM.fullmatch(codec):
        return None
    file = io.BytesIO()
    try:
        with av.open(file, "w", format="wav") as out:
            out.add_stream_from_template(stream, opaque=True)
            out.start_encoding()
    except (av.error.FFmpegError, OSError, ValueError) as e:
        log.debug("no WAVEFORMATEX of %s: %s", codec, reason(e))
        return None
    data = file.getvalue()
    at = data.find(b"fmt ", 12)
    length = int.from_bytes(data[at + 4 : at + 8], "little")
    return data[at + 8 : at + 8 + length] if at > 0 and length >= 16 else None


def _keeper(stream: Any, codec: str, container: str, sample: Any) -> str:
    """Ending of a file that would hold a stream which ``container`` does not, empty if none does."""
    if codec == "mov_text":
        return ".mp4"
    if container != "matroska" and _wave_format(stream, codec) is not None:
        return ".mkv"
    if codec in _NAMELESS:
        return ""  # MOV takes its packets, but not the description without which nobody can read them
    for other, ending in _KEEPERS.items():
        if other == "nut" and stream.type != "audio":
            continue  # it takes anything, and few read it
        if other != container and _refusal(stream, other, sample) is None:
            return ending
    return ""


def fit_range(
    plans: Iterable[StreamPlan], keyframes: Mapping[int, Keyframes], container: str
) -> tuple[list[StreamPlan], list[str]]:
    """The plans for a part of a file, where a picture stream can only begin at a keyframe, and what must be said of it.

    keyframes: those of the reader. A stream without any keyframe that ``container`` can begin with is dropped.
    """
    fitted: list[StreamPlan] = []
    said: list[str] = []
    for plan in plans:
        around = keyframes.get(plan.index) if plan.action == "copy" else None
        if around is None or (around.before is not None and (around.before == 0 or container in BEFORE_ZERO)):
            fitted.append(plan)
        elif around.after is None:
            fitted.append(replace(plan, action="drop", why="no keyframe, where it could begin, is in the part"))
        else:
            fitted.append(plan)
            late = f"{float(around.after):.3f} s of it are missing"
            said.append(f"{plan.label} begins with its first keyframe in the part: {late}")
    return fitted, said


_PICTURES = {
    "mjpeg": ("jpg", "image/jpeg"),
    "png": ("png", "image/png"),
    "gif": ("gif", "image/gif"),
    "tiff": ("tif", "image/tiff"),
    "bmp": ("bmp", "image/bmp"),
    "webp": ("webp", "image/webp"),
}


def _cover(stream: Any, codec: str, sample: Any) -> Cover | None:
    if sample is None:
        return None
    ending, mime = _PICTURES.get(codec, ("bin", "application/octet-stream"))
    name = stream.metadata.get("filename") or f"cover.{ending}"
    return Cover(str(name), str(stream.metadata.get("mimetype") or mime), sample[0])


def _first_packets(path: str, chosen: int, limit: int = 4000) -> dict[int, Any]:
    """One packet of every other stream, from the first ``limit`` packets of the file."""
    found: dict[int, Any] = {}
    try:
        with open_container(path) as source:
            wanted = {s.index for s in source.streams if s.index != chosen and s.type != "attachment"}
            for n, packet in enumerate(source.demux(*[s for s in source.streams if s.index in wanted])):
                if packet.size and packet.stream.index not in found:
                    found[packet.stream.index] = (bytes(packet), packet.pts, packet.dts, packet.is_keyframe)
                if n > limit or wanted <= found.keys():
                    break
    except (av.error.FFmpegError, OSError, ValueError):
        pass  # whatever is wrong with the file, the real reader says it better
    return found


def _refusal(stream: Any, container: str, sample: Any) -> str | None:
    """None when the container takes the stream and says what it is when it is read again, else why not."""
    file = io.BytesIO()
    try:
        with av.open(file, "w", format=container) as out:
            target = out.add_stream_from_template(stream, opaque=True)
            copy_stream_tags(stream, target)
            out.start_encoding()
            if sample is not None:
                data, pts, dts, key = sample
                packet: av.Packet[Any] = av.Packet(data)
                packet.stream = target
                packet.time_base = stream.time_base
                packet.pts = pts if pts is not None else dts or 0
                packet.dts = dts if dts is not None else pts or 0
                packet.is_keyframe = key
                out.mux_one(packet)
    except (
        av.error.FFmpegError,
        OSError,
        ValueError,
        TypeError,
        AttributeError,
        RuntimeError,
        NotImplementedError,
    ) as e:
        return reason(e)
    if container == "mpegts" and codec_name(stream) not in _NAMELESS and _is_nameless(file):
        return "it would be private data of no known kind"
    return None


def _is_nameless(file: io.BytesIO) -> bool:
    """True when the one stream of a file is read as data of no known codec: MPEG-TS takes any, and names few."""
    file.seek(0)
    try:
        with av.open(file, format="mpegts") as written:
            return all(codec_name(s) in _NAMELESS for s in written.streams)
    except (av.error.FFmpegError, OSError, ValueError) as e:
        log.debug("a stream of MPEG-TS can't be read back: %s", reason(e))
        return False


def copy_stream_tags(source: Any, target: Any, *, encoded: bool = False) -> None:
    """Language, title, disposition and other tags; statistics of the old encoding are left out where it is new."""
    tags = {
        k: v for k, v in source.metadata.items() if not (encoded and _STATISTICS.match(k)) and k.lower() != "encoder"
    }
    if "name" in tags and "title" not in tags:
        tags["title"] = tags.pop("name")  # FFmpeg's muxer of MP4 calls title what its demuxer calls name
    target.metadata.update(tags)
    target.disposition = Disposition(int(source.disposition))


def container_tags(source: Any) -> dict[str, str]:
    """The container's metadata without what describes the old file."""
    return {k: v for k, v in source.metadata.items() if k.lower() not in _CONTAINER_KEYS}


def needs_metadata_tags(tags: dict[str, str]) -> bool:
    """True when MP4's iTunes names can't hold some key, so that the QuickTime key list must be used."""
    return any(k.lower() not in _ITUNES for k in tags)


_STYLE = re.compile(r"<[^>]{1,64}>|\{\\[^}]{1,64}\}")


def mov_text_to_subrip(data: bytes) -> bytes | None:
    """Text of a 3GPP Timed Text sample (3GPP TS 26.245, 5.17), None for an empty one (a gap)."""
    if len(data) < 2:
        return None
    length = int.from_bytes(data[:2], "big")
    raw = data[2 : 2 + length]
    if not raw:
        return None
    if raw[:2] in (b"\xfe\xff", b"\xff\xfe"):
        text = raw.decode("utf-16", "replace")
    else:
        text = raw.decode("utf-8", "replace")
    return text.replace("\r\n", "\n").replace("\r", "\n").encode() or None


def has_styles(data: bytes) -> bool:
    """True when a 3GPP Timed Text sample carries style boxes after its text."""
    return len(data) >= 2 and len(data) > 2 + int.from_bytes(data[:2], "big")


def subrip_to_mov_text(data: bytes) -> tuple[bytes, bool]:
    """A 3GPP Timed Text sample with the text of a SubRip event, and whether styling was left out."""
    text = data.decode("utf-8", "replace")
    plain = _STYLE.sub("", text)
    raw = plain.encode()[:65535]
    return len(raw).to_bytes(2, "big") + raw, plain != text
