"""Texts per second and core of matching and of other methods in the same run, at three densities of matches.

    python packages/curation/benchmarks/matching.py --captions captions_en.tsv.gz --wordnet /usr/share/wordnet

500,000 entries, in three ways: WordNet and rare words without the most frequent names (about 5 matches per text),
WordNet and all words of the captions (12), WordNet and the most frequent runs of one to three words (30); pairs of
WordNet's words fill up. Rates are by CPU seconds (`process_time`), medians over rounds in which the methods take turns.
Before timing, the benchmark checks that all methods agree: the table with and without verification and a dictionary of
runs on all captions (200,000 at most), pyahocorasick on its sample, the paper's loop on 2,000.
Writes `matching.json` and `matching.md` into `results/`;
about four minutes, seconds with `--quick`.
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ahocorasick
import pyarrow as pa
from repeats import NUM_RUNS, described, machine, read_captions, spread

from vfm_curation.match.token_table import TokenTable
from vfm_curation.matching import match_plain, spacing, tokenize
from vfm_curation.metadata import wordnet_entries

COMMON, RARE = 0.08, 20  # fraction of captions above which a name is left out; count up to which a word is rare
Ids = list[list[int]]


@dataclass(frozen=True)
class Size:
    """Sizes of a run."""

    entries: int = 500_000
    captions: int = 200_000
    peer_captions: int = 20_000  # for pyahocorasick and the dictionary
    loop_captions: int = 2_000  # for the paper's loop, in the sparse list
    loop_sample: int = 50  # and in the others
    rounds: int = NUM_RUNS


QUICK = Size(entries=2_000, captions=1_000, peer_captions=200, loop_captions=100, loop_sample=20, rounds=2)


def sampled(captions: Sequence[str], number: int) -> list[str]:
    """Return a sample of the captions."""
    return random.Random(0).sample(captions, min(number, len(captions)))


def entry_lists(captions: Sequence[str], wordnet: Path, size: int) -> dict[str, list[str]]:
    """Return three lists of `size` entries, by name."""
    names = list(wordnet_entries(wordnet))
    documents, runs = Counter[str](), Counter[str]()
    for caption in captions:
        tokens = tokenize(caption)
        found = [" ".join(tokens[i : i + k]) for k in (1, 2, 3) for i in range(len(tokens) - k + 1)]
        runs.update(run for run in found if all(run.split(" ")) and run.strip(",.;:?! "))
        documents.update(set(tokens))
    words = [run for run in runs if " " not in run]
    kept = [name for name in names if documents[name] <= COMMON * len(captions)]
    return {
        "WordNet and rare words": _filled([*kept, *(word for word in words if runs[word] <= RARE)], names, size),
        "WordNet and all words": _filled([*names, *words], names, size),
        "WordNet and the most frequent runs of 1 to 3": _filled(
            [*names, *(run for run, _ in runs.most_common(size))], names, size
        ),
    }


def _filled(entries: Sequence[str], names: Sequence[str], size: int) -> list[str]:
    """Return the first `size` entries, filled up with pairs of names."""
    draw, found = random.Random(0), dict.fromkeys(entries[:size])
    words = [name for name in names if " " not in name]
    while len(found) < size:
        found[f"{draw.choice(words)} {draw.choice(words)}"] = None
    return list(found)


class Dictionary:
    """The plain twin at full size: looks up every run of tokens in a dictionary."""

    def __init__(self, entries: Sequence[str]) -> None:
        self.ids = {entry: index for index, entry in enumerate(entries)}
        self.longest = max(entry.count(" ") + 1 for entry in entries)
        self.begins = {" ".join(entry.split(" ")[:k]) for entry in entries for k in range(1, entry.count(" ") + 1)}

    def __call__(self, texts: Sequence[str]) -> Iterator[set[int]]:
        """Yield the ids in each text."""
        for text in texts:
            tokens, found = tokenize(text), set[int]()
            for start in range(len(tokens)):
                run = tokens[start]
                for stop in range(start + 1, min(len(tokens), start + self.longest) + 1):
                    if run in self.ids:
                        found.add(self.ids[run])
                    if stop == len(tokens) or run not in self.begins:
                        break
                    run = f"{run} {tokens[stop]}"
            yield found


class Automaton:
    """pyahocorasick's `iter` on the spaced text, as in the paper's public code."""

    def __init__(self, entries: Sequence[str]) -> None:
        self.automaton = ahocorasick.Automaton()
        for index, entry in enumerate(entries):
            self.automaton.add_word(f" {entry} ", index)
        self.automaton.make_automaton()

    def __call__(self, texts: Sequence[str]) -> Iterator[set[int]]:
        """Yield the ids in each text."""
        for text in texts:
            yield {index for _, index in self.automaton.iter(spacing(text))}


def cpu_seconds(work: Callable[[], object]) -> float:
    """Return the CPU time of this process for a piece of work."""
    begun = time.process_time()
    work()
    return time.process_time() - begun


def run_to_end(found: Iterator[object]) -> None:
    """Consume an iterator."""
    for _ in found:
        pass


def agree(name: str, ids: Ids, twin: Iterator[set[int]] | list[list[int]]) -> None:
    """Assert that each text has the same ids."""
    for place, other in enumerate(twin):
        assert ids[place] == sorted(other), f"{name}: text {place} has {ids[place]}, not {sorted(other)}"


def measure(entries: Sequence[str], captions: Sequence[str], size: Size, num_looped: int) -> dict[str, Any]:
    """Check that all methods agree, then time them in turns."""
    texts, sample = pa.array(captions, pa.string()), captions[: size.peer_captions]
    TokenTable.build(entries[:10]).match(texts[:10])  # compiles
    build = cpu_seconds(lambda: TokenTable.build(entries))
    with tempfile.TemporaryDirectory() as folder:
        built = TokenTable.build(entries)
        built.save(Path(folder))
        table, dictionary, automaton = TokenTable.load(Path(folder)), Dictionary(entries), Automaton(entries)
        ids: Ids = table.match(texts).to_pylist()
        agree("verified", ids, table.match(texts, verify=True).to_pylist())
        agree("dictionary", ids, dictionary(captions))
        agree("pyahocorasick", ids, automaton(sample))
        looped = captions[:num_looped]
        loop = cpu_seconds(lambda: agree("loop", ids, [match_plain(text, entries) for text in looped]))
        works: dict[str, tuple[int, Callable[[], object]]] = {
            "table": (len(captions), lambda: table.match(texts)),
            "verified": (len(captions), lambda: table.match(texts, verify=True)),
            "pyahocorasick": (len(sample), lambda: run_to_end(automaton(sample))),
            "dictionary": (len(sample), lambda: run_to_end(dictionary(sample))),
        }
        seconds: dict[str, list[float]] = {name: [] for name in works}
        for _ in range(size.rounds):
            for name, (_, work) in works.items():
                seconds[name].append(cpu_seconds(work))
    rates = {name: [works[name][0] / max(1e-9, one) for one in times] for name, times in seconds.items()}
    ratios = [slow / len(sample) * len(captions) / max(1e-9, fast)
              for slow, fast in zip(seconds["pyahocorasick"], seconds["table"], strict=True)]  # fmt: skip
    return {
        "entries": len(entries),
        "matches_a_text": sum(map(len, ids)) / len(ids),
        **{f"{name}_texts_per_second": rate for name, rate in rates.items()},
        "loop_texts_per_second": [len(looped) / loop],
        "loop_texts": len(looped),
        "table_over_pyahocorasick": ratios,
        "build_seconds": build,
        "table_megabytes": table.nbytes / 1e6,
    }


def markdown(results: dict[str, dict[str, Any]], where: dict[str, object], num_captions: int) -> str:
    """Return the results in Markdown."""
    lines = [
        "| entries | matches per text | table, M/s | verified, M/s | pyahocorasick, k/s | ratio | dictionary, k/s"
        " | loop, 1/s |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, row in results.items():
        rate = {key.removesuffix("_texts_per_second"): value for key, value in row.items()}
        lines.append(
            f"| {name} | {row['matches_a_text']:.1f} | {spread(rate['table'], 1e6, 2)}"
            f" | {spread(rate['verified'], 1e6, 2)} | {spread(rate['pyahocorasick'], 1e3)}"
            f" | {spread(row['table_over_pyahocorasick'], digits=1)} | {spread(rate['dictionary'], 1e3)}"
            f" | {rate['loop'][0]:.0f} |"
        )
    worst = max(results.values(), key=lambda row: row["build_seconds"])
    return "\n".join(
        [
            f"Texts per CPU second and core, medians of {len(worst['table_over_pyahocorasick'])} rounds (smallest to"
            f" largest); {num_captions:,} captions, {worst['entries']:,} entries. All agree.",
            "",
            *lines,
            "",
            f"The table is built in at most {worst['build_seconds']:.2f} s and takes {worst['table_megabytes']:.0f} MB."
            f" {described(where)}",
            "",
        ]
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--captions", type=Path, required=True, help="gzipped table, captions in its last column")
    parser.add_argument("--wordnet", type=Path, default=Path("/usr/share/wordnet"), help="folder of WordNet's files")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results", help="folder for the results")
    parser.add_argument("--quick", action="store_true", help="small sizes, to check that it runs")
    options = parser.parse_args(arguments)
    size, where = QUICK if options.quick else Size(), machine("pyahocorasick")
    captions = sampled(read_captions(options.captions), size.captions)
    results: dict[str, dict[str, Any]] = {}
    for name, entries in entry_lists(captions, options.wordnet, size.entries).items():
        looped = size.loop_sample if results else size.loop_captions
        results[name] = measure(entries, captions, size, looped)
        print(name, results[name], flush=True)
    options.out.mkdir(parents=True, exist_ok=True)
    record = {"machine": where, "captions": len(captions), "results": results}
    (options.out / "matching.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    table = markdown(results, where, len(captions))
    (options.out / "matching.md").write_text(table, encoding="utf-8")
    print(table)


if __name__ == "__main__":
    main()
