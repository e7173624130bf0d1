"""The command line: exact JSON, one line per error, exit codes."""

import contextlib
import gzip
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from stub_endpoint import Reply

from ecpo_utils import cli
from ecpo_utils.core.params import load_profile
from ecpo_utils.core.schema import Confirmation, Item, Persona, PersonaRecord, Trajectory, Turn
from ecpo_utils.llm.servers import server_spec

ROOT = Path(__file__).parents[1]
RELEASE = ROOT.parent / "shared" / "ecpo_release"
PROFILES = sorted(path.stem for path in (ROOT / "params").glob("*.yaml") if path.stem != "models")
TURNS = next(line for line in (ROOT / "params" / "quick.yaml").read_text().splitlines() if line.startswith("max_turns:"))
METRICS = ["n", "n_failed", "success_rate", "recall", "mean_turns", "mean_confirmation"]
DIVERSITY = ["n", "n_deduplicated", "mean", "median", "q1", "q3"]

needs_release = pytest.mark.skipif(not RELEASE.is_dir(), reason="needs the public release in ../shared")


@pytest.fixture(autouse=True)
def _no_real_cache(monkeypatch, tmp_path_factory):
    """No weights are found, nothing is fetched, and no server of this machine is seen."""
    monkeypatch.setenv("ECPO_CACHE", str(tmp_path_factory.mktemp("cache")))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)  # of this process, which reads the variable once, and
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")  # of those that it starts
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL", "ECPO_MODELS"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def ecpo(capsys):
    """Runs a command in this process; returns exit code, stdout and stderr."""

    def run(*words):
        code = cli.main([str(word) for word in words])
        out, err = capsys.readouterr()
        return code, out, err

    return run


