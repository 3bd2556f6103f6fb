"""The entries of a folder of images, numbered in the order of listing, and their account for the ledger."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Sequence

import numpy as np

from vfm.base import UserError
from vfm.data.ledger.account import USED, Account
from vfm.data.samples.images import IMAGE_EXTENSIONS
from vfm.data.samples.sample import CURES
from vfm.storage import files


class FolderListing:
    """The files below a folder and the links to folders. Hidden ones are accounted for at once and left out.

    Attributes:
        names: The files.
        links: The links to folders.
    """

    def __init__(self, folder: str, account: Account | None = None) -> None:
        """List a folder."""
        self.root = folder.rstrip("/")
        self.account = account or Account(folder, "entries")
        links: list[str] = []
        devices: list[str] = []
        names = list(files.walk(folder, links, devices))
        num_entries = len(names) + len(links)
        self.names, self._numbers = self._visible(names, 0)
        self.links, self._link_numbers = self._visible(links, len(names))
        if devices:
            self.account.leave(num_entries, num_entries + len(devices), "no_file")
        self._size = num_entries + len(devices)
        self._given = bytearray(len(self.names))

    def _visible(self, names: list[str], first: int) -> tuple[list[str], Sequence[int]]:
        """Account for hidden names, and return the others with their numbers among all entries."""
        hidden = [number for number, name in enumerate(names, first) if name[0] == "." or "/." in name]
        for number in hidden:
            self.account.leave(number, number + 1, "hidden")
        numbers = range(first, first + len(names))
        if not hidden:
            return names, numbers
        visible = np.setdiff1d(numbers, hidden)
        return [names[number - first] for number in visible.tolist()], array("q", visible.tobytes())

    def path(self, name: str) -> str:
        """Join the folder and a name."""
        return f"{self.root}/{name}"

    def images(self) -> list[tuple[int, str]]:
        """List the images, of which there must be at least one, with their indices among the names.

        Raises:
            UserError: If there is none.
        """
        images = [(index, name) for index, name in enumerate(self.names) if extension(name) in IMAGE_EXTENSIONS]
        if not images and self.links:
            more = f"{self.links[0]} is a link to a folder{CURES['linked_folder']}"
            raise UserError(f"{self.root}: no images found; {more}")
        if not images:
            raise UserError(f"{self.root}: no images found ({', '.join(IMAGE_EXTENSIONS)})")
        return images

    def beside(self, extensions: Sequence[str]) -> dict[str, int]:
        """Map the names with one of these extensions to their indices."""
        return {name: index for index, name in enumerate(self.names) if extension(name) in extensions}

    def give(self, indices: Iterable[int]) -> None:
        """Account for names as parts of the current sample. A name that belongs to several is part of the first."""
        for index in indices:
            if not self._given[index]:
                self._given[index] = True
                number = self._numbers[index]
                self.account.give(number, number + 1)

    def give_link(self, index: int) -> None:
        """Account for a link to a folder as a bad sample."""
        self.account.give(self._link_numbers[index], self._link_numbers[index] + 1)

    def leave_link(self, index: int) -> None:
        """Account for a link to a folder that is not a sample here."""
        self.account.leave(self._link_numbers[index], self._link_numbers[index] + 1, "linked_folder")

    def use(self, index: int) -> None:
        """Account for a file whose samples are in another account."""
        self._given[index] = True
        self.account.leave(self._numbers[index], self._numbers[index] + 1, USED)

    def finish(self) -> None:
        """Account for the names that belong to no sample."""
        for index in np.flatnonzero(np.frombuffer(self._given, dtype=np.uint8) == 0).tolist():
            number = self._numbers[index]
            self.account.leave(number, number + 1, "not_read")
        self.account.size = self._size


def shards_in_folder(folder: str, shards: Sequence[str]) -> Account:
    """Create the account of a folder in which some files are shards."""
    listing = FolderListing(folder)
    paths = set(shards)
    for index, name in enumerate(listing.names):
        if listing.path(name) in paths:
            listing.use(index)
    for index in range(len(listing.links)):
        listing.leave_link(index)
    listing.finish()
    return listing.account


def extension(name: str) -> str:
    """Find the extension of a file's name, in lower case.

    A name that begins with its only dot has none.
    """
    stem, dot, ending = name.rpartition(".")
    if not dot or not stem or "/" in ending:
        return ""
    return ending.lower()


def without_extension(name: str) -> str:
    """Remove the extension of a name."""
    return name.rpartition(".")[0]
