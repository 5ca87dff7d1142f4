"""Random mutations of bytes, text, nested values and command lines."""

import random
from typing import Any

import torch

WORDS = [
    *(
        "",
        "null",
        "~",
        "true",
        "nan",
        "inf",
        "-inf",
        "0",
        "-1",
        "1e400",
        "9" * 40,
        "0x1f",
        "1_000",
        "2024-13-45",
        "12:30:45",
    ),
    *("[]", "{}", "[[[[1]]]]", "{a: {b: {c: 1}}}", "&a [*a]", "*missing", "<<: {a: 1}", "!!bool foo", "!!float foo"),
    *(
        "!!python/object/apply:os.system [id]",
        "!!binary x",
        "!!set {a, b}",
        "|\n  text",
        ">-",
        "'",
        '"',
        "%",
        "@",
        "`",
        "# x",
    ),
    *(
        "[" * 3000,
        "[-" * 3000,
        "a" * 6000,
        "\u202e\x1b]0;x\x07",
        "é\u0000",
        "../../etc/passwd",
        "/dev/null",
        ".",
        "~/x",
        "$(date)",
    ),
]
NUMBERS = [0, 1, -1, 2**31, 2**63, -(2**63), 10**30, 0.5, -0.0, 1e-300, 1e308, float("nan"), float("inf")]


def mutated_bytes(data: bytes, draw: random.Random) -> bytes:
    """Returns the bytes with one to eight mutations: flips, cuts, copies, noise."""
    result = bytearray(data)
    for _ in range(draw.choice([1, 1, 1, 2, 4, 8])):
        size = len(result)
        start = draw.randrange(size + 1)
        length = min(draw.choice([1, 1, 2, 4, 16, 256, 4096]), size - start)
        kind = draw.randrange(7)
        if kind == 0 and size:
            result[draw.randrange(size)] ^= 1 << draw.randrange(8)
        elif kind == 1:
            result[start : start + length] = draw.choice([b"\0", b"\xff", b"\x7f", b"\x80"]) * length
        elif kind == 2:
            del result[start : start + length]
        elif kind == 3:
            result[start:start] = draw.randbytes(length or 4)
        elif kind == 4:
            result[start:start] = result[start : start + length] * draw.choice([1, 2, 20])
        elif kind == 5:
            del result[draw.randrange(size + 1) :]
        else:
            result[start : start + 4] = draw.choice(
                [b"\xff\xff\xff\x7f", b"\xff\xff\xff\xff", b"\0\0\0\x80", b"\1\0\0\0"]
            )
    return bytes(result)


def mutated_text(text: str, draw: random.Random) -> bytes:
    """Returns lines of text, encoded, with one to four mutations of lines, words and the encoding."""
    lines = text.splitlines()
    for _ in range(draw.choice([1, 1, 2, 4])):
        place = draw.randrange(len(lines))
        line, kind = lines[place], draw.randrange(8)
        if kind <= 2 and ":" in line:
            lines[place] = f"{line.split(':')[0]}: {draw.choice(WORDS)}"
        elif kind == 3:
            lines.insert(place, draw.choice(lines))
        elif kind == 4:
            del lines[place : place + draw.choice([1, 1, 3])]
            lines = lines or [""]
        elif kind == 5:
            lines[place] = " " * draw.randrange(6) + line.strip()
        elif kind == 6:
            lines[place] = draw.choice(WORDS) + draw.choice(["", "\t", ": "]) + line
        else:
            words = line.split() or [""]
            words[draw.randrange(len(words))] = draw.choice([*WORDS, *map(str, NUMBERS)])
            lines[place] = draw.choice([" ", "\t"]).join(words)
    data = "\n".join(lines).encode("utf-8", "surrogatepass")
    how = draw.randrange(20)
    if how == 0:
        return data.decode("utf-8", "ignore").encode(draw.choice(["utf-16", "utf-32", "utf-8-sig"]))
    return mutated_bytes(data, draw) if how == 1 else data


def mutated_value(value: Any, draw: random.Random) -> Any:
    """Returns a copy of nested dicts and lists in which one to three nodes are replaced, removed or renamed."""
    for _ in range(draw.choice([1, 1, 2, 3])):
        value = _mutated_once(value, draw)
    return value


def _mutated_once(value: Any, draw: random.Random) -> Any:
    if isinstance(value, dict) and value and draw.random() < 0.85:
        key = draw.choice(list(value))
        result = dict(value)
        kind = draw.randrange(8)
        if kind == 0:
            del result[key]
        elif kind == 1:
            result[draw.choice(["", "x", 5, None, "module." + str(key), str(key).upper(), "\x1b[31m" + str(key)])] = (
                result.pop(key)
            )
        else:
            result[key] = _mutated_once(value[key], draw)
        return result
    if isinstance(value, (list, tuple)) and value and draw.random() < 0.7:
        place = draw.randrange(len(value))
        items = list(value)
        items[place] = _mutated_once(items[place], draw)
        return type(value)(items) if type(value) in (list, tuple) else items
    return _other(value, draw)


def _other(value: Any, draw: random.Random) -> Any:
    if isinstance(value, torch.Tensor) and draw.random() < 0.7:
        tensors = [
            value.flatten()[:0],
            value.double(),
            value.flatten(),
            value.reshape(1, *value.shape),
            value * float("nan"),
        ]
        tensors += [
            value.to(torch.int64),
            value.bool(),
            value.half(),
            torch.tensor(1.0).expand(10**5, 10**5),
            value.to_sparse(),
        ]
        return draw.choice([*tensors, value.to(torch.complex64)])
    looped: dict[str, Any] = {}
    looped["x"] = looped
    deep: list[Any] = []
    for _ in range(draw.choice([10, 900])):
        deep = [deep]
    plain = [
        None,
        True,
        "",
        "x" * 5000,
        "\x1b]0;x\x07",
        b"\xff",
        [],
        {},
        (),
        set(),
        [1, [2]],
        {"a": {}},
        looped,
        deep,
        1j,
    ]
    return draw.choice([*plain, *NUMBERS, *WORDS, torch.zeros(3), torch.zeros(0), torch.device("meta"), torch.float16])


def mutated_command(arguments: list[str], options: list[str], draw: random.Random) -> list[str]:
    """Returns a command line with one to three arguments replaced, added, removed or doubled."""
    result = list(arguments)
    words = [word.replace("\0", "%00") for word in [*WORDS, *map(str, NUMBERS)]]
    for _ in range(draw.choice([1, 1, 2, 3])):
        place = draw.randrange(len(result) + 1)
        kind = draw.randrange(6)
        if kind == 0:
            result[place:place] = [draw.choice(options), draw.choice(words)]
        elif kind == 1:
            result[place:place] = ["--opts", draw.choice(options).lstrip("-"), draw.choice(words)]
        elif kind == 2 and place < len(result):
            del result[place]
        elif kind == 3 and place < len(result):
            result[place] = draw.choice(words)
        elif kind == 4 and place < len(result):
            result[place] = "".join(draw.sample(result[place], len(result[place])))[:300]
        else:
            result.insert(place, draw.choice([*options, *words]))
    return result
