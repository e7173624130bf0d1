"""`ecpo run`: what it asks of Snakemake, what it says of a failure, and that two runs do not meet."""

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import psutil
import pytest
from nbformat.v4 import new_code_cell, new_notebook, new_output

from ecpo_utils import pipeline
from ecpo_utils.core.errors import ArtifactError, EcpoError, ParamsError
from ecpo_utils.core.params import load_profile
from ecpo_utils.core.paths import RunPaths
from ecpo_utils.pipeline import explain_failure, last_line, run_study, snakemake_command
from ecpo_utils.workflow import NEEDS

ROOT = Path(__file__).parents[1]


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A checkout in which nothing has run; the working directory is there, and is restored."""
    for name in ("params", "notebooks", "ecpo_utils", "workflow"):
        (tmp_path / name).symlink_to(ROOT / name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def paths(checkout):
    return RunPaths(checkout, "quick")


def write_notebook(path, *cells):
    path.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(new_notebook(cells=list(cells)), path)
    return path


def failing_cell(source, name, value):
    error = new_output("error", ename=name, evalue=value, traceback=[])
    return new_code_cell(source, outputs=[error])


def wait_until(happens):
    deadline = time.monotonic() + 60
    while not happens() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert happens()


def is_up(pid):
    with contextlib.suppress(psutil.NoSuchProcess):
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    return False


@pytest.mark.skipif(not shutil.which("make"), reason="needs make")
def test_make_installs_vllm_for_a_profile_that_names_it_after_an_ordinary_set_up(tmp_path):
    for name in ("Makefile", "requirements.txt", "requirements-gpu.txt", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path)
    shutil.copytree(ROOT / "params", tmp_path / "params")
    (tmp_path / "params" / "mine.yaml").write_text("cra:\n  provider: vllm\n  model: m\n")
    (tmp_path / "params" / "yours.yaml").write_text("# not provider: vllm\ncra: {provider: embedded, model: m}\n")

    def planned(*words):
        done = subprocess.run(["make", "-n", "setup", *words], cwd=tmp_path, capture_output=True, text=True, check=True)
        return re.findall(r"pip install .*-r (\S+)", done.stdout), re.findall(r"^touch (\S+)", done.stdout, re.MULTILINE)

    installed, (stamp,) = planned()
    assert installed == ["requirements.txt"]
    (tmp_path / stamp).parent.mkdir()
    (tmp_path / stamp).touch()
    assert planned() == planned("PROFILE=cpu") == planned("PROFILE=yours") == ([], [])
    assert all(planned(f"PROFILE={name}")[0] == ["requirements-gpu.txt"] for name in ("gpu", "paper", "mine"))


@pytest.mark.parametrize(("only", "expected"), [("", list(NEEDS)), ("02", ["01_environment", "02_persona_diversity"])])
def test_snakemake_plans_the_chosen_notebooks_and_what_they_need(checkout, only, expected):
    names = pipeline._chosen(load_profile(checkout / "params" / "quick.yaml"), only, "book")
    command = [*snakemake_command("quick", names, "book"), "--dry-run"]
    done = subprocess.run(command, capture_output=True, text=True)
    planned = re.findall(r"output: runs/quick/notebooks/(\w+)\.book\.ipynb", done.stdout + done.stderr)
    assert done.returncode == 0 and sorted(planned) == sorted(expected)
    assert all(planned.index(need) < planned.index(name) for name in planned for need in NEEDS[name])


def test_a_domain_without_tuned_agents_ends_before_their_notebooks(checkout):
    params = load_profile(checkout / "params" / "quick.yaml")
    assert pipeline._chosen(params, "", "game") == [name for name in NEEDS if name < "06" and not name.startswith("04")]
    with pytest.raises(ParamsError, match="profile quick does not run 07_expectation_confirmation in 'game'; tuning_domains: book"):
        pipeline._chosen(params, "07", "game")
    with pytest.raises(ParamsError, match="profile quick does not run 04_prompt_based_cras in 'game'; cra_domains: book"):
        pipeline._chosen(params, "04", "game")


def test_only_takes_the_first_digits_of_a_notebook(checkout):
    params = load_profile(checkout / "params" / "quick.yaml")
    assert pipeline._chosen(params, "03", "all") == ["03_simulation"]
    assert pipeline._chosen(params, "", "book") == list(NEEDS)
    with pytest.raises(ParamsError, match="no notebook begins with 'x'; there are: 01_environment"):
        pipeline._chosen(params, "x", "all")
    with pytest.raises(ParamsError, match="profile quick has no domain 'music'; it has: book, game, yelp"):
        pipeline._chosen(params, "", "music")


@pytest.fixture
def said():
    """Lines of progress."""
    return []


def fake(monkeypatch, work, code=0):
    """Let a function stand for Snakemake."""
    monkeypatch.setattr(pipeline, "_snakemake", lambda paths, names, domain, say, lock: work(paths, names, domain) or code)


def test_a_notebook_that_is_not_run_is_up_to_date(paths, said, monkeypatch):
    write_notebook(paths.executed("01_environment"))
    fake(monkeypatch, lambda paths, names, domain: write_notebook(paths.executed("02_persona_diversity")) and None)
    run_study("quick", only="0", say=said.append)
    assert said[0] == f"== study, profile quick: {', '.join(name for name in NEEDS if name[0] == '0')}"
    assert "   01_environment: up to date" in said and "   02_persona_diversity: up to date" not in said


def test_a_failure_names_notebook_cell_error_copy_and_log(paths, said, monkeypatch):
    copy = paths.running("02_persona_diversity")
    good, bad = (
        new_code_cell("import pandas"),
        failing_cell("personas = 1 / 0\nx", "ZeroDivisionError", "\x1b[31mdivision by zero\x1b[0m\nmore"),
    )
    fake(monkeypatch, lambda paths, names, domain: write_notebook(copy, good, bad) and None, code=1)
    with pytest.raises(EcpoError) as error:
        run_study("quick", say=said.append)
    lines = str(error.value).splitlines()
    assert lines[0] == "notebook 02_persona_diversity failed in cell 2 (personas = 1 / 0): ZeroDivisionError: division by zero"
    assert lines[1] == f"  executed copy: {copy.relative_to(paths.root)}"
    assert lines[2] == "  log: runs/quick/logs/02_persona_diversity.log" and "run the same command again" in lines[3]


def test_an_earlier_runs_failure_is_not_told_again(paths, said, monkeypatch):
    write_notebook(paths.running("03_simulation"), failing_cell("old", "OldError", "of yesterday"))
    log = paths.run / "logs" / "snakemake.log"
    log.parent.mkdir(parents=True)
    log.write_text("Building DAG\nWorkflowError: no such rule\n")
    fake(monkeypatch, lambda paths, names, domain: None, code=1)
    with pytest.raises(EcpoError, match="Snakemake failed .exit 1.: WorkflowError: no such rule; log: ") as error:
        run_study("quick", say=said.append)
    assert "yesterday" not in str(error.value)


def test_a_notebook_that_was_killed_says_how_to_go_on(paths):
    write_notebook(paths.running("03_simulation", "game"), new_code_cell("played = await simulate()"))
    text = str(explain_failure(paths, "game", -9))
    assert text.startswith("notebook 03_simulation stopped (exit -9); log: ") and text.endswith("run the same command again to go on")


def test_a_signal_that_ended_a_notebook_is_named(paths):
    write_notebook(paths.running("03_simulation"), new_code_cell("played = await simulate()"))
    (paths.run / "logs").mkdir(parents=True)
    (paths.run / "logs" / "snakemake.log").write_text("Command 'papermill ...' died with <Signals.SIGKILL: 9>.\n")
    assert "03_simulation stopped (exit 1): ended by SIGKILL; log: " in str(explain_failure(paths, "all", 1))


def test_a_kernel_that_died_is_named_from_the_log(paths):
    write_notebook(paths.running("03_simulation"), new_code_cell("played = await simulate()"))
    paths.log("03_simulation").parent.mkdir(parents=True)
    paths.log("03_simulation").write_text("Traceback:\n  raise x\nnbclient.exceptions.DeadKernelError: Kernel died\n\n")
    assert "stopped (exit 1): nbclient.exceptions.DeadKernelError: Kernel died; log: " in str(explain_failure(paths, "all", 1))


STARTED = """localrule notebook:
    input: notebooks/01_environment.ipynb, ecpo_utils/core/errors.py
    wildcards: name=01_environment
