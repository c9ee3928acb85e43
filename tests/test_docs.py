# SPDX-License-Identifier: Apache-2.0
"""The documents tell the truth: `docs/papers.md` accounts for every numbered thing of the papers and points only at
what exists, links lead somewhere, and every example in a docstring runs.
"""

import ast
import doctest
import importlib
import re
from collections import Counter
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from framecast.experiment import to_plain
from framecast.systems import SYSTEMS, entry, preset, resolve

ROOT = Path(__file__).parents[1]
PAPERS = ROOT / "docs" / "papers.md"
WALK = ROOT / "docs" / "adding_a_system.md"
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
MODULES = [  # the command line is shown by its help, not by examples
    path
    for path in sorted((ROOT / "framecast").rglob("*.py"))
    if "cli" not in path.relative_to(ROOT).parts and path.name != "__main__.py"
]


def numbered(word: str, last: int, *, prefix: str = "", without: tuple[int, ...] = ()) -> list[str]:
    return [f"{word} {prefix}{n}" for n in range(1, last + 1) if n not in without]


# What the papers number, counted in their texts. RaMViD has two versions, A and B, with the same equations.
# PVDM numbers no equation (its displays are counted) and its text has no Table 3.
EXPECTED = {
    "RaMViD": numbered("Eq.", 9) + numbered("A Table", 5) + numbered("B Table", 5) + ["A Figure 1", "B Figure 1"],
    "RVD": numbered("Eq.", 9)
    + numbered("Eq.", 8, prefix="A")
    + numbered("Algorithm", 2)
    + numbered("Table", 2)
    + numbered("Table", 1, prefix="A")
    + numbered("Figure", 4)
    + numbered("Figure", 5, prefix="A"),
    "PVDM": numbered("Display", 7)
    + numbered("Algorithm", 1)
    + numbered("Table", 5, without=(3,))
    + numbered("Figure", 5),
    "Video VQ-VAE": numbered("Eq.", 4) + numbered("Table", 6) + numbered("Figure", 5),
}
NUMBERED = re.compile(r"\b(?:[AB] )?(?:Eq\.|Display|Algorithm|Table|Figure) A?\d+")


@dataclass(frozen=True)
class Row:
    """One line of a table of `docs/papers.md`."""

    line: int
    paper: str
    item: str
    says: str
    where: str

    def __str__(self) -> str:
        return f"{self.line}-{self.item}"


def read_rows(text: str) -> list[Row]:
    """All rows of all tables that stand under a second-level heading; heads and rules are left out."""
    rows, paper = [], ""
    for number, line in enumerate(text.splitlines(), start=1):
        if line.startswith("## "):
            paper = line[3:].strip()
        if not line.startswith("|") or set(line) <= set("|- ") or line.startswith("| item |"):
            continue
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
        assert len(cells) == 3, f"papers.md:{number} has {len(cells)} cells, not 3"
        rows.append(Row(number, paper, *cells))
    return rows


ROWS = read_rows(PAPERS.read_text(encoding="utf-8")) if PAPERS.is_file() else []


def quoted(cell: str) -> list[str]:
    """What stands in backticks."""
    return re.findall(r"`([^`]+)`", cell)


def is_command(token: str) -> bool:
    return token.startswith("framecast ")


def split_place(token: str) -> tuple[str, str]:
    """`path::name` as path and name; a bare path has no name."""
    path, _, name = token.partition("::")
    return path, name


def pointers(where: str) -> list[tuple[str, str]]:
    """All (path, name) of a cell: `path`, `path::name`, and names in backticks that follow a path."""
    found: list[tuple[str, str]] = []
    for token in quoted(where):
        if is_command(token):
            continue
        if "/" in token:
            found.append(split_place(token))
        else:
            assert found, f"`{token}` follows no path"
            found.append((found[-1][0], token))
    return found


@cache
def defined(path: Path) -> frozenset[str]:
    """Names a Python file defines: functions, classes, variables, and one level inside classes as `Class.name`."""

    def names(body: list[ast.stmt], owner: str) -> list[str]:
        out = []
        for node in body:
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
                out.append(owner + node.name)
                if isinstance(node, ast.ClassDef):
                    out += names(node.body, f"{owner}{node.name}.")
            elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                out.append(owner + node.target.id)
            elif isinstance(node, ast.Assign):
                out += [owner + target.id for target in node.targets if isinstance(target, ast.Name)]
        return out

    return frozenset(names(ast.parse(path.read_text(encoding="utf-8")).body, ""))


@pytest.mark.parametrize("paper", EXPECTED)
def test_every_numbered_item_of_a_paper_has_one_row(paper):
    found = Counter(name for row in ROWS if row.paper == paper for name in NUMBERED.findall(row.item))
    assert found == Counter(EXPECTED[paper])


def test_all_tables_stand_under_a_paper():
    assert {row.paper for row in ROWS} == set(EXPECTED)


