"""The report as a page: what it holds, and how a browser shows it."""

import json
import re
import shutil
from html.parser import HTMLParser
from types import SimpleNamespace

import pytest
import torch

from sparsemix.cli import nb201
from sparsemix.cli.report import main
from sparsemix.report.cells import cells_of, draw_cell
from sparsemix.report.course import COURSE
from sparsemix.report.drawing import ON_PAGE, as_svg, style
from sparsemix.report.page import render, write_figures
from sparsemix.report.records import load_run
from sparsemix.spaces.darts import PUBLISHED, DartsGenotype

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
CELL = "|nor_conv_3x3~0|+|skip_connect~0|none~1|+|nor_conv_1x1~0|none~1|avg_pool_3x3~2|"


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two finished searches, of two methods."""
    folders = []
    for method in ("sp-darts", "darts"):
        folders.append(tmp_path_factory.mktemp("runs") / method)
        flags = ["--preset", "proxy", "--device", "cpu", "--channels", "4", "--epochs", "3", "--batch-size", "40"]
        flags += ["--limit", "400", "--method", method, "--output", str(folders[-1])]
        nb201.search(nb201.configure(flags))
    return folders


@pytest.fixture(scope="module")
def pages(runs):
    """Of one run, and of two."""
    return render([load_run(runs[0])]), render([*map(load_run, runs)])


class Elements(HTMLParser):
    """Names and attributes of a page's elements, and its text."""

    def __init__(self, page):
        super().__init__()
        self.found, self.text = [], ""
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.found.append((tag, dict(attributes)))

    def handle_data(self, data):
        self.text += data


def titles(page):
    return [attributes["aria-label"] for tag, attributes in Elements(page).found if tag == "figure"]


def test_one_run_is_shown_in_full(runs, capsys):
    main([str(runs[0])])
    assert f"written to {runs[0] / 'report.html'}" in capsys.readouterr().err
    page = (runs[0] / "report.html").read_text()
    summary = json.loads((runs[0] / "summary.json").read_text())
    assert titles(page) == [
        "cell", "Supernet and discretised accuracy", "Entropy", "Losses", "Sparse batches", "Skips and undecided edges",
        "Time of an epoch", "Operation weights", "Leakage", "Mean leakage", "Alphas",
    ]  # fmt: skip
    shown = Elements(page)
    assert summary["genotype"] in shown.text
    assert f"{summary['discretized_accuracy']:.1%}" in shown.text
    assert "To resume it:" in shown.text
    assert "weight_lr:" in shown.text


def test_an_earlier_epoch_that_is_the_result_is_named(runs, pages):
    assert "The result is that of epoch" not in pages[0]
    run = load_run(runs[0])
    run = run._replace(summary={**run.summary, "result_epoch": 1})
    assert "3 epochs of 3 planned. The result is that of epoch 2." in Elements(render([run])).text


def test_a_page_needs_nothing_but_itself(pages):
    """No address is loaded, and no identifier, to which gradients and clips refer, occurs twice."""
    for page in pages:
        elements = Elements(page).found
        links = [value for tag, attributes in elements for key, value in attributes.items() if key in ("src", "href")]
        assert all(link.startswith(("data:", "#")) for link in links)
        names = [attributes["id"] for _, attributes in elements if "id" in attributes]
        assert len(names) == len({*names})
        targets = {*re.findall(r"url\(#([^)]+)\)", page), *(link[1:] for link in links if link.startswith("#"))}
        assert targets <= {*names}


