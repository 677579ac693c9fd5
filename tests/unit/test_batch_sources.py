"""What the words of a command stand for: files, folders, globs and manifests, and the names of results."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from streamdeblur.config import parse
from streamdeblur.errors import ConfigError, UnreadableInput, UsageError
from streamdeblur.jobs.batch.fingerprint import source_print
from streamdeblur.jobs.batch.options import BatchOptions
from streamdeblur.jobs.batch.sources import Source, gather_sources

OPTIONS = parse(BatchOptions, {"model": "identity"})


@pytest.fixture
def footage(tmp_path: Path) -> Path:
    for name in ("a.mp4", "b.avi", "night/c.mov", "night/deep/d.TS", "night/notes.doc", ".hidden/e.mp4"):
        path = tmp_path / "in" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return tmp_path / "in"


def gather(*words: str | Path, dest: Path | None = None) -> list[Source]:
    return gather_sources([str(w) for w in words], str(dest or "/elsewhere"), OPTIONS)


def names(found: list[Source]) -> dict[str, str]:
    return {Path(s.name).name: s.output for s in found}


def test_a_folder_is_searched_and_keeps_its_tree(footage: Path) -> None:
    found = gather(footage)
    assert names(found) == {
        "a.mp4": "a.mp4", "b.avi": "b.mkv", "c.mov": "night/c.mov", "d.TS": "night/deep/d.mkv",
    }  # fmt: skip
    assert all(Path(s.name).is_absolute() for s in found)
    assert len({s.id for s in found}) == 4
    assert [s.id for s in gather(footage)] == [s.id for s in found]


def test_results_are_no_sources(footage: Path) -> None:
    (footage / "out").mkdir()
    (footage / "out" / "a.mp4").touch()
    assert len(gather(footage)) == 5
    assert len(gather(footage, dest=footage / "out")) == 4


def test_globs_keep_the_tree_below_the_pattern(footage: Path) -> None:
    assert names(gather(f"{footage}/**/*.mov")) == {"c.mov": "night/c.mov"}
    assert names(gather(f"{footage}/?.*")) == {"a.mp4": "a.mp4", "b.avi": "b.mkv"}
    with pytest.raises(UsageError, match="matches nothing"):
        gather(f"{footage}/*.webm")


def test_links_are_followed_once_wherever_they_lead(footage: Path) -> None:
    night = footage / "night"
    (night / "deep" / "up").symlink_to(footage)  # in circles, by two ways
    (night / "again").symlink_to(night)
    (footage / "all").symlink_to(footage)
    (footage / "A link to a.mp4").symlink_to(footage / "a.mp4")
    other = footage.parent / "other"
    (other / "back").parent.mkdir()
    (other / "back").symlink_to(footage)
    (other / "x.mp4").touch()
    (footage / "more").symlink_to(other)
    (footage / "link.mp4").symlink_to(other / "y.mov")  # to nothing, yet
    expected = {
        "a.mp4": "a.mp4", "b.avi": "b.mkv", "c.mov": "night/c.mov", "d.TS": "night/deep/d.mkv", "x.mp4": "more/x.mp4",
        "link.mp4": "link.mp4",
    }  # fmt: skip
    found = gather(footage)
    assert names(found) == expected
    assert len(found) == len(expected)
    (other / "y.mov").touch()
    assert names(gather(footage)) == {k: v for k, v in expected.items() if k != "link.mp4"} | {"y.mov": "more/y.mov"}
    # and for patterns, which lead below links as well
    assert names(gather(f"{footage}/**/*.mp4")) == {"a.mp4": "a.mp4", "x.mp4": "more/x.mp4", "link.mp4": "link.mp4"}
    assert names(gather(f"{footage}/**/[!d].mov")) == {"c.mov": "night/c.mov", "y.mov": "more/y.mov"}
    assert names(gather(f"{footage}/**/d*/*.?S")) == {"d.TS": "night/deep/d.mkv"}
    everything = {*expected, "y.mov", "notes.doc"} - {"link.mp4"}  # a pattern says itself what is footage
    assert sorted(Path(s.name).name for s in gather(f"{footage}/**")) == sorted(everything)


def test_results_that_are_seen_through_a_link_are_no_sources(footage: Path) -> None:
    dest = footage.parent / "dest"
    dest.mkdir()
    (dest / "old.mp4").touch()
    (footage / "results").symlink_to(dest)
    assert len(gather(footage, dest=dest)) == 4
    assert len(gather(footage)) == 5


def test_only_files_are_footage(footage: Path) -> None:
    os.mkfifo(footage / "pipe.mp4")
    assert len(gather(footage)) == 4
    (named,) = gather(footage / "pipe.mp4")
    with pytest.raises(UnreadableInput, match="is not a file"):
        source_print(named.name)


def test_what_is_named_twice_is_done_once_and_names_that_clash_are_told_apart(footage: Path) -> None:
    assert len(gather(footage / "a.mp4", footage, footage)) == 4
    for name in ("a.avi", "a.mkv"):
        (footage / name).touch()
    outputs = [s.output for s in gather(footage)]
    assert len(set(outputs)) == len(outputs) == 6
    assert {"a.mp4", "a.mkv", "a.avi.mkv"} <= set(outputs)
    other = footage / "night" / "a.mp4"
    other.touch()
    found = [s.output for s in gather(footage / "a.mp4", other)]
    assert len(set(found)) == 2
    assert all(o.endswith(".mp4") for o in found)


def test_a_missing_file_is_a_source_that_will_fail_and_an_empty_folder_is_an_error(tmp_path: Path) -> None:
    assert [Path(s.name).name for s in gather(tmp_path / "gone.mp4")] == ["gone.mp4"]
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match="holds no footage"):
        gather(tmp_path / "empty")
    with pytest.raises(UsageError, match="no source"):
        gather()


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def test_manifests_of_every_kind_say_the_same(footage: Path) -> None:
    text = write(footage / "m.txt", "# tonight\na.mp4\n\nnight/c.mov\n")
    table = write(footage / "m.csv", "source,crf,output\na.mp4,30,\nnight/c.mov,,x/y.mkv\n")
    lines = [{"source": "a.mp4", "crf": 30}, {"source": "night/c.mov", "output": "x/y.mkv"}]
    objects = write(footage / "m.jsonl", "".join(json.dumps(line) + "\n" for line in lines))
    assert names(gather(text)) == {"a.mp4": "a.mp4", "c.mov": "night/c.mov"}
    for manifest in (table, objects):
        found = gather(manifest)
        assert names(found) == {"a.mp4": "a.mp4", "c.mov": "x/y.mkv"}
        assert [s.options.crf for s in found] == [30.0, None]


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("m.csv", "file,crf\na.mp4,3\n", "no column source"),
        ("m.csv", "source,crf\na.mp4,3,4\n", "line 2 of .* more values"),
        ("m.csv", "source,crff\na.mp4,3\n", "unknown option 'crff' in line 2"),
        ("m.jsonl", '{"source": "a.mp4"}\n{"source"\n', "line 2 of .* is not JSON"),
        ("m.jsonl", '["a.mp4"]\n', "not an object"),
        ("m.jsonl", '{"crf": 3}\n', "line 1 .*names no source"),
        ("m.jsonl", '{"source": "a.mp4", "output": "../x.mp4"}\n', "leads out of DEST"),
        ("m.jsonl", '{"source": "a.mp4", "output": "x.doc"}\n', r"\.doc"),
        ("m.jsonl", '{"source": "night", "output": "x.mp4"}\n', "fits one file"),
        ("m.jsonl", '{"source":"a.mp4","output":"x.mp4"}\n{"source":"b.avi","output":"x.mp4"}\n', "both become x.mp4"),
    ],
)
def test_a_faulty_manifest_is_one_line(footage: Path, name: str, text: str, words: str) -> None:
    with pytest.raises(UsageError, match=words) as e:
        gather(write(footage / name, text))
    assert "\n" not in str(e.value)
    assert isinstance(e.value, ConfigError) or "both" in words or "doc" in words


def test_names_that_are_no_text_are_names(tmp_path: Path) -> None:
    path = tmp_path / os.fsdecode(b"caf\xe9.mp4")
    path.touch()
    (found,) = gather(tmp_path)
    assert found.name == str(path)
    assert len(found.id) == 16


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"source": "a\0b.mp4"}, "source 'a\\\\x00b.mp4' in line 1"),
        ({"source": "a.mp4", "output": "a\0b.mp4"}, "output 'a\\\\x00b.mp4' in line 1"),
        ({"source": "a.mp4", "output": "a\ud800b.mkv"}, "is no name that a file can have"),
        ({"source": "a.mp4", "output": "x" * 251 + ".mkv"}, "more than 221 bytes"),
    ],
)
def test_what_no_file_can_be_called_is_told_with_its_line(
    footage: Path, tmp_path: Path, row: dict[str, str], words: str
) -> None:
    listed = tmp_path / "m.jsonl"
    listed.write_text(json.dumps(row) + "\n")
    with pytest.raises(ConfigError, match=words):
        gather(listed)


def test_a_manifest_that_leads_back_to_itself(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("b.txt\n")
    (tmp_path / "b.txt").write_text("a.txt\n")
    with pytest.raises(ConfigError, match="leads back to itself"):
        gather(tmp_path / "a.txt")


def test_lines_end_where_editors_end_them(tmp_path: Path) -> None:
    name = "u\u2028v\x0b.mp4"
    (tmp_path / name).touch()
    (tmp_path / "m.jsonl").write_bytes((json.dumps({"source": name}, ensure_ascii=False) + "\r\n").encode())
    (tmp_path / "m.txt").write_bytes(f"{name}\r\n# more\r\n".encode())
    for listed in ("m.jsonl", "m.txt"):
        assert [s.name for s in gather(tmp_path / listed)] == [str(tmp_path / name)]


def test_a_result_is_no_folder_of_another(footage: Path, tmp_path: Path) -> None:
    rows = [{"source": "in/a.mp4", "output": "x.mkv"}, {"source": "in/b.avi", "output": "x.mkv/y.mkv"}]
    (tmp_path / "m.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    with pytest.raises(UsageError, match=r"x\.mkv would be a result and the folder of x\.mkv/y\.mkv"):
        gather(tmp_path / "m.jsonl")


def test_a_source_that_is_named_twice_with_other_options_is_told(
    footage: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "m.jsonl").write_text('{"source": "in/a.mp4", "crf": 10}\n{"source": "in/a.mp4", "crf": 30}\n')
    (found,) = gather(tmp_path / "m.jsonl")
    assert found.options.crf == 30
    assert "named twice, with different options" in caplog.text
