"""RGB arrays to a file and back, for clips that we make ourselves and for measuring: BT.709, limited range, tagged.

This is not the way of a job, which adds corrections to the planes of its source and never leaves them for RGB.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterable, Iterator, Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import av.error
import numpy as np
import numpy.typing as npt
from av.video.reformatter import ColorPrimaries, ColorRange, Colorspace, ColorTrc, Interpolation, VideoReformatter

from streamdeblur.errors import DiskFull, EncoderError, OutputError, UnreadableInput
from streamdeblur.video.opening import file_name

Picture = npt.NDArray[np.uint8]

# swscale's defaults round coarsely and drop every second chroma column before filtering
_PRECISE = (
    Interpolation.BICUBIC | Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INP | Interpolation.FULL_CHR_H_INT
)
_UNSPECIFIED = 2  # ITU-T H.273 table 4
_AUDIO_CHUNK = 1024
# What is the fault of the place that is written to, and of no encoder.
_TARGETS = (errno.EROFS, errno.EACCES, errno.EIO, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG)


def write_clip(
    path: Path | str,
    frames: Iterable[Picture],
    rate: Fraction,
    *,
    audio: tuple[npt.NDArray[np.float32], int] | None = None,
    codec: str = "libx264",
    pix_fmt: str = "yuv420p",
    options: Mapping[str, str] | None = None,
) -> int:
    """Encode pictures at a constant rate; the file appears under its name only when it is complete.

    frames: (H, W, 3) uint8 R'G'B', all of one size, even where ``pix_fmt`` is subsampled and the codec asks for it.
    rate: frames a second; frame i is shown at i / rate. audio: (samples, channels) or (samples,) float32 in [-1, 1]
    with its rate in Hz, one or two channels, encoded as AAC. options: of the encoder, such as ``{"crf": "18"}``.
    Converted to BT.709 limited range (ITU-R BT.709-6 3) and tagged so: matrix, primaries, transfer, range.
    Returns the number of frames. Raises EncoderError where there is no frame or the encoder refuses, OutputError
    (DiskFull) where the file can't be written.
    """
    target = Path(path)
    partial = target.with_name(f"{target.stem}.partial{target.suffix}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with av.open(file_name(partial), "w") as container:
            count = _write(container, frames, rate, audio, codec, pix_fmt, options or {})
        if not count:
            raise EncoderError(f"{target.name} has no frames", "give at least one picture")
        partial.replace(target)
    except (av.error.FFmpegError, OSError, ValueError) as error:
        cause = getattr(error, "errno", None)
        if cause in (errno.ENOSPC, errno.EDQUOT):
            raise DiskFull(f"no space left for {target}", "free some, or write elsewhere") from error
        if cause in _TARGETS:
            raise OutputError(f"{target} can't be written: {os.strerror(cause)}", "write elsewhere") from error
        if not isinstance(error, (av.error.FFmpegError, ValueError)):  # of who makes the frames
            raise
        raise EncoderError(
            f"{codec} can't write {target.name}: {error}", "check codec, pixel format and size"
        ) from error
    finally:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
    return count


def _write(
    container: Any,
    frames: Iterable[Picture],
    rate: Fraction,
    audio: tuple[npt.NDArray[np.float32], int] | None,
    codec: str,
    pix_fmt: str,
    options: Mapping[str, str],
) -> int:
    video = container.add_stream(codec, rate=rate, options=dict(options))
    video.pix_fmt = pix_fmt
    context = video.codec_context
    context.time_base = video.time_base = 1 / rate
    context.color_range = int(ColorRange.MPEG)
    context.colorspace = int(Colorspace.ITU709)
    context.color_primaries = int(ColorPrimaries.BT709)
    context.color_trc = int(ColorTrc.BT709)
    sound = _Sound(container, *audio) if audio is not None else None

    reformatter = VideoReformatter()
    count = 0
    for picture in frames:
        if count == 0:
            video.height, video.width = picture.shape[:2]
        elif picture.shape[:2] != (video.height, video.width):
            raise ValueError(f"picture {count} is {picture.shape}, the first had {video.height} rows of {video.width}")
        frame = reformatter.reformat(
            av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24"),
            format=pix_fmt,
            interpolation=_PRECISE,
            src_color_range=ColorRange.JPEG,
            dst_color_range=ColorRange.MPEG,
            dst_colorspace=Colorspace.ITU709,
            dst_color_primaries=ColorPrimaries.BT709,
            dst_color_trc=ColorTrc.BT709,
            threads=1,
        )
        frame.pts = count
        frame.time_base = 1 / rate
        container.mux(video.encode(frame))
        count += 1
        if sound is not None:  # keep the two streams close together, so that the muxer need not hold one of them
            sound.write_until(count / rate)
    if count:
        container.mux(video.encode(None))
        if sound is not None:
            sound.finish()
    return count


class _Sound:
    """Feeds one AAC stream in step with the pictures."""

    def __init__(self, container: Any, samples: npt.NDArray[np.float32], rate: int) -> None:
        planes = np.atleast_2d(np.asarray(samples, np.float32).T)
        self._planes = np.ascontiguousarray(np.clip(planes, -1, 1))
        self._container = container
        self._rate = rate
        self._layout = "mono" if len(planes) == 1 else "stereo"
        self._stream = container.add_stream("aac", rate=rate, layout=self._layout)
        self._position = 0

    def write_until(self, seconds: Fraction) -> None:
        """Encode what sounds before ``seconds``, in whole chunks."""
        while self._position + _AUDIO_CHUNK <= seconds * self._rate and self._position < self._planes.shape[1]:
            self._encode(self._planes[:, self._position : self._position + _AUDIO_CHUNK])

    def finish(self) -> None:
        while self._position < self._planes.shape[1]:
            self._encode(self._planes[:, self._position : self._position + _AUDIO_CHUNK])
        self._container.mux(self._stream.encode(None))

    def _encode(self, chunk: npt.NDArray[np.float32]) -> None:
        frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(chunk), format="fltp", layout=self._layout)
        frame.sample_rate = self._rate
        frame.pts = self._position
        frame.time_base = Fraction(1, self._rate)
        self._container.mux(self._stream.encode(frame))
        self._position += chunk.shape[1]


def read_rgb(path: Path | str) -> Iterator[Picture]:
    """Decode the first video stream to (H, W, 3) uint8 R'G'B', in order of presentation.

    Matrix and range are those of the tags; untagged files are BT.709 limited. Not thread-safe; close the iterator, or
    run it to its end, to close the file. Raises UnreadableInput where there is nothing to decode.
    """
    try:
        with av.open(file_name(path)) as container:
            if not container.streams.video:
                raise UnreadableInput(f"{path} has no video stream", "give a file with a picture in it")
            stream = container.streams.video[0]
            stream.thread_type = "AUTO"
            reformatter = VideoReformatter()
            for frame in container.decode(stream):
                rgb = reformatter.reformat(
                    frame,
                    format="rgb24",
                    interpolation=_PRECISE,
                    src_colorspace=Colorspace.ITU709 if int(frame.colorspace) == _UNSPECIFIED else None,
                    dst_color_range=ColorRange.JPEG,
                    threads=1,
                )
                yield rgb.to_ndarray().astype(np.uint8, copy=False)
    except av.error.FFmpegError as error:
        raise UnreadableInput(f"{path} can't be read: {error.strerror}", "check that it is a video file") from error
