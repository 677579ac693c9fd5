"""Pairs of a blurred and a sharp picture on disk, in the layouts that published sets have.

    plain         ROOT/blur/NAME, ROOT/sharp/NAME        also flattened GoPro: ROOT/train|test/{blur,sharp}/NAME; HIDE.
                  NAME may lie in folders there, the same ones on both sides
    gopro         ROOT/train|test/SEQUENCE/{blur,sharp}/NAME; gopro_gamma takes blur_gamma instead of blur
    realblur_j    ROOT/RealBlur_J_train|test_list.txt, a line each: sharp, blurred, relative to ROOT; realblur_r alike
    reds          ROOT/train|val/train|val_blur|sharp/CLIP/NAME

``auto`` recognises them by what is there. Where a set has no ``test`` folder, ``val`` is its test split.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Literal

import numpy as np
import numpy.typing as npt

from streamdeblur.errors import InputError, UnreadableInput, UsageError
from streamdeblur.training.pictures import read_picture

Split = Literal["train", "test"]
LAYOUTS = ("auto", "plain", "gopro", "gopro_gamma", "realblur_j", "realblur_r", "hide", "reds")

_HINT = "replace it or take its pair out of the set"
_PARTS = ("train", "test", "val")
_SIDES = ("blur", "blur_gamma", "sharp")
_FOREIGN = (".", "@", "__MACOSX")
_PICTURES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff", ".ppm"})


@dataclass(frozen=True, slots=True)
class Pair:
    """A blurred picture and its sharp truth. name: unique within its set, without a suffix."""

    name: str
    blur: Path
    sharp: Path


def find_pairs(root: str | Path, layout: str = "auto", split: Split = "train") -> list[Pair]:
    """The pairs of ``split`` below ``root``, by name.

    layout: one of ``LAYOUTS``. Sets that have one split only (``blur/`` and ``sharp/`` right in ``root``) give it for
    both; one that has the other split only gives nothing. Raises UsageError for an unknown layout or split,
    UnreadableInput for a folder that isn't there or can't be read, InputError for a missing split, a picture without
    its partner, sizes that differ (as the headers of PNG and JPEG say), or no pair at all.
    """
    base = Path(root)
    if layout not in LAYOUTS:
        raise UsageError(f"layout {layout!r} is unknown", f"use {', '.join(LAYOUTS)}")
    if split not in ("train", "test"):
        raise UsageError(f"split {split!r} is unknown", "use train or test")
    try:
        return _found_pairs(base, layout, split)
    except OSError as e:
        raise UnreadableInput(f"{e.filename or base} can't be read: {e.strerror}", "see that you may read it") from e


def _found_pairs(base: Path, layout: str, split: Split) -> list[Pair]:
    if not base.is_dir():
        raise UnreadableInput(f"{base} is not a folder", "give the folder of a set of pairs")
    kind = _recognise(base, split) if layout == "auto" else layout
    try:
        pairs = _in_layout(base, kind, split)
    except _NeitherSide as e:
        raise InputError(e.what, _other_layout(base, layout, split) or e.hint) from None
    if not pairs:
        raise InputError(
            f"{base} holds no {split} pairs in layout {kind}",
            _other_layout(base, layout, split) or "check the folder, the layout and the split",
        )
    for pair in pairs:
        blur, sharp = header_size(pair.blur), header_size(pair.sharp)
        if blur is None or sharp is None or blur == sharp:
            continue
        if blur != sharp[::-1]:
            raise _differ(pair, blur, sharp)
        read_pair(pair)  # a PNG may be turned by a chunk behind its pixels, which only decoding tells
    return sorted(pairs, key=lambda p: p.name)


def _in_layout(base: Path, kind: str, split: Split) -> list[Pair]:
    if kind in ("gopro", "gopro_gamma"):
        return _gopro(base, split, "blur_gamma" if kind == "gopro_gamma" else "blur")
    if kind in ("realblur_j", "realblur_r"):
        return _realblur(base, split, kind[-1].upper())
    if kind == "reds":
        return _reds(base, split)
    if kind == "hide" and split == "train":
        raise InputError(f"HIDE ({base}) has no pairs for training", "use split test")
    return _plain(base, split)


class _NeitherSide(InputError):
    """Both folders of a pair are missing: most likely the layout is another."""


def _other_layout(base: Path, layout: str, split: Split) -> str:
    """What to do where a set has no pairs in the layout that was named, but looks like another; else ""."""
    if layout == "auto":
        return ""
    try:
        looks = _recognise(base, split)
    except InputError:
        return ""
    if looks == layout or {looks, layout} == {"plain", "hide"}:
        return ""
    return f"it looks like layout {looks}: name that, or none (--layout auto)"


def read_pair(pair: Pair) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
    """(blur, sharp), both (H, W, 3) uint8 R'G'B'. Raises UnreadableInput, and InputError where sizes differ."""
    blur, sharp = (read_picture(path, _HINT) for path in (pair.blur, pair.sharp))
    if blur.shape != sharp.shape:
        raise _differ(pair, blur.shape[1::-1], sharp.shape[1::-1])
    return blur, sharp


