"""What tests read out of drawings and descriptions."""

import re


def passes_in(drawing: str) -> list[str]:
    """The whole network, once for each kind of pass."""
    whole = re.split(r"^[A-Z]\w+: [a-z]", drawing, maxsplit=1, flags=re.MULTILINE)[0]
    return re.split(r"^In masked passes.*\n", whole, flags=re.MULTILINE)


def layers_in(drawing: str) -> list[str]:
    """Names of the layers that stand on the stream of one pass, ranges spelt out, in order."""
    names = []
    layers = r"^ ((?:[a-z_]+\.|\d+\.)*?[a-z_]*)(\d*)(?:-(\d+))?  +[\dA-Z]"
    for stem, first, last in re.findall(layers, drawing, re.MULTILINE):
        names += [f"{stem}{number}" for number in range(int(first), int(last or first) + 1)] if first else [stem]
    return names


def links_in(drawing: str) -> list[tuple[str, str, str]]:
    """Source, target and words of each link of one pass, in order of the targets, found by following the lines."""
    rows = [line.ljust(120) for line in drawing.splitlines()]

    def place_at(row: int) -> str:
        """The layer, the operation with what it takes, or the input that stands in a row or in the first above."""
        while re.match(r" [│├]|\s*$", rows[row]):
            row -= 1
        return re.match(r" ?(\([^a-z]+\)(?: \w+)*|\S+)", rows[row])[1]

    links = []
    for end, line in enumerate(rows):
        for corner in [place for place, sign in enumerate(line) if sign in "┘┴"]:
            words = re.search("◄ ?([^─]*?) ?─", line)[1]
            start = next(row for row in range(end - 1, -1, -1) if rows[row][corner] in "┐┬")
            assert all(rows[row][corner] == "│" for row in range(start + 1, end))
            assert rows[start].startswith(" ├─")
            links.append((place_at(start), place_at(end), words))
    return links


def section(text: str, title: str) -> str:
    """A section's lines, joined to one."""
    found = re.search(rf"^{re.escape(title)}\n(.*?)\n\n", text, re.MULTILINE | re.DOTALL)
    assert found is not None
    return " ".join(found[1].split())
