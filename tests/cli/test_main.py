"""Help, exit codes and what errors say."""

import os
import resource
import subprocess
import sys

import pytest

from framecast.cli import main as entry
from framecast.cli.main import COMMANDS, main
from framecast.cli.parsing import Command
from framecast.systems import resolve


def python(*words, **how):
    return subprocess.run([sys.executable, *words], capture_output=True, text=True, **how)


@pytest.mark.parametrize("name", COMMANDS)
def test_help_of_every_command_tells_what_it_does_and_shows_an_example(name, cast):
    ran = cast(*name.split(), "--help")
    assert ran.code == 0
    assert f"usage: framecast {name}" in ran.out
    assert f"  framecast {name}" in ran.out.partition("example:")[2]
    assert ran.err == ""


@pytest.mark.parametrize("name", COMMANDS)
def test_example_of_every_command_parses(name):
    command: Command = resolve(f"framecast.cli.{COMMANDS[name][0]}")
    for line in command.example.splitlines():
        words = line.partition(" > ")[0].split()[1 + len(name.split()) :]
        from framecast.cli.parsing import parse

        parse(name, command, words)


def test_no_help_loads_torch():
    code = (
        "import sys\nfrom framecast.cli.main import COMMANDS, main\n"
        "for name in COMMANDS: main([*name.split(), '--help'])\n"
        "main(['--help']); main(['data'])\n"
        "sys.exit(bool({'torch', 'numpy', 'jsonargparse', 'rich', 'lightning_fabric', 'av'} & set(sys.modules)))"
    )
    assert python("-c", code).returncode == 0


@pytest.mark.parametrize("words", [["--help"], ["predict", "--help"], ["train", "--help"], ["data", "check", "--help"]])
def test_help_takes_less_than_the_promised_time(words):
    # processor time, which other work on the machine does not lengthen much
    least = 9.0
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        assert python("-m", "framecast", *words).returncode == 0
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        least = min(least, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    assert least < 0.4


def test_import_takes_less_than_the_promised_time():
    code = "import time; t = time.process_time(); import framecast; print(time.process_time() - t)"
    assert min(float(python("-c", code).stdout) for _ in range(3)) < 0.3


def test_overview_names_every_command(cast):
    ran = cast("--help")
    assert all(name in ran.out for name in COMMANDS)
    assert cast().out == ran.out


def test_group_lists_its_commands(cast):
    ran = cast("data", "--help")
    assert ran.code == 0 and "data check" in ran.out and "predict" not in ran.out.replace("COMMAND", "")
    assert cast("data").code == 2


def test_version_is_printed(cast):
    from framecast import __version__

    assert cast("--version").out == f"framecast {__version__}\n"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["predcit"], "'predcit' is not a command. Did you mean predict?"),
        (["data", "chekc"], "framecast data has no command 'chekc'. Did you mean check?"),
        (
            ["predict", "m", "v", "--contxt", "4"],
            "--contxt is not an option of framecast predict. Did you mean --context?",
        ),
        (["predict", "m", "v", "--hori", "4"], "--hori is not an option of framecast predict. Did you mean --horizon?"),
        (["train", "ramvid/tiny32", "--lr", "2"], "Further settings are written --data.KEY, --model.KEY, --stages.KEY"),
        (["predict", "m"], "required: VIDEO"),
        (["predict", "m", "v", "--samples", "0"], "'0' is not a whole number above 0"),
        (["predict", "m", "v", "--format", "mp5"], "'mp5' is not one of mp4, webp, gif, npz. Did you mean mp4?"),
        (["predict", "m", "v", "--model.width", "3"], "--model.width is not a setting here"),
        (["predict", "m", "v", "--sample.steps"], "--sample.steps needs a value"),
        (["infill", "m", "v", "--known", "3-1"], "runs backwards"),
        (["models", "info", "a", "b"], "takes no further word 'b'"),
        (["train"], "nothing to train"),
    ],
)
def test_wrong_usage_says_what_was_meant_and_exits_2(words, said, cast):
    ran = cast(*words)
    assert ran.code == 2
    assert said in ran.err and ran.err.startswith("error: ")
    assert len(ran.err.splitlines()) == 1 and ran.out == ""


def test_what_cannot_be_done_is_one_sentence_and_exits_1(cast):
    ran = cast("predict", "nothing-here", "clip.mp4")
    assert ran.code == 1
    assert ran.err.startswith("error: no model 'nothing-here'") and "Traceback" not in ran.err


def raising(error):
    def run(args, console):
        raise error

    return Command("Fail.", "framecast doctor", lambda parser: None, run)


@pytest.fixture
def failing(monkeypatch):
    def fail_with(error):
        monkeypatch.setattr(entry, "resolve", lambda target: raising(error))

    return fail_with


def test_unexpected_error_says_it_is_a_bug_and_how_to_see_more(cast, failing):
    failing(KeyError("x"))
    ran = cast("doctor")
    assert ran.code == 1
    assert (
        ran.err
        == "error: this is a bug in framecast (KeyError: 'x'). Run the same command with -v for the traceback.\n"
    )
    ran = cast("doctor", "-v")
    assert ran.code == 1 and "Traceback" in ran.err and "with -v" not in ran.err


def test_missing_file_is_told_without_error_numbers(cast, failing):
    failing(FileNotFoundError(2, "No such file or directory", "clip.mp4"))
    assert cast("doctor").err == "error: clip.mp4: No such file or directory.\n"


def test_interrupt_exits_130(cast, failing):
    failing(KeyboardInterrupt())
    ran = cast("doctor")
    assert ran.code == 130 and ran.err == "Stopped.\n"


def test_reader_that_leaves_early_makes_no_noise():
    # head closes the pipe after the first line while the table is still being written
    code = "import sys; from framecast.cli.main import main; sys.exit(main(['config', 'show', 'ramvid/bair64']))"
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run([sys.executable, "-c", code], stdout=write, stderr=subprocess.PIPE, text=True)
    os.close(write)
    assert done.stderr == ""


def test_main_leaves_no_open_flag_undocumented():
    # every command answers the three flags that all of them share
    for name, (target, _) in COMMANDS.items():
        command: Command = resolve(f"framecast.cli.{target}")
        assert command.about.endswith("."), name
    assert main(["--version"]) == 0


def test_help_of_a_command_can_be_asked_for_in_words(cast):
    assert cast("help", "predict").out == cast("predict", "--help").out
    assert cast("help").out == cast("--help").out