def _differ(pair: Pair, blur: object, sharp: object) -> InputError:
    return InputError(
        f"pair {pair.name}: {pair.blur} is {_by(blur)}, {pair.sharp} is {_by(sharp)}",
        "both sides of a pair must have one size",
    )


def _by(size: object) -> str:
    return "x".join(str(n) for n in size) if isinstance(size, tuple) else str(size)


# -- layouts ----------------------------------------------------------------------------------------------------------


def _recognise(root: Path, split: Split) -> str:
    for part in (split, "test" if split == "train" else "train"):  # a list of the other split still tells the layout
        for letter in "JR":
            if (root / f"RealBlur_{letter}_{part}_list.txt").is_file():
                return f"realblur_{letter.lower()}"
    if any(_reds_part(root, part) for part in ("train", "val")):
        return "reds"
    base = _split_folder(root, split)
    if (base / "blur").is_dir():
        return "plain"
    sequences = [p for p in _folders(base) if (p / "sharp").is_dir()]
    if sequences:
        return "gopro" if any((p / "blur").is_dir() for p in sequences) else "gopro_gamma"
    if (base / "sharp").is_dir():
        return "plain"  # so that the message names the folder that is missing
    raise InputError(f"{root} has no known layout of pairs", "it needs blur/ and sharp/, or name the layout")


def _split_folder(root: Path, split: Split) -> Path:
    """Where the pairs of a split are: its own folder, or ``root`` if pairs are right there. Never the other split's."""
    parts = [p for p in _PARTS if _holds_pairs(root / p)]
    for part in ("train",) if split == "train" else ("test", "val"):
        if part in parts:
            return root / part
    if parts and not _holds_pairs(root):
        raise _no_split(root, split, parts)
    return root


def _holds_pairs(folder: Path) -> bool:
    if not folder.is_dir():
        return False
    return any((p / side).is_dir() for p in (folder, *_folders(folder)) for side in _SIDES)


def _folders(folder: Path) -> list[Path]:
    """Folders that can be sequences or clips: no splits, and none that file managers and archives leave behind."""
    return [p for p in _own_folders(folder) if p.name not in _PARTS]


def _own_folders(folder: Path) -> list[Path]:
    return sorted(p for p in folder.iterdir() if not p.name.startswith(_FOREIGN) and p.is_dir())


def _no_split(root: Path, split: Split, parts: Iterable[str]) -> InputError:
    return InputError(f"{root} has no {split} split, only {', '.join(parts)}", "give a set that has one")


def _plain(root: Path, split: Split) -> list[Pair]:
    base = _split_folder(root, split)
    return _match(base / "blur", base / "sharp", "")


def _gopro(root: Path, split: Split, blur: str) -> list[Pair]:
    found: list[Pair] = []
    for sequence in _folders(_split_folder(root, split)):
        found += _match(sequence / blur, sequence / "sharp", f"{sequence.name}/")
    return found


def _reds_part(root: Path, part: str) -> tuple[Path, Path] | None:
    """(blur, sharp) of a part in a folder of its own or right in ``root``; None where neither of the two is there."""
    for base in (root / part, root):
        blur, sharp = base / f"{part}_blur", base / f"{part}_sharp"
        if blur.is_dir() or sharp.is_dir():
            return blur, sharp
    return None