"""


@pytest.mark.parametrize(
    ("snakemake", "notebook", "expected"),
    [
        (f"{STARTED}RuleException:\nCalledProcessError in file 'Snakefile', line 45:\n", "PermissionError: Permission denied: 'runs'\n",
         "notebook 01_environment stopped (exit 1): PermissionError: Permission denied: 'runs'; log: "),
        (f"{STARTED}Traceback:\n  File x\nPermissionError: [Errno 13] no\n", None,
         "Snakemake failed (exit 1): PermissionError: [Errno 13] no; log: "),
        ("WorkflowError:\nNo rule for\nthis\n", None, "Snakemake failed (exit 1): WorkflowError: No rule for; log: "),
        ("", None, "Snakemake failed (exit 1): see its log; log: "),
    ],
)  # fmt: skip
def test_a_failure_without_a_copy_tells_the_error_and_not_a_files_name(paths, snakemake, notebook, expected):
    log = paths.run / "logs" / "snakemake.log"
    log.parent.mkdir(parents=True)
    log.write_text(snakemake)
    if notebook:
        paths.log("01_environment").write_text(notebook)
    assert str(explain_failure(paths, "all", 1)).startswith(expected)


def test_all_that_a_run_started_ends_with_it_by_kill_9_as_well(paths, tmp_path):
    """The stand-in for Snakemake starts a child in its process group, as Snakemake does."""
    code = """