@pytest.fixture
def fails(ecpo):
    """The one line on stderr of a command that must fail with exit code 1."""

    def run(*words):
        code, out, err = ecpo(*words)
        assert (code, out) == (1, "")
        assert err.startswith("ecpo: ") and err.endswith("\n") and err.count("\n") == 1, err
        assert "Traceback" not in err
        return err

    return run


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """The repository's params in a folder of their own; the working directory is there."""
    for name in ("params", "notebooks", "workflow"):
        shutil.copytree(ROOT / name, tmp_path / name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def trajectory(number, status="complete", scores=(), **fields):
    """A dialogue with a reply for each r_t in `scores`; None is an unscored reply."""
    values = {"task_id": f"book/u/{number}", "domain": "book", "system": "actcrs_expert", "config": "c",
              "target": Item(item_id="1", title="Emma"), "persona": Persona(activities="a", language="l")}  # fmt: skip
    turns = [Turn(index=i, policy="ask_recommendation", user_message="Hi.", reply="Yes.", confirmation=confirmation(score))
             for i, score in enumerate(scores)]  # fmt: skip
    return Trajectory(**{**values, "status": status, "turns": turns, **fields})


def confirmation(total):
    if total is None:
        return Confirmation(error="unreadable")
    return Confirmation(flexibility=min(2, total), coherence=min(2, max(0, total - 2)), guidance=max(0, total - 4))


def write(path, rows):
    path.write_text("".join((row if isinstance(row, str) else row.model_dump_json()) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture
def trajectories(tmp_path):
    return write(tmp_path / "actcrs_expert.jsonl", [
        trajectory(1, scores=(5, 3), recommended_at=1, retrieved_at=0),
        trajectory(2, "ended_by_user", scores=(None, 1, 1), retrieved_at=2),
        trajectory(3, "leak", scores=(5,), recommended_at=0, retrieved_at=0),
        trajectory(4, "failed", scores=(0,), error="EndpointError: gone", recommended_at=0),
    ])  # fmt: skip


@pytest.fixture
def personas(tmp_path):
    texts = ["Loves maps and fog", "Loves maps and noise", "Loves maps and fog", "Hates waiting"]
    rows = [PersonaRecord(user_id=f"u{n}", persona=Persona(activities=text, language="")) for n, text in enumerate(texts)]
    return write(tmp_path / "personas.jsonl", rows)


# metrics


def test_metrics_json_of_trajectories_by_hand(ecpo, trajectories):
    code, out, err = ecpo("metrics", trajectories, "--json")
    values = json.loads(out)
    assert (code, err, list(values), out.count("\n")) == (0, "", METRICS, 1)
    assert values == {"n": 4, "n_failed": 1, "success_rate": 0.25, "recall": 0.5, "mean_turns": 2.0,
                      "mean_confirmation": (4 + 1 + 5 + 0) / 4}  # fmt: skip


def test_metrics_of_a_packed_file_are_those_of_the_file(ecpo, fails, trajectories):
    packed = trajectories.with_name("packed.jsonl.gz")
    packed.write_bytes(gzip.compress(trajectories.read_bytes()))
    assert ecpo("metrics", packed, "--json") == ecpo("metrics", trajectories, "--json")
    packed.write_bytes(packed.read_bytes()[:-30])
    assert "cannot read" in fails("metrics", packed, "--json")


def test_metrics_go_by_content_and_not_by_name(ecpo, trajectories):
    expected = ecpo("metrics", trajectories, "--json")
    assert ecpo("metrics", trajectories.rename(trajectories.with_suffix(".log")), "--json") == expected


@pytest.mark.parametrize("name", ["none.jsonl", "none.log"])
@pytest.mark.parametrize("text", ["", "\n \n"])
def test_metrics_of_an_empty_file_are_an_error(fails, tmp_path, name, text):
    (tmp_path / name).write_text(text)
    assert name in fails("metrics", tmp_path / name, "--json")


def test_metrics_for_reading_have_intervals_and_counts(ecpo, trajectories):
    code, out, _ = ecpo("metrics", trajectories)
    first, *rest = out.splitlines()
    assert code == 0 and first == f"{trajectories}: n 4, failed 1, unscored 1 of 7 replies"
    names = [line.rpartition(" n=")[0].partition("  0.")[0].split("  ")[1].strip() for line in rest]
    assert names[:7] == [*METRICS[2:], "flexibility", "coherence", "guidance"]
    assert [line.split()[0] for line in rest[-4:]] == ["total_tokens", "failed_share", "leak_share", "system_error_share"]
    assert all(" n=" in line for line in rest)
    assert rest[0].split(maxsplit=1)[1].startswith("0.25 [0.") and rest[0].endswith("n=4")


@needs_release
@pytest.mark.parametrize(
    ("name", "n", "correct", "recalled", "rounds", "expression"),
    [
        ("actcrs_gpt", 100, 53, None, 4.75, None),
        ("actcrs_llama", 100, 34, 55, 4.58, 3.32),
        ("chatrec_gpt", 100, 46, 47, 4.72, 3.18),
        ("macrs_llama", 99, 36, 39, 4.90, 3.68),
        ("react_gpt", 99, 58, None, 4.70, 3.36),
    ],
)
def test_metrics_of_released_logs_are_those_of_their_last_lines(ecpo, name, n, correct, recalled, rounds, expression):
    code, out, err = ecpo("metrics", RELEASE / "test_log" / "book" / f"{name}.log", "--json")
    values = json.loads(out)
    assert (code, err, list(values)) == (0, "", METRICS)
    rounded = {key: value and round(value, 2) for key, value in values.items()}
    assert rounded == {"n": n, "n_failed": 0, "success_rate": round(correct / n, 2), "recall": recalled and round(recalled / n, 2),
                       "mean_turns": rounds, "mean_confirmation": expression}  # fmt: skip
    assert values["success_rate"] == correct / n


@pytest.mark.parametrize("as_json", [["--json"], []])
def test_a_bad_path_is_one_line(fails, tmp_path, as_json):
    assert "gone.jsonl: No such file" in fails("metrics", tmp_path / "gone.jsonl", *as_json)
    assert "gone.log" in fails("metrics", tmp_path / "gone.log", *as_json)
    assert str(tmp_path) in fails("metrics", tmp_path, *as_json)


def test_a_broken_line_names_file_and_line(fails, trajectories):
    lines = trajectories.read_text().splitlines()
    write(trajectories, [*lines[:2], lines[2][:50], lines[3]])
    assert "actcrs_expert.jsonl:3: not valid JSON" in fails("metrics", trajectories, "--json")
    write(trajectories, [lines[0], "[1, 2]"])
    assert "actcrs_expert.jsonl:2: expected a JSON object" in fails("metrics", trajectories, "--json")
    write(trajectories, [lines[0], "[" * 100_000])
    assert "actcrs_expert.jsonl:2: not valid JSON" in fails("metrics", trajectories, "--json")
    write(trajectories, ["[" * 100_000])
    assert "actcrs_expert.jsonl:1: not valid JSON" in fails("metrics", trajectories, "--json")
    write(trajectories, ['{"task_id": ' + "9" * 5_000 + "}"])
    assert "actcrs_expert.jsonl:1: not valid JSON" in fails("metrics", trajectories, "--json")


def test_an_unknown_format_names_file_and_line(fails, personas, tmp_path):
    assert "personas.jsonl:1: unknown format" in fails("metrics", personas, "--json")
    tasks = write(tmp_path / "tasks.log", ['{"UserID": "u", "Persona": {}, "Items": []}'])
    assert "tasks.log:1: unknown format" in fails("metrics", tasks)
    assert "notes.txt:1: " in fails("metrics", write(tmp_path / "notes.txt", ["Dear diary"]), "--json")
    assert "notes.log" in fails("metrics", write(tmp_path / "notes.log", ["Dear diary"]), "--json")
    (tmp_path / "weights.jsonl").write_bytes(b"\xff\xfe\x00\x01")
    assert "weights.jsonl:1: not UTF-8" in fails("metrics", tmp_path / "weights.jsonl", "--json")


def test_an_unknown_field_or_value_names_file_line_and_key(fails, trajectories):
    row = json.loads(trajectories.read_text().splitlines()[0])
    write(trajectories, [json.dumps(row), json.dumps(row | {"status": "finished"})])
    assert "actcrs_expert.jsonl:2: status: " in fails("metrics", trajectories)
    write(trajectories, [json.dumps(row | {"turms": []})])
    assert "actcrs_expert.jsonl:1: turms: " in fails("metrics", trajectories)


# diversity


def test_diversity_json_by_hand(ecpo, personas):
    code, out, err = ecpo("diversity", personas, "--json")
    values = json.loads(out)
    assert (code, err, list(values), list(values[str(personas)])) == (0, "", [str(personas)], DIVERSITY)
    # "love map and fog" and "love map and nois" share three of four words, the third none
    expected = {"n": 4, "n_deduplicated": 3, "mean": 0.5, "median": 0.75, "q1": 0.375, "q3": 0.75}
    assert values[str(personas)] == pytest.approx(expected)


def test_diversity_of_several_files_and_of_a_sample(ecpo, personas, tmp_path):
    other = shutil.copy(personas, tmp_path / "other.jsonl")
    _, out, _ = ecpo("diversity", personas, other, "--json", "--sample", 2, "--seed", 1)
    values = json.loads(out)
    assert list(values) == [str(personas), str(other)] and values[str(personas)] == values[str(other)]
    assert values[str(other)]["n_deduplicated"] == 3
    assert ecpo("diversity", personas, "--json", "--sample", 2, "--seed", 1)[1] == ecpo(
        "diversity", personas, "--json", "--sample", 2, "--seed", 1)[1]  # fmt: skip


def test_diversity_for_reading(ecpo, personas):
    _, out, _ = ecpo("diversity", personas)
    assert out == f"{personas}: n 4, distinct 3, maximum ROUGE-L mean 0.500, median 0.750, quartiles 0.375 to 0.750\n"


@needs_release
def test_diversity_of_the_released_random_personas(ecpo):
    path = RELEASE / "persona" / "random_personas.jsonl"
    values = json.loads(ecpo("diversity", path, "--json")[1])[str(path)]
    assert values["n"] == 100 and values["n_deduplicated"] == 90
    assert values["mean"] == pytest.approx(0.793, abs=0.0005)  # the paper's Figure 4


def test_diversity_errors_are_one_line(fails, personas, trajectories, tmp_path):
    assert "gone.jsonl" in fails("diversity", personas, tmp_path / "gone.jsonl", "--json")
    line = fails("diversity", trajectories)
    assert "actcrs_expert.jsonl:1: unknown format" in line and "expected JSON lines of our personas" in line
    assert f"{personas} is given twice" in fails("diversity", personas, personas, "--json")
    assert "empty.jsonl: the file is empty" in fails("diversity", write(tmp_path / "empty.jsonl", []))
    lines = personas.read_text().splitlines()
    write(personas, [*lines, '{"user_id": "u9"}'])
    assert "personas.jsonl:5: persona: " in fails("diversity", personas)
    write(personas, [*lines, '{"user_id": '])
    assert "personas.jsonl:5: not valid JSON" in fails("diversity", personas)
    write(personas, lines[:1])
    assert "at least 2 distinct" in fails("diversity", personas)
    write(personas, lines)
    assert "at least 2 distinct" in fails("diversity", personas, "--sample", 1)


# profiles


@pytest.mark.parametrize("command", ["run", "report"])
def test_an_unknown_profile_lists_the_known_ones(fails, checkout, command):
    assert fails(command, "--profile", "laptop").endswith(f"there are: {', '.join(PROFILES)}\n")
    assert not (checkout / "runs").exists()


def change(checkout, old, new):
    path = checkout / "params" / "quick.yaml"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


@pytest.mark.parametrize("command", ["run", "report"])
@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (TURNS, "max_turn: 4", "unknown parameter 'max_turn'; did you mean 'max_turns'?"),
        (f"{TURNS}\n", "", "parameter 'max_turns' is missing"),
        (TURNS, "max_turns: four", "parameter 'max_turns' is 'four'"),
        (TURNS, "max_turns: 0", "parameter 'max_turns' is 0"),
        ("simulator: {provider: embedded,", "simulator: {providr: embedded,", "'simulator.providr'; did you mean 'provider'?"),
        ("split: by_user", "split: by_users", "parameter 'split' is 'by_users'"),
        ("seed: 0", "seed: [", "cannot read"),
        ("seed: 0", "seed: -1", "parameter 'seed' is -1"),
        ("seed: 0", "seed: 0\nseed: 1", "quick.yaml:4: parameter 'seed' is given twice"),
    ],
)
def test_a_fault_in_a_params_file_names_file_and_key_before_any_work(fails, checkout, command, old, new, message):
    change(checkout, old, new)
    line = fails(command)
    assert message in line and "quick.yaml" in line
    assert not (checkout / "runs").exists()


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("embedder: all-minilm-l6-v2", "embedder: minilm", "embedder: no model 'minilm' in params/models.yaml; known: "),
        ("cra: {provider: embedded, model: smollm2-135m-instruct-q4", "cra: {provider: embedded, model: smol", "cra: no model 'smol'"),
        ("smollm2-135m-instruct-q4", "smollm2-135m-instruct", "cra: the embedded server loads GGUF files; "),
    ],
)
def test_a_model_that_cannot_be_served_is_told_with_its_role_before_any_work(fails, checkout, old, new, message):
    change(checkout, old, new)
    line = fails("run")
    assert "params/quick.yaml: " in line and message in line
    assert not (checkout / "runs").exists()


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("frameworks: [", "frameworks: [actcsr, ", "frameworks: no framework 'actcsr'; there are: chatrec, "),
        ('data_source: builtin\nrelease_dir: ""', "data_source: release\nrelease_dir: gone",
         "gone/task; set release_dir to the folder that holds the release's task/"),
        ('release_dir: ""', "release_dir: gone", "gone; set release_dir to the folder that holds the release's test_log/"),
        ("judge_mode: narrow", "judge_mode: narow", "judge_mode: no judge mode 'narow'; there are: "),
    ],
)  # fmt: skip
def test_a_framework_or_folder_that_is_not_there_is_told_before_any_work(fails, checkout, old, new, message):
    change(checkout, old, new)
    line = fails("run")
    assert "params/quick.yaml: " in line and message in line
    assert not (checkout / "runs").exists()


