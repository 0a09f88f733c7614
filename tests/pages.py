"""Pages of HTML as a browser without network sees them."""

import base64
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser

VOID = {"meta", "img", "br", "hr", "link", "input"}


class Page(HTMLParser):
    """A page that is read to its end: tags must be balanced.

    Attributes
    ----------
    pictures
        The content of every picture; all are part of the page.
    references
        What the page refers to besides.
    text
        What is to be read.
    """

    def __init__(self, path):
        super().__init__()
        self.pictures, self.references, self._words, self._open = [], [], [], []
        self.feed(path.read_text("utf-8"))
        self.close()
        assert self._open == []

    @property
    def text(self):
        return " ".join(" ".join(self._words).split())

    def handle_starttag(self, tag, attrs):
        if tag not in VOID:
            self._open.append(tag)
        for name, value in attrs:
            if name == "src" and value.startswith("data:image/png;base64,"):
                self.pictures.append(base64.b64decode(value.split(",")[1], validate=True))
            elif name in ("src", "href", "srcset", "action", "data"):
                self.references.append(value)

    def handle_endtag(self, tag):
        assert self._open.pop() == tag, f"</{tag}> where another tag is open"

    def handle_data(self, data):
        if self._open[-1:] != ["style"]:
            self._words.append(data)


def whole_page(path):
    """Read a page that needs no other file."""
    page = Page(path)
    assert page.references == []
    assert all(png.startswith(b"\x89PNG\r\n") for png in page.pictures)
    return page


def browser():
    """Name of a browser that can be run without a screen, or None."""
    names = ("chromium", "chromium-browser", "google-chrome")
    return next((found for name in names if (found := shutil.which(name))), None)


def shown(path, width):
    """Open a page in a browser; return how wide it is, and the width of every picture.

    A picture that cannot be decoded has none.
    """
    script = (
        "<script>addEventListener('load', () => {document.body.textContent = JSON.stringify("
        "{width: document.documentElement.scrollWidth, "
        "pictures: [...document.images].map(one => one.clientWidth * (one.naturalWidth > 0)), "
        "tables: [...document.querySelectorAll('table')].map(one => one.clientWidth)})})</script>"
    )
    probe = path.with_name("probe.html")
    probe.write_text(path.read_text("utf-8").replace("</body>", script + "</body>"), "utf-8")
    options = ("--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=5000")
    done = subprocess.run(
        [browser(), *options, f"--window-size={width},1000", "--dump-dom", probe.as_uri()],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    return json.loads(re.search("<body>(.*)</body>", done.stdout, re.DOTALL)[1])