def test_several_runs_are_compared(runs, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    main([*map(str, runs)])
    page = (tmp_path / "report.html").read_text()
    shown = titles(page)
    assert shown[:2] == ["discretised accuracy", "discretisation gap"]
    assert shown[-2:] == ["sp-darts, cell", "darts, cell"]
    for run in runs:
        assert f"{json.loads((run / 'summary.json').read_text())['entropy']:.2f}" in Elements(page).text


def test_figures_alone(runs, tmp_path):
    written = write_figures([load_run(runs[0])], tmp_path / "figures")
    assert {path.name for path in written} >= {"cell.svg", "cell.png", "entropy.svg", "weights.png"}
    assert all(path.stat().st_size > 1000 for path in written)
    assert "currentColor" not in (tmp_path / "figures" / "entropy.svg").read_text()


def test_a_search_that_is_running_is_watched(runs, tmp_path, monkeypatch):
    running = tmp_path / "run"
    running.mkdir()
    for name in ("config.json", "commands.json"):
        shutil.copy(runs[0] / name, running)
    lines = (runs[0] / "records.jsonl").read_text().splitlines(keepends=True)
    (running / "records.jsonl").write_text(lines[0])
    pages = []

    def sleep(seconds):
        """While it waits, the search ends."""
        pages.append((running / "report.html").read_text())
        (running / "records.jsonl").write_text("".join(lines))
        shutil.copy(runs[0] / "summary.json", running)

    monkeypatch.setattr("sparsemix.cli.report.time", SimpleNamespace(sleep=sleep))
    main([str(running), "--watch", "7"])
    assert '<meta http-equiv="refresh" content="7">' in pages[0]
    assert "1 epochs of 3 planned" in Elements(pages[0]).text
    page = (running / "report.html").read_text()
    assert "http-equiv" not in page
    assert "3 epochs of 3 planned" in Elements(page).text
    with pytest.raises(SystemExit, match="2"):
        main([str(running), "--watch", "0"])


def test_cells_are_those_of_the_genotype():
    (cell,) = cells_of(CELL)
    assert cell.edges == (
        (0, 1, "nor_conv_3x3"), (0, 2, "skip_connect"), (1, 2, "none"),
        (0, 3, "nor_conv_1x1"), (1, 3, "none"), (2, 3, "avg_pool_3x3"),
    )  # fmt: skip
    genotype = DartsGenotype.parse(PUBLISHED["SP_DARTS"].notation)
    normal, reduction = cells_of(str(genotype))
    assert normal.nodes == ("c[k-2]", "c[k-1]", "0", "1", "2", "3", "output")
    assert {(s, t, op) for s, t, op in reduction.edges if op} == {
        (source, 2 + i // 2, operation) for i, (operation, source) in enumerate(genotype.reduce)
    }
    assert {(s, t) for s, t, op in normal.edges if not op} == {(node, 6) for node in (2, 3, 4, 5)}
    assert cells_of("conv: conv3, pool: skip") == []


@pytest.mark.parametrize("name", PUBLISHED)
def test_every_published_cell_can_be_drawn(name):
    """With each operation written once for each edge that has it."""
    for cell in cells_of(PUBLISHED[name].notation):
        with style(ON_PAGE):
            svg = as_svg(draw_cell(cell, ON_PAGE), "cell")
        for operation in {operation for _, _, operation in cell.edges if operation}:
            assert svg.count(f">{operation}<") == sum(edge[2] == operation for edge in cell.edges)


def test_the_map_of_operation_weights_shows_the_softmax(runs):
    run = load_run(runs[0])
    drawing = next(each for each in COURSE if each.name == "weights")
    shown = torch.as_tensor(drawing.of(run).axes[0].images[0].get_array())
    rows = [*run.records[0]["alphas"]]
    assert shown.shape == (5 * len(rows), len(run.records))
    for epoch, record in enumerate(run.records):
        alphas = [torch.tensor(record["alphas"][row]).double() for row in rows]
        expected = [torch.softmax(alpha / record["temperature"], 0) for alpha in alphas]
        torch.testing.assert_close(shown[:, epoch].double(), torch.cat(expected))


@pytest.fixture(scope="module")
def browser():
    if CHROMIUM is None:
        pytest.skip("no chromium: apt-get install chromium")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield launched
        launched.close()


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (420, "light"), (1280, "dark"), (420, "dark")])
@pytest.mark.parametrize("several", [False, True])
def test_a_browser_shows_it(browser, pages, tmp_path, width, scheme, several):
    """Without a complaint, no wider than the window, every picture drawn, letters in the page's colour."""
    (tmp_path / "report.html").write_text(pages[several])
    page, complaints = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme), []
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("requestfailed", lambda request: complaints.append(request.url))
    page.goto((tmp_path / "report.html").as_uri())
    assert page.evaluate("document.documentElement.scrollWidth") == width
    sizes = page.evaluate("[...document.querySelectorAll('figure svg')].map(s => s.getBoundingClientRect())")
    assert sizes
    assert all(size["width"] > 100 and size["height"] > 50 for size in sizes)
    decoded = page.evaluate(
        """Promise.all([...document.querySelectorAll('svg image')].map(async element => {
            const image = new Image(); image.src = element.href.baseVal;
            await image.decode(); return image.width; }))"""
    )
    assert len(decoded) == (0 if several else 4)  # two maps of colours, and their scales
    assert all(decoded)
    ground, letters = page.evaluate(
        """[getComputedStyle(document.body).backgroundColor,
            getComputedStyle(document.querySelector('figure svg text')).fill]"""
    )
    luminance = {"ground": ground, "letters": letters}
    luminance = {name: sum(map(int, re.findall(r"\d+", colour)[:3])) / 765 for name, colour in luminance.items()}
    assert abs(luminance["ground"] - luminance["letters"]) > 0.6
    assert (luminance["ground"] < 0.5) == (scheme == "dark")
    assert not complaints
    page.close()
