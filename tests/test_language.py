"""The English is plain: no phrase that readers stumbled over, short sentences, headings in sentence case."""

import ast
import io
import re
import tokenize
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
QUAINT = [
    r"\bmend(s|ed|ing)?\b",  # fix
    r"\b(?i:whoever)\b",
    r"\bgo(es)? on\b|\b[Gg]oing on with\b",  # resume, continue
    r"\bone says\b",
    r"\bwhat \w+ makes of\b",
    r"(?<![Tt]here )\bis no (number|text|video|file)\b",  # is not a number
    r"\bsends? [\w ]+ away\b",
    r"\bthat which\b|\bit is to be\b",
    r"\bLeft out,",  # Default:
    r"\b(are|is) passed over\b",  # skipped
    r"\bread anew\b|\bwritten anew\b|\bcodes? [\w ]+ anew\b",
    r"\bdear(er)? or limited\b",
    r"\bwhere (there is|there are) none\b",
    r"\b[Cc]lip (ViT|B/|L/|text tower|image tower)",  # OpenAI's model is CLIP; a clip is a stretch of video
    r"\bOpenAI's [Cc]lip\b",
]
NAMES = {"Face", "Hub", "Hugging", "Mamba", "Python", "Runtime", "Space", "Suite", "Zoo"}  # in headings
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / ".github").rglob("*.md")])
PAGES = [page for page in PAGES if "_build" not in page.parts]
SOURCES = sorted(path for name in ("benchmarks", "datamodules", "docs", "hub", "lightning_modules", "zoo")
                 for path in (ROOT / name).rglob("*.py"))  # fmt: skip
OTHERS = sorted([*(ROOT / "zoo").rglob("*.yaml"), *(ROOT / "zoo").rglob("*.csv"), *(ROOT / "zoo").rglob("*.html"),
                 *(ROOT / "lightning_modules").rglob("*.html"), ROOT / "Makefile"])  # fmt: skip


def prose(page: Path) -> list[str]:
    """The text of a page or table outside blocks of code, in one piece: phrases cross lines."""
    return [re.sub(r"^\s*```.*?^\s*```$", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)]


def strings(source: Path) -> list[str]:
    """The docstrings, messages and comments of a file."""
    text = source.read_text(encoding="utf-8")
    constants = [node.value for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Constant)]
    comments = [token.string for token in tokenize.generate_tokens(io.StringIO(text).readline)
                if token.type == tokenize.COMMENT]  # fmt: skip
    return [constant for constant in constants if isinstance(constant, str)] + comments


def quaint(path: Path) -> list[str]:
    """Phrases of the list in a file, code between backticks aside."""
    texts = (strings if path.suffix == ".py" else prose)(path)
    plain = [" ".join(re.sub(r"`[^`]*`", "``", text).split()) for text in texts]
    return [found[0] for text in plain for pattern in QUAINT for found in re.finditer(pattern, text)]


@pytest.mark.parametrize("paths", [PAGES, SOURCES, OTHERS], ids=["pages", "sources", "others"])
def test_the_english_is_plain(paths):
    found = {path.relative_to(ROOT).as_posix(): quaint(path) for path in paths}
    assert len(found) > 20 and not {name: phrases for name, phrases in found.items() if phrases}


def sentences(page: Path) -> list[list[str]]:
    """The words of each sentence of a page; a clause after a colon or semicolon counts for itself."""
    lines = [line for line in prose(page)[0].splitlines() if not line.lstrip().startswith(("|", "#", "<", "!"))]
    text = re.sub(r"\]\([^)]*\)", "]", "\n".join(lines))
    return [part.split() for part in re.split(r"(?<=[.!?:;])\s+|\n\s*\n|\n\s*(?:[-*]|\d+\.) ", text) if part.strip()]


def test_sentences_are_short():
    """More than 25 words in at most a tenth of a page's sentences, and in none more than 50."""
    for page in PAGES:
        counts = [len(words) for words in sentences(page)]
        long = [count for count in counts if count > 25]
        assert len(long) <= 1 + len(counts) / 10 and max(counts, default=0) <= 50, page.relative_to(ROOT).as_posix()


def test_headings_are_in_sentence_case():
    """Capitals in the middle of a heading belong to names."""
    for page in PAGES:
        for heading in re.findall(r"^#+ (.+)$", prose(page)[0], flags=re.MULTILINE):
            words = re.findall(r"(?<![.:] )\b[A-Z][a-z]+\b", re.sub(r"^\W*(?:\d+\. )?\S+|\[[\d.]+\]", "", heading))
            assert set(words) <= NAMES, f"{page.relative_to(ROOT)}: {heading}"


def test_phrases_are_found_where_they_stand(tmp_path):
    page, source = tmp_path / "a.md", tmp_path / "a.py"
    page.write_text("It goes\non.\n```\nwhoever\n```\n`whoever`\n", encoding="utf-8")
    source.write_text('def f():\n    """Wait, whoever calls."""  # goes on\n    raise ValueError("x is no number")\n')
    assert quaint(page) == ["goes on"] and sorted(quaint(source)) == ["goes on", "is no number", "whoever"]
