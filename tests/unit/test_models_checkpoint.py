"""Checkpoints: ours round, the authors' in and out, and one clear line for every file that is neither."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import safetensors.torch
import torch
from safetensors import safe_open

from streamdeblur.errors import OutputError, WeightsError
from streamdeblur.models import MIMOUNet, MIMOUNetConfig
from streamdeblur.models.authors import authors_metadata, export_authors, import_authors
from streamdeblur.models.checkpoint import FORMAT, Metadata, load_checkpoint, read_metadata, save_checkpoint
from streamdeblur.models.mimo_unet import MIMO_UNET, MIMO_UNET_PLUS
from streamdeblur.models.random_weights import random_state

TINY = MIMOUNetConfig(width=4, blocks=1, fusion="concat", dropout=0.25)
ABOUT = Metadata(
    variant="mine",
    config=TINY,
    training_data="three clips, é and 漢",
    recipe="10 steps",
    score=31.25,
    score_note="one pair",
    licence="CC0-1.0",
    created_by="a test",
    extra={"step": "10"},
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "net.safetensors"


@pytest.fixture(scope="module")
def authors_state() -> dict[str, torch.Tensor]:
    return export_authors(random_state(MIMO_UNET, 1), MIMO_UNET)


def one_line(error: pytest.ExceptionInfo[Exception], *words: str) -> None:
    text = str(error.value)
    assert "\n" not in text
    assert len(text) < 600
    for word in words:
        assert word in text


def test_round_trip(path: Path) -> None:
    state = random_state(TINY, 0)
    save_checkpoint(path, state, ABOUT)
    loaded, metadata = load_checkpoint(path)
    assert metadata == read_metadata(path) == ABOUT
    assert loaded.keys() == state.keys()
    assert all(torch.equal(loaded[name], state[name]) for name in state)
    assert os.listdir(path.parent) == [path.name]


def test_a_network_is_saved_as_its_state_whatever_its_layout(path: Path) -> None:
    net = MIMOUNet(TINY).to(memory_format=torch.channels_last)
    save_checkpoint(path, net, replace(ABOUT, created_by="", score=None))
    loaded, metadata = load_checkpoint(path)
    assert all(torch.equal(loaded[name], value) for name, value in net.state_dict().items())
    assert metadata.created_by.startswith("streamdeblur")
    assert metadata.score is None


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_precisions_load_as_float32(path: Path, dtype: torch.dtype) -> None:
    state = {name: value.to(dtype) for name, value in random_state(TINY, 0).items()}
    save_checkpoint(path, state, ABOUT)
    with safe_open(path, framework="pt") as file:
        assert file.get_tensor("stem.weight").dtype == dtype
    loaded, _ = load_checkpoint(path)
    assert all(value.dtype == torch.float32 for value in loaded.values())
    assert all(torch.equal(loaded[name], state[name].float()) for name in state)


def test_loaded_weights_survive_the_file(path: Path) -> None:
    save_checkpoint(path, random_state(TINY, 0), ABOUT)
    loaded, _ = load_checkpoint(path)
    path.write_bytes(bytes(path.stat().st_size))
    assert torch.equal(loaded["stem.weight"], random_state(TINY, 0)["stem.weight"])


def test_a_failed_write_leaves_what_was_there(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_checkpoint(path, random_state(TINY, 0), ABOUT)
    before = path.read_bytes()

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OutputError) as error:
        save_checkpoint(path, random_state(TINY, 1), ABOUT)
    one_line(error, str(path), "No space left")
    assert type(error.value).__name__ == "DiskFull"
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]


def test_writing_into_no_folder(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="No such file"):
        save_checkpoint(tmp_path / "absent" / "net.safetensors", random_state(TINY, 0), ABOUT)


@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(path: Path, poison: float) -> None:
    state = random_state(TINY, 0)
    state["aff2.conv.weight"][0, 0, 1, 1] = poison
    with pytest.raises(WeightsError) as error:
        save_checkpoint(path, state, ABOUT)
    one_line(error, "aff2.conv.weight", "NaN or infinity")
    assert not path.exists()
    safetensors.torch.save_file(state, path, metadata=ABOUT.to_strings())
    with pytest.raises(WeightsError, match=r"aff2\.conv\.weight"):
        load_checkpoint(path)


def test_keys_that_differ_are_named_and_counted(path: Path) -> None:
    state = random_state(TINY, 0)
    names = list(state)
    for name in names[:5]:
        del state[name]
    state["colour"] = torch.zeros(3)
    state["head1.bias"] = torch.zeros(4)
    safetensors.torch.save_file(state, path, metadata=ABOUT.to_strings())
    with pytest.raises(WeightsError) as error:
        load_checkpoint(path)
    one_line(
        error,
        f"5 missing ({', '.join(names[:3])} and 2 more)",
        "1 unexpected (colour)",
        "1 of another shape (head1.bias is (4,), expected (3,))",
    )
    assert read_metadata(path) == ABOUT  # which reads no tensor


def test_integers_are_no_weights(path: Path) -> None:
    state = random_state(TINY, 0)
    state["head1.bias"] = torch.zeros(3, dtype=torch.int32)
    safetensors.torch.save_file(state, path, metadata=ABOUT.to_strings())
    with pytest.raises(WeightsError, match=r"head1\.bias holds torch\.int32"):
        load_checkpoint(path)


def _good(path: Path) -> bytes:
    save_checkpoint(path, random_state(TINY, 0), ABOUT)
    return path.read_bytes()


BAD_FILES: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing": (lambda p: None, "there is no weights file"),
    "folder": (lambda p: p.mkdir(), "is a folder"),
    "empty": (lambda p: p.write_bytes(b""), "is empty"),
    "one byte": (lambda p: p.write_bytes(b"\x01"), "no complete safetensors"),
    "text": (lambda p: p.write_text("these are not weights\n" * 9), "no complete safetensors"),
    "truncated": (lambda p: p.write_bytes(_good(p)[:-1000]), "no complete safetensors"),
    "header cut": (lambda p: p.write_bytes(_good(p)[:200]), "no complete safetensors"),
    "trailing": (lambda p: p.write_bytes(_good(p) + b"more"), "no complete safetensors"),
    "pickle": (lambda p: torch.save({"model": {}}, p), "weights import"),
    "no metadata": (lambda p: safetensors.torch.save_file({"a": torch.zeros(1)}, p), "not weights of streamdeblur"),
    "foreign": (
        lambda p: safetensors.torch.save_file({"a": torch.zeros(1)}, p, metadata={"format": "pt"}),
        "not weights of streamdeblur",
    ),
}


@pytest.mark.parametrize("kind", BAD_FILES)
def test_files_that_are_no_checkpoint(path: Path, kind: str) -> None:
    make, expected = BAD_FILES[kind]
    make(path)
    for reader in (load_checkpoint, read_metadata):
        with pytest.raises(WeightsError) as error:
            reader(path)
        one_line(error, str(path), expected)


@pytest.mark.parametrize(
    ("entries", "expected"),
    [
        ({"format_version": "2"}, "version '2'"),
        ({"format_version": "one"}, "version 'one'"),
        ({"variant": ""}, "variant"),
        ({"config": ""}, "Expecting value"),
        ({"config": "[]"}, "not a JSON object"),
        ({"config": '{"depth": 3}'}, "'depth'"),
        ({"config": '{"width": 3}'}, "width 3"),
        ({"config": '{"width": "32"}'}, "width '32'"),
        ({"score": "good"}, "good"),
        ({"score": "nan"}, "nan"),
        ({"format": FORMAT.upper()}, "format"),
    ],
)
def test_metadata_that_cannot_be_meant(path: Path, entries: dict[str, str], expected: str) -> None:
    metadata = {**ABOUT.to_strings(), **entries}
    safetensors.torch.save_file(random_state(TINY, 0), path, metadata=metadata)
    with pytest.raises(WeightsError) as error:
        read_metadata(path)
    one_line(error, str(path), expected)


def test_extra_entries_cannot_replace_ours(path: Path) -> None:
    with pytest.raises(ValueError, match="'licence'"):
        save_checkpoint(path, random_state(TINY, 0), replace(ABOUT, extra={"licence": "none"}))


@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize("zipped", [True, False])
def test_authors_checkpoints_come_in(
    tmp_path: Path, authors_state: dict[str, torch.Tensor], prefix: str, zipped: bool
) -> None:
    file = tmp_path / "MIMO-UNet.pkl"
    content = {"model": {prefix + name: value for name, value in authors_state.items()}, "epoch": 3000}
    torch.save(content, file, _use_new_zipfile_serialization=zipped)
    state, variant = import_authors(file)
    assert variant == "mimo-unet"
    original = random_state(MIMO_UNET, 1)
    assert state.keys() == original.keys()
    assert all(torch.equal(state[name], original[name]) for name in original)


@pytest.mark.parametrize("prefix", ["", "module."])
def test_a_bare_state_dict_comes_in(tmp_path: Path, authors_state: dict[str, torch.Tensor], prefix: str) -> None:
    file = tmp_path / "net.pth"
    torch.save({prefix + name: value for name, value in authors_state.items()}, file)
    state, variant = import_authors(file)
    original = random_state(MIMO_UNET, 1)
    assert variant == "mimo-unet"
    assert all(torch.equal(state[name], original[name]) for name in original)


def test_a_checkpoint_of_ours_is_named_as_such(path: Path) -> None:
    about = replace(ABOUT, variant="tiny", score=31.25, training_data="GoPro")
    state = random_state(TINY, 0)
    save_checkpoint(path, state, about)
    count = sum(value.numel() for value in state.values())
    with pytest.raises(WeightsError) as error:
        import_authors(path)
    one_line(error, f"in this format already: it holds tiny, {count / 1e6:.2f} M parameters", "GoPro", "31.25 dB")


def test_the_larger_network_is_recognised(tmp_path: Path) -> None:
    file = tmp_path / "MIMO-UNetPlus.pkl"
    original = random_state(MIMO_UNET_PLUS, 0)
    torch.save({"model": export_authors(original, MIMO_UNET_PLUS)}, file)
    state, variant = import_authors(file)
    assert variant == "mimo-unet-plus"
    save_checkpoint(tmp_path / "ours.safetensors", state, authors_metadata(variant))
    again, metadata = load_checkpoint(tmp_path / "ours.safetensors")
    assert metadata.config == MIMO_UNET_PLUS
    assert all(torch.equal(again[name], original[name]) for name in original)


def test_authors_keys_that_differ_are_named(tmp_path: Path, authors_state: dict[str, torch.Tensor]) -> None:
    file = tmp_path / "net.pkl"
    wrong = dict(authors_state)
    del wrong["SCM1.conv.main.0.bias"]
    wrong["Encoder.0.extra"] = torch.zeros(1)
    wrong["Convs.0.main.0.weight"] = torch.zeros(64, 64, 1, 1)
    torch.save({"model": wrong}, file)
    with pytest.raises(WeightsError) as error:
        import_authors(file)
    one_line(
        error,
        "1 missing (SCM1.conv.main.0.bias)",
        "1 unexpected (Encoder.0.extra)",
        "Convs.0.main.0.weight is (64, 64, 1, 1), expected (64, 128, 1, 1)",
    )


class RunsCode:
    """Unpickling this makes a folder."""

    def __init__(self, folder: str) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (self.folder,)


WRITERS: dict[str, Callable[[object, Path], object]] = {
    "zip": torch.save,
    "old": lambda content, p: torch.save(content, p, _use_new_zipfile_serialization=False),
    **{f"pickle {n}": lambda content, p, n=n: p.write_bytes(pickle.dumps(content, protocol=n)) for n in (2, 3, 4, 5)},  # type: ignore[misc]
}


@pytest.mark.parametrize("writer", WRITERS)
def test_a_pickle_that_wants_to_run_code_is_refused(tmp_path: Path, writer: str) -> None:
    file, trace = tmp_path / "net.pkl", tmp_path / "trace"
    WRITERS[writer]({"model": RunsCode(str(trace))}, file)
    with pytest.raises(WeightsError) as error:
        import_authors(file)
    one_line(error, str(file), "would run code", "posix.mkdir")
    assert not trace.exists()


def _cut(zipped: bool) -> Callable[[Path, dict[str, torch.Tensor]], object]:
    def write(path: Path, state: dict[str, torch.Tensor]) -> None:
        torch.save({"model": state}, path, _use_new_zipfile_serialization=zipped)
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])

    return write


BAD_PICKLES: dict[str, tuple[Callable[[Path, dict[str, torch.Tensor]], object], str]] = {
    "missing": (lambda p, s: None, "there is no weights file"),
    "folder": (lambda p, s: p.mkdir(), "is a folder"),
    "empty": (lambda p, s: p.write_bytes(b""), "is empty"),
    "text": (lambda p, s: p.write_text("weights\n" * 99), "damaged or no checkpoint"),
    "cut": (_cut(True), "damaged or no checkpoint"),
    "cut old": (_cut(False), "damaged or no checkpoint"),
    "plain pickle": (lambda p, s: p.write_bytes(pickle.dumps({"model": 1})), "damaged or no checkpoint"),
    "bare state of another network": (
        lambda p, s: torch.save({"fc.weight": torch.zeros(1)}, p),
        "244 missing (feat_extract.0.main.0.weight",
    ),
    "a tensor": (lambda p, s: torch.save(torch.zeros(3), p), "holds a Tensor and no state dict"),
    "a list": (lambda p, s: torch.save([1, 2], p), "holds a list and no state dict"),
    "nothing": (lambda p, s: torch.save({}, p), "holds an empty dict and no state dict"),
    "other entries": (lambda p, s: torch.save({"epoch": 3, "lr": 0.1}, p), "holds the entries 'epoch', 'lr' and no"),
    "model is a number": (lambda p, s: torch.save({"model": 1}, p), "holds the entry 'model' and no state dict"),
    "another safetensors": (lambda p, s: safetensors.torch.save_file({"a": torch.zeros(1)}, p), "not weights of"),
    "values are numbers": (lambda p, s: torch.save({"model": dict.fromkeys(s, 1)}, p), "is a int"),
    "other network": (lambda p, s: torch.save({"model": {"fc.weight": torch.zeros(1)}}, p), "244 missing"),
    "nan": (lambda p, s: torch.save({"model": {k: v * float("nan") for k, v in s.items()}}, p), "NaN or infinity"),
    "a module": (lambda p, s: torch.save({"model": torch.nn.Conv2d(1, 1, 1)}, p), "Conv2d"),
}


@pytest.mark.parametrize("kind", BAD_PICKLES)
def test_files_that_are_no_authors_checkpoint(
    tmp_path: Path, authors_state: dict[str, torch.Tensor], kind: str
) -> None:
    make, expected = BAD_PICKLES[kind]
    file = tmp_path / "net.pkl"
    make(file, authors_state)
    with pytest.raises(WeightsError) as error:
        import_authors(file)
    one_line(error, str(file), expected)
