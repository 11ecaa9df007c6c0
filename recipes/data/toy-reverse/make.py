"""Makes the files of this folder: strings of 1 to 20 symbols out of 20, and the same reversed.

    python make.py

Lengths are drawn uniformly, but no string stands twice in the three files together: the 20 of one
symbol are all in train, which is made first.
"""

import random
from pathlib import Path

SYMBOLS = "abcdefghijklmnopqrst"
SIZES = {"train": 60_000, "dev": 500, "test": 500}


def main() -> None:
    """Writes SPLIT.source and SPLIT.target beside this file."""
    generator = random.Random(2014)  # noqa: S311 - the same files each time
    seen: set[str] = set()
    for split, size in SIZES.items():
        strings: list[str] = []
        while len(strings) < size:
            string = " ".join(generator.choices(SYMBOLS, k=generator.randint(1, 20)))
            if string not in seen:
                seen.add(string)
                strings.append(string)
        folder = Path(__file__).parent
        (folder / f"{split}.source").write_text("".join(f"{each}\n" for each in strings))
        (folder / f"{split}.target").write_text("".join(f"{each[::-1]}\n" for each in strings))


if __name__ == "__main__":
    main()
