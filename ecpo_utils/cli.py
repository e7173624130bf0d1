"""The `ecpo` command. Each subcommand is a few lines over the package; errors are one line and exit code 1."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import errno
import json
import logging
import os
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from . import data_command
from .core.errors import EcpoError, ParamsError

if TYPE_CHECKING:
    from .run import Run

OUTPUT_FAULTS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)  # of what is printed; a file's are ArtifactErrors


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point. Returns 0, or 1 after an error that was printed as one line, or 130 after Ctrl-C."""
    options = _parser().parse_args(arguments)
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s", stream=sys.stderr)
    signal.signal(signal.SIGTERM, _stop)  # a polite kill cleans up like Ctrl-C, also where a script has Ctrl-C ignored
    try:
        code = options.command(options) or 0
        if sys.stdout:
            sys.stdout.flush()  # here, where a full disk can still be told
        return code
    except EcpoError as error:
        print(f"ecpo: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("ecpo: stopped; what is finished is kept, the same command goes on from there", file=sys.stderr)
        return 130
    except OSError as error:
        if not isinstance(error, BrokenPipeError):
            if error.filename is not None or error.errno not in OUTPUT_FAULTS:
                raise
            print(f"ecpo: cannot write the output: {error.strerror}", file=sys.stderr)
        _discard_output()
        return 1


def _discard_output() -> None:
    """Let what could not be printed go nowhere, or Python would try again when it ends."""
    with contextlib.suppress(OSError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _stop(*_: object) -> None:
    raise KeyboardInterrupt


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="ecpo", description="A reproducible study of ECPO for conversational recommendation agents.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def add(name: str, command: Callable, help_text: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=help_text, description=help_text)
        sub.set_defaults(command=command)
        return sub

    def add_profile(sub: argparse.ArgumentParser, default: str, help_text: str = "file in params/") -> None:
        sub.add_argument("--profile", default=default, help=f"{help_text} (default: %(default)s)")

    run = add("run", _run, "run the notebooks of a profile that are not up to date")
    add_profile(run, "quick")
    run.add_argument("--only", default="", metavar="NN", help="one notebook and what it needs, e.g. 03")
    run.add_argument("--domain", default="all", help="one domain of the profile")

    plan = add("plan", _plan, "calls, tokens, hours and money of a profile, before anything is spent")
    add_profile(plan, "quick")
    plan.add_argument("--json", action="store_true")

    report = add("report", _report, "write runs/PROFILE/report.html and say where everything is")
    add_profile(report, "quick")

    publish = add("publish", _publish, "pack a run into results/ and figures/")
    add_profile(publish, "cpu")
    publish.add_argument("--replace", action="store_true", help="drop published files that the run no longer has")
    figures = add("figures", _figures, "draw figures/ again from results/, without any model")
    add_profile(figures, "cpu")
    restore = add("restore", _restore, "unpack results/ into runs/, where files are missing, to go on from there")
    add_profile(restore, "cpu")

    models = add("models", _models, "list the registered models, fetch one, or say where it is")
    models.add_argument("action", choices=["list", "fetch", "where"])
    models.add_argument("name", nargs="?")

    chat = add("chat", _chat, "talk with an agent; shows what it does and how a user with a hidden wish would score it")
    chat.add_argument("--agent", required=True, metavar="NAME", help="a framework, e.g. actcrs")
    chat.add_argument("--role", default="", help="the agent's backbone: expert (default) or cra")
    chat.add_argument("--adapter", default="", metavar="NAME", help="a trained adapter for cra to carry: sgpt, dpo, kto or simpo")
    add_profile(chat, "quick")
    chat.add_argument("--domain", default="", help="one domain of the profile, its first by default")
    chat.add_argument("--task", default="", metavar="ID", help="a task of notebook 02 whose target is the hidden one")

    add("doctor", _doctor, "tell what this machine has and what each profile lacks")
    serve = add("serve", _serve, "serve an embedded model on loopback until Ctrl-C")
    serve.add_argument("model")
    serve.add_argument("--slots", type=_positive, metavar="N", help="answers decoded side by side (1, as the roles in params/quick.yaml)")

    metrics = add("metrics", _metrics, "success rate, recall, turns and confirmation of trajectories or a released log")
    metrics.add_argument("path", type=Path)
    metrics.add_argument("--json", action="store_true")

    judge = add("judge", _judge, "win rate of the dialogues of A against those of B on the same tasks")
    judge.add_argument("first", type=Path, metavar="A", help="trajectories JSONL, or a dialogue .log in the released format")
    judge.add_argument("second", type=Path, metavar="B")
    add_profile(judge, "quick", "whose judge: model, mode and clipping")
    judge.add_argument("--pairs", type=_natural, default=0, metavar="N", help="so many pairs, drawn by the profile's seed; 0 for all")
    judge.add_argument("--cut", action="store_true", help="judge dialogues up to their first line break, as the release's script did")
    judge.add_argument("--out", type=Path, help="keep the verdicts in this JSONL file; those that it holds are not asked for again")
    judge.add_argument("--json", action="store_true")

    examples = add("examples", _examples, "play the expert's dialogues that SGPT learns from and write the examples, to train by itself")
    add_profile(examples, "quick")
    examples.add_argument("--domain", default="", help="one domain; all that are tuned by default")

    train = add("train", _train, "train adapters from a run's examples or pairs; on several GPUs: accelerate launch -m ecpo_utils.cli")
    train.add_argument("stage", choices=["sgpt", "preferences"])
    add_profile(train, "quick")
    train.add_argument("--domain", default="", help="one domain; all that are tuned by default")

    export = add("export", _export, "write a model, an adapter merged into it or none, or the training data for LLaMA-Factory or TRL")
    export.add_argument("what", choices=["model", "sharegpt", "trl"])
    export.add_argument("out", type=Path, metavar="FOLDER", help="a new folder")
    add_profile(export, "quick")
    export.add_argument("--domain", default="book")
    export.add_argument("--adapter", default="dpo", help="of the model: sgpt, dpo, kto, simpo, or none for the backbone alone")

    data_command.add_options(add("data", _data, "bring your own data: build a folder from Amazon or Yelp files, or fetch them"))

    diversity = add("diversity", _diversity, "maximum ROUGE-L of each persona to the others, per file")
    diversity.add_argument("paths", type=Path, nargs="+", metavar="PATH")
    diversity.add_argument("--sample", type=_positive, metavar="N", help="so many distinct personas, drawn by --seed")
    diversity.add_argument("--seed", type=_natural, default=0, metavar="N")
    diversity.add_argument("--json", action="store_true")
    return parser


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"'{text}' is no whole number above 0")
    return int(text)


def _natural(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"'{text}' is no whole number, 0 or more")
    return int(text)


def _say(line: str) -> None:
    """Progress on stderr; lines to be overwritten are left out where nobody watches."""
    if line.endswith("\r"):
        if sys.stderr.isatty():
            sys.stderr.write(line)
    else:
        sys.stderr.write(("\x1b[2K" if sys.stderr.isatty() else "") + line + "\n")
    sys.stderr.flush()


def _run(options: argparse.Namespace) -> None:
    from .pipeline import run_study

    run_study(options.profile, only=options.only, domain=options.domain, say=_say)


def _plan(options: argparse.Namespace) -> None:
    from .core.params import load_profile
    from .core.paths import repository_root
    from .planning import Plan

    plan = Plan(load_profile(repository_root() / "params" / f"{options.profile}.yaml"))
    print(json.dumps(plan.rows()) if options.json else "\n".join(plan.lines()))


def _report(options: argparse.Namespace) -> None:
    from .report import write_report

    print("\n".join(write_report(options.profile)))


def _publish(options: argparse.Namespace) -> None:
    from .publishing import publish_run

    print("\n".join(publish_run(options.profile, replace=options.replace)))


def _figures(options: argparse.Namespace) -> None:
    from .publishing import draw_published

    print("\n".join(draw_published(options.profile)))


def _restore(options: argparse.Namespace) -> None:
    from .publishing import restore_run

    files, answers = restore_run(options.profile)
    print(f"restored: {files} files to runs/{options.profile}, {answers} answers of models to the cache")


def _models(options: argparse.Namespace) -> int:
    from .llm.models import fetch_model, find_model, load_registry, locate_model

    if options.action == "list":
        for name, model in load_registry().items():
            place = locate_model(name)
            sources = [word for word, there in (("hub", model.hub), ("packages", model.packages)) if there]
            print(f"{name:34} {model.kind:12} {model.size_mb:6} MB  {'+'.join(sources):13} {model.licence[:24]:24}  {place or 'not here'}")
        return 0
    if not options.name:
        print(f"ecpo: models {options.action} needs a NAME; see: ecpo models list", file=sys.stderr)
        return 1
    find_model(options.name)
    path = fetch_model(options.name) if options.action == "fetch" else locate_model(options.name)
    if path is None:
        print(f"ecpo: {options.name} is not on this machine; get it with: ecpo models fetch {options.name}", file=sys.stderr)
        return 1
    print(path)
    return 0


def _doctor(options: argparse.Namespace) -> None:
    from .doctor import diagnose

    print("\n".join(diagnose()))


def _serve(options: argparse.Namespace) -> None:
    from .llm.servers import SLOTS, server_spec, serving

    with serving(server_spec("embedded", options.model, options.slots or SLOTS)) as server:
        print(f"{options.model} answers at {server.base_url}\nkey: {server.api_key}\nCtrl-C ends it (unless others use it)", flush=True)
        signal.pause()


def _chat(options: argparse.Namespace) -> int:
    from .chat import open_chat
    from .chat_terminal import Terminal

    with contextlib.suppress(ImportError):
        import readline  # noqa: F401 (gives input() its line editing)
    with contextlib.suppress(AttributeError):  # a stream of another kind, as in a notebook
        sys.stdin.reconfigure(errors="replace")
    chat = open_chat(options.agent, profile=options.profile, domain=options.domain, role=options.role, adapter=options.adapter,
                     task_id=options.task)  # fmt: skip
    with asyncio.Runner() as runner:
        stack = contextlib.AsyncExitStack()
        try:
            _status(f"opening {options.agent} ...")
            session = runner.run(stack.enter_async_context(chat))
            return Terminal(session, runner.run, read=_read_line, write=_write_line, status=_status).run()
        finally:
            runner.run(stack.aclose())


def _read_line() -> str:
    return input("you> " if sys.stdin.isatty() else "")


def _write_line(line: str) -> None:
    print(line, flush=True)


def _status(text: str) -> None:
    _say(f"\x1b[2K{text}\r")


def _metrics(options: argparse.Namespace) -> None:
    from .core.artifacts import load_jsonl
    from .core.schema import Trajectory
    from .data.release import detect_format, load_release_log
    from .evaluate.metrics import metrics_json, summarize, summarize_log

    if detect_format(options.path, "trajectories", "log") == "log":
        metrics = summarize_log(load_release_log(options.path))
    else:
        metrics = summarize(load_jsonl(options.path, Trajectory))
    if options.json:
        print(json.dumps(metrics_json(metrics)))
        return
    unscored = f"unscored {metrics.num_unscored_replies} of {metrics.num_replies} replies"
    print(f"{options.path}: n {metrics.n}, failed {metrics.n_failed}, {unscored}")
    for name, rate in metrics.rates().items():
        print(f"  {name:18} {rate.text() if rate else 'not told by this file'}")


def _judge(options: argparse.Namespace) -> int:
    from .evaluate.win_rates import DIMENSIONS, win_rate_json
    from .judging import judge_files
    from .run import open_run

    first, second = options.first.absolute(), options.second.absolute()  # a run works from the repository root
    out = options.out and options.out.absolute()
    run = open_run("judge", {"profile": options.profile})
    verdicts, not_shared = asyncio.run(judge_files(run, first, second, num_pairs=options.pairs, cut=options.cut, out=out))
    found = win_rate_json(verdicts) | {"n_not_shared": not_shared}
    if options.json:
        print(json.dumps(found))
    else:
        counts = f"n {found['n']}, unscored {found['n_unscored']}, tasks that only one has {not_shared}"
        print(f"{options.first} against {options.second}: {counts}")
        for name in DIMENSIONS:
            print(f"  {name:12} {_judged(found[name])}")
    if error := next((verdict.error for verdict in verdicts if verdict.error), None):
        print(f"ecpo: {found['n_unscored']} of {found['n']} pairs are unscored; the first error: {error}", file=sys.stderr)
    if undecided := [name for name in DIMENSIONS if found[name]["undecided"]]:
        print(f"ecpo: what the judge was asked told no pair apart, so these win rates say nothing: {', '.join(undecided)}", file=sys.stderr)
    return 0 if found["n"] > found["n_unscored"] else 1


def _judged(row: dict) -> str:
    """One dimension of `win_rate_json` in words."""
    if row["win_rate"] is None:
        return "unscored"
    habits = [f"{key.replace('_', ' ')} {row[key]:.2f}" for key in ("flips", "first_shown") if row[key] is not None]
    return ", ".join([f"win rate {row['win_rate']:.2f} [{row['low']:.2f}, {row['high']:.2f}]", f"ties {row['ties']}", *habits])


def _tuning_run(options: argparse.Namespace) -> Run:
    from .run import open_run

    return open_run("train", {"profile": options.profile} | ({"domains": [options.domain]} if options.domain else {}))


def _examples(options: argparse.Namespace) -> None:
    from .tuning import build_sgpt_sets, play_expert

    run = _tuning_run(options)
    for domain, rows in build_sgpt_sets(run, asyncio.run(play_expert(run))).items():
        print(f"{run.paths.examples(domain, 'sgpt')}: {len(rows.train)} examples to train on, {len(rows.validation)} to watch with")


def _train(options: argparse.Namespace) -> None:
    from .tuning import load_preference_sets, load_sgpt_sets, train_preferences, train_sgpt

    run = _tuning_run(options)
    if options.stage == "sgpt":
        adapters = list(train_sgpt(run, load_sgpt_sets(run)).values())
    else:
        adapters = [path for paths in train_preferences(run, load_preference_sets(run)).values() for path in paths.values()]
    print("\n".join(map(str, adapters)))


def _export(options: argparse.Namespace) -> None:
    from .run import open_run
    from .tuning import export_data, export_merged

    folder = options.out.resolve()  # a run works from the repository root
    run = open_run("export", {"profile": options.profile, "domains": [options.domain]})
    if options.what == "model":
        print(export_merged(run, options.domain, options.adapter, folder))
    else:
        print("\n".join(map(str, export_data(run, options.domain, options.what, folder))))


def _data(options: argparse.Namespace) -> None:
    if options.action == "build":
        print("\n".join(data_command.build(options)))
        return
    from .data.dumps.fetch import SITE, fetch_file, list_files

    site = options.site or SITE
    files = list_files(options.domain if options.source == "amazon" else "yelp", options.origin, site)
    missing = [file for file in files if not data_command.is_there(file, options.to)]
    for file in files:
        print(f"{file.size / 1e9:8.2f} GB  {Path(file.name).name}{'' if file in missing else '  (is there)'}", flush=True)
    data_command.check_space(missing, options.to)
    if missing and not options.yes:
        if not sys.stdin.isatty():
            raise ParamsError("nobody is there to agree to the download; add --yes")
        try:
            answer = input(f"download to {options.to}? [y/N] ")
        except EOFError:  # Ctrl-D
            answer = ""
        if answer.strip().lower() not in ("y", "yes"):
            raise ParamsError("nothing was downloaded")
    reviews, meta = (fetch_file(file, options.origin, options.to, site) for file in files)
    print(f"ecpo data build --domain {options.domain} --source amazon --reviews {reviews} --meta {meta} --out data")


def _diversity(options: argparse.Namespace) -> None:
    from .core.errors import SchemaError
    from .data.release import load_persona_texts
    from .evaluate.diversity import diversity_json, summarize_diversity

    if twice := next((path for path in options.paths if options.paths.count(path) > 1), None):
        raise SchemaError(f"{twice} is given twice; give each file once")
    rows = {}
    for path in options.paths:
        texts = load_persona_texts(path)
        try:
            rows[str(path)] = diversity_json(summarize_diversity(texts, options.sample, options.seed))
        except SchemaError as error:
            raise SchemaError(f"{path}: {error}") from None
    if options.json:
        print(json.dumps(rows))
        return
    for path, row in rows.items():
        print(
            f"{path}: n {row['n']}, distinct {row['n_deduplicated']}, maximum ROUGE-L mean {row['mean']:.3f}, "
            f"median {row['median']:.3f}, quartiles {row['q1']:.3f} to {row['q3']:.3f}"
        )


if __name__ == "__main__":
    sys.exit(main())