def test_an_unknown_notebook_or_domain_lists_the_known_ones(fails, checkout):
    assert "no notebook begins with '99'; there are: 01_environment, " in fails("run", "--only", "99")
    assert "profile quick has no domain 'music'; it has: book, game, yelp" in fails("run", "--domain", "music")
    assert not (checkout / "runs").exists()


def test_report_before_any_run_says_what_to_run(fails, checkout):
    assert "nothing has run on profile quick yet; run: ecpo run --profile quick" in fails("report")


# models, doctor


@pytest.mark.parametrize("action", ["where", "fetch"])
def test_an_unknown_model_lists_the_known_ones(fails, action):
    line = fails("models", action, "gpt-17")
    assert "no model 'gpt-17' in params/models.yaml; known: " in line and "all-minilm-l6-v2" in line


@pytest.mark.parametrize("action", ["where", "fetch"])
def test_a_missing_model_name_says_where_to_look(fails, action):
    assert "needs a NAME; see: ecpo models list" in fails("models", action)


def test_a_model_that_is_not_here_says_how_to_get_it(fails):
    assert "get it with: ecpo models fetch smollm2-135m-instruct-q4" in fails("models", "where", "smollm2-135m-instruct-q4")


def test_models_list_has_a_line_per_model(ecpo):
    code, out, err = ecpo("models", "list")
    lines = out.splitlines()
    assert (code, err) == (0, "")
    assert any(line.startswith("all-minilm-l6-v2 ") and "hub+packages" in line and line.endswith("not here") for line in lines)


