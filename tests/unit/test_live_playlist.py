"""The playlist of HLS: it goes on where the output begins anew, and never shows what can't be played."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from streamdeblur.video.publish_hls import HIDDEN, NotWhole, Playlist, is_whole, parse

BOX = (16).to_bytes(4, "big") + b"mdat" + bytes(8)


def write(folder: Path, first: int, durations: list[float], head: str = "init-1.mp4", data: bytes = BOX) -> None:
    """As FFmpeg does: segments, and a playlist of its own that is replaced as a whole."""
    lines = ["#EXTM3U", "#EXT-X-VERSION:7", f"#EXT-X-TARGETDURATION:{max(map(round, durations))}"]
    lines += [f"#EXT-X-MEDIA-SEQUENCE:{first}", "#EXT-X-INDEPENDENT-SEGMENTS", f'#EXT-X-MAP:URI="{head}"']
    (folder / head).write_bytes(BOX)
    for n, seconds in enumerate(durations):
        name = f"seg-{first + n}.m4s"
        if not (folder / name).exists():
            (folder / name).write_bytes(data)
        lines += [f"#EXTINF:{seconds:.6f},", "#EXT-X-PROGRAM-DATE-TIME:2026-01-31T12:00:00.000+0000", name]
    fresh = folder / f"{HIDDEN}.tmp"
    fresh.write_text("\n".join(lines) + "\n")
    os.replace(fresh, folder / HIDDEN)


def shown(folder: Path) -> str:
    return (folder / "index.m3u8").read_text()


def test_the_target_duration_grows_and_never_shrinks(tmp_path: Path) -> None:
    playlist = Playlist(tmp_path, 2, 2.0)
    found = []
    for first, durations in ((7, [2.0]), (7, [2.0, 9.7]), (8, [9.7, 2.0]), (9, [2.0, 2.0]), (10, [2.0, 2.0])):
        write(tmp_path, first, durations)
        playlist.follow()
        numbers, listed, _ = parse(shown(tmp_path))
        assert numbers["MEDIA-SEQUENCE"] == first
        assert [s.seconds for s in listed] == durations
        found.append(numbers["TARGETDURATION"])
    assert found == [2, 10, 10, 10, 10]


def test_what_begins_anew_goes_on_behind_a_discontinuity(tmp_path: Path) -> None:
    before = Playlist(tmp_path, 3, 2.0)
    write(tmp_path, 100, [2.0, 2.0, 2.0])
    before.follow()
    again = Playlist(tmp_path, 3, 2.0)
    again.follow()  # FFmpeg has written nothing yet
    assert [s.name for s in parse(shown(tmp_path))[1]] == ["seg-100.m4s", "seg-101.m4s", "seg-102.m4s"]
    seen = []
    for durations in ([2.0], [2.0, 2.0], [2.0, 2.0, 2.0], [2.0, 2.0, 2.0, 2.0]):
        write(tmp_path, 500, durations, "init-2.mp4")
        again.follow()
        numbers, listed, ended = parse(shown(tmp_path))
        assert not ended
        seen.append((numbers["MEDIA-SEQUENCE"], numbers.get("DISCONTINUITY-SEQUENCE", 0)))
        # The number of each segment's discontinuity does not depend on when it is asked for.
        count = seen[-1][1]
        for s in listed:
            count += s.breaks
            assert count == (s.head == "init-2.mp4")
            assert (tmp_path / s.name).exists()
            assert (tmp_path / s.head).exists()
    assert seen == [(101, 0), (102, 0), (103, 0), (104, 1)]
    # Those that have left go, but for two that may still be asked for.
    assert sorted(p.name for p in tmp_path.glob("seg-1*")) == ["seg-101.m4s", "seg-102.m4s"]


@pytest.mark.parametrize("how", ["ended", "old"])
def test_segments_of_another_day_are_not_listed_and_numbers_do_not_fall(tmp_path: Path, how: str) -> None:
    before = Playlist(tmp_path, 3, 2.0)
    write(tmp_path, 100, [2.0, 2.0])
    before.follow()
    if how == "ended":
        before.end()
    else:
        os.utime(tmp_path / "index.m3u8", (time.time() - 600, time.time() - 600))
    again = Playlist(tmp_path, 3, 2.0)
    write(tmp_path, 500, [2.0], "init-2.mp4")
    again.follow()
    numbers, listed, ended = parse(shown(tmp_path))
    assert numbers["MEDIA-SEQUENCE"] == 102
    assert [(s.name, s.breaks) for s in listed] == [("seg-500.m4s", True)]
    assert not ended


@pytest.mark.parametrize("data", [b"", BOX[:-1], BOX + b"\0\0"])
def test_a_segment_that_is_not_whole_is_never_listed(tmp_path: Path, data: bytes) -> None:
    playlist = Playlist(tmp_path, 3, 2.0)
    write(tmp_path, 7, [2.0])
    playlist.follow()
    good = shown(tmp_path)
    write(tmp_path, 7, [2.0, 2.0], data=data)
    with pytest.raises(NotWhole, match=r"seg-8\.m4s"):
        playlist.follow()
    assert shown(tmp_path) == good
    assert not (tmp_path / "seg-8.m4s").exists()


def test_a_playlist_that_can_not_be_written_leaves_the_one_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    playlist = Playlist(tmp_path, 3, 2.0)
    write(tmp_path, 7, [2.0])
    playlist.follow()
    good = shown(tmp_path)
    write(tmp_path, 7, [2.0, 2.0])

    def full(path: Path, *_: object, **__: object) -> int:
        path.touch()
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(OSError, match="No space"):
        playlist.follow()
    assert shown(tmp_path) == good
    assert {p.name for p in tmp_path.iterdir()} == {"index.m3u8", HIDDEN, "init-1.mp4", "seg-7.m4s", "seg-8.m4s"}


def test_boxes_with_a_long_size_are_whole_too(tmp_path: Path) -> None:
    path = tmp_path / "a.m4s"
    path.write_bytes((1).to_bytes(4, "big") + b"mdat" + (20).to_bytes(8, "big") + bytes(4) + BOX)
    assert is_whole(path)
    assert not is_whole(tmp_path / "none.m4s")
