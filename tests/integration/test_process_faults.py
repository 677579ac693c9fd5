"""What goes wrong, as a user sees it: one line on stderr, an exit code, and nothing left under the final name."""

from __future__ import annotations

import errno
import json
import os
import pickle
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from tests.clips import moov_first, read_clip, read_number, write_noise_clip, write_numbered_clip
from tests.commands import command, environment, run

pytestmark = pytest.mark.integration

SIZE = (96, 64)
NETWORK = ["-m", "mimo-unet-small", "-w", "random:1", "--threads", "1"]


# --- the sources --------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Case:
    """A run that must fail. says: a pattern in its one line. leaves: files that may be in the folder afterwards."""

    make: Callable[[Path], list[str | Path]]
    says: str
    code: int = 1
    kept: dict[str, bytes] = field(default_factory=dict)


def clip(folder: Path, name: str = "a.mp4", frames: int = 10) -> Path:
    return write_numbered_clip(folder / name, frames, SIZE, rate=10, options={"g": "5", "bf": "0"})


def missing(folder: Path) -> list[str | Path]:
    return [folder / "no.mp4", "-o", folder / "out.mp4"]


def empty(folder: Path) -> list[str | Path]:
    (folder / "a.mp4").write_bytes(b"")
    return [folder / "a.mp4", "-o", folder / "out.mp4"]


def text(folder: Path) -> list[str | Path]:
    (folder / "a.mp4").write_text("This is no video.\n" * 100)
    return [folder / "a.mp4", "-o", folder / "out.mp4"]


def a_folder(folder: Path) -> list[str | Path]:
    (folder / "a").mkdir()
    return [folder / "a", "-o", folder / "out.mp4"]


def a_pipe(folder: Path) -> list[str | Path]:
    os.mkfifo(folder / "a.mp4")
    return [folder / "a.mp4", "-o", folder / "out.mp4"]


def audio_only(folder: Path) -> list[str | Path]:
    with av.open(str(folder / "a.mp4"), "w") as container:
        stream = container.add_stream("aac", rate=48000, layout="mono")
        chunk = av.AudioFrame.from_ndarray(np.zeros((1, 9600), np.float32), format="fltp", layout="mono")
        chunk.sample_rate = 48000
        container.mux(stream.encode(chunk))
        container.mux(stream.encode(None))
    return [folder / "a.mp4", "-o", folder / "out.mp4"]


def cut(folder: Path, share: float = 0.6) -> Path:
    whole = write_noise_clip(folder / "whole.mp4", "yuv420p", frames=20, rate=10, codec="libx264")
    path = moov_first(whole, folder / "a.mp4")
    whole.unlink()
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    return path


def truncated(folder: Path) -> list[str | Path]:
    return [cut(folder), "-o", folder / "out.mp4"]


def truncated_matroska(folder: Path) -> list[str | Path]:
    path = write_noise_clip(folder / "a.mkv", "yuv420p", frames=20, rate=10)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * 0.6)])
    return [path, "-o", folder / "out.mp4"]


def no_index(folder: Path) -> list[str | Path]:
    path = clip(folder)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * 0.6)])  # the index of a plain MP4 is at its end
    return [path, "-o", folder / "out.mp4"]


def no_folder(folder: Path) -> list[str | Path]:
    return [clip(folder), "-o", folder / "nowhere" / "out.mp4"]


def under_a_file(folder: Path) -> list[str | Path]:
    (folder / "file").write_bytes(b"x")
    return [clip(folder), "-o", folder / "file" / "out.mp4"]


def output_is_input(folder: Path) -> list[str | Path]:
    return [clip(folder), "-o", folder / "a.mp4", "--overwrite"]


def output_is_a_link_to_the_input(folder: Path) -> list[str | Path]:
    clip(folder)
    (folder / "link.mp4").symlink_to(folder / "a.mp4")
    return [folder / "a.mp4", "-o", folder / "link.mp4", "--overwrite"]


def output_is_a_hard_link_to_the_input(folder: Path) -> list[str | Path]:
    os.link(clip(folder), folder / "hard.mp4")
    return [folder / "a.mp4", "-o", folder / "hard.mp4", "--overwrite"]


def output_exists(folder: Path) -> list[str | Path]:
    (folder / "out.mp4").write_bytes(b"precious")
    return [clip(folder), "-o", folder / "out.mp4"]