def test_a_broken_registry_is_one_line(fails, checkout):
    path = checkout / "params" / "models.yaml"
    path.write_text(path.read_text().replace("kind: gguf", "kind: ggml", 1))
    assert "models.yaml: model 'qwen2.5-coder-1.5b-instruct-q4': kind: " in fails("models", "list")


def doctor(ecpo):
    code, out, err = ecpo("doctor")
    assert (code, err) == (0, "")
    return {line.split()[1]: line for line in out.splitlines() if line.startswith("profile ")}, out


def test_doctor_tells_machine_models_and_what_each_profile_lacks(ecpo, checkout):
    profiles, out = doctor(ecpo)
    assert out.startswith("machine   Python 3.") and "\nGPU       " in out and "server    none running" in out
    assert sorted(profiles) == PROFILES
    assert "the environment variable OPENAI_API_KEY" in profiles["paper"]


def keys(out):
    """What doctor says of each key's variable."""
    return {line.split()[1]: " ".join(line.split()[2:]) for line in out.splitlines() if line.startswith("key ")}


def test_doctor_asks_openai_itself_once_and_only_with_a_key(ecpo, checkout, monkeypatch, stub_endpoint):
    monkeypatch.setattr("ecpo_utils.doctor.OPENAI_URL", stub_endpoint.base_url)
    assert keys(doctor(ecpo)[1]) == {"OPENAI_API_KEY": "not set; needed by gpu, paper"} and stub_endpoint.requests == []
    monkeypatch.setenv("OPENAI_API_KEY", "sk-test\n")
    profiles, out = doctor(ecpo)
    assert "OPENAI_API_KEY" not in profiles["gpu"] and "answer" not in profiles["gpu"]
    assert keys(out) == {"OPENAI_API_KEY": "set; needed by gpu, paper"} and "sk-test" not in out
    assert [(each.path, each.headers["authorization"]) for each in stub_endpoint.requests] == [("/v1/models", "Bearer sk-test")]
    stub_endpoint.models_reply = Reply("no sk-test", status=401)
    profiles, out = doctor(ecpo)
    assert f"an answer from {stub_endpoint.base_url} (401: is the key in $OPENAI_API_KEY right?)" in profiles["paper"]
    assert "sk-test" not in out
    monkeypatch.setenv("OPENAI_API_KEY", "\u201csk-test\u201d")
    assert "a key in OPENAI_API_KEY without the character" in doctor(ecpo)[0]["gpu"]


