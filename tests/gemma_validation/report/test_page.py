"""report.html: complete, self-contained, well-formed, and deaf to what a tokenizer decodes."""

from __future__ import annotations

import dataclasses
import itertools
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from example_reports import REPORTS, drifted, passed

import gemma_validation.report.page as page
from gemma_validation.findings import Report
from gemma_validation.report import html_text

VOID = {"meta"}
STYLE = Path(page.__file__).with_name("page.css").read_text(encoding="utf-8")


class Reader(HTMLParser):
    """Elements in order, and text; refuses elements that do not close in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        assert len(dict(attrs)) == len(attrs), "an attribute twice"
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.text.append(data)


def read(report: Report) -> Reader:
    return Reader(html_text(report))


@pytest.mark.parametrize("name", REPORTS)
def test_the_page_needs_nothing_beside_itself(name: str) -> None:
    reader = read(REPORTS[name])
    assert not {tag for tag, _ in reader.elements} & {"script", "link", "img", "image", "iframe", "object", "use", "a"}
    for tag, attributes in reader.elements:
        assert not {"src", "href", "srcset", "style"} & set(attributes), tag
        assert not [key for key in attributes if key.startswith("on")], tag
    assert "url(" not in STYLE
    assert "@import" not in STYLE


def test_it_is_made_for_phones_and_readers_aloud() -> None:
    reader = read(drifted())
    metas = [attributes for tag, attributes in reader.elements if tag == "meta"]
    assert {"name": "viewport", "content": "width=device-width, initial-scale=1"} in metas
    assert dict(reader.elements[0][1]) == {"lang": "en"}
    for tag, attributes in reader.elements:
        if tag == "svg":
            assert attributes.get("aria-hidden") == "true" or (attributes["role"] == "img" and attributes["aria-label"])
    levels = [int(tag[1]) for tag, _ in reader.elements if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after - before <= 1 for before, after in itertools.pairwise(levels))


def test_every_table_scrolls_in_a_box() -> None:
    text = html_text(drifted())
    assert text.count("<table>") == len(re.findall(r'<div class="box" role="region" [^>]*tabindex="0"><table>', text))
    assert text.count("<table>") > 10


def test_every_section_says_its_numbers() -> None:
    text = "".join(read(drifted()).text)
    for phrase in ("DRIFT", "exit code 6", "kl_mean of all is 0.08 nats", "bfloat16", "20,480", "2.20e-5", "1.000550"):
        assert phrase in text, phrase
    for phrase in (
        "layers.2.mlp_residual",
        "shelve.py",
        "token 17",
        "chunks of 7",
        "3.10e-6",
        "torch",
        "All stages (s)",
    ):
        assert phrase in text, phrase
    assert "4 more are in report.json." in text
    assert "/home/someone" not in text


def test_a_golden_pack_makes_lower_bounds() -> None:
    text = "".join(read(REPORTS["golden"]).text)
    assert "every KL here is a lower bound" in text
    assert "≥ 0.0011" in text
    assert "/data/packs" not in text


def test_what_is_not_finite_is_words() -> None:
    text = "".join(read(REPORTS["broken"]).text)
    assert "infinite" in text
    assert "not a number" in text
    assert "2 values are not finite" in text
    assert not re.search(r"\b(nan|inf)\b", html_text(REPORTS["broken"]), re.IGNORECASE)


def test_hostile_text_is_text() -> None:
    page_text = html_text(REPORTS["hostile"])
    assert "<script" not in page_text
    assert "<img" not in page_text
    assert not re.search(
        "[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ud800-\udfff\u202a-\u202e\u2066-\u2069\ufffe\uffff]", page_text
    )
    shown = "".join(Reader(page_text).text)
    assert "<script>alert(1)</script>" in shown
    assert "<U+202E>override" in shown
    assert "שלום עולם" in shown


def test_long_text_is_cut() -> None:
    assert len(html_text(REPORTS["hostile"])) < 1_500_000
    flips = tuple(dataclasses.replace(flip, context="x" * 100_000) for flip in drifted().flips)
    assert len(html_text(drifted())) + 10_000 > len(html_text(dataclasses.replace(drifted(), flips=flips)))


def test_missing_parts_leave_no_empty_section() -> None:
    bare = passed(checks=(), drift=(), noise_floor=(), gates=(), positions=(), flips=(), greedy=(), localisation=None)
    headings = re.findall("<h2>([^<]*)</h2>", html_text(bare))
    assert headings == ["Gates", "Checks", "Environment"]


@pytest.mark.parametrize("scheme", [0, 1], ids=["light", "dark"])
def test_colours_can_be_read(scheme: int) -> None:
    """WCAG 2 asks for 4.5 to 1 between text and its ground, and 3 to 1 for lines of a chart."""
    blocks = re.findall(r":root \{(.*?)\}", STYLE, re.DOTALL)
    colours = dict(re.findall(r"--(\w+): (#\w{6})", blocks[scheme]))
    for name in ("text", "soft", "good", "bad", "open", "s1", "s2", "s3"):
        for ground in ("page", "box"):
            assert contrast(colours[name], colours[ground]) >= 4.5, (name, ground)


def contrast(first: str, second: str) -> float:
    """https://www.w3.org/TR/WCAG22/#dfn-contrast-ratio"""
    low, high = sorted((luminance(first), luminance(second)))
    return (high + 0.05) / (low + 0.05)


def luminance(colour: str) -> float:
    parts = [int(colour[index : index + 2], 16) / 255 for index in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
