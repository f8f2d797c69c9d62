"""The page of hand-made runs: what it says, that it needs nothing else, that it runs nothing."""

import json
import re
import shutil
from html.parser import HTMLParser

import pytest
from run_maker import evaluation, make_run, step, write_metrics

from fastmtt.reporting.page import letter, render
from fastmtt.reporting.reader import read_run


class Page(HTMLParser):
    """Elements, ids and text of a page."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.within: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        self.within.append(tag)

    def handle_endtag(self, tag):
        while self.within and self.within.pop() != tag:
            pass

    def handle_data(self, data):
        if not {"style", "script", "svg"} & set(self.within):
            self.texts.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("runs") / "whole", published=46.2)


@pytest.fixture(scope="module")
def page(folder):
    return Page(render([read_run(folder)]))


def test_the_numbers_to_be_read_first(page):
    text = page.text
    assert "CIFAR10, 2 images a class" in text and "Finished: 21 iterations." in text
    assert "Best by test accuracy 45.25 ± 0.50 %" in text
    assert "selected on test data" in text and "before iteration 10" in text
    assert "Best by held-out accuracy 20.00 ± 0.50 %" in text
    assert "Last iterate 41.00 ± 0.50 %" in text
    assert "Published 46.2 %" in text


def test_table_of_accuracies(page):
    assert "45.25 ± 0.50 % 46.2 % (−0.95) 55.00 ± 0.25 % 5 0.01 ConvNet, 1001 epochs" in page.text
    row = "distilled set (best) by fastmtt.evaluate of distilled_best.safetensors 44.50 ± 0.75 %"
    assert f"{row} 5 0.0125 ConvNetD4, 301 epochs" in page.text


def test_what_was_seen_is_said(folder, tmp_path):
    run = shutil.copytree(folder, tmp_path / "run")
    said = {}
    for saw in (True, False, None):
        (run / "experts.json").write_text(json.dumps({"experts": 3, "saw_held_out": saw}))
        said[saw] = Page(render([read_run(run)])).text
    for text in said.values():
        assert "5 training images of each class are held out" in text
        assert "ZCA is always fitted on all training images, the held-out ones included." in text
    assert "experts were trained on all training images, the held-out ones included" in said[True]
    assert "The experts were not trained on them." in said[False]
    assert "is not recorded" in said[None]


def test_both_lines_of_an_averaged_run_are_labelled(tmp_path):
    page = Page(render([read_run(make_run(tmp_path / "run", ema_decay=0.99))]))
    for said in (
        *("Learned images: best by test accuracy 45.25 ± 0.50 %", "last iterate 41.00 ± 0.50 %"),
        *("Averaged images: best by test accuracy 46.25 ± 0.12 %", "last iterate 42.00 ± 0.12 %"),
        "Averaged images: best by held-out accuracy 21.00 ± 0.12 %",
        "21.00 ± 0.12 % 61.00 ± 0.12 % 5 0.01 ConvNet, 1001 epochs",
        "After the last iteration: 41.00 ± 0.50 %, their average 42.00 ± 0.12 %",
        *("The images as they are learned, not their average.", "the averaged images, on test"),
    ):
        assert said in page.text, said
    sets = [
        attributes for _, attributes in page.elements if attributes.get("data-view") == "pixels"
    ]
    assert len(sets) == 6
    words = "from 20.00 to 41.00 %, at most 45.25 %; averaged images from 21.00 to 42.00 %, at most"
    assert any(words in (attributes.get("aria-label") or "") for _, attributes in page.elements)


def test_without_an_average_no_word_is_lost_on_it(page):
    assert "verage" not in page.text


def test_facts(page):
    for fact in (
        *("Experts 77", "Mean test accuracy 61.5 %", "lr_teacher 0.01", "Folder buffers/x"),
        *("experts 1 h 1 min", "matching 2.5 s", "One iteration (median) 125 ms"),
        *("Peak memory 1 234 MB", "machine somewhere", "torch 2.15.0", "ipc 2", "gpu null"),
    ):
        assert fact in page.text, fact


def test_curves_in_words(page):
    words = [
        attributes["aria-label"] for _, attributes in page.elements if "aria-label" in attributes
    ]
    assert "Accuracy over the iterations: from 20.00 to 41.00 %, at most 45.25 %." in words
    assert "Matching loss over the iterations: from 0.5 to 0.5." in words
    assert "Student’s learning rate over the iterations: from 0.01 to 0.03." in words


def test_nothing_else_is_needed(page, folder):
    addresses = [
        value
        for _, attributes in page.elements
        for key, value in attributes.items()
        if key in ("src", "href", "xlink:href", "srcset", "data", "action", "poster")
    ]
    assert addresses
    assert all(address.startswith(("data:", "#")) for address in addresses)
    html = render([read_run(folder)])
    assert not re.search(r"@import|url\((?!#)", html)
    assert "default-src 'none'" in html


def test_ids_are_unique_and_labels_find_theirs(folder):
    runs = [read_run(folder)] * 2
    for page in (Page(render(runs[:1])), Page(render(runs))):
        ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
        assert len(ids) == len(set(ids))
        for _, attributes in page.elements:
            for key in ("aria-labelledby", "href", "xlink:href"):
                named = attributes.get(key)
                if named and not named.startswith("data:"):
                    assert named.removeprefix("#") in ids


def test_what_a_run_says_stays_text(tmp_path):
    evil = "<script>alert(1)<\"x' onerror=alert(2)>"
    run = make_run(tmp_path / evil)
    with open(run / "metrics.jsonl", "a") as file:
        file.write(json.dumps({"evaluated": evil, "accuracy": 1.0, "model": evil, "file": evil}))
    (run / "experts.json").write_text(json.dumps({"root": evil, "recipe": {evil: evil}}))
    (run / "environment.json").write_text(json.dumps({evil: evil}))
    read = read_run(run)
    for runs in ([read], [read, read]):
        page = Page(render(runs))
        assert [tag for tag, _ in page.elements].count("script") == 1
        assert not [1 for _, attributes in page.elements if "onerror" in attributes]
        assert evil in page.text and "<b>frog</b>" in page.text
        assert "a </pre><script>x</script>" in page.text


def test_unfinished_runs_say_how_far_they_are(folder, tmp_path):
    run = shutil.copytree(folder, tmp_path / "run")
    write_metrics(run, [evaluation(0, 20.0), *(step(i) for i in range(7))])
    with open(run / "metrics.jsonl", "a") as file:
        file.write('{"iteration": 7, "lo')
    (run / "summary.json").unlink()
    text = Page(render([read_run(run)])).text
    assert "Unfinished: 7 of 21 iterations are done (33 %)." in text
    assert "1 line of metrics.jsonl could not be read" in text
    assert "Latest evaluated 20.00 ± 0.50 %" in text and "Last iterate 20" not in text
    assert "matching 875 ms" in text and "evaluation 2.0 s" in text

    write_metrics(run, [step(i) for i in range(21)])
    text = Page(render([read_run(run)])).text
    assert "all 21 iterations are done, the last set is not evaluated yet" in text

    for path in run.iterdir():
        if path.name != "config.yaml":
            path.unlink()
    text = Page(render([read_run(run)])).text
    assert "Unfinished: none of 21 iterations is done yet." in text
    assert "No distilled set has been saved yet." in text and "Nothing has been evaluated" in text


def test_values_that_are_no_numbers(folder, tmp_path):
    run = shutil.copytree(folder, tmp_path / "run")
    write_metrics(run, [evaluation(0, None), step(0, loss=None)])
    assert "Latest evaluated NaN" in Page(render([read_run(run)])).text


def test_runs_are_compared(folder, tmp_path):
    other = make_run(tmp_path / "other", zca=False, lr_img=7.5)
    page = Page(render([read_run(folder), read_run(other)]))
    assert "2 runs compared" in page.text
    assert "lr_img 1000.0 7.5" in page.text and "zca true false" in page.text
    assert "syn_steps 20 20" not in page.text
    words = [attributes.get("aria-label") or "" for _, attributes in page.elements]
    assert any("run A from 20.00 to" in text and "run B from 20.00 to" in text for text in words)


def test_letters_never_end():
    assert [letter(index) for index in (0, 25, 26, 53)] == ["A", "Z", "A1", "B2"]


def test_weight_of_a_usual_run(tmp_path):
    run = make_run(
        tmp_path / "run", zca=False, ipc=1, classes=10, size=32, iterations=5000, evaluations=51
    )
    html = render([read_run(run)])
    assert html.count("data-caption=") == 51
    assert len(html) < 5e6
