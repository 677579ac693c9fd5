"""The process of one output: ``python -m streamdeblur.video.publish_child FD``. Muxes what comes down the link.

A peer that stops reading blocks FFmpeg's ``mux`` for ever, whatever timeout is set: that is why this is a process.
"""

from __future__ import annotations

import errno
import logging
import os
import re
import shutil
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import av.error

from streamdeblur.video.live.link import Link, Note, SoundStream
from streamdeblur.video.live.process import run_child
from streamdeblur.video.live.reading import sound_of
from streamdeblur.video.live.urls import mask, remember
from streamdeblur.video.opening import reason
from streamdeblur.video.publish_hls import HIDDEN, NotWhole, Playlist, is_whole
from streamdeblur.video.publish_targets import segment_path
from streamdeblur.video.publish_wire import Begin, Failed, Finish, Finished, Opened, Out, Segment, Taken
from streamdeblur.video.tags import same_turn

log = logging.getLogger(__name__)

#: Sound that readers of each format know. Whether its muxer takes it is found out by trying.
_SOUND = {
    "rtsp": {"aac", "mp3", "mp2", "opus", "pcm_mulaw", "pcm_alaw", "adpcm_g722"},
    "hls": {"aac", "mp3", "ac3", "eac3", "opus", "flac"},
    "mpegts": {"aac", "mp3", "mp2", "ac3", "eac3", "opus"},
    "mp4": {"aac", "mp3", "mp2", "ac3", "eac3", "opus", "flac", "alac"},
    "mov": {"aac", "mp3", "ac3", "alac", "pcm_mulaw", "pcm_alaw", "pcm_s16le"},
}
#: Formats that tell a player to turn the pictures.
_TURN = ("hls", "mp4", "mov", "matroska")
#: Microseconds for which the muxer may wait for a stream that is silent; sound never comes late here.
_INTERLEAVE = "100000"
#: Bytes that stay free whatever was asked for: what is open takes that to be closed.
_LEAST = 1 << 20
_INIT = re.compile(r"init-(\d+)\.mp4")
_SEGMENT = re.compile(r"seg-(\d+)\.m4s")


class DiskIsFull(Exception):
    """Less room than the reserve."""