import sys
from ecpo_utils import pipeline
pipeline.snakemake_command = lambda *words: ["sh", "-c", "sleep 60 & echo $! $$ > pids.part; mv pids.part pids; wait"]
pipeline.run_study("quick", say=print)
"""
    run = subprocess.Popen(
        [sys.executable, "-c", code], cwd=paths.root, stdout=subprocess.DEVNULL, env={**os.environ, "PYTHONPATH": str(ROOT)}
    )
    try:
        wait_until((paths.root / "pids").is_file)
        pids = [int(word) for word in (paths.root / "pids").read_text().split()]
        assert all(map(is_up, pids))
    finally:
        run.kill()
        run.wait()
    wait_until(lambda: not any(map(is_up, pids)))


def test_a_second_run_of_a_profile_is_refused_at_once_and_other_profiles_are_not(paths, said, monkeypatch):
    fake(monkeypatch, lambda paths, names, domain: None)
    with pipeline.exclusive(paths) as lock:
        lock.write(f"{os.getpid()} {os.getpid()}\n")
        lock.flush()
        began = time.monotonic()
        with pytest.raises(ArtifactError, match="another 'ecpo run' is at work on profile quick"):
            run_study("quick", say=said.append)
        assert time.monotonic() - began < 10
        run_study("cpu", say=said.append)
    run_study("quick", say=said.append)


def test_what_a_killed_run_left_at_work_is_ended_first(paths, said, monkeypatch):
    """The left-over process holds the lock that it inherited; its owner is gone."""
    fake(monkeypatch, lambda paths, names, domain: None)
    owner = subprocess.Popen(["true"])
    owner.wait()
    with pipeline.exclusive(paths) as lock:
        left = subprocess.Popen(["sleep", "60"], pass_fds=[lock.fileno()], start_new_session=True)
        lock.write(f"{owner.pid} {left.pid}\n")
        lock.flush()
    run_study("quick", say=said.append)
    assert left.wait(10) == -signal.SIGKILL


@pytest.mark.parametrize(
    ("binary", "gpus", "message"),
    [(False, ["0"], "gpu.yaml: cra: .*vllm is missing; run: pip install -r requirements-gpu.txt"),
     (True, [], "gpu.yaml: cra: vLLM needs 1 GPUs at once, 0 are in sight; lower replicas")],
)  # fmt: skip
def test_what_vllm_lacks_is_told_before_anything_is_spent(paths, said, monkeypatch, binary, gpus, message):
    vllm = paths.root / "vllm"
    monkeypatch.setattr(pipeline, "VLLM", vllm)
    monkeypatch.setattr(pipeline, "visible_gpus", lambda: gpus)
    fake(monkeypatch, lambda paths, names, domain: None)
    if binary:
        vllm.touch()
    with pytest.raises(ParamsError, match=message):
        run_study("gpu", say=said.append)
    run_study("gpu", only="02", say=said.append)  # which serves nothing
    vllm.touch()
    monkeypatch.setattr(pipeline, "visible_gpus", lambda: ["0"])
    run_study("gpu", say=said.append)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", ""),
        ("one\ntwo\n", "two"),
        ("book personas:  10%|#\rbook personas:  50%|#####\r", "book personas:  50%|#####"),
        ("\x1b[32mdone\x1b[0m\nEnding Cell 3----\nExecuting Cell 4---\n\n", "done"),
        ("x" * 9000 + "\nlast", "last"),
    ],
)
def test_last_line_of_a_log_is_what_is_worth_showing(tmp_path, text, expected):
    path = tmp_path / "a.log"
    path.write_text(text)
    assert last_line(path) == expected
    assert last_line(tmp_path / "none.log") == ""


def test_ctrl_c_reaches_the_kernels_and_waits_until_they_have_kept_what_is_in_flight(tmp_path):
    kernel = "import pathlib, signal, sys, time\n"
    kernel += "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # a shell's background job ignores it, and so do its children
    kernel += "try:\n    pathlib.Path(sys.argv[1], 'up').touch(); time.sleep(60)\n"
    kernel += "except KeyboardInterrupt:\n    time.sleep(0.3); pathlib.Path(sys.argv[1], 'kept').touch()\n"
    words = [sys.executable, "-c", kernel, str(tmp_path), "ipykernel_launcher"]
    parent = subprocess.Popen([sys.executable, "-c", f"import subprocess; subprocess.run({words!r}, start_new_session=True)"])
    wait_until((tmp_path / "up").exists)
    pipeline.interrupt_kernels(parent.pid)
    assert (tmp_path / "kept").exists() and parent.wait(10) == 0


def test_ctrl_c_where_nothing_runs_any_more_is_no_error():
    pipeline.interrupt_kernels(2**22 - 1)
