"""Pictures: one, a folder of them, or the frames of a video as a folder of them."""

from __future__ import annotations

import itertools
import logging
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

from streamdeblur import interrupts
from streamdeblur.config import ProcessOptions
from streamdeblur.errors import InputError, OutputError, UsageError
from streamdeblur.jobs.process import ProcessSummary, Progress, check_target, named
from streamdeblur.jobs.run import Done, open_ledger, open_source, refuse_meaningless, restored, settle, spending
from streamdeblur.jobs.watching import Watch
from streamdeblur.jobs.workforce import Workforce, tiling_words
from streamdeblur.runtime.ledger import Ledger
from streamdeblur.video.images import changes, is_image, list_images, read_image, write_image
from streamdeblur.video.reader import DecodedFrame, VideoReader
from streamdeblur.video.tags import SourceTags

log = logging.getLogger(__name__)

#: An image that was read: the frame, what it is written with, where from and where to.
_Item = tuple[DecodedFrame, SourceTags, Path | None, Path]


def is_image_job(source: str, output: str | None) -> bool:
    """True when pictures come out: a picture in, a folder in (unless a video is to come out), or a folder out."""
    if is_image(source):
        return True
    to_folder = output is not None and (output.endswith(("/", os.sep)) or Path(output).is_dir())
    if Path(source).is_dir():
        return output is None or to_folder or Path(output).suffix == ""
    return to_folder or (output is not None and is_image(output))


def process_images(
    source: str,
    output: str | None = None,
    *,
    options: ProcessOptions,
    progress: Callable[[Progress], None] | None = None,
) -> ProcessSummary:
    """Restore a picture, a folder of pictures, or a video into a folder of pictures.

    Default output: NAME.deblurred.EXT for a picture, NAME.deblurred/ for a folder. Every picture is written beside its
    target and renamed. With ``on_error="bypass"`` a picture that can't be read is left out with a warning, what can be
    seen of a damaged JPEG is restored, and one that can't be restored is written as it was. Raises StreamdeblurError.
    """
    return _ImageJob(source, output, options, progress).run()