def test_doctor_counts_an_endpoint_that_answers_and_reaches_loopback_past_a_proxy(ecpo, checkout, monkeypatch, stub_endpoint):
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    path = checkout / "params" / "gpu.yaml"
    elsewhere = f'model: m, base_url: "{stub_endpoint.base_url}", api_key_env: MY_KEY,'
    path.write_text(path.read_text().replace("model: gpt-4o-mini,", elsewhere))
    assert keys(doctor(ecpo)[1])["MY_KEY"] == "not set; sent by gpu to an endpoint that may not ask for it"
    stub_endpoint.requests.clear()
    monkeypatch.setenv("MY_KEY", "sk-mine")
    profiles, out = doctor(ecpo)
    assert "answer" not in profiles["gpu"] and keys(out)["MY_KEY"].startswith("set; sent by gpu")
    assert [request.headers["authorization"] for request in stub_endpoint.requests] == ["Bearer sk-mine"]
    address = stub_endpoint.base_url
    stub_endpoint.close()
    assert f"an answer from {address}" in doctor(ecpo)[0]["gpu"]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [(TURNS, "max_turn: 4", "BAD: "), ("embedder: all-minilm-l6-v2", "embedder: other", "BAD: no model 'other'")],
)
def test_doctor_goes_on_after_a_bad_profile(ecpo, checkout, old, new, message):
    change(checkout, old, new)
    profiles, _ = doctor(ecpo)
    assert message in profiles["quick"] and sorted(profiles) == PROFILES


# serve


