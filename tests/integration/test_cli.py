"""The command line: same result as the library, configuration, what is printed where."""

from __future__ import annotations

import json
import os
import re
import subprocess
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from streamdeblur import __version__, process_video
from tests.clips import read_clip, read_packets, write_numbered_clip
from tests.commands import command, environment, run
from tests.training import write_pairs

pytestmark = pytest.mark.integration

SIZE = (96, 64)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_numbered_clip(tmp_path_factory.mktemp("clip") / "a.mp4", 8, SIZE, audio=True)


def test_the_module_runs_from_anywhere(source: Path, tmp_path: Path) -> None:
    """The one true process here; the others are forked from a warm one."""
    done = subprocess.run(
        command("process", source, "-o", "out.mkv", "-m", "identity", "--json"),
        cwd=tmp_path, env=environment(), capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout)["frames"] == 8
    assert len(read_clip(tmp_path / "out.mkv")) == 8


def test_command_line_and_library_do_the_same(source: Path, tmp_path: Path) -> None:
    options = {"model": "offset:0.1,-0.05,0.02", "lossless": True}
    mine = process_video(source, tmp_path / "library.mkv", ledger=tmp_path / "library.jsonl", **options)
    done = run(
        "process", source, "-o", tmp_path / "cli.mkv", "-m", "offset:0.1,-0.05,0.02", "--lossless", "--json",
        "--ledger", tmp_path / "cli.jsonl", cwd=tmp_path,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    theirs = json.loads(done.stdout)
    timed = {"output", "seconds", "first_frame_seconds", "fps"}
    assert {k: v for k, v in theirs.items() if k not in timed} == {
        k: v for k, v in mine.as_dict().items() if k not in timed
    }
    a, b = read_clip(tmp_path / "library.mkv"), read_clip(tmp_path / "cli.mkv")
    assert [p.time for p in a] == [p.time for p in b]
    assert all(x.same(y) for x, y in zip(a, b, strict=True))
    assert read_packets(tmp_path / "library.mkv", 1) == read_packets(tmp_path / "cli.mkv", 1)

    def lines(path: Path) -> list[dict[str, Any]]:
        found = [json.loads(line) for line in path.read_text().splitlines()]
        return [{k: v for k, v in f.items() if k not in ("seconds",)} for f in found if f["type"] == "frame"]

    assert lines(tmp_path / "library.jsonl") == lines(tmp_path / "cli.jsonl")
    assert len(lines(tmp_path / "cli.jsonl")) == 8


def test_stdout_is_for_json_alone(source: Path, tmp_path: Path) -> None:
    plain = run("process", source, "-o", tmp_path / "a.mp4", "-m", "identity", cwd=tmp_path)
    assert (plain.returncode, plain.stdout) == (0, "")
    (line,) = plain.stderr.splitlines()
    assert "8 frames (8 restored) by identity" in line
    spared = run("process", source, "-o", tmp_path / "s.mp4", "-m", "offset:1,1,1", "--reuse", cwd=tmp_path)
    assert re.search(r"8 frames \(8 restored; of their tiles none left out\) by offset", spared.stderr), spared.stderr
    quiet = run("process", source, "-o", tmp_path / "b.mp4", "-m", "identity", "--quiet", cwd=tmp_path)
    assert (quiet.returncode, quiet.stdout, quiet.stderr) == (0, "", "")
    loud = run("process", source, "-o", tmp_path / "c.webm", "-m", "identity", "--json", cwd=tmp_path)
    assert loud.returncode == 0
    assert json.loads(loud.stdout)["dropped"] == ["stream 1 (audio, aac)"]
    (line,) = loud.stderr.splitlines()
    assert line.startswith("warning: stream 1 (audio, aac) is left out")
    silent = run("process", source, "-o", tmp_path / "d.webm", "-m", "identity", "--json", "-q", cwd=tmp_path)
    assert silent.returncode == 0
    assert silent.stderr == loud.stderr  # what is lost is told in any case
    assert json.loads(silent.stdout)["frames"] == 8


def test_a_quiet_run_tells_which_encoder_stood_in(tmp_path: Path) -> None:
    source = write_numbered_clip(tmp_path / "a.mkv", 2, (97, 65), codec="ffv1")
    done = run("process", source, "-o", tmp_path / "b.mp4", "-m", "identity", "-q", cwd=tmp_path)
    (line,) = done.stderr.splitlines()
    assert (done.returncode, done.stdout) == (0, "")
    assert line.startswith("warning: libx264 takes no yuv420p of 97x65")
    assert "using libsvtav1" in line


@pytest.mark.parametrize(
    ("file", "given", "encoder"),
    [
        ("lossless: true\n", ["--crf", "20"], "libx264"),
        ("crf: 20\n", ["--lossless"], "ffv1"),
        ("encoder: ffv1\n", ["--crf", "20"], "libx264"),
        ("crf: 20\n", ["--encoder", "ffv1"], "ffv1"),
    ],
)
def test_a_choice_on_the_command_line_drops_what_excludes_it(
    source: Path, tmp_path: Path, file: str, given: list[str], encoder: str
) -> None:
    (tmp_path / "c.yaml").write_text(file)
    done = run("process", source, "-o", "b.mkv", "-m", "identity", "-c", "c.yaml", *given, "--json", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout)["encoder"] == encoder


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (["--encoder", "ffv1", "--crf", "20"], "ffv1 is always lossless"),
        (["--encoder", "x264", "--crf", "60"], "crf 60 is more than x264 takes"),
        (["--encoder", "av1", "--lossless"], "av1 has no lossless mode here"),
        (["--lossless", "--crf", "20"], "exclude each other"),
        (["--rate", "25"], "--rate 25 is for making a video of a folder of images"),
    ],
)
def test_options_that_can_mean_nothing_are_refused(source: Path, tmp_path: Path, given: list[str], says: str) -> None:
    done = run("process", source, "-o", "b.mp4", "-m", "identity", *given, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ")
    assert says in line
    assert not (tmp_path / "b.mp4").exists()


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (["--crf", "55"], "libx264 takes 0 to 51 for --crf: 55 is taken as 51"),
        (["--lossless", "--preset", "slow"], "ffv1 has no presets: --preset slow has no effect"),
        (["--deinterlace"], "--deinterlace has no effect"),
        (["--gpus-per-worker", "1"], "--gpus-per-worker has no effect without Ray"),
    ],
)
def test_options_that_mean_nothing_for_this_file_are_told(
    source: Path, tmp_path: Path, given: list[str], says: str
) -> None:
    done = run("process", source, "-o", "b.mp4", "-m", "identity", "-q", *given, cwd=tmp_path)
    assert done.returncode == 0
    (line,) = done.stderr.splitlines()
    assert line.startswith("warning: ")
    assert says in line


