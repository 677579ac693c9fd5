"""``streamdeblur benchmark`` and ``tune`` as commands, and their parts that run whole jobs. No time is asserted."""

from __future__ import annotations

import errno
import json
import re
from pathlib import Path
from typing import Any

import click
import cv2
import numpy as np
import pytest
import torch
from click.testing import CliRunner

from streamdeblur.cli.benchmark import benchmark as benchmark_command
from streamdeblur.cli.benchmark import tune as tune_command
from streamdeblur.config import parse
from streamdeblur.errors import ConfigError, DeviceError, DiskFull, StreamdeblurError, UnreadableInput, UsageError
from streamdeblur.evaluation.benchmark.clip import render
from streamdeblur.evaluation.benchmark.files import check_targets, write_all
from streamdeblur.evaluation.benchmark.growth import Sleeper, growth, show_growth
from streamdeblur.evaluation.benchmark.job import job, pools, show_jobs, show_pools
from streamdeblur.evaluation.benchmark.options import BenchmarkOptions
from streamdeblur.evaluation.benchmark.pairs import pairs_of, spread
from streamdeblur.evaluation.benchmark.run import understand
from streamdeblur.evaluation.benchmark.stages import STAGES, show_stages, stages
from streamdeblur.evaluation.benchmark.variation import variation
from streamdeblur.evaluation.benchmark.ways import Model, Way
from streamdeblur.training.shards import ShardWriter
from streamdeblur.video.reader import VideoReader
from tests.clips import read_clip

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("small_products")]

CPU = torch.device("cpu")
IDENTITY = Model("identity")
SIZE = (96, 64)


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STREAMDEBLUR_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("clip") / "clip.mp4"
    render(path, SIZE, 5)
    return path


def test_the_rendered_clip_is_what_it_says(clip: Path, tmp_path: Path) -> None:
    assert len(read_clip(clip)) == 5
    with VideoReader(clip, copy_streams=False) as reader:
        assert (reader.info.width, reader.info.height) == SIZE
    with pytest.raises(UsageError, match="even"):
        render(tmp_path / "odd.mp4", (63, 64), 1)


def test_stages_add_up(clip: Path) -> None:
    found = stages(IDENTITY, (1, 1), Way("auto"), CPU, 2, frames=4, clip=clip)
    assert tuple(found.stages) == STAGES
    assert (found.frames, found.size, found.clip) == (4, SIZE, "clip.mp4")
    assert all(t.rounds == 2 and t.low > 0 for t in found.stages.values())
    assert found.in_turn == pytest.approx(sum(t.median for t in found.stages.values()))
    assert found.longest in STAGES
    assert "limited by" in show_stages([found])
    assert json.loads(json.dumps(found.as_dict()))["longest"] == found.longest
    with pytest.raises(UnreadableInput):
        stages(IDENTITY, SIZE, Way("auto"), CPU, 1, clip=clip.with_name("none.mp4"))


def test_the_job_stands_beside_the_network_alone(clip: Path) -> None:
    row = job(IDENTITY, SIZE, {"memory": "20GB"}, CPU, 1, clip=clip, starts=2)
    assert row.frames == 5
    assert row.share.median == pytest.approx(row.network.each[0] / row.job.each[0])
    assert row.cpu_share is not None
    assert row.network_fps == pytest.approx(5 / row.network.median)
    assert row.startup_s is not None
    assert 0 < row.startup_s.low <= row.startup_s.median
    assert row.peak_bytes is not None
    assert row.peak_bytes > 50 << 20
    assert "identity" in show_jobs([row])
    with pytest.raises(ConfigError, match="memory"):
        job(IDENTITY, SIZE, {"memory": "lots"}, CPU, 1, clip=clip)


@pytest.mark.slow
def test_tilings_differ_from_the_whole_frame_by_little() -> None:
    found = variation([Model("mimo-unet-small", "random:2")], (144, 96), "eager", "fp32", CPU, 1)
    rows = {r.tiling: r for r in found.rows}
    assert rows["whole"].largest == rows["whole"].mean == 0
    assert rows["whole"].computed == 1
    tiled = rows["fast 128/32"]
    assert 0 < tiled.mean < tiled.largest < 50
    assert tiled.windows == 2
    assert tiled.peak_bytes >= tiled.above_bytes > 0


def test_longer_clips_each_in_a_process_of_their_own() -> None:
    found = growth(lengths=(3, 12), workers=())
    assert [r.frames for r in found.lengths] == [3, 12]
    assert all(r.each_s > 0 and r.cpu_s >= 0 and r.peak_bytes > 50 << 20 for r in found.lengths)
    assert "12" in show_growth(found)