def test_serve_asks_for_the_server_that_the_roles_of_a_profile_ask_for(ecpo, monkeypatch):
    asked = []

    @contextlib.contextmanager
    def serving(spec):
        asked.append(spec)
        raise KeyboardInterrupt
        yield

    monkeypatch.setattr("ecpo_utils.llm.servers.serving", serving)
    simulator, cra = load_profile(ROOT / "params" / "quick.yaml").simulator, load_profile(ROOT / "params" / "quick.yaml").cra
    assert ecpo("serve", simulator.model)[0] == ecpo("serve", cra.model, "--slots", cra.max_concurrency)[0] == 130
    assert asked == [server_spec(role.provider, role.model, role.max_concurrency) for role in (simulator, cra)]


@pytest.mark.parametrize("slots", ["0", "-1", "two"])
def test_slots_that_are_no_number_are_wrong_usage(capsys, slots):
    with pytest.raises(SystemExit) as ended:
        cli.main(["serve", "smollm2-135m-instruct-q4", f"--slots={slots}"])
    assert ended.value.code == 2 and f"'{slots}' is no whole number above 0" in capsys.readouterr().err


@pytest.mark.parametrize(("option", "value"), [("--seed", "-1"), ("--seed", "x"), ("--sample", "0"), ("--sample", "-3")])
def test_numbers_of_diversity_that_are_none_are_wrong_usage(capsys, personas, option, value):
    with pytest.raises(SystemExit) as ended:
        cli.main(["diversity", str(personas), f"{option}={value}"])
    assert ended.value.code == 2 and f"'{value}' is no whole number" in capsys.readouterr().err


# the command itself


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize("times", [1, 5000])
def test_output_to_a_full_disk_is_one_line(times):
    code = f"import sys; from ecpo_utils import cli; cli._doctor = lambda _: print('line\\n' * {times}); sys.exit(cli.main(['doctor']))"
    with open("/dev/full", "w") as full:
        done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, stdout=full, stderr=subprocess.PIPE, text=True)
    assert (done.returncode, done.stderr) == (1, "ecpo: cannot write the output: No space left on device\n")


def test_output_that_nobody_reads_any_more_is_no_traceback():
    code = "import sys; from ecpo_utils import cli; cli._doctor = lambda _: print('x' * 10**6); sys.exit(cli.main(['doctor']))"
    process = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdout.close()
    assert process.stderr.read() == b"" and process.wait(20) == 1


def test_other_faults_of_the_system_keep_their_traceback(monkeypatch):
    def broken(_):
        raise FileNotFoundError(2, "No such file", "x")

    monkeypatch.setattr(cli, "_doctor", broken)
    with pytest.raises(FileNotFoundError):
        cli.main(["doctor"])


def test_as_a_module_it_prints_json_only_and_exits_with_the_code(trajectories, tmp_path):
    def run(*words):
        return subprocess.run([sys.executable, "-m", "ecpo_utils.cli", *map(str, words)], cwd=ROOT, capture_output=True, text=True)

    good = run("metrics", trajectories, "--json")
    assert (good.returncode, good.stderr, json.loads(good.stdout)["n"]) == (0, "", 4)
    bad = run("metrics", tmp_path / "gone.jsonl")
    assert (bad.returncode, bad.stdout, bad.stderr.count("\n")) == (1, "", 1)


@pytest.mark.parametrize("words", [[], ["sing"], ["metrics"], ["models", "eat"], ["diversity"]])
def test_wrong_usage_is_told_by_argparse(capsys, words):
    with pytest.raises(SystemExit) as ended:
        cli.main(words)
    assert ended.value.code == 2 and "usage: ecpo" in capsys.readouterr().err


def test_ctrl_c_is_one_line_and_130(ecpo, monkeypatch, trajectories):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "_metrics", interrupted)
    code, out, err = ecpo("metrics", trajectories)
    assert (code, out, err.count("\n")) == (130, "", 1)


def test_a_polite_kill_stops_a_command_that_a_script_started_in_the_background():
    """Shells start background jobs with Ctrl-C ignored; SIGTERM must not depend on it."""
    code = (
        "import signal, sys, time; signal.signal(signal.SIGINT, signal.SIG_IGN)\n"
        "from ecpo_utils import cli\n"
        "cli._doctor = lambda options: (print('started', flush=True), time.sleep(60))\n"
        "sys.exit(cli.main(['doctor']))"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "started\n"
    process.terminate()
    assert "stopped" in process.communicate(timeout=20)[1]
    assert process.returncode == 130
