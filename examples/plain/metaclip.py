"""MetaCLIP on one page: keep captions that contain known words, and few of those whose words are all common.

    python examples/plain/metaclip.py pairs.tar metadata.txt --tail-share 0.06

The captions are the `txt` files of a WebDataset tar, or a file with a name, a tab and a caption in each line. The
metadata has an entry in each line: the paper takes 500,000 words and titles from WordNet and Wikipedia. Kept captions
are written one in each line, with their names: `clip.py pairs.tar --kept kept.tsv` trains on them.

The stages `curation.match` and `curation.balance` of vfm compute the same, on billions of texts in many processes and
resumable: tests/test_plain.py runs both on one tar and compares the entries, counts, probabilities and draws.

Papers: Xu et al. 2023, Demystifying CLIP Data (arXiv:2309.16671); Chuang et al. 2025, MetaCLIP 2 (arXiv:2507.22062).
"""

import argparse
import hashlib
import math
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

MARKS, BLANKS = ",.;:?!`", "\t\n\r"
WORD = 2**64 - 1  # the largest number of 64 bits

# Matching: part 1 of algorithm 1


def spaced(text: str) -> str:
    """Return a text with a space at both ends and around each mark, so that a word is what is between two spaces."""
    text = f" {text} "
    for mark in MARKS:
        text = text.replace(mark, f" {mark} ")
    for blank in BLANKS:
        text = text.replace(blank, " ")
    return text


def match(text: str, ids: dict[str, int], longest: int) -> list[int]:
    """Return the entries in a text, ascending; one that occurs twice counts once.

    An entry is in a text if it is a substring of the spaced text with a space on either side (section 3.2), which is
    case-sensitive and counts overlapping entries. Trying 500,000 entries for each text takes 38 ms. Looking up every
    run of words of the text finds the same entries, in a time that does not depend on their number.

    Args:
        text: a caption.
        ids: the number of each entry.
        longest: number of words of the longest entry.
    """
    words = spaced(text).split(" ")[1:-1]  # two spaces in a row hold an empty word, so `a b` is not in `a, b`
    runs = (" ".join(words[start : start + size]) for size in range(1, longest + 1) for start in range(len(words)))
    return sorted({ids[run] for run in runs if run in ids})


def count_texts(matches: list[list[int]], num_entries: int) -> np.ndarray:
    """Count the texts that contain each entry, (num_entries,)."""
    return np.bincount(np.array([entry for entries in matches for entry in entries], int), minlength=num_entries)


# Balancing: part 2 of algorithm 1


def entry_probability(counts: np.ndarray, t: float) -> np.ndarray:
    """Return the probability with which an entry keeps each of its texts, (num_entries,).

    Entries with at most t texts (the tail) keep all of them; more frequent ones (the head) keep t on average.
    """
    return t / np.maximum(counts, t)


def text_probability(entries: list[int], probability: np.ndarray) -> float:
    """Return the probability that a text is kept; 0 for a text without entries.

    In algorithm 1 each entry of the text draws by its own probability, and the first success keeps the text.
    """
    missed = math.prod(1.0 - probability[entry] for entry in entries)
    return 1.0 - missed


def t_of_tail_share(counts: np.ndarray, share: float) -> float:
    """Return the t below which entries have this share of all matches.

    The share is 6 % in both sets of the paper: t is 20,000 for 400 million pairs, and 170,000 for 2.5 billion
    (section 4). MetaCLIP 2 gives every language the t of the same share.
    """
    if not counts.any():
        return 1.0
    sizes, repeats = np.unique(counts[counts > 0], return_counts=True)
    cumulative = np.cumsum(sizes * repeats)
    return float(np.interp(share, cumulative / cumulative[-1], sizes))


# The draw: by a hash of a text's name and the seed, so that it does not depend on the order of the texts