class Output:
    """One opened output. For one thread; every call may block as long as the peer does."""

    def __init__(self, begin: Begin, tell: Callable[[object], None]) -> None:
        self._begin = begin
        self._tell = tell
        self._target = begin.target
        self._settings = begin.settings
        self._video_header, self._video = sound_of(begin.video)
        self._sound: Any = None
        if begin.sound is not None:
            takes = _SOUND.get(self._target.format)
            if takes is None or begin.sound.codec in takes:
                self._sound_header, self._sound = sound_of(begin.sound.header)
            else:
                self._without_sound(begin.sound)
        if begin.turn is not None and not same_turn(begin.turn, None) and self._target.format not in _TURN:
            lost = f"the rotation or flip of the picture is left out: {self._target.format} does not hold it"
            tell(Note(logging.WARNING, lost))
        self._container: av.container.OutputContainer | None = None
        self._streams: dict[bool, Any] = {}
        self._zero = Fraction(0)
        self._last: dict[bool, int] = {}
        #: A fragment of MP4 begins where the durations before it end: without that of its last packet, a pause of the
        #: source at the cut is lost and all that follows is early. So a packet waits for the one behind it.
        self._holds = self._target.format in ("hls", "mp4", "mov")
        self._held: av.Packet[Any] | None = None
        self._length = 0
        self._path: Path | None = None
        self._started = Fraction(0)
        self._folder: Path | None = None
        self._playlist: Playlist | None = None
        self._checked = 0.0
        kind = self._target.kind
        if kind == "hls":
            self._folder = Path(self._target.where).absolute()  # a colon in a relative name would end a protocol
            self._folder.mkdir(parents=True, exist_ok=True)
            self._playlist = Playlist(self._folder, self._settings.hls_window, self._settings.hls_time)
        elif kind == "file":
            self._folder = Path(self._target.where).absolute().parent
        self._room()
        if kind != "file":
            self._open(*self._network_or_hls())

    @property
    def heard(self) -> bool:
        """Whether there is sound in it."""
        return self._sound is not None

    def _without_sound(self, sound: SoundStream) -> None:
        self._sound = None
        self._tell(Note(logging.WARNING, f"{sound.codec} sound is left out: {self._target.format} does not carry it"))

    def write(self, out: Out, data: bytes) -> None:
        """Mux a packet. A file is opened at its first keyframe, and anew at a keyframe when it is long enough."""
        if out.video:
            self._release(out.dts - round(self._zero / out.time_base))
        if self._target.kind == "file" and out.video and out.key:
            now = out.pts * out.time_base
            long = self._settings.segment > 0 and now - self._started >= self._settings.segment
            if self._container is None or long:
                self._close()
                self._new_file(out, now)
        self._room()
        stream = self._streams.get(out.video)
        if self._container is None or stream is None:
            return
        packet: av.Packet[Any] = av.Packet(data)
        shift = round(self._zero / out.time_base)
        packet.pts, packet.dts, packet.time_base = out.pts - shift, out.dts - shift, out.time_base
        if packet.pts < 0:
            return  # sound from before the cut
        last = self._last.get(out.video)
        if last is not None and packet.dts <= last:
            return
        self._last[out.video] = packet.dts
        if out.duration:
            packet.duration = out.duration
        packet.is_keyframe = out.key
        packet.stream = stream
        if self._holds and out.video:
            self._held = packet
        else:
            self._mux(packet)

    def _release(self, following: int | None) -> None:
        """Mux the packet that was held. following: decoding time of the next; None at the end."""
        held, self._held = self._held, None
        if held is None or self._container is None:
            return
        assert held.dts is not None
        if following is not None and following > held.dts:
            self._length = following - held.dts
        held.duration = self._length
        self._mux(held)

    def _mux(self, packet: av.Packet[Any]) -> None:
        assert self._container is not None
        self._container.mux_one(packet)
        self._follow()

    def _follow(self) -> None:
        if self._playlist is not None:
            try:
                self._playlist.follow()
            except NotWhole as e:
                raise DiskIsFull(str(e)) from e

    def finish(self, *, last: bool = False) -> None:
        """Trailer and final names. last: nothing follows, and players may know."""
        self._close()
        if last and self._playlist is not None:
            self._playlist.end()

    def abort(self) -> None:
        """Close what can be closed after a failure; never raises. A file cut off is kept: it plays to where it goes."""
        try:
            self._close()
        except Exception as e:
            log.debug("closing %s: %s", self._target.shown, mask(str(e)))

    # --- opening and closing -----------------------------------------------------------------------------------------

    def _network_or_hls(self) -> tuple[str, dict[str, str]]:
        t, s = self._target, self._settings
        if t.kind == "rtsp":
            return t.where, {"rtsp_transport": s.transport, "max_interleave_delta": _INTERLEAVE}
        if t.kind == "stream":
            options = {"flush_packets": "1", "muxdelay": "0", "muxpreload": "0", "max_interleave_delta": _INTERLEAVE}
            url = t.where
            if url.startswith("udp://") and "pkt_size" not in url:
                url += ("&" if "?" in url else "?") + "pkt_size=1316"  # seven TS packets, within an Ethernet frame
            return url, options
        assert self._folder is not None
        self._sweep()
        number = int(time.time() * 1000)
        # Numbers go on from the clock, so that a player never sees them fall when the output begins anew; and never are
        # those of segments that are there.
        there = [int(m.group(1)) for p in self._folder.iterdir() if (m := _SEGMENT.fullmatch(p.name))]
        return str(self._folder / HIDDEN), {
            "hls_time": f"{s.hls_time:g}",
            "hls_list_size": str(s.hls_window),
            "hls_delete_threshold": "2",
            "hls_segment_type": "fmp4",
            # Sound that begins after the first segment keeps its time: without this it is put at 0.
            "hls_segment_options": "movflags=+frag_discont",
            "hls_fmp4_init_filename": f"init-{number}.mp4",
            "hls_segment_filename": str(self._folder / "seg-%d.m4s"),
            "start_number": str(max(number // 1000, *there, 0) + bool(there)),
            "hls_flags": "delete_segments+independent_segments+program_date_time+temp_file+omit_endlist",
            "max_interleave_delta": _INTERLEAVE,
        }

    def _sweep(self) -> None:
        """Remove what an earlier run of this output left: all but what a player may still be asking for."""
        assert self._folder is not None
        assert self._playlist is not None
        listed = self._playlist.files
        for pattern, keep in ((_SEGMENT, self._settings.hls_window), (_INIT, 1)):
            found = [(int(m.group(1)), p) for p in self._folder.iterdir() if (m := pattern.fullmatch(p.name))]
            for n, (_, path) in enumerate(sorted(found)):
                asked = path.name in listed or n >= len(found) - keep
                if not (asked and is_whole(path)):  # a full disk leaves empty ones
                    path.unlink(missing_ok=True)

    def _new_file(self, out: Out, now: Fraction) -> None:
        stamp = datetime.fromtimestamp(out.wall, UTC).strftime("%Y%m%dT%H%M%SZ")
        target = Path(self._target.where)
        self._path = segment_path(target, stamp) if self._settings.segment > 0 else target
        if self._settings.segment <= 0 and target.exists():
            self._path = segment_path(target, stamp)  # begun anew: what is there stays
        options = {"max_interleave_delta": _INTERLEAVE}
        if self._target.format in ("mp4", "mov"):
            # Written in fragments, so that a kill leaves a file that plays, and closed as an ordinary file. The header
            # waits for the first of them: before that it can't say that the sound begins later than the pictures.
            options |= {"movflags": "hybrid_fragmented+delay_moov", "movie_timescale": "90000"}
        self._zero = self._started = now
        self._open(f"file:{self._path}.partial", options)

    def _open(self, url: str, options: dict[str, str]) -> None:
        """Open the container with the sound, or without it where its muxer takes all but that."""
        self._last.clear()
        self._held = None
        if self._sound is not None:
            try:
                self._container = self._begun(url, options)
                return
            except (av.error.FFmpegError, ValueError) as e:
                if not may_be_sound(e):
                    raise
                log.debug("%s with sound: %s", self._target.shown, mask(str(e)))
            sound, self._sound = self._sound, None
            try:
                self._container = self._begun(url, options)
            except BaseException:
                self._sound = sound  # it was something else
                raise
            assert self._begin.sound is not None
            self._without_sound(self._begin.sound)
        else:
            self._container = self._begun(url, options)

    def _begun(self, url: str, options: dict[str, str]) -> av.container.OutputContainer:
        container = av.open(url, "w", format=self._target.format, options=options)
        try:
            video: Any = container.add_stream_from_template(self._video, opaque=True)
            if self._begin.turn is not None and self._target.format in _TURN:
                video.set_display_matrix(list(self._begin.turn))
            self._streams = {True: video}
            if self._sound is not None:
                self._streams[False] = container.add_stream_from_template(self._sound, opaque=True)
            container.start_encoding()
        except BaseException:
            try:
                container.close()
            except Exception as e:
                log.debug("closing %s: %s", self._target.shown, mask(str(e)))
            raise
        return container

    def _close(self) -> None:
        try:
            self._release(None)
        finally:
            self._shut()

    def _shut(self) -> None:
        container, self._container = self._container, None
        path, self._path = self._path, None
        if container is None:
            return
        partial = None if path is None else Path(f"{path}.partial")
        try:
            container.close()
        except BaseException:
            # What could not be completed keeps the name that says so; what holds nothing goes.
            if partial is not None and partial.exists() and not partial.stat().st_size:
                partial.unlink()
            raise
        self._follow()
        if path is not None and partial is not None and partial.exists():
            with open(partial, "rb+") as f:
                os.fsync(f.fileno())
            os.replace(partial, path)
            self._tell(Segment(str(path)))

    def _room(self) -> None:
        """Stop while there still is room to close what is open."""
        if self._folder is None or time.monotonic() - self._checked < 0.5:
            return
        self._checked = time.monotonic()
        usage = shutil.disk_usage(self._folder)
        if not usage.total:
            return  # a file system that does not say
        free = usage.free
        kept = max(self._settings.reserve, _LEAST)  # without it HLS would list segments with nothing in them
        if free < kept:
            raise DiskIsFull(f"{free / 1e6:.1f} MB free, {kept / 1e6:.0f} MB are kept")


def may_be_sound(e: BaseException) -> bool:
    """Whether a muxer's refusal may be of the sound: invalid data, a codec or a header that it does not take."""
    return isinstance(e, (ValueError, NotImplementedError)) or getattr(e, "errno", None) in (errno.EPERM, errno.EINVAL)


def explain(e: BaseException) -> Failed:
    """What broke an output, in words for the log."""
    if isinstance(e, DiskIsFull):
        return Failed("disk full", f"disk full ({e})")
    if getattr(e, "errno", None) in (errno.ENOSPC, errno.EDQUOT):
        return Failed("disk full", "disk full")
    if isinstance(e, ConnectionRefusedError):
        return Failed("broken", "connection refused")
    if isinstance(e, (BrokenPipeError, ConnectionResetError)):
        return Failed("broken", "the peer closed the connection")
    return Failed("broken", mask(reason(e)))


def run(link: Link) -> None:
    """Serve until the parent closes the link."""
    output: Output | None = None
    while True:
        try:
            message, payload = link.receive()
        except EOFError:
            if output is not None:
                output.abort()  # the parent died: leave complete files
            return
        try:
            if isinstance(message, Out):
                if output is not None:
                    output.write(message, bytes(payload))
                link.send(Taken(int(output is not None)))
            elif isinstance(message, Begin):
                remember(message.target.where)
                if output is not None:
                    old, output = output, None
                    old.finish()
                output = Output(message, link.send)
                link.send(Opened())
            elif isinstance(message, Finish):
                if output is not None:
                    old, output = output, None
                    old.finish(last=True)
                link.send(Finished())
        except Exception as e:
            sound = False
            if output is not None:
                sound = output.heard and may_be_sound(e)
                output.abort()
                output = None
            link.send(replace(explain(e), sound=sound))


if __name__ == "__main__":
    run_child(run, orphan_grace=10.0)
