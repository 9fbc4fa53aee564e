"""Bad values for every option of every command, by what the option takes."""

import argparse


# What no option takes as its value.
EMPTY = ["", " ", "\t", "\x00", "a\nb", "--"]
NOT_INTEGERS = [*EMPTY, "1.5", "1e3", "one", "0x10", "1_0", "٣", "nan", "inf", "1 2", "+5", "9" * 30, "9" * 5000]
NOT_COUNTS = [*NOT_INTEGERS, "0", "-1", "1000001"]
NOT_CHOICES = [*EMPTY, "none", "DDPM ", "ddp", "png,svg"]
NOT_REVISIONS = [*EMPTY, "a b", "../main", "a..b", "a//b", "main/", "-x", "x.lock", "~1", "a:b", "a^", "x?"]

# Values that are wrong whatever the checkpoint: dest -> values, each a list of words.
BAD: dict[str, list] = {
    "seed": [*NOT_INTEGERS, "-1", str(2**63), str(2**64)],
    "steps": NOT_COUNTS,
    "every": NOT_COUNTS,
    "seeds": NOT_COUNTS,
    "batch_size": NOT_COUNTS,
    "threads": [*NOT_COUNTS, "100000"],
    "port": [*NOT_INTEGERS, "0", "-1", "70000", "65536"],
    "guidance_scale": [*EMPTY, "inf", "-inf", "nan", "NaN", "1e999", "-1", "-0.1", "1001", "1_0", "one", "0x1", "1,5"],
    "timesteps": NOT_COUNTS,
    "explainer": [*EMPTY, "nowhere.py:f", "exits.py:f", "notes.txt", "notes.txt:f", "folder:f", ":f"],
    "judge": [*EMPTY, "nowhere.py:f", "exits.py:f", "notes.txt", "notes.txt:f", "folder:f", ":f"],
    "measure": [*EMPTY, "nowhere.py:f", "exits.py:f", "notes.txt", "notes.txt:f", "folder:f", ":f"],
    "label": EMPTY,
    "prompt": EMPTY,
    "negative_prompt": EMPTY,
    "other_prompt": EMPTY,
    "between": [*EMPTY, "seed", "LABELS", "labels,seeds"],
    "branch": [*EMPTY, "each", "nowhere"],  # without guidance there is one
    "words": [*EMPTY, []],
    "height": [*NOT_COUNTS, "70000"],
    "width": [*NOT_COUNTS, "70000"],
    "dtype": [*NOT_CHOICES, "float64", "half", "FLOAT16"],
    "other_label": EMPTY,
    "out": EMPTY,
    "mask": [*EMPTY, "nowhere.png", "folder", "notes.txt", "cut.png", "black.png", "x" * 300],
    "box": [
        ["1", "2", "3"], ["1", "2", "3", "4", "5"], ["4", "4", "4", "8"], ["8", "4", "4", "8"], ["4", "8", "8", "4"],
        ["-1", "0", "4", "4"], ["0", "0", "1.5", "4"], ["a", "b", "c", "d"], ["0", "0", "4", "70000"],
        ["", "", "", ""], ["0,0,4,4"], [],
    ],
    "layers": [*EMPTY, []],
    "ablate": [
        *EMPTY, "downs.0.3", "downs.0.3:", ":1", " :1", "downs.0.3:-1", "downs.0.3:first", "downs.0.3:1,",
        "downs.0.3:1.5", "downs.0.3:max,x", "downs.0.3:" + "9" * 30, "downs.0.3:٣", "downs.0.3:MAX",
    ],
    "switch": [*EMPTY, "2", ":", "2:", ":3", "-1:3", "1.5:3", "x:3", "2: ", "9" * 30 + ":3", "٣:3"],
    "scheduler": NOT_CHOICES,
    "format": NOT_CHOICES,
    "device": [*EMPTY, "nonsense", "cuda:99", "cpu:7", "cpu:x", "meta", "gpu", "cuda:-5"],
    "revision": NOT_REVISIONS,
    "checkpoint": [*EMPTY, "no/such/folder", "./nowhere", "folder", "notes.txt", "broken"],
    "permuted": [*EMPTY, "no/such/folder", "./nowhere", "folder", "notes.txt", "broken", "drawn-32", "drawn-text-32"],
    "concepts": [*EMPTY, "nowhere.py:f", "exits.py:f", "notes.txt", "notes.txt:f", "folder:f", ":f"],
    "checkpoints": [*EMPTY[:-1], "tiny", ["tiny", "tiny"]],
    "null": [*EMPTY, "nothing", "GAUSSIAN"],
    "name": [*EMPTY, "nonsense", "ABLATION", "abl", "all,findings"],
    "repo": [*EMPTY, "a/b/c", "a b", "-a/b", "user/", "/name", "user/na..me"],
    "message": EMPTY,
    "sample_grid": [*EMPTY, "nowhere.png", "notes.txt", "folder"],
    "push": [*EMPTY, "a/b/c", "a b", "user/"],
    "shell": [*EMPTY, "fish", "tcsh", "BASH", "powershell"],
}  # fmt: skip


def cases(parser: argparse.ArgumentParser, command: str, valid: dict[str, list[str]]) -> list[list[str]]:
    """Command lines that are wrong in one value, for every option that takes one; a new option has to be in `BAD`.

    Args:
        parser: The command's.
        command: Its name.
        valid: By dest, the words that the command needs.
    """
    lines = []
    for action in parser._actions:
        if action.nargs == 0:  # a switch takes no value
            lines.append([command, *words(valid), f"{action.option_strings[-1]}=1"])
            continue
        others = words({dest: value for dest, value in valid.items() if dest != action.dest})
        for value in BAD[action.dest]:
            values = value if isinstance(value, list) else [value]
            if not action.option_strings:
                lines.append([command, *others, *values])
            elif len(values) == 1:
                lines.append([command, *others, f"{action.option_strings[-1]}={values[0]}"])
            else:
                lines.append([command, *others, action.option_strings[-1], *values])
        if action.option_strings:
            option = action.option_strings[-1]
            lines.append([command, *words(valid), option[: len(option) - 1], "1"])  # an abbreviation
    return lines


def words(valid: dict[str, list[str]]) -> list[str]:
    return [word for value in valid.values() for word in value]