def ledger_is_input(folder: Path) -> list[str | Path]:
    return [clip(folder), "-o", folder / "out.mp4", "--ledger", folder / "a.mp4"]


def ledger_is_output(folder: Path) -> list[str | Path]:
    return [clip(folder), "-o", folder / "out.mp4", "--ledger", folder / "out.mp4"]


def with_options(*options: str) -> Callable[[Path], list[str | Path]]:
    return lambda folder: [clip(folder), "-o", folder / "out.mp4", *options]


def unknown_ending(folder: Path) -> list[str | Path]:
    return [clip(folder), "-o", folder / "out.xyz"]


def unknown_video_codec(folder: Path) -> list[str | Path]:
    path = clip(folder)
    data = path.read_bytes()
    assert data.count(b"avc1") >= 1
    path.write_bytes(data.replace(b"avc1", b"zzz1").replace(b"avcC", b"zzzC"))
    return [path, "-o", folder / "out.mp4"]


def no_weights(folder: Path) -> list[str | Path]:
    return [clip(folder), "-o", folder / "out.mp4", "-m", "mimo-unet-plus"]


def weights(data: bytes, name: str = "w.safetensors") -> Callable[[Path], list[str | Path]]:
    def make(folder: Path) -> list[str | Path]:
        (folder / name).write_bytes(data)
        return [clip(folder), "-o", folder / "out.mp4", "-m", "mimo-unet", "-w", folder / name]

    return make


