"""`ecpo run`: a thin front to Snakemake with progress and a readable failure."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TextIO, get_args

import nbformat
import psutil

from .core.artifacts import writing
from .core.errors import ArtifactError, EcpoError, ModelError, ParamsError
from .core.params import Params, load_profile
from .core.paths import RunPaths, repository_root
from .core.schema import Role
from .data.folder import folder_lacks
from .data.release import release_lacks
from .dialogue.agents import find_framework
from .evaluate.judges import find_judge
from .llm.models import find_model
from .llm.servers import VLLM, check_loadable, server_spec, visible_gpus
from .workflow import NEEDS, domains_parameter, num_gpus

_ANSI = re.compile(r"\x1b\[[0-9;]*m")
_ERROR = re.compile(r"[\w.]*(Error|Exception)\b")  # how the last line of a traceback begins
STOP_S = 120.0  # for the answers in flight, after Ctrl-C
# the shell around Snakemake: when `ecpo run` is gone, by `kill -9` as well, its pipe is closed and the process group ends
_GUARD = 'exec 3<&0; { read -r _ <&3; kill -KILL 0; } & exec "$@" 3<&- </dev/null'


class StudyError(EcpoError):
    """A notebook failed; the message says which cell, the error, and where copy and log are."""


def run_study(profile: str, *, only: str = "", domain: str = "all", say: Callable[[str], None]) -> None:
    """Run all notebooks of a profile that are not up to date.

    Args:
        profile: Name of a params file.
        only: First digits of one notebook; what it needs is run as well.
        domain: One domain of the profile, or "all".
        say: Receives lines of progress; one that ends in "\\r" is to be overwritten.

    Raises:
        ParamsError: If the profile is not well-formed, names a model that its provider cannot serve, a framework or a
            folder that is not there, needs vLLM or GPUs that are not there, or has no such domain or notebook.
        ArtifactError: If another run of the profile is under way, or files cannot be written.
        StudyError: If a notebook fails.
    """
    root = repository_root()
    os.chdir(root)
    params = load_profile(root / "params" / f"{profile}.yaml")
    _check_models(params)
    _check_frameworks(params)
    _check_judge(params)
    _check_release(params)
    _check_folder(params)
    names = _chosen(params, only, domain)
    _check_vllm(params, names)
    paths = RunPaths(root, profile)
    with exclusive(paths) as lock:
        say(f"== study, profile {profile}: {', '.join(names)}")
        before = {name: _stamp(paths.executed(name, domain)) for name in NEEDS}
        for name in NEEDS:
            paths.running(name, domain).unlink(missing_ok=True)  # an earlier run's failure is not this one's
        code = _snakemake(paths, names, domain, say, lock)
        if code:
            raise explain_failure(paths, domain, code)
        for name in names:
            if _stamp(paths.executed(name, domain)) == before[name]:
                say(f"   {name}: up to date")


def _check_models(params: Params) -> None:
    role = "embedder"
    try:
        find_model(params.embedder)
        for role in get_args(Role):
            endpoint = getattr(params, role)
            if endpoint.provider != "openai":
                check_loadable(server_spec(endpoint.provider, endpoint.model, adapter=endpoint.adapter))
    except ModelError as error:
        raise ParamsError(f"params/{params.profile}.yaml: {role}: {error}") from None


def _check_vllm(params: Params, names: Sequence[str]) -> None:
    needed, there = max(num_gpus(name, params) for name in names), len(visible_gpus())
    roles = ", ".join(role for role in get_args(Role) if getattr(params, role).provider == "vllm")
    if needed and not VLLM.is_file():
        raise ParamsError(f"params/{params.profile}.yaml: {roles}: {VLLM} is missing; run: pip install -r requirements-gpu.txt")
    if needed > there:
        advice = "lower replicas, give roles the same model, or take another provider"
        raise ParamsError(f"params/{params.profile}.yaml: {roles}: vLLM needs {needed} GPUs at once, {there} are in sight; {advice}")


def _check_frameworks(params: Params) -> None:
    try:
        for name in params.frameworks:
            find_framework(name)
    except ParamsError as error:
        raise ParamsError(f"params/{params.profile}.yaml: frameworks: {error}") from None


def _check_judge(params: Params) -> None:
    try:
        find_judge(params.judge_mode)
    except ParamsError as error:
        raise ParamsError(f"params/{params.profile}.yaml: judge_mode: {error}") from None


def _check_release(params: Params) -> None:
    if lacks := release_lacks(params):
        raise ParamsError(f"params/{params.profile}.yaml: release_dir: {lacks[0]}")


def _check_folder(params: Params) -> None:
    if params.data_source == "folder" and (lacks := folder_lacks(params.data_dir, params.domains)):
        raise ParamsError(f"params/{params.profile}.yaml: data_dir: {lacks[0]}")


def _chosen(params: Params, only: str, domain: str) -> list[str]:
    names = [name for name in NEEDS if name.startswith(only)]
    if not names:
        raise ParamsError(f"no notebook begins with '{only}'; there are: {', '.join(NEEDS)}")
    if domain != "all" and domain not in params.domains:
        raise ParamsError(f"profile {params.profile} has no domain '{domain}'; it has: {', '.join(params.domains)}")
    if domain == "all":
        return names
    asked = {name: domains_parameter(name) for name in names}
    chosen = [name for name, key in asked.items() if not key or domain in getattr(params, key)]
    if not chosen:
        key = asked[names[0]]
        raise ParamsError(f"profile {params.profile} does not run {names[0]} in '{domain}'; {key}: {', '.join(getattr(params, key))}")
    return chosen


def _stamp(path: Path) -> float | None:
    return path.stat().st_mtime if path.is_file() else None


@contextlib.contextmanager
def exclusive(paths: RunPaths) -> Iterator[TextIO]:
    """Hold the profile's lock; the operating system frees it when the last process that has it open ends.

    Snakemake inherits the lock. If an earlier `ecpo run` was killed and left it at work, it is ended first.
    """
    with writing(paths.run):
        paths.run.mkdir(parents=True, exist_ok=True)
        lock = (paths.run / ".lock").open("a+")
    with lock:
        if not _try_lock(lock) and not (_end_orphans(lock) and _try_lock(lock, attempts=20)):
            raise ArtifactError(f"another 'ecpo run' is at work on profile {paths.profile}; wait for it, or stop it, and run again")
        yield lock


def _try_lock(lock: TextIO, attempts: int = 1) -> bool:
    for attempt in range(attempts):
        with contextlib.suppress(BlockingIOError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        time.sleep(0.5 if attempt < attempts - 1 else 0)
    return False


def _end_orphans(lock: TextIO) -> bool:
    """End the process group of a run whose own `ecpo run` is gone, and say so; a living one is left alone."""
    lock.seek(0)
    with contextlib.suppress(ValueError, ProcessLookupError):
        owner, group = map(int, lock.read().split())
        if not psutil.pid_exists(owner):
            os.killpg(group, signal.SIGKILL)
            return True
    return False


def snakemake_command(profile: str, names: Sequence[str], domain: str) -> list[str]:
    """Words of the command that makes these notebooks and what they need; whole names, for Snakemake reads 03 as a number."""
    return [sys.executable, "-m", "snakemake", "--snakefile", "workflow/Snakefile", "--cores", "all", "--nolock", "--rerun-incomplete",
            "--nocolor", "--config", f"profile={profile}", f"scope={domain}", f"only={','.join(names)}"]  # fmt: skip


def _snakemake(paths: RunPaths, names: Sequence[str], domain: str, say: Callable[[str], None], lock: TextIO) -> int:
    """Run Snakemake in a process group of its own, so that Ctrl-C and errors end all of it."""
    log = paths.run / "logs" / "snakemake.log"
    command = snakemake_command(paths.profile, names, domain)
    with writing(log):
        log.parent.mkdir(parents=True, exist_ok=True)
        file = log.open("w")
    with file:
        process = subprocess.Popen(
            ["sh", "-c", _GUARD, "sh", *command], stdout=file, stderr=subprocess.STDOUT, stdin=subprocess.PIPE, start_new_session=True,
            pass_fds=[lock.fileno()], env={**os.environ, "PYTHONUNBUFFERED": "1"},
        )  # fmt: skip
        try:
            with writing(paths.run / ".lock"):
                lock.truncate(0)
                lock.write(f"{os.getpid()} {process.pid}\n")
                lock.flush()
            _follow(process, paths, domain, say)
        except KeyboardInterrupt:
            say("   stopping; answers in flight are waited for and kept (again to end at once)")
            interrupt_kernels(process.pid)
            raise
        finally:
            with contextlib.suppress(ProcessLookupError):  # all that is finished is on disk; servers end by themselves
                os.killpg(process.pid, signal.SIGKILL)
            process.wait(30)
    return process.returncode


def interrupt_kernels(ancestor: int, patience_s: float = STOP_S) -> None:
    """Ctrl-C to the notebook kernels below a process; waits until they have kept what is in flight and are gone."""
    kernels = []
    with contextlib.suppress(psutil.Error):
        kernels = [child for child in psutil.Process(ancestor).children(recursive=True) if _is_kernel(child)]
    for kernel in kernels:
        with contextlib.suppress(psutil.Error):
            kernel.send_signal(signal.SIGINT)
    psutil.wait_procs(kernels, timeout=patience_s)


def _is_kernel(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.Error):  # it may have ended meanwhile
        return any("ipykernel" in word for word in process.cmdline())
    return False


def _follow(process: subprocess.Popen, paths: RunPaths, domain: str, say: Callable[[str], None]) -> None:
    """Report which notebook runs, its last line of output, and how long it took."""
    current, started = None, 0.0
    while True:
        ended = process.poll() is not None
        running = next((name for name in NEEDS if paths.running(name, domain).is_file()), None)
        if running != current or ended:
            if current and paths.executed(current, domain).is_file() and not paths.running(current, domain).is_file():
                say(f"   {current}: done in {time.monotonic() - started:.0f} s")
            if running and not ended:
                say(f"   {running}: running; log {paths.log(running, domain).relative_to(paths.root)}")
            current, started = running, time.monotonic()
        if ended:
            return
        if current and (line := last_line(paths.log(current, domain))):
            say(f"     {line[:110]:<110}\r")
        time.sleep(0.5)


def last_line(path: Path) -> str:
    """The newest line of a log that is worth showing: a progress bar or a message."""
    return next((line for line in _last_lines(path) if line and "Executing" not in line and not line.startswith("Ending Cell")), "")


def _last_lines(path: Path) -> list[str]:
    """Lines at the end of a log, the newest first."""
    try:
        with open(path, "rb") as file:
            file.seek(max(0, path.stat().st_size - 4000))
            text = file.read().decode(errors="replace")
    except OSError:
        return []
    return [_ANSI.sub("", line).strip() for line in reversed(re.split(r"[\r\n]+", text))]


def _cells(copy: Path) -> list[nbformat.NotebookNode]:
    """Cells of an executed copy; none where a full disk or a kill cut the file short."""
    try:
        return nbformat.read(copy, as_version=4).cells
    except nbformat.reader.NotJSONError:
        return []


def explain_failure(paths: RunPaths, domain: str, code: int) -> StudyError:
    """What a user needs to know of a failed run: notebook, cell, error, executed copy, log."""
    snakemake_log = paths.run / "logs" / "snakemake.log"
    text = snakemake_log.read_text(errors="replace") if snakemake_log.is_file() else ""
    for name in NEEDS:
        copy = paths.running(name, domain)
        if not copy.is_file():
            continue
        for number, cell in enumerate(_cells(copy), 1):
            errors = [out for out in cell.get("outputs", []) if out.output_type == "error"]
            if errors:
                first = cell.source.strip().splitlines()[0][:80]
                reason = _ANSI.sub("", errors[0].evalue).strip().splitlines() or [""]
                return StudyError(
                    f"notebook {name} failed in cell {number} ({first}): {errors[0].ename}: {reason[0]}\n"
                    f"  executed copy: {copy.relative_to(paths.root)}\n  log: {paths.log(name, domain).relative_to(paths.root)}\n"
                    f"  what is finished is kept; mend the cause and run the same command again"
                )
        return _stopped(paths, name, domain, code, text)
    begun = re.findall(r"^ *wildcards: name=(\w+)$", text, re.MULTILINE)
    if begun and "CalledProcessError" in text:  # its copy could not be written
        return _stopped(paths, begun[-1], domain, code, text)
    error = re.search(rf"^{_ERROR.pattern}(:\s.*|$)", text, re.MULTILINE)
    reason = " ".join(error[0].split())[:300] if error else "see its log"
    return StudyError(f"Snakemake failed (exit {code}): {reason}; log: {snakemake_log}")


def _stopped(paths: RunPaths, name: str, domain: str, code: int, snakemake_said: str) -> StudyError:
    log = paths.log(name, domain)
    killed = re.search(r"died with <Signals\.(\w+)", snakemake_said)
    reasons = [line for line in _last_lines(log) if _ERROR.match(line)] + ([f"ended by {killed[1]}"] if killed else [])
    reason = f": {reasons[0][:300]}" if reasons else ""
    return StudyError(f"notebook {name} stopped (exit {code}){reason}; log: {log}; run the same command again to go on")