@pytest.mark.parametrize("row", ROWS, ids=str)
def test_row_says_where_or_why_not(row):
    assert row.item and row.says
    if row.where.startswith("not built"):
        assert row.where == "not built yet" or re.fullmatch(r"not built, because \S.+", row.where)
    else:
        assert any(is_command(token) or "/" in token for token in quoted(row.where)), "neither a place nor a status"
        assert "not built" not in row.where


@pytest.mark.parametrize("row", [row for row in ROWS if pointers(row.where)], ids=str)
def test_row_points_at_what_exists(row):
    for path, name in pointers(row.where):
        assert (ROOT / path).exists(), f"papers.md:{row.line} points at {path}, which is not there"
        if name:
            assert name in defined(ROOT / path), f"papers.md:{row.line}: {path} defines no {name}"


def test_pointers_understand_both_spellings():
    assert pointers("`a/b.py::f`, `g` and `framecast demo`") == [("a/b.py", "f"), ("a/b.py", "g")]


FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", flags=re.MULTILINE | re.DOTALL)


def prose(page: Path) -> str:
    """A page without its code blocks."""
    return FENCE.sub("", page.read_text(encoding="utf-8"))


def commands(page: Path) -> list[str]:
    """Every command in backticks, and every line of a code block that begins with `framecast`."""
    blocks = "".join(body for _, body in FENCE.findall(page.read_text(encoding="utf-8"))).replace("\\\n", " ")
    shown = [line.strip().removeprefix("$ ") for line in blocks.splitlines()]
    return [command for command in quoted(prose(page)) + shown if is_command(command)]


COMMANDS_SHOWN = sorted({(page, command) for page in PAGES for command in commands(page)})


@pytest.mark.parametrize("page, command", COMMANDS_SHOWN, ids=lambda x: x if isinstance(x, str) else x.name)
def test_shown_command_is_real(page, command):
    if not (ROOT / "framecast" / "cli" / "main.py").is_file():
        pytest.skip("the command line is not there yet")
    main = importlib.import_module("framecast.cli.main")
    words = command.split(" #")[0].replace("…", "").split()[1:]
    if words[0].startswith("-"):
        return
    name = " ".join(words[:2]) if " ".join(words[:2]) in main.COMMANDS else words[0]
    assert name in main.COMMANDS, f"{page.name} shows `{command}`: there is no such command"
    rest = words[len(name.split()) :]
    if rest:  # a bare name in prose is no complete command line
        parsing = importlib.import_module("framecast.cli.parsing")
        parsing.parse(name, resolve(f"framecast.cli.{main.COMMANDS[name][0]}"), rest)
    for word in rest:
        if word.partition("/")[0] in SYSTEMS:
            preset(word.partition(":")[0])  # efficiency takes PRESET:STEPS


def setting_keys(plain: dict[str, Any], prefix: str = "") -> set[str]:
    keys = {prefix + key for key in plain}
    return keys.union(*(setting_keys(v, f"{prefix}{k}.") for k, v in plain.items() if isinstance(v, dict)))


@pytest.mark.parametrize("page", sorted((ROOT / "docs" / "systems").glob("*.md")), ids=lambda p: p.name)
def test_settings_on_a_systems_page_exist(page):
    known = setting_keys(to_plain(resolve(entry(page.stem).experiment)()))
    shown = [token.split("=")[0] for token in quoted(prose(page))]
    shown = [token for token in shown if re.fullmatch(r"(data|model|stages|sample)(\.\w+)+", token)]
    assert shown and set(shown) <= known, set(shown) - known


LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)[^)]*\)|(?:src|href|srcset)=\"([^\"]+)\"")


def slug(heading: str) -> str:
    """The anchor of a heading."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


def anchors(page: Path) -> set[str]:
    return {slug(line.lstrip("#")) for line in page.read_text(encoding="utf-8").splitlines() if line.startswith("#")}


def broken_links(page: Path) -> list[str]:
    broken = []
    for match in LINK.finditer(prose(page)):
        link = match.group(1) or match.group(2)
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        if not target.exists() or (anchor and target.suffix == ".md" and anchor not in anchors(target)):
            broken.append(link)
    return broken


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_relative_links_lead_somewhere(page):
    assert broken_links(page) == []


def test_a_broken_link_is_seen(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("# Top\n[a](gone.md) [b](#top) [c](#bottom) [d](https://example.org/x) ![e](page.md)\n")
    assert broken_links(page) == ["gone.md", "#bottom"]


@pytest.mark.parametrize(
    "block", [body for language, body in FENCE.findall(WALK.read_text(encoding="utf-8")) if language == "python"]
)
def test_the_walk_through_shows_the_tested_toy(block):
    assert block in (ROOT / "tests" / "toy.py").read_text(encoding="utf-8")


def import_or_skip(path: Path):
    name = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("framecast"):
            raise
        pytest.skip(f"{error.name} is not installed")


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(ROOT / "framecast")))
def test_examples_in_docstrings_run(path, tmp_path, monkeypatch):
    module = import_or_skip(path)
    monkeypatch.chdir(tmp_path)
    failed, _ = doctest.testmod(module, optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    assert failed == 0


def test_some_docstrings_have_examples():
    assert any(">>> " in path.read_text(encoding="utf-8") for path in MODULES)
