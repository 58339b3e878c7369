"""What the commands say: help, wrong input in one line, words of other libraries."""

import subprocess
import sys

import pytest
from commands import call

import twinblock
from twinblock.config.recipes import recipes


def test_recipes_and_show(monkeypatch, capsys, tmp_path):
    code, out, _ = call(monkeypatch, capsys, "recipes")
    assert code == 0
    assert all(name in out for name in recipes())
    code, out, _ = call(monkeypatch, capsys, "show", "byol", "optim.lr=0.5")
    assert code == 0
    (tmp_path / "mine.yaml").write_text(out)
    assert twinblock.compose(tmp_path / "mine.yaml") == twinblock.compose("byol", overrides=["optim.lr=0.5"])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["bylo"], "did you mean byol"),
        (["byol", "data=no/such/folder"], "no/such/folder"),
        (["byol", "data=cifar11"], "cifar10"),
        (["byol", "encoder.kind=resnte18"], "did you mean resnet18"),
        (["byol", "data.batch=9999"], "data.batch"),
        (["byol", "train.length=0steps"], "train.length"),
        (["supervised", "data=."], "no image files"),
        (["byol", "data.batch=1", "encoder.norm=none", "projector.norm=none"], "predictor.norm"),
        (["moco_v2", "data.batch=1"], "encoder.norm"),
        (["byol", "projector.norm=group", "projector.dims=[30,8]"], "30"),
    ],
)
def test_wrong_input_is_one_line_and_code_2(monkeypatch, capsys, tmp_path, arguments, words):
    monkeypatch.chdir(tmp_path)
    code, _, error = call(monkeypatch, capsys, "pretrain", *arguments, f"out={tmp_path / 'run'}")
    lines = error.strip().splitlines()
    assert code == 2
    assert lines[-1].startswith("error: ")
    assert words in lines[-1]
    assert not (tmp_path / "run" / "config.yaml").exists()


@pytest.mark.parametrize("command", ["evaluate", "diagnose", "exemplars", "embed"])
def test_a_misspelt_field_of_a_command_is_told(monkeypatch, capsys, tmp_path, command):
    code, _, error = call(monkeypatch, capsys, command, tmp_path, "dta=photos/")
    assert (code, error) == (2, "error: dta: unknown field; did you mean data?\n")


@pytest.mark.parametrize(
    ("given", "ours"), [("shots=3", "--shots N"), ("no_baselines=true", "--no-baselines"), ("beside=a", "--beside RUN")]
)
def test_an_option_without_its_dashes_is_told(monkeypatch, capsys, tmp_path, given, ours):
    code, _, error = call(monkeypatch, capsys, "evaluate", tmp_path, given)
    assert (code, error) == (2, f"error: {given.partition('=')[0]}: not a field; write it as {ours}\n")


def test_the_cause_is_the_last_line_of_a_wrong_command_too(monkeypatch, capsys):
    for arguments, words in ((["pretain", "byol"], "Did you mean 'pretrain'?"), (["embed"], "Missing argument 'run'")):
        code, _, error = call(monkeypatch, capsys, *arguments)
        assert code == 2 and words.lower() in error.splitlines()[-1].lower()  # typer's own case differs by version


def test_help_names_every_command_in_a_whole_sentence(monkeypatch, capsys):
    code, out, _ = call(monkeypatch, capsys, "--help")
    commands = out.split("Commands:\n")[1].splitlines()
    assert code == 0 and len(commands) >= 8
    assert all(line.endswith(".") and not line.endswith("...") for line in commands)


def test_help_does_not_wait_for_torch():
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "twinblock", "--help"], capture_output=True, text=True
    )
    assert done.returncode == 0
    assert "pretrain" in done.stdout
    assert " torch\n" not in done.stderr


@pytest.mark.parametrize("command", [["recipes"], ["show", "demo"]])
def test_a_reader_who_leaves_ends_a_command_quietly(command):
    with subprocess.Popen(
        [sys.executable, "-m", "twinblock", *command], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 141


def test_the_help_says_where_a_run_goes_and_completion_is_offered(monkeypatch, capsys):
    _, out, _ = call(monkeypatch, capsys, "pretrain", "--help")
    assert "runs/RECIPE" in " ".join(out.split())
    _, out, _ = call(monkeypatch, capsys, "--help")
    assert "--install-completion" in out


@pytest.mark.parametrize(
    ("given", "ours"),
    [
        ("batch_size=32", "data.batch"),
        ("data.batch-size=32", "data.batch"),
        ("epochs=3", "train.length=10epochs"),
        ("lr=0.1", "optim.lr"),
        ("optim.learning_rate=0.1", "optim.lr"),
        ("optim.momentun=0.9", "optim.momentum"),
    ],
)
def test_words_of_other_libraries_lead_to_ours(monkeypatch, capsys, given, ours):
    code, _, error = call(monkeypatch, capsys, "show", "byol", given)
    assert code == 2
    assert f"did you mean {ours}?" in error


@pytest.mark.parametrize(
    ("given", "now"),
    [(["evaluate", "runs/a", "--taps"], "--pooling"), (["forgotten", "runs/a", "ratio=0.9"], "exemplars")],
)
def test_a_word_of_an_earlier_version_gets_the_new_one(monkeypatch, capsys, given, now):
    code, out, error = call(monkeypatch, capsys, *given)
    assert (code, out) == (2, "")
    assert now in error
    assert error.count("\n") == 1
    _, out, _ = call(monkeypatch, capsys, given[0], "--help")
    assert "--taps" not in out
