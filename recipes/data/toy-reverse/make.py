"""Makes the files of this folder: strings of 1 to 20 symbols out of 20, and the same reversed.

    python make.py

Lengths of dev and test are drawn uniformly; train has as many again of the longest as make up for
there being nothing longer to learn from. No string stands twice in the three files together: the 20
of one symbol are all in train, which is made first.
"""

import random
from pathlib import Path

SYMBOLS = "abcdefghijklmnopqrst"
LONGEST = 20
SIZES = {"train": 60_000, "dev": 500, "test": 500}


def main() -> None:
    """Writes SPLIT.source and SPLIT.target beside this file."""
    generator = random.Random(2014)  # noqa: S311 - the same files each time
    seen: set[str] = set()
    for split, size in SIZES.items():
        strings: list[str] = []
        drawn_up_to = LONGEST + 3 if split == "train" else LONGEST
        while len(strings) < size:
            length = min(LONGEST, generator.randint(1, drawn_up_to))
            string = " ".join(generator.choices(SYMBOLS, k=length))
            if string not in seen:
                seen.add(string)
                strings.append(string)
        folder = Path(__file__).parent
        (folder / f"{split}.source").write_text("".join(f"{each}\n" for each in strings))
        (folder / f"{split}.target").write_text("".join(f"{each[::-1]}\n" for each in strings))


if __name__ == "__main__":
    main()