def test_the_command_line_wins_over_the_file(source: Path, tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("model: identity\nencoder: x265\ncrf: 40\non-error: bypass\nledger: l.jsonl\n")
    done = run("process", source, "-o", "b.mkv", "-c", "c.yaml", "--crf", "33", "--encoder", "x264", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert b"crf=33.0" in (tmp_path / "b.mkv").read_bytes()
    settings = json.loads((tmp_path / "l.jsonl").read_text().splitlines()[0])["settings"]
    assert (settings["encoder"], settings["crf"], settings["on_error"]) == ("x264", 33.0, "bypass")
    assert settings["model"] == "identity"


def test_switches_of_the_file_can_be_switched_off(source: Path, tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("model: identity\nlossless: true\noverwrite: true\n")
    (tmp_path / "b.mp4").write_bytes(b"old")
    refused = run("process", source, "-o", "b.mp4", "-c", "c.yaml", "--no-overwrite", cwd=tmp_path)
    assert refused.returncode == 1
    assert "exists" in refused.stderr
    done = run("process", source, "-o", "b.mp4", "-c", "c.yaml", "--no-lossless", "--json", cwd=tmp_path)
    assert json.loads(done.stdout)["encoder"] == "libx264"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], ""),
        (["proces"], "process"),
        (["process"], "SOURCE"),
        (["process", "a.mp4", "--workers", "0"], "workers"),
        (["process", "a.mp4", "--workers", "many"], "many"),
        (["process", "a.mp4", "--config", "none.yaml"], "none.yaml can't be read"),
        (["process", "a.mp4", "b.mp4"], "b.mp4"),
        (["verify", "a.mp4"], "OUTPUT"),
        (["verify", "a.mp4", "b.mp4", "--start", "nan"], "--start nan is no time"),
        (["verify", "a.mp4", "b.mp4", "--duration", "inf"], "--duration inf is no time"),
        (["process", ""], "SOURCE is an empty name"),
        (["process", "a.mp4", "-o", ""], "-o is an empty name"),
        (["demo", "--seconds", "nan"], "nan s is no length"),
        (["demo", "--seconds", "1e9"], "take up to 60 s"),
        (["demo", "--seed", "-1"], "seed -1 is negative"),
        (["demo", "-m", "nope"], "nope"),
    ],
)
def test_wrong_usage_is_one_line_and_exit_2(arguments: list[str], says: str, tmp_path: Path) -> None:
    done = run(*arguments, cwd=tmp_path)
    if not arguments:
        assert "process" in done.stdout + done.stderr
        return
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ")
    assert says in line
    assert done.stdout == ""


