"""A slice of the fuzzer (`make fuzz` runs ten minutes of it), and that it sees what is wrong."""

from __future__ import annotations

import re
import sys
import time
from pathlib import Path

import pytest

from longclip_lab.cli import main
from longclip_lab.errors import LabError


@pytest.fixture(scope="module")
def fuzzing():
    """The fuzzer's modules, which are imported by their bare names."""
    place = str(Path(__file__).with_name("fuzz"))
    sys.path.insert(0, place)
    import running
    import targets

    yield running, targets
    sys.path.remove(place)


def test_a_slice_of_all_inputs(fuzzing, tmp_path):
    report = fuzzing[0].fuzz(tmp_path, seed=0, seconds=20)
    print(report)
    assert not report.failures, str(report)
    assert set(report.seconds) == set(fuzzing[1].TARGETS)
    assert report.inputs > 100
    for outcome in ("done", "refused"):
        assert sum(n for (_, which), n in report.outcomes.items() if which == outcome) > 20


def test_the_same_seed_gives_the_same_inputs(fuzzing, tmp_path):
    running, targets = fuzzing

    def given(home):
        trees = []

        def seen(corpus, rng, given, made):
            targets.images(corpus, rng, given, made)
            targets.tables(corpus, rng, given, made)
            trees.append(running.tree(given))
            return lambda: None

        running.fuzz(home, seed=3, inputs=12, targets={"both": (seen, 1)})
        return trees

    first = given(tmp_path / "first")
    assert first == given(tmp_path / "second")
    assert len({str(sorted(one.items())) for one in first}) == 12


def break_things(given, made):
    raise LookupError("a fault")


def hang(given, made):
    time.sleep(9)


def write_half(given, made):
    (made / ".record.json.x.part").write_text("{")


def write_nan(given, made):
    (made / "record.json").write_text('{"score": NaN}')


def change_input(given, made):
    (given / "record.json").write_text("{}")


def refuse_mutely(given, made):
    raise LabError("")


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (break_things, "LookupError in"),
        (hang, "takes more than 0.2 s"),
        (write_half, "leaves a file half-written"),
        (write_nan, "gives out JSON that is none"),
        (change_input, "changes the user's files"),
        (refuse_mutely, "a refusal of no or too many words"),
    ],
)
def test_a_fault_fails_and_can_be_had_again(fuzzing, tmp_path, fault, said):
    def target(corpus, rng, given, made):
        (given / "record.json").write_text(str(rng.random()))
        wrong = rng.random() < 0.5
        return lambda: fault(given, made) if wrong else None

    options = {"targets": {"planted": (target, 1)}, "keep": tmp_path / "keep", "limit": 0.2}
    report = fuzzing[0].fuzz(tmp_path / "one", seed=1, inputs=6, **options)
    ((kind, inputs),) = report.failures.items()
    assert kind.startswith(f"planted: {said}")
    assert report.outcomes["planted", "fails"] == len(inputs) < report.inputs == 6
    kept = tmp_path / "keep" / inputs[0].replace(":", "-")
    assert f"--only {inputs[0]}" in (kept / "failure.txt").read_text()
    assert 0 < float((kept / "given" / "record.json").read_text()) < 1
    number = int(inputs[0].partition(":")[2])
    again = fuzzing[0].fuzz(tmp_path / "two", seed=1, numbers=[number], **options)
    assert list(again.failures) == [kind]


def test_every_command_is_fuzzed_with_its_options(fuzzing, tmp_path, capsys):
    commands = []
    for front in ([], ["data"]):
        with pytest.raises(SystemExit):
            main([*front, "--help"])
        listed = re.search(r"\{([\w,]+)\}", capsys.readouterr().out)[1].split(",")
        commands += [" ".join([*front, name]) for name in listed]
    corpus = fuzzing[0].Corpus(tmp_path)
    usual = fuzzing[1].usual(corpus, fuzzing[0].random.Random(0), tmp_path, tmp_path)
    assert {*commands} - {"data", "quickstart"} == set(usual)
    assert {"model", "root", "learning-rate", "json"} <= {
        option for name in usual for option in fuzzing[1].offered(name)
    }