class _ImageJob:
    def __init__(
        self, source: str, output: str | None, options: ProcessOptions, progress: Callable[[Progress], None] | None
    ) -> None:
        self.source = Path(source)
        self.options = options
        self.progress = progress
        self.spent = spending(options)
        self.started = time.monotonic()
        self.first: float | None = None
        self.pix_fmt = ""
        self.size = (0, 0)
        self.total: int | None = None
        self.read = 0
        self.skipped = 0
        self.said: set[str] = set()
        self.reader: VideoReader | None = None
        single = is_image(source)
        refuse_meaningless(options, "pictures" if single or self.source.is_dir() else "pictures from a video", source)
        if single:
            default = named(source).with_name(f"{self.source.stem}.deblurred{self.source.suffix}")
        else:
            default = named(source).with_name(f"{named(source).name}.deblurred")
        self.target = Path(output) if output is not None else default
        if single and self.target.is_dir():
            self.target = self.target / self.source.name
        self.items = self._single() if single else self._folder() if self.source.is_dir() else self._video()

    # --- what goes in ------------------------------------------------------------------------------------------------

    def _make_folder(self) -> None:
        try:
            self.target.mkdir(parents=True, exist_ok=True)
        except OSError as e:
            raise OutputError(f"folder {self.target} can't be made: {e.strerror}", "write elsewhere with -o") from e

    def _single(self) -> Iterator[_Item]:
        check_target(self.source, self.target, self.options)
        if not is_image(self.target):
            raise UsageError(f"output {self.target} of a picture is no picture", "end it in .png or .jpg")
        self.total = 1
        frame, tags = read_image(self.source, on_error=self.options.on_error)
        yield frame, tags, self.source, self.target

    def _folder(self) -> Iterator[_Item]:
        images = list_images(self.source)
        self.total = len(images)
        for path in images:  # before any work is done
            check_target(path, self.target / path.name, self.options)
        self._make_folder()
        index = 0
        for path in images:
            try:
                frame, tags = read_image(path, index, on_error=self.options.on_error)
            except InputError as e:
                if self.options.on_error == "fail":
                    raise
                log.warning("%s; left out", e)
                self.skipped += 1
                continue
            index += 1
            yield frame, tags, path, self.target / path.name

    def _video(self) -> Iterator[_Item]:
        if is_image(self.target):
            raise UsageError(
                f"output {self.target} is one picture, and {self.source} is a video", "name a folder, ending in /"
            )
        with open_source(self.options, self.source, copy_streams=False) as reader:
            self.reader = reader
            self.total = reader.info.frames or None
            self._make_folder()
            for frame in reader:
                target = self.target / f"{self.source.stem}_{frame.index:06d}.png"
                check_target(self.source, target, self.options)
                yield frame, reader.tags, None, target

    # --- the run -----------------------------------------------------------------------------------------------------

    def run(self) -> ProcessSummary:
        o = self.options
        items = iter(self.items)
        first = next(items, None)
        if first is None:
            raise InputError(f"{self.source} gave no picture that can be read")
        spec = first[0].spec
        self.size = (spec.width, spec.height)
        workforce = Workforce(o, None)
        pending = itertools.chain([first], items)

        def take(_: float) -> _Item | None:
            item = next(pending, None)
            self.read += item is not None
            return item

        with (
            interrupts.held(),
            workforce.pool as pool,
            open_ledger(o, self.source, self.target) as ledger,
            Watch(o, self.source) as watch,
        ):
            try:
                plan = self.spent.plan if self.spent is not None else None
                for done in restored(pool, take, lambda item: item[0], plan=plan):
                    self._write(done, ledger, watch)
            except BaseException:
                pool.close(abort=True)
                raise
            ledger.check(self.read, ledger.frames)
        counts = ledger.counts
        return ProcessSummary(
            source=str(self.source),
            output=str(self.target),
            model=workforce.model,
            weights=o.weights,
            device=workforce.device,
            engine=workforce.engine,
            precision=workforce.precision,
            tiling=tiling_words(workforce.tiling, o.tiling),
            encoder=self.target.suffix.lstrip(".") or "images",
            pix_fmt=self.pix_fmt,
            width=self.size[0],
            height=self.size[1],
            frames=ledger.frames,
            restored=counts["restored"],
            bypassed=counts["bypassed"],
            undecodable_packets=self.skipped + (self.reader.skipped if self.reader else 0),
            seconds=round(time.monotonic() - self.started, 3),
            prepare_seconds=round(workforce.prepare_seconds, 3),
            first_frame_seconds=round(self.first or 0.0, 3),
            workers=workforce.workers,
            broken=self.reader.broken if self.reader else None,
            tiles=ledger.tiles if self.spent is not None else None,
            network_share=None if self.spent is None or self.spent.share is None else round(self.spent.share, 4),
            detection=watch.summary(),
        )

    def _write(self, done: Done[_Item], ledger: Ledger, watch: Watch) -> None:
        frame, tags, like, target = done.item
        name = str(like) if like is not None else f"frame {frame.index} of {self.source}"
        out, record = settle(frame, done, name, self.options, self.spent)
        out = watch.see(frame, out, record)
        self.pix_fmt = write_image(target, out, tags, like=like)
        for text in changes(tags.layout, self.pix_fmt, target.suffix):
            if text not in self.said:  # alike for every picture of a folder
                self.said.add(text)
                log.warning("%s: %s", name, text)
        if self.first is None:
            self.first = time.monotonic() - self.started
        ledger.record(replace(record, pts_out=frame.pts))
        if self.progress is not None:
            counts = ledger.counts
            self.progress(
                Progress(
                    ledger.frames,
                    self.total,
                    counts["restored"],
                    counts["bypassed"],
                    time.monotonic() - self.started,
                    frame.time,
                    ledger.tiles if self.spent is not None else None,
                )
            )