def test_the_folder_that_one_is_in_is_a_source_too(tmp_path: Path) -> None:
    (tmp_path / "here").mkdir()
    done = run("process", ".", "--model", "identity", cwd=tmp_path / "here")
    assert done.returncode == 2
    assert "folder . holds no image" in done.stderr
    picture = np.full((16, 16, 3), 99, np.uint8)
    cv2.imwrite(str(tmp_path / "here" / "a.png"), picture)
    assert run("process", ".", "--model", "identity", cwd=tmp_path / "here").returncode == 0
    assert (cv2.imread(str(tmp_path / "here.deblurred" / "a.png")) == picture).all()


def test_a_full_stdout_is_one_line(tmp_path: Path) -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            command("models", "--json"), cwd=tmp_path, stdout=full, stderr=subprocess.PIPE, text=True, timeout=120,
            env=environment(), check=False,
        )  # fmt: skip
    assert (done.returncode, done.stderr) == (1, "error: standard output can't be written: No space left on device\n")


@pytest.mark.parametrize("words", [("models", "--json"), ("models",), ("process", "--help")], ids=" ".join)
def test_a_reader_of_stdout_that_has_gone_is_no_error(tmp_path: Path, words: tuple[str, ...]) -> None:
    there, here = os.pipe()
    os.close(there)
    done = subprocess.run(
        command(*words), cwd=tmp_path, stdout=here, stderr=subprocess.PIPE, text=True, timeout=120,
        env=environment(), check=False,
    )  # fmt: skip
    os.close(here)
    assert (done.returncode, done.stderr) == (141, "")


def test_help_and_version(tmp_path: Path) -> None:
    version = run("--version", cwd=tmp_path)
    assert (version.returncode, version.stderr) == (0, "")
    assert __version__ in version.stdout
    text = run("process", "--help", cwd=tmp_path)
    assert text.returncode == 0
    for flag in ("--lossless", "--no-overwrite", "--on-error [fail|bypass]", "--workers", "--ledger", "-w, --weights"):
        assert flag in text.stdout