def splitmix64(state: int) -> int:
    """Mix 64 bits (Steele et al. 2014, Fast Splittable Pseudorandom Number Generators)."""
    state = (state + 0x9E3779B97F4A7C15) & WORD
    state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & WORD
    state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & WORD
    return state ^ (state >> 31)


def hashed(string: str) -> int:
    """Hash the bytes of a string, eight at a time."""
    data = string.encode()
    state = splitmix64(len(data))
    for start in range(0, len(data), 8):
        state = splitmix64(state ^ int.from_bytes(data[start : start + 8], "little"))
    return state


def uniform(name: str, seed: int, language: str = "en") -> float:
    """Return a random number in [0, 1) for the caption of a pair."""
    uid = hashlib.blake2b(name.encode(), digest_size=16).hexdigest()
    key = splitmix64(hashed(uid) ^ (hashed(language) * 0xD1342543DE82EF95 & WORD))  # other languages, other draws
    return (splitmix64(key ^ splitmix64(seed)) >> 11) * 2.0**-53


# Both parts together


@dataclass
class Curated:
    """The result of a curation; lists have an element for each text."""

    matches: list[list[int]]  # entries in each text
    counts: np.ndarray  # texts of each entry, (num_entries,)
    t: float
    probability: list[float]  # of keeping each text
    kept: list[bool]


def curate(
    captions: list[tuple[str, str]],
    entries: list[str],
    *,
    t: float | None = None,
    tail_share: float = 0.06,
    seed: int = 0,
) -> Curated:
    """Match captions, as (name, text), with entries, and draw which ones are kept; by default t is that of a share."""
    ids = {entry: number for number, entry in enumerate(entries)}
    longest = max(len(entry.split(" ")) for entry in entries)
    matches = [match(text, ids, longest) for _, text in captions]
    counts = count_texts(matches, len(entries))
    t = t or t_of_tail_share(counts, tail_share)
    of_entries = entry_probability(counts, t)
    probability = [text_probability(matched, of_entries) for matched in matches]
    kept = [uniform(name, seed) < chance for (name, _), chance in zip(captions, probability, strict=True)]
    return Curated(matches, counts, t, probability, kept)


# The data and the command


def read_captions(path: Path) -> Iterator[tuple[str, str]]:
    """Yield the name and the caption of each pair of a tar, or of each line of a file."""
    if path.suffix != ".tar":
        for line in path.read_text().splitlines():
            name, _, text = line.partition("\t")
            yield name, text.strip()
        return
    with tarfile.open(path) as tar:
        for member in tar:
            if member.name.endswith(".txt"):
                yield member.name.removesuffix(".txt"), tar.extractfile(member).read().decode().strip()


def main() -> None:
    """Curate the captions of a tar or a file."""
    parser = argparse.ArgumentParser(description="Curate captions by metadata.")
    parser.add_argument("captions", type=Path, help="WebDataset tar, or lines of a name, a tab and a caption")
    parser.add_argument("metadata", type=Path, help="one entry in each line")
    parser.add_argument("--t", type=float, help="number of texts up to which an entry keeps all")
    parser.add_argument("--tail-share", type=float, default=0.06, help="instead of t: the tail's share of the matches")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("kept.tsv"))
    args = parser.parse_args()
    captions, entries = list(read_captions(args.captions)), args.metadata.read_text().splitlines()
    result = curate(captions, entries, t=args.t, tail_share=args.tail_share, seed=args.seed)
    num_matched, num_kept = sum(map(bool, result.matches)), sum(result.kept)
    if not num_matched:
        parser.error(f"{args.metadata}: expected entries that a caption contains, got none of {len(captions)} captions")
    print(f"{len(captions)} captions, {num_matched} with an entry, t = {result.t:g}")
    print(f"{num_kept} kept ({sum(result.probability):.1f} expected): {args.out}")
    rows = (
        f"{name}\t{' '.join(text.split())}\n" for (name, text), kept in zip(captions, result.kept, strict=True) if kept
    )
    args.out.write_text("".join(rows))


if __name__ == "__main__":
    main()