def truncated_weights(folder: Path) -> list[str | Path]:
    import torch
    from safetensors.torch import save

    data = save({"a.weight": torch.zeros(64, 64)}, {"format": "pt"})
    return weights(data[: len(data) // 2])(folder)


def foreign_weights(folder: Path) -> list[str | Path]:
    import torch
    from safetensors.torch import save

    return weights(save({"layer.weight": torch.zeros(4, 4)}, {"format": "pt"}))(folder)


def absent_weights(folder: Path) -> list[str | Path]:
    return [clip(folder), "-o", folder / "out.mp4", "-w", folder / "none.safetensors"]


def config(yaml: str) -> Callable[[Path], list[str | Path]]:
    def make(folder: Path) -> list[str | Path]:
        (folder / "c.yaml").write_text(yaml)
        return [clip(folder), "-o", folder / "out.mp4", "--config", folder / "c.yaml"]

    return make


IDENTITY = ("-m", "identity")
PRECIOUS = {"out.mp4": b"precious"}
CASES: dict[str, Case] = {
    "missing": Case(missing, r"no\.mp4 does not exist"),
    "empty": Case(empty, r"a\.mp4 is empty .*; copy it again"),
    "text": Case(text, r"a\.mp4 can't be opened as video: .*; it is damaged or no video"),
    "empty folder": Case(a_folder, r"holds no image"),
    "pipe": Case(a_pipe, r"a\.mp4 is a pipe, .*read more than once; save it"),
    "audio only": Case(audio_only, r"a\.mp4 has no video stream .*audio"),
    "truncated": Case(truncated, r"a\.mp4 breaks at [01]\.\d+ s: .*bypass"),
    "truncated matroska": Case(truncated_matroska, r"a\.mkv breaks at [01]\.\d+ s: .*bypass"),
    "index lost": Case(no_index, r"a\.mp4 can't be opened as video"),
    "folder missing": Case(no_folder, r"nowhere of the output does not exist"),
    "folder is a file": Case(under_a_file, r"file of the output"),
    "output is input": Case(output_is_input, r"is the source itself", 2),
    "output links to input": Case(output_is_a_link_to_the_input, r"is the source itself", 2),
    "output shares the input": Case(output_is_a_hard_link_to_the_input, r"is the source itself", 2),
    "output exists": Case(output_exists, r"out\.mp4 exists; --overwrite", kept=PRECIOUS),
    "ledger is input": Case(ledger_is_input, r"ledger .*source", 2),
    "ledger is output": Case(ledger_is_output, r"ledger .*output", 2),
    "unknown ending": Case(unknown_ending, r"out\.xyz ends in \.xyz", 2),
    "unknown encoder": Case(with_options("--encoder", "x266"), r"encoder 'x266' is unknown; did you mean x26\d", 2),
    "unknown model": Case(with_options("-m", "mimo"), r"unknown model 'mimo'", 2),
    "unknown option": Case(with_options("--losless"), r"--losless.*--lossless", 2),
    "unknown preset": Case(with_options("--preset", "fastest"), r"fastest", 2),
    "crf too high": Case(with_options("--crf", "99"), r"crf 99", 2),
    "crf and lossless": Case(with_options("--crf", "9", "--lossless"), r"exclude each other", 2),
    "unknown codec": Case(unknown_video_codec, r"a\.mp4 has no .*(video stream|frame) that can be decoded"),
    "no weights": Case(no_weights, r"no weights for mimo-unet-plus.*--weights"),
    "weights absent": Case(absent_weights, r"none\.safetensors"),
    "weights truncated": Case(truncated_weights, r"w\.safetensors"),
    "weights foreign": Case(foreign_weights, r"w\.safetensors"),
    "weights empty": Case(weights(b""), r"w\.safetensors"),
    "weights text": Case(weights(b"hello " * 100, "w.pkl"), r"w\.pkl"),
    "weights evil": Case(weights(pickle.dumps(os.system), "w.pkl"), r"w\.pkl"),
    "zero length": Case(with_options("--duration", "0"), r"duration 0 .*selects nothing|duration.* 0", 2),
    "negative start": Case(with_options("--start", "-1"), r"start -1", 2),
    "start behind the end": Case(with_options("--start", "7"), r"--start 7.* behind the end", 2),
    "no such stream": Case(with_options("--stream", "3"), r"video stream 3", 2),
    "no such device": Case(with_options("--device", "cuda:99"), r"cuda:99"),
    "config key": Case(config("lossles: true\n"), r"unknown option 'lossles' in .*c\.yaml; did you mean lossless", 2),
    "config value": Case(config("crf: high\n"), r"crf 'high' in .*c\.yaml", 2),
    "config yaml": Case(config("crf: [1\n"), r"c\.yaml is not valid YAML", 2),
}
NO_MODEL = {"unknown model", "no weights", "weights absent", "weights truncated", "weights foreign", "weights empty",
            "weights text", "weights evil"}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_one_line_and_nothing_left(name: str, tmp_path: Path) -> None:
    case = CASES[name]
    arguments = case.make(tmp_path)
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir() if p.is_file()}
    done = run("process", *arguments, *(() if name in NO_MODEL else IDENTITY), cwd=tmp_path)
    lines = done.stderr.splitlines()
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("error: ")
    assert re.search(case.says, lines[0]), lines[0]
    assert done.returncode == case.code
    assert done.stdout == ""
    after = {p.name: p.read_bytes() for p in tmp_path.iterdir() if p.is_file()}
    assert after == before  # neither a final nor a partial file, and nothing touched that was there
    for kept, data in case.kept.items():
        assert after[kept] == data


# --- what can be saved --------------------------------------------------------------------------------------------


def test_what_decodes_of_a_truncated_file_is_written_on_request(tmp_path: Path) -> None:
    path = cut(tmp_path)
    decodes = []
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        for packet in container.demux(stream):
            if not packet.is_corrupt:
                decodes += [f.pts * Fraction(stream.time_base or 1) for f in stream.decode(packet)]  # type: ignore[operator]
    assert 8 <= len(decodes) <= 14
    done = run("process", path, "-o", tmp_path / "out.mkv", *IDENTITY, "--lossless", "--on-error", "bypass", "--json",
               cwd=tmp_path)  # fmt: skip
    assert done.returncode == 0, done.stderr
    lines = done.stderr.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("warning: ")
    assert re.search(r"a\.mp4 breaks at [01]\.\d+ s", lines[0])
    summary = json.loads(done.stdout)
    written = read_clip(tmp_path / "out.mkv")
    assert summary["broken"] in lines[0]
    assert summary["frames"] == len(written)
    assert len(decodes) <= len(written) <= len(decodes) + 1  # the packet that was cut may give a frame, or not
    assert [p.time for p in written][: len(decodes)] == decodes
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.mp4", "out.mkv"]


# --- a full disk --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fill", [0, 1_500_000], ids=["fills up", "hardly any room"])
def test_a_full_disk_is_one_line_and_leaves_nothing(small_disk: Path, tmp_path: Path, fill: int) -> None:
    source = write_noise_clip(tmp_path / "a.mkv", "yuv420p", size=(160, 128), frames=120)  # 3.7 MB of noise
    (small_disk / "out.mkv").write_bytes(b"precious")
    if fill:
        (small_disk / "ballast").write_bytes(bytes(fill))
    before = sorted(p.name for p in small_disk.iterdir())
    done = run("process", source, "-o", small_disk / "out.mkv", "--overwrite", *IDENTITY, "--lossless", cwd=tmp_path)
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert re.match(r"error: .*(no space left|MB free for).*out\.mkv", done.stderr)
    assert sorted(p.name for p in small_disk.iterdir()) == before
    assert (small_disk / "out.mkv").read_bytes() == b"precious"


def test_a_full_disk_under_the_ledger(small_disk: Path, tmp_path: Path) -> None:
    source = clip(tmp_path, frames=40)
    free = shutil.disk_usage(small_disk).free
    (small_disk / "ballast").write_bytes(bytes(free - 4096))  # one page is left, the ledger needs two
    done = run("process", source, "-o", tmp_path / "out.mkv", *IDENTITY, "--ledger", small_disk / "l", cwd=tmp_path)
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert "no space left" in done.stderr.lower() or os.strerror(errno.ENOSPC) in done.stderr
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.mp4", "disk"]


# --- signals ------------------------------------------------------------------------------------------------------


def start_and_wait(folder: Path, source: Path, output: Path) -> subprocess.Popen[str]:
    """A run that is in the middle: at least three frames are booked and more than a hundred are to come."""
    ledger = folder / "ledger"
    child = subprocess.Popen(
        command("process", source, "-o", output, *NETWORK, "--overwrite", "--quiet", "--ledger", ledger),
        cwd=folder, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    until = time.monotonic() + 240
    while not (ledger.exists() and ledger.read_text().count('"frame"') >= 3):
        assert child.poll() is None, child.communicate()
        assert time.monotonic() < until, "the run did not get going"
        time.sleep(0.02)
    assert output.with_name(output.name + ".partial").exists()
    return child


def long_clip(folder: Path) -> Path:
    return write_numbered_clip(folder / "a.mp4", 1200, (160, 120), rate=30)


@pytest.mark.parametrize(
    ("number", "code", "word"), [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "terminated")]
)
def test_signals_stop_it_cleanly(tmp_path: Path, number: int, code: int, word: str) -> None:
    output = tmp_path / "out.mp4"
    output.write_bytes(b"precious")
    child = start_and_wait(tmp_path, long_clip(tmp_path), output)
    child.send_signal(number)
    stdout, stderr = child.communicate(timeout=120)
    assert child.returncode == code
    assert stdout == ""
    assert stderr.splitlines() == [line for line in stderr.splitlines() if line.startswith(f"error: {word}")]
    assert len(stderr.splitlines()) == 1
    assert output.read_bytes() == b"precious"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.mp4", "ledger", "out.mp4"]
    last = json.loads((tmp_path / "ledger").read_text().splitlines()[-1])
    assert last["type"] == "summary"
    assert last["error"]
    assert 3 <= last["frames"] < 1200


def test_a_killed_run_hurts_no_later_one(tmp_path: Path) -> None:
    output = tmp_path / "out.mp4"
    output.write_bytes(b"precious")
    source = long_clip(tmp_path)
    child = start_and_wait(tmp_path, source, output)
    child.kill()
    child.communicate()
    assert child.returncode == -signal.SIGKILL
    assert output.read_bytes() == b"precious"
    assert (tmp_path / "out.mp4.partial").exists()
    done = run("process", source, "-o", output, *IDENTITY, "--overwrite", "--duration", "1", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert json.loads(done.stdout)["frames"] == 30
    assert [read_number(p.parts["Y"]) for p in read_clip(output)] == list(range(30))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.mp4", "ledger", "out.mp4"]


def test_what_is_no_file_is_never_replaced(tmp_path: Path) -> None:
    source = write_numbered_clip(tmp_path / "a.mp4", 3, (64, 64))
    os.mkfifo(tmp_path / "pipe.mp4")
    (tmp_path / "link.mp4").symlink_to(tmp_path / "gone.mp4")
    for name, words, more in (
        ("pipe.mp4", "no file that could be replaced", ("--overwrite",)),
        ("link.mp4", "exists", ()),
    ):
        done = run("process", source, "--model", "identity", "-o", name, *more, cwd=tmp_path)
        assert done.returncode == 1
        assert words in done.stderr
    assert (tmp_path / "pipe.mp4").is_fifo()
    assert (tmp_path / "link.mp4").is_symlink()