@pytest.mark.slow
def test_sleeping_workers_and_ray_give_what_one_process_gives(clip: Path) -> None:
    found = growth(lengths=(), workers=(1, 2), frames=40, sleep=0.02)
    assert [w.workers for w in found.workers] == [1, 2]
    assert found.workers[0].times == 1
    rows = pools(IDENTITY, SIZE, {}, CPU, 1, workers=(1,), clip=clip)
    assert [r.name for r in rows] == ["in-process", "Ray, 1 worker"]
    assert all(r.same for r in rows)
    assert "identical" in show_pools(rows)


def test_a_sleeper_corrects_nothing(clip: Path) -> None:
    with VideoReader(clip, copy_streams=False) as reader:
        frame = next(iter(reader))
    given = Sleeper(0.0)()(frame)
    assert [c.shape for c in given] == [p.shape for p in frame.planes]
    assert not any(c.any() for c in given)


def test_pairs_from_shards(tmp_path: Path) -> None:
    pictures = torch.randint(0, 256, (3, 2, 20, 24, 3), dtype=torch.uint8).numpy()
    with ShardWriter(tmp_path, quality=0) as writer:
        for n, (blur, sharp) in enumerate(pictures):
            writer.add(blur, sharp, f"p{n}")
    read = list(pairs_of(str(writer.written[0]), 2)())
    assert len(read) == 2
    _, blurry, sharp = read[1]
    assert torch.equal((blurry * 255).round().byte()[0].permute(1, 2, 0), torch.from_numpy(pictures[1, 0]))
    assert torch.equal((sharp * 255).round().byte()[0].permute(1, 2, 0), torch.from_numpy(pictures[1, 1]))
    with pytest.raises(UnreadableInput, match="neither a folder"):
        pairs_of(str(tmp_path / "none"), 2)
    assert spread(10, 4) == [0, 2, 5, 7]
    assert spread(3, 4) == [0, 1, 2]


def run(command: Any, *words: str) -> Any:
    return CliRunner().invoke(command, [*words], catch_exceptions=False)


def test_the_command_writes_tables_json_and_a_page(tmp_path: Path, clip: Path) -> None:
    page, values = tmp_path / "x.html", tmp_path / "x.json"
    done = run(
        benchmark_command, "--quick", "--what", "network,stages", "--models", "identity", "--clip", str(clip),
        "--no-peak-memory", "--json", str(values), "--html", str(page),
    )  # fmt: skip
    assert done.exit_code == 0
    assert "== network" in done.output
    assert "== stages" in done.output
    told = json.loads(values.read_text())
    assert told["settings"]["quick"] is True
    assert told["machine"]["device"]
    assert set(told["seconds"]) == {"network", "stages"}
    assert [r["engine"] for r in told["network"]["rows"]] == ["eager"]
    assert "Speed of deblurring" in page.read_text()