def _reds_folders(root: Path, split: Split) -> tuple[Path, Path]:
    """(blur, sharp) of a split; val is for tests. A root that is one part itself and nothing else gives it for both."""
    part, other = ("train", "val") if split == "train" else ("val", "train")
    own = _reds_part(root, part)
    if own is not None:
        return own
    spare = _reds_part(root, other)
    if spare is None:
        raise InputError(
            f"{root} holds no {part}_blur and {part}_sharp",
            f"REDS keeps its {split} pairs in {part}/{part}_blur and _sharp",
        )
    beside = [p for p in _PARTS if any((root / n).is_dir() for n in (p, f"{p}_blur", f"{p}_sharp"))]
    if beside != [other] or spare[0].parent != root:
        raise _no_split(root, split, beside)
    return spare


def _reds(root: Path, split: Split) -> list[Pair]:
    blur, sharp = _reds_folders(root, split)
    for folder in (blur, sharp):
        if not folder.is_dir():
            raise InputError(f"{folder} is not there", "REDS keeps its pairs in train/train_blur and _sharp, val alike")
    found: list[Pair] = []
    for clip in sorted({p.name for p in (*_folders(blur), *_folders(sharp))}):
        found += _match(blur / clip, sharp / clip, f"{clip}/")
    return found


def _realblur(root: Path, split: Split, letter: str) -> list[Pair]:
    listing = root / f"RealBlur_{letter}_{split}_list.txt"
    try:
        lines = listing.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as e:
        raise UnreadableInput(
            f"list {listing} can't be read", "it comes with the set; put it beside its folders"
        ) from e
    found: dict[tuple[str, str], Pair] = {}  # a pair that is listed twice counts once
    for number, line in enumerate(lines, 1):
        text = line.strip().replace("\\", "/")  # lists made on Windows
        if not text or text.startswith("#"):
            continue
        columns = _two_paths(root, text)
        if columns is None:
            raise InputError(
                f"{listing} line {number} was not understood: {text!r}",
                "a line is two paths of pictures that are there: sharp blurred",
            )
        sharp, blur = (root / column for column in columns)
        for path in (blur, sharp):
            if not path.is_file():
                raise InputError(f"{listing} line {number} names {path}, which is not there", "complete the set")
        scene = next((p for p in Path(columns[1]).parts if p.startswith("scene")), Path(columns[1]).parent.name)
        found[columns] = Pair(f"{scene}/{_key(blur)}", blur, sharp)
    return list(found.values())


def _two_paths(root: Path, text: str) -> tuple[str, str] | None:
    """The two columns of a line; where names have spaces, those that are files below ``root``, else None."""
    gaps = list(re.finditer(r"\s+", text))
    splits = [(text[: gap.start()], text[gap.end() :]) for gap in gaps]
    if len(splits) == 1:
        return splits[0]
    columns = text.split()
    splits += [(columns[0], columns[1])] if splits else []  # further columns are left out
    return next((split for split in splits if all((root / path).is_file() for path in split)), None)


def _match(blur: Path, sharp: Path, prefix: str) -> list[Pair]:
    """Pictures of the same path in two folders, however deep."""
    if not blur.is_dir() and not sharp.is_dir():
        raise _NeitherSide(f"neither {blur} nor {sharp} is a folder", "check the folder, the layout and the split")
    for folder, other in ((blur, sharp), (sharp, blur)):
        if not folder.is_dir():
            raise InputError(
                f"{folder} is not there, {other} has no partner", "pairs are two folders of the same names"
            )
    blurred, clean = _by_stem(blur), _by_stem(sharp)
    for stem in sorted(blurred.keys() ^ clean.keys()):
        lonely = blurred.get(stem) or clean[stem]
        missing = sharp if stem in blurred else blur
        raise InputError(f"{lonely} has no partner in {missing}", "add it or take the picture away")
    return [Pair(f"{prefix}{stem}", blurred[stem], clean[stem]) for stem in sorted(blurred)]