def test_models_lists_every_variant(tmp_path: Path) -> None:
    done = run("models", "--json", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    rows = {r["name"]: r for r in json.loads(done.stdout)}
    assert {"identity", "offset", "mimo-unet", "mimo-unet-plus", "mimo-unet-plus-plus", "mimo-unet-small"} <= set(rows)
    assert rows["mimo-unet"]["parameters"] / 1e6 == pytest.approx(6.8, abs=0.02)  # table 4 of the paper
    assert rows["mimo-unet-plus"]["parameters"] / 1e6 == pytest.approx(16.1, abs=0.02)
    assert rows["identity"]["parameters"] == 0
    table = run("models", cwd=tmp_path)
    assert all(name in table.stdout for name in ("identity", "mimo-unet-small"))


def test_weights_are_shown_and_wrong_ones_refused(tmp_path: Path) -> None:
    from streamdeblur.models.checkpoint import Metadata, save_checkpoint
    from streamdeblur.models.random_weights import random_state
    from streamdeblur.models.registry import variants

    config = variants()["mimo-unet-small"].config
    assert config is not None
    path = tmp_path / "w.safetensors"
    save_checkpoint(path, random_state(config, 1), Metadata(variant="mimo-unet-small", config=config))
    done = run("weights", "show", path, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout)["variant"] == "mimo-unet-small"
    source = write_numbered_clip(tmp_path / "a.mp4", 2, SIZE)
    used = run("process", source, "-w", path, "--json", cwd=tmp_path)
    assert used.returncode == 0, used.stderr
    assert json.loads(used.stdout)["model"] == "mimo-unet-small"
    wrong = run("process", source, "-w", path, "-m", "mimo-unet-plus", "--overwrite", cwd=tmp_path)
    assert wrong.returncode == 1
    (line,) = wrong.stderr.splitlines()
    assert "holds weights of mimo-unet-small, not of mimo-unet-plus" in line
    taken = run("weights", "import", path, "-o", tmp_path / "x.safetensors", cwd=tmp_path)
    assert taken.returncode == 1
    (line,) = taken.stderr.splitlines()
    assert "w.safetensors is in this format already: it holds mimo-unet-small, " in line
    assert not (tmp_path / "x.safetensors").exists()
    named = run("weights", "import", path, "-o", tmp_path / "x.pkl", cwd=tmp_path)
    assert named.returncode == 2
    (line,) = named.stderr.splitlines()
    assert "x.pkl of a checkpoint does not end in .safetensors" in line
    same = run("weights", "import", path, "-o", path, "--overwrite", cwd=tmp_path)
    assert same.returncode == 2
    assert "is the source itself" in same.stderr
    assert json.loads(run("weights", "show", path, cwd=tmp_path).stdout)["variant"] == "mimo-unet-small"


def test_weights_are_averaged(tmp_path: Path) -> None:
    from streamdeblur.models.checkpoint import Metadata, load_checkpoint, save_checkpoint
    from streamdeblur.models.random_weights import random_state
    from streamdeblur.models.registry import variants

    config = variants()["mimo-unet-small"].config
    assert config is not None
    for seed in (1, 2):
        save_checkpoint(
            tmp_path / f"{seed}.safetensors", random_state(config, seed), Metadata("mimo-unet-small", config)
        )
    files = ("1.safetensors", "2.safetensors")
    done = run("weights", "average", *files, "-o", "mean.safetensors", "--shares", "3,1", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    mean, one, two = (load_checkpoint(tmp_path / f"{name}.safetensors")[0] for name in ("mean", "1", "2"))
    for name, value in mean.items():
        assert value.allclose(0.75 * one[name] + 0.25 * two[name], rtol=0.01, atol=1e-5)
    source = write_numbered_clip(tmp_path / "a.mp4", 2, SIZE)
    used = run("process", source, "-w", "mean.safetensors", cwd=tmp_path)
    assert used.returncode == 0
    assert "preview: never validated" in used.stderr
    write_pairs(tmp_path / "streets")
    write_pairs(tmp_path / "more" / "streets")
    done = run("weights", "average", *files, "-o", "scored.safetensors", "--data", "streets", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    about = json.loads(run("weights", "show", "scored.safetensors", cwd=tmp_path).stdout)
    assert about["score_note"].startswith("mean of streets ")
    assert f"streets {about['score']:.2f} dB" in about["score_note"]
    assert about["score_note"] in done.stderr.replace("\n", " ")
    assert "never" not in about["extra"]["preview"]
    for arguments, code, said in (
        ((*files, "-o", "mean.safetensors"), 1, "mean.safetensors exists"),
        ((*files, "-o", "2.safetensors", "--overwrite"), 2, "is the source itself"),
        ((*files, "-o", "x.safetensors", "--shares", "much"), 2, "shares 'much' are no numbers"),
        (("1.safetensors", "no.safetensors", "-o", "x.safetensors"), 1, "there is no weights file no.safetensors"),
        (("1.safetensors", "-o", "x.safetensors"), 2, "1 checkpoint can't be averaged"),
        ((*files, "-o", "x.safetensors", "--data", "no"), 1, "no is not a folder"),
        ((*files, "-o", "no/x.safetensors", "--data", "no"), 1, "there is no folder no; make it"),
        ((*files, "-o", "x.safetensors", "--data", "streets", "--data", "more/streets"), 2, "two sets of pairs"),
    ):
        failed = run("weights", "average", *arguments, cwd=tmp_path)
        assert failed.returncode == code
        (line,) = failed.stderr.splitlines()
        assert said in line
    assert not (tmp_path / "x.safetensors").exists()


def test_weights_are_shortened(tmp_path: Path) -> None:
    from streamdeblur.models.registry import shipped_weights, variants

    small = shipped_weights(variants()["mimo-unet-small"])
    done = run("weights", "shorten", small, "--keep", "2", "-o", "short.safetensors", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (0, "")
    assert "short.safetensors: mimo-unet-small with 1 blocks, 0.35 M parameters" in done.stderr
    for keep, text in (("one", "--keep one is no list of numbers"), ("3", "blocks 3 are not some of the 2 of a stage")):
        failed = run("weights", "shorten", small, "--keep", keep, "-o", "none.safetensors", cwd=tmp_path)
        assert failed.returncode == 2
        assert failed.stderr.startswith(f"error: {text}")
        assert len(failed.stderr.splitlines()) == 1
        assert not (tmp_path / "none.safetensors").exists()


def test_weights_are_deepened(tmp_path: Path) -> None:
    from streamdeblur.models.registry import shipped_weights, variants

    small = shipped_weights(variants()["mimo-unet-small"])
    done = run("weights", "deepen", small, "--blocks", 6, "-o", "deep.safetensors", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (0, "")
    assert "deep.safetensors: mimo-unet-medium, 1.32 M parameters" in done.stderr
    about = json.loads(run("weights", "show", "deep.safetensors", cwd=tmp_path).stdout)
    assert about["variant"] == "mimo-unet-medium"
    for arguments, code, said in (
        ((small, "--blocks", 6, "-o", "deep.safetensors"), 1, "deep.safetensors exists"),
        ((small, "--blocks", 2, "-o", "x.safetensors"), 2, "has 2 residual blocks in a stage, 2 are no more"),
        (("no.safetensors", "--blocks", 6, "-o", "x.safetensors"), 1, "there is no weights file no.safetensors"),
    ):
        failed = run("weights", "deepen", *arguments, cwd=tmp_path)
        assert failed.returncode == code
        (line,) = failed.stderr.splitlines()
        assert said in line
    assert not (tmp_path / "x.safetensors").exists()


def test_debug_shows_the_traceback(tmp_path: Path) -> None:
    done = run("process", "no.mp4", "-m", "identity", "--debug", cwd=tmp_path)
    assert done.returncode == 1
    assert "Traceback" in done.stderr
    assert done.stderr.splitlines()[-1].startswith("error: no.mp4 does not exist")
