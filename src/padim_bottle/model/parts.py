"""Which photos show the same part: they are left out of the calibration together."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from padim_bottle.errors import UserError

PARENT_FOLDER = "parent-folder"


@dataclass(frozen=True)
class Parts:
    """The part that each of N photos shows; a photo of its own part, if nothing else is known.

    Attributes:
        names: N names; photos of one name show one part.
    """

    names: tuple[str, ...]

    @classmethod
    def of_photos(cls, paths: Sequence[str], group: str | None) -> "Parts":
        """Tell the parts from the photos' paths.

        Args:
            paths: N paths.
            group: ``None``: every photo shows another part. ``parent-folder``: a folder a part. Else a regular
                expression with one group, searched for in the file name: what the group matches names the part.

        Raises:
            UserError: the expression matches nothing in a file name.
        """
        if group is None:
            return cls(tuple(map(str, range(len(paths)))))
        if group == PARENT_FOLDER:
            return cls(tuple(str(Path(path).parent) for path in paths))
        matches = [re.search(group, Path(path).name) for path in paths]
        missed = [path for path, match in zip(paths, matches, strict=True) if match is None or not match[1]]
        if missed:
            raise UserError(
                f"group: '{group}' matches nothing in the names of {len(missed)} of {len(paths)} photos, for example "
                f"{missed[0]}."
            )
        return cls(tuple(match[1] for match in matches if match))

    def __len__(self) -> int:
        """Return the number of parts M."""
        return len(set(self.names))

    def joined(self, pairs: Iterable[tuple[int, int]]) -> "Parts":
        """Return the parts after each pair of photos was found to show the same one."""
        names = list(self.names)
        for first, second in pairs:
            kept, dropped = names[first], names[second]
            names = [kept if name == dropped else name for name in names]
        return Parts(tuple(names))

    def by_size(self) -> list[torch.Tensor]:
        """Return the photos of the parts, parts of k photos as one tensor (G, k) of indices, small k first."""
        members: dict[str, list[int]] = {}
        for index, name in enumerate(self.names):
            members.setdefault(name, []).append(index)
        sizes = sorted({len(part) for part in members.values()})
        return [torch.tensor([part for part in members.values() if len(part) == size]) for size in sizes]

    def largest(self, scores: torch.Tensor) -> torch.Tensor:
        """Return the largest score of each part (M,), in the order in which the parts appear, of scores (N,)."""
        order = {name: position for position, name in enumerate(dict.fromkeys(self.names))}
        index = torch.tensor([order[name] for name in self.names], device=scores.device)
        return scores.new_full((len(order),), -torch.inf).scatter_reduce(0, index, scores, "amax")


def check_group(group: str | None) -> None:
    """Raise a UserError for a ``group`` that is neither null, parent-folder nor an expression with one group."""
    if group is None or group == PARENT_FOLDER:
        return
    try:
        groups = re.compile(group).groups
    except re.error as error:
        raise UserError(f"group: '{group}' is no regular expression ({error}).") from error
    if groups != 1:
        raise UserError(
            f"group: '{group}' has {groups} groups in brackets; it needs the one that names the part, for example "
            r"'^(\d+)_'."
        )