def _by_stem(folder: Path, prefix: str = "") -> dict[str, Path]:
    """The pictures of a folder, and of those inside it, by ``prefix`` and their paths in it without a suffix."""
    found: dict[str, Path] = {}
    for path in _pictures(folder.iterdir()):
        stem = f"{prefix}{path.stem}"
        if stem in found:
            raise InputError(f"{folder} holds {found[stem].name} and {path.name}", "names must be unique")
        found[stem] = path
    for inner in _own_folders(folder):
        nested = _by_stem(inner, f"{prefix}{inner.name}/")
        if nested and inner.name in _PARTS:  # its pairs would be those of the other split, too
            raise InputError(f"{inner} is a split inside one side", "put blur/ and sharp/ into each split's folder")
        found |= nested
    return found


def _pictures(paths: Iterable[Path]) -> list[Path]:
    return sorted(p for p in paths if p.suffix.lower() in _PICTURES and not p.name.startswith(".") and p.is_file())


def _key(path: Path) -> str:
    return re.sub(r"^(blur|gt)_", "", path.stem)


# -- headers ----------------------------------------------------------------------------------------------------------


def header_size(path: Path) -> tuple[int, int] | None:
    """(width, height) from the header of a PNG (RFC 2083, 4.1.1) or JPEG (ITU-T T.81, B.2.2); None for others.

    Upright, as ``read_picture`` gives it: an orientation in EXIF counts, but for one that a PNG has behind its pixels.
    Raises UnreadableInput.
    """
    try:
        with open(path, "rb") as f:
            head = f.read(24)
            if head[:8] == b"\x89PNG\r\n\x1a\n" and len(head) == 24:
                width, height = struct.unpack(">II", head[16:24])
                return _upright(int(width), int(height), _png_exif(f))
            if head[:2] != b"\xff\xd8":
                return None
            f.seek(2)
            exif = b""
            while True:
                marker = f.read(2)
                if len(marker) < 2 or marker[0] != 0xFF:
                    return None
                code = marker[1]
                if code == 0xFF:  # fill byte
                    f.seek(-1, 1)
                    continue
                length = f.read(2)
                if len(length) < 2:
                    return None
                (size,) = struct.unpack(">H", length)
                if 0xC0 <= code <= 0xCF and code not in (0xC4, 0xC8, 0xCC):
                    frame = f.read(5)
                    if len(frame) < 5:
                        return None
                    height, width = struct.unpack(">HH", frame[1:5])
                    return _upright(int(width), int(height), exif)
                if code == 0xE1 and not exif:  # APP1 has EXIF, or XMP
                    data = f.read(max(0, size - 2))
                    exif = data[6:] if data.startswith(b"Exif\0\0") else b""
                else:
                    f.seek(size - 2, 1)
    except OSError as e:
        raise UnreadableInput(f"picture {path} can't be read: {e.strerror}") from e


def _png_exif(f: BinaryIO) -> bytes:
    """What the eXIf chunk of a PNG holds, if it stands before the pixels; reading all of a file would take long."""
    f.seek(8)
    while True:
        head = f.read(8)
        if len(head) < 8 or head[4:] in (b"IDAT", b"IEND"):
            return b""
        (length,) = struct.unpack(">I", head[:4])
        if head[4:] == b"eXIf":
            return f.read(length)
        f.seek(length + 4, 1)


def _upright(width: int, height: int, exif: bytes) -> tuple[int, int]:
    """The size as turned by the orientation in EXIF's first directory (TIFF 6.0, tag 274); 5 to 8 lie on a side."""
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(exif[:4])
    try:
        if order is not None:
            (at,) = struct.unpack_from(f"{order}I", exif, 4)
            (count,) = struct.unpack_from(f"{order}H", exif, at)
            for entry in range(at + 2, at + 2 + 12 * count, 12):
                tag, kind, _, value = struct.unpack_from(f"{order}HHIH", exif, entry)
                if (tag, kind) == (0x0112, 3):
                    return (height, width) if 5 <= value <= 8 else (width, height)
    except struct.error:  # cut short: decoders pass over it too
        pass
    return width, height
