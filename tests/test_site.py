"""The documentation site: no warning, no dead link, and a browser shows it without an error."""

import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import pytest

ROOT = Path(__file__).parents[1]
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
INDEX = (ROOT / "docs" / "index.md").read_text()


def listed(text):
    """The pages in the tables of contents of the site."""
    trees = re.findall(r"```{toctree}\n(.*?)```", text, re.DOTALL)
    lines = (line for tree in trees for line in tree.splitlines())
    return {f"{line}.md" for line in lines if line and not line.startswith(":")}


def test_those_who_browse_the_files_find_the_same_pages():
    links = re.findall(r"\]\(([^)#\s]+\.md)[^)]*\)", (ROOT / "docs" / "README.md").read_text())
    assert listed(INDEX) == set(links)
    here = {path.name for path in (ROOT / "docs").glob("*.md")} - {"README.md", "index.md"}
    assert here <= listed(INDEX)


class Page(HTMLParser):
    """Where a page leads, and where one can be led in it."""

    def __init__(self, path):
        super().__init__()
        self.links, self.anchors = [], set()
        self.feed(path.read_text())

    def handle_starttag(self, tag, attributes):
        for name, value in attributes:
            if name == "id":
                self.anchors.add(value)
            if name in ("href", "src") and value:
                self.links.append(value)


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    pytest.importorskip("sphinx")
    pytest.importorskip("furo")
    out = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-b", "html"]
    command += ["-d", str(out / "doctrees"), "-c", "docs", ".", str(out / "html")]
    built = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr
    return out / "html"


@pytest.mark.full
def test_no_link_is_dead(site):
    pages = {path: Page(path) for path in site.rglob("*.html")}
    assert len(pages) > 25
    for path, page in pages.items():
        for link in page.links:
            if re.match(r"[a-z]+:", link):
                continue
            where, _, anchor = link.partition("#")
            target = (path.parent / unquote(where.partition("?")[0])).resolve() if where else path
            assert target.exists(), f"{path.relative_to(site)} links to {link}"
            if anchor and target in pages:
                named = unquote(anchor) in pages[target].anchors
                assert named, f"{path.relative_to(site)} links to {link}"


@pytest.mark.full
@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", [(1280, 900), (390, 844)], ids=["desktop", "phone"])
def test_a_browser_shows_every_page_without_an_error(site, scheme, size):
    api = pytest.importorskip("playwright.sync_api")
    with api.sync_playwright() as tools:
        browser = tools.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": size[0], "height": size[1]}, color_scheme=scheme)
        problems = []
        page.on("console", lambda m: problems.append(m.text) if m.type == "error" else None)
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("requestfailed", lambda request: problems.append(request.url))
        for path in sorted(site.glob("[!_]*/**/*.html")):
            page.goto(path.as_uri())
            assert not problems, path
            wider = page.evaluate("document.documentElement.scrollWidth - window.innerWidth")
            assert wider <= 0, f"{path.relative_to(site)} is {wider} pixels too wide"
            inside = "img => img.complete && img.naturalWidth > 0"
            seen = page.eval_on_selector_all("article img", f"images => images.every({inside})")
            assert seen, f"{path.relative_to(site)} shows not all of its pictures"
        browser.close()