def test_every_way_goes_through_stages_and_job(clip: Path, tmp_path: Path) -> None:
    """As through the network: engines, tiles and batch, and where a part has no use for an option, it says so."""
    done = run(
        benchmark_command, "--quick", "--what", "stages,job", "--models", "mimo-unet-small=random:1", "--clip",
        str(clip), "--engines", "eager,fused", "--tiles", "48/16,whole", "--batch", "2", "--rounds", "1",
        "--no-peak-memory", "--json", str(tmp_path / "x.json"),
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    told = json.loads((tmp_path / "x.json").read_text())
    stages = [(r["engine"], r["tiling"]) for r in told["stages"]]
    assert stages == [(engine, how) for engine in ("eager", "fused") for how in ("fast 48/16 x2", "whole x2")]
    assert [(r["engine"], r["tiling"]) for r in told["job"]] == [("eager", "whole"), ("fused", "whole")]
    assert "(random:1)" in done.stdout
    assert told["notes"] == [
        "job: jobs take no tiles in pixels; without --tiles 48/16, measured with whole",
        "job: without --batch, which is for network and stages",
    ]
    assert all(note in done.stderr for note in told["notes"])
    assert (told["settings"]["sizes"], told["failed"]) == (["160x96"], None)


def test_stages_keep_to_the_memory(clip: Path) -> None:
    with pytest.raises(DeviceError, match="are taken without the network"):
        run(
            benchmark_command, "--quick", "--what", "stages", "--models", "mimo-unet-small=random:1", "--clip",
            str(clip), "--engines", "eager", "--memory", "1MiB",
        )  # fmt: skip


def test_an_engine_that_can_t_be_had_leaves_the_others(clip: Path) -> None:
    words = ["--quick", "--what", "stages", "--models", "identity", "--clip", str(clip), "--rounds", "1", "--json", "-"]
    done = run(benchmark_command, *words, "--engines", "cuda-graphs,eager")
    told = json.loads(done.stdout)
    assert [r["engine"] for r in told["stages"]] == ["eager"]
    (line,) = told["left_out"]
    assert line.startswith(f"identity, cuda-graphs, {SIZE[0]}x{SIZE[1]}: not measured: ")
    with pytest.raises(DeviceError, match="cuda-graphs"):
        run(benchmark_command, *words, "--engines", "cuda-graphs")


@pytest.mark.parametrize("failure", [DeviceError("no such thing"), KeyboardInterrupt()])
def test_what_was_measured_is_written_where_a_later_part_fails(
    failure: BaseException, tmp_path: Path, clip: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise failure

    monkeypatch.setattr("streamdeblur.evaluation.benchmark.run.stages", fail)
    page, values = tmp_path / "x.html", tmp_path / "x.json"
    with pytest.raises((DeviceError, click.Abort)):
        benchmark_command.main(
            [
                "--quick", "--what", "network,stages", "--models", "identity", "--clip", str(clip), "--no-peak-memory",
                "--json", str(values), "--html", str(page),
            ],
            standalone_mode=False,
        )  # fmt: skip
    told = json.loads(values.read_text())
    assert [r["engine"] for r in told["network"]["rows"]] == ["eager"]
    assert told["failed"] == f"stages: {str(failure) or 'KeyboardInterrupt'}"
    assert "Speed of deblurring" in page.read_text()


def test_pools_are_of_the_clip_s_size(clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = []

    def one(_: Model, size: tuple[int, int], *__: object, **___: object) -> list[Any]:
        sizes.append(size)
        return []

    monkeypatch.setattr("streamdeblur.evaluation.benchmark.run.pools", one)
    words = ["--quick", "--what", "pools", "--models", "identity", "--clip", str(clip), "--json", "-"]
    (told,) = json.loads(run(benchmark_command, *words).stdout)["pools"]
    assert sizes == [SIZE]
    assert told["size"] == f"{SIZE[0]}x{SIZE[1]}"


def test_sets_of_one_name_are_both_measured(tmp_path: Path) -> None:
    for n, folder in enumerate(("a/val", "b/val")):
        for side in ("blur", "sharp"):
            (tmp_path / folder / side).mkdir(parents=True)
            cv2.imwrite(str(tmp_path / folder / side / "0.png"), np.full((16, 16, 3), 50 * n + 9, np.uint8))
    both = tuple(str(tmp_path / f) for f in ("a/val", "b/val"))
    sets = understand(parse(BenchmarkOptions, {"models": ("identity",), "data": both})).sets
    assert tuple(sets) == both
    first, second = (next(pairs())[1].mean().item() for pairs in sets.values())
    assert first < second
    assert tuple(understand(parse(BenchmarkOptions, {"models": ("identity",), "data": both[:1]})).sets) == ("val",)


def test_json_alone_on_stdout(clip: Path) -> None:
    done = run(
        benchmark_command, "--quick", "--what", "stages", "--models", "identity", "--clip", str(clip), "--json", "-"
    )
    assert json.loads(done.stdout)["stages"][0]["model"] == "identity"


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--what", "speed"), "nothing called 'speed'"),
        (("--sizes", "huge"), "size 'huge'"),
        (("--engines", "turbo"), "engine 'turbo'"),
        (("--tiles", "tiny"), "tiling 'tiny'"),
        (("--models", "nothing"), "unknown model"),
        (("--batch", "two"), "batch"),
        (("--data", "/nowhere/at/all"), "neither a folder"),
        (("--device", "cuda:99"), "cuda:99"),
        (("--memory", "4"), "no amount of memory"),
    ],
)
def test_words_that_mean_nothing_stop_it_before_it_measures(words: tuple[str, ...], says: str) -> None:
    with pytest.raises(StreamdeblurError, match=says) as e:
        run(benchmark_command, "--quick", "--what", "stages", *words)
    assert "\n" not in str(e.value)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--tiles", "64/64"), "windows of 64 px cannot share 64 px; take a larger tile or less overlap"),
        (("--tiles", "7"), "tiling '7' has windows off the network's grid; give a tile that is a multiple of 4 px"),
        (("--tiles", "exact/30"), "give a tile that is a multiple of 4 px, as 32"),
        (("--tiles", "64/15"), "give an overlap that is a multiple of 4 px, as 16"),
        (("--engines", "turbo"), "engine 'turbo'"),
        (("--sizes", "huge"), "size 'huge'"),
        (("--models", "nothing"), "unknown model"),
        (("--models", "mimo-unet=/nowhere/w.safetensors"), "there is no weights file"),
        (("--clip", "/nowhere/a.mp4"), "/nowhere/a.mp4 is not a file; check the path of --clip"),
        (("--data", "/nowhere/at/all"), "neither a folder"),
        (("--what", "stages", "--sizes", "63x64"), "take even sides"),
        (("--what", "nonsense"), "--what nonsense: nothing called 'nonsense'"),
        (("--precisions", "foo,bar"), "--precisions foo, bar: precision 'foo' is not known"),
        (("--batch", "0"), "--batch 0: a call has 1 window or more"),
        (("--batch", "two"), "--batch 'two': must be a whole number"),
        (("--json", "/proc/x.json"), "--json /proc/x.json can't be written"),
        (("--html", "/nowhere/x.html"), "--html /nowhere/x.html can't be written: there is no folder /nowhere"),
        (("--html", "/"), "--html / is a folder"),
        (("--html", "-"), "--html - is no file"),
        (("--json", "/tmp/same", "--html", "/tmp/./same"), "--json and --html both name"),
    ],
)
def test_what_is_wrong_is_told_before_anything_else(
    words: tuple[str, ...], says: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def told(*_: Any) -> dict[str, Any]:
        raise AssertionError("the machine is looked at already")

    monkeypatch.setattr("streamdeblur.evaluation.benchmark.run.machine", told)
    before = set(Path("/tmp").glob(".*.partial"))
    with pytest.raises(StreamdeblurError, match=re.escape(says)) as e:
        benchmark_command.main(["--quick", "--what", "network", *words], standalone_mode=False)
    assert "\n" not in str(e.value)
    assert capsys.readouterr().out == ""
    assert set(Path("/tmp").glob(".*.partial")) == before


def test_a_clip_that_is_none_is_found_before_anything_is_measured(tmp_path: Path) -> None:
    clip = tmp_path / "a.mp4"
    clip.write_text("no video")
    says = "can't be opened as video: Invalid data.*; it is damaged or no video: try to play it, or copy it again"
    with pytest.raises(UnreadableInput, match=says):
        run(benchmark_command, "--quick", "--clip", str(clip))


def test_nothing_measured_is_no_success(tmp_path: Path) -> None:
    values = tmp_path / "x.json"
    words = ("--what", "network", "--models", "mimo-unet-small", "--sizes", "16x16", "--no-reference")
    with pytest.raises(StreamdeblurError, match=r"^nothing was measured: \S.*; choose other --engines") as e:
        run(
            benchmark_command, *words, "--no-peak-memory", "--engines", "fused", "--precisions", "int8",
            "--json", str(values),
        )  # fmt: skip
    assert e.value.exit_code == 1
    assert json.loads(values.read_text())["network"]["rows"][0]["failed"]


def test_the_page_is_written_where_the_json_fails(tmp_path: Path) -> None:
    device, page, link = Path("/dev/full"), tmp_path / "x.html", tmp_path / "link.html"
    page.write_text("old")
    page.chmod(0o644)
    link.symlink_to(page)
    check_targets({"--json": device, "--html": link})
    assert page.read_text() == "old"
    with pytest.raises(DiskFull, match="/dev/full can't be written"):
        write_all({device: "{}", link: "new"})
    assert page.read_text() == "new"
    assert link.is_symlink()
    assert not device.is_file()  # nothing took its place
    assert sorted(p.name for p in tmp_path.iterdir()) == ["link.html", "x.html"]


def test_a_file_that_can_t_be_replaced_stays_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "x.json"
    target.write_text("old")

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(DiskFull, match="No space left"):
        write_all({target: "new"})
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [("x.json", "old")]


def test_the_tune_command_says_what_it_kept(tmp_path: Path) -> None:
    words = ("-m", "mimo-unet-small", "-w", "random:0", "--device", "cpu", "--precision", "fp32", "--engine", "eager")
    done = run(tune_command, *words, "--size", "64x48", "--seconds", "0.01", "--json")
    told = json.loads(done.stdout)
    assert told["plan"]["size"] == [64, 48]
    assert Path(told["path"]).is_relative_to(tmp_path / "cache")
    assert Path(told["path"]).is_file()
    done = run(tune_command, *words, "--forget")
    assert "forgot" in done.stdout
    assert not Path(told["path"]).exists()
