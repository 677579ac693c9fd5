"""What a comparison found: differences and notes, one line each."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(slots=True)
class VerifyReport:
    """differences: what is not as it was, one line each. notes: what changed its form and lost nothing
    by it, and what nothing here could have kept.

    frames: of the restored stream in the output. streams: of the output that have a counterpart in the source.
    """

    source: str
    output: str
    frames: int = 0
    streams: int = 0
    differences: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def same(self) -> bool:
        return not self.differences

    def differ(self, line: str) -> None:
        """Add a difference, once."""
        if line not in self.differences:
            self.differences.append(line)

    def note(self, line: str) -> None:
        """Add a note, once."""
        if line not in self.notes:
            self.notes.append(line)

    def as_dict(self) -> dict[str, Any]:
        """JSON values only."""
        return {
            "source": self.source,
            "output": self.output,
            "same": self.same,
            "frames": self.frames,
            "streams": self.streams,
            "differences": self.differences,
            "notes": self.notes,
        }
