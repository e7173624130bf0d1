"""Keys are in no file or message, weights run no code, servers are on loopback."""

import asyncio
import base64
import contextlib
import json
import logging
import pickle
import subprocess
import sys
import urllib.parse
from pathlib import Path

import numpy as np
import pytest
import yaml
from scripted_models import FULL, FakeEmbedder
from stub_endpoint import Reply
from test_stages import checkout, namespace  # noqa: F401 (checkout is a fixture)

from ecpo_utils import preparation, simulation
from ecpo_utils.core.errors import ArtifactError, EcpoError, EndpointError, ModelError, ParamsError
from ecpo_utils.core.params import Endpoint
from ecpo_utils.core.redaction import hide_key, hide_userinfo
from ecpo_utils.dialogue.retrieval import load_database
from ecpo_utils.dialogue.shards import embed_shards
from ecpo_utils.dialogue.vector_index import build_index, load_index
from ecpo_utils.doctor import profile_lacks
from ecpo_utils.llm import supervisor
from ecpo_utils.llm.adapters import check_adapter
from ecpo_utils.llm.cache import ResponseCache
from ecpo_utils.llm.endpoints import open_clients
from ecpo_utils.llm.formats import refuse_code
from ecpo_utils.llm.models import load_registry, locate_model
from ecpo_utils.llm.servers import adapter_hash, server_spec
from ecpo_utils.run import open_run

ROOT = Path(__file__).parents[1]
KEY = "sk-MARK-a/b+c=7f3e9d"
MODEL = "smollm2-135m-instruct"
HELLO = [{"role": "user", "content": "Hi"}]


class Bomb:
    """Makes a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.fixture
def bomb(tmp_path):
    """A bomb, which must not have gone off at the end of a test."""
    crater = tmp_path / "crater"
    yield Bomb(crater)
    assert not crater.exists()


def test_the_bomb_works(tmp_path):
    pickle.loads(pickle.dumps(Bomb(tmp_path / "crater")))
    assert (tmp_path / "crater").exists()


# keys


def forms(key):
    """What a key may look like in a file: as it is, in JSON, in an address, in base64 at any offset."""
    inner = [base64.b64encode(b"x" * shift + key.encode()).decode()[4 if shift else 0 : -4] for shift in range(3)]
    return [form.encode() for form in (key, json.dumps(key)[1:-1], urllib.parse.quote(key, safe=""), urllib.parse.quote_plus(key), *inner)]


def assert_nowhere(folder, *texts):
    files = [path for path in folder.rglob("*") if path.is_file()]
    found = [(path, form) for path in files for form in forms(KEY) if form in path.read_bytes()]
    assert not found and not [form for text in texts for form in forms(KEY) if form.decode() in text]
    return files


def test_the_search_finds_a_key_in_every_form(tmp_path):
    for number, form in enumerate(forms(KEY)):
        (tmp_path / str(number)).write_bytes(b"x" + form)
        with pytest.raises(AssertionError):
            assert_nowhere(tmp_path)
        (tmp_path / str(number)).unlink()


FAILURES = {
    "refused with the key": Reply(f"Incorrect API key provided: {KEY}", status=401),
    "refused with the key in an address": Reply(f"see http://x/?key={urllib.parse.quote(KEY, safe='')}", status=403),
    "refused with the header": Reply(f"Authorization: Basic {base64.b64encode(f':{KEY}'.encode()).decode()}", status=400),
    "no completion": Reply(body=json.dumps({"error": {"headers": {"authorization": f"Bearer {KEY}"}}})),
    "a page": Reply(body=f"<p>{KEY}</p>", content_type="text/html"),
    "broken JSON": Reply(body=f'{{"key": "{KEY}", "choices"'),
    "failing server": Reply(f"upstream refused {KEY}", status=500),
    "timeout": Reply(hang=True),
    "cut": Reply(f"{KEY} " * 50, cut=True),
    "an answer with the key": Reply(f"Ask[Is {KEY} yours?]"),
}


@pytest.mark.parametrize("reply", FAILURES.values(), ids=FAILURES)
def test_a_study_writes_its_key_nowhere_whatever_the_endpoint_does(checkout, study, reply, monkeypatch, capfd, caplog):  # noqa: F811
    """Items, personas, tasks, dialogues and manifests; then the agent's endpoint, which knows the key, fails in every way."""
    caplog.set_level("DEBUG")
    monkeypatch.setenv("STUDY_KEY", KEY)
    monkeypatch.setenv("HF_TOKEN", KEY)
    for module in (preparation, simulation):
        monkeypatch.setattr(module, "Embedder", lambda name: FakeEmbedder())
    role = {"provider": "openai", "base_url": study.endpoint.base_url, "max_retries": 0, "timeout_s": 0.5, "api_key_env": "STUDY_KEY"}
    roles = {name: {**role, "model": name} for name in ("persona", "simulator", "expert", "cra", "rewriter", "judge")}
    sizes = {"num_personas": 2, "num_simulation_tasks": 2, "max_turns": 1, "dialogues_in_flight": 1}
    run = open_run("03_simulation", namespace(domains=["game"], simulator_mode=FULL, **sizes, **roles))
    study.scripts["agent"] = lambda body: "Loves all." if body["model"] == "persona" else reply

    async def everything():
        preparation.prepare_items(run)
        await preparation.prepare_personas(run)
        preparation.prepare_tasks(run)
        try:
            await simulation.simulate(run, {"actcrs_expert": "expert"})
        except EcpoError as error:
            logging.getLogger("notebook").exception("the stage failed")  # with its traceback, as a notebook's copy has it
            return f"{error} {error!r} {error.__cause__!r}"
        return ""

    told = study.run(everything())
    manifest = run.finish().name
    assert study.endpoint.chats[0].headers["authorization"] == f"Bearer {KEY}"
    shown = capfd.readouterr()
    written = {path.name for path in assert_nowhere(checkout, told, shown.out, shown.err, caplog.text)}
    assert {"calls.jsonl", "responses.sqlite", "items.jsonl", "personas.jsonl", manifest} <= written


NOTEBOOK = """
import asyncio, os
from pathlib import Path
from ecpo_utils.core.params import Endpoint
from ecpo_utils.llm.cache import ResponseCache
from ecpo_utils.llm.endpoints import open_clients
async def ask():
    endpoint = Endpoint(provider="openai", model="m", base_url=url, api_key_env="STUDY_KEY", max_retries=0)
    async with open_clients({"judge": endpoint}, cache=ResponseCache(Path("r.sqlite")), calls_log=Path("calls.jsonl")) as clients:
        await clients["judge"].complete([{"role": "user", "content": "Hi"}], max_tokens=1)
await ask()
"""


@pytest.mark.slow
def test_an_executed_notebook_that_failed_shows_no_key(stub_endpoint, tmp_path, monkeypatch):
    import nbformat
    import papermill

    stub_endpoint.answer = lambda body: FAILURES["refused with the key"]
    monkeypatch.setenv("STUDY_KEY", KEY)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    cells = [nbformat.v4.new_code_cell('url = ""', metadata={"tags": ["parameters"]}), nbformat.v4.new_code_cell(NOTEBOOK)]
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=kernel), tmp_path / "in.ipynb")
    with pytest.raises(papermill.PapermillExecutionError) as caught:
        papermill.execute_notebook(
            tmp_path / "in.ipynb", tmp_path / "out.ipynb", {"url": stub_endpoint.base_url}, cwd=tmp_path, progress_bar=False
        )
    assert "is the key in $STUDY_KEY right?" in str(caught.value)
    assert "out.ipynb" in {path.name for path in assert_nowhere(tmp_path, str(caught.value))}


def test_what_no_key_has_the_length_of_is_left_alone():
    assert hide_key("none of it", "none") == "none of it" and hide_key(f"a {KEY}", KEY) == "a ***"


# passwords in addresses


def ask_at(endpoint, tmp_path):
    async def ask():
        with contextlib.closing(ResponseCache(tmp_path / "r.sqlite")) as cache:
            async with open_clients({"judge": endpoint}, cache=cache, calls_log=tmp_path / "calls.jsonl") as clients:
                await clients["judge"].complete(HELLO, max_tokens=1)

    asyncio.run(ask())


def test_a_password_in_the_variable_of_an_address_is_refused_unshown(monkeypatch, tmp_path, stub_endpoint, caplog):
    """It would have to stand in the same header as the key; aiohttp sends neither."""
    monkeypatch.setenv("MY_URL", stub_endpoint.base_url.replace("http://", "http://user:pass-MARK@"))
    with pytest.raises(EndpointError, match=r"the address in \$MY_URL holds a user or password") as caught:
        ask_at(Endpoint(provider="openai", model="m", base_url_env="MY_URL", max_retries=0), tmp_path)
    assert caught.value.fatal and "pass-MARK" not in str(caught.value) + caplog.text and not stub_endpoint.requests


def test_a_password_of_a_proxy_is_shown_nowhere(monkeypatch, tmp_path, caplog):
    caplog.set_level("INFO")
    for name in ("HTTP_PROXY", "http_proxy"):
        monkeypatch.setenv(name, "http://user:pass-MARK@127.0.0.1:9")
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(EndpointError) as caught:
        ask_at(Endpoint(provider="openai", model="m", base_url="http://example.invalid/v1", max_retries=0), tmp_path)
    assert "pass-MARK" not in str(caught.value) + caplog.text


def test_a_password_in_a_params_file_is_refused_unshown(checkout):  # noqa: F811
    role = {"provider": "openai", "model": "m", "base_url": "http://user:pass-MARK@localhost:1/v1"}
    with pytest.raises(ParamsError, match="no user or password; a key goes into the variable that api_key_env names") as caught:
        open_run("03_simulation", namespace(judge=role))
    assert "pass-MARK" not in str(caught.value) and not (checkout / "runs").exists()


def test_doctor_shows_no_password(checkout, monkeypatch):  # noqa: F811
    monkeypatch.setenv("MY_URL", "http://user:pass-MARK@localhost:1/v1")
    params = open_run("03_simulation", namespace(judge={"provider": "openai", "model": "m", "base_url_env": "MY_URL"})).params
    lacks = profile_lacks(params, lambda url, key: f"cannot reach {url.partition('@')[2]}" if "localhost:1" in url else "")
    assert "http://***@localhost:1/v1" in str(lacks) and "pass-MARK" not in str(lacks)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("at http://a:b@h:1/v1, or https://t@h", "at http://***@h:1/v1, or https://***@h"),
        ("see http://h/a@b and mail a@b.c", "see http://h/a@b and mail a@b.c"),
    ],
)
def test_users_and_passwords_of_addresses_are_hidden(text, expected):
    assert hide_userinfo(text) == expected


# weights


@pytest.mark.parametrize("name", ["adapter_model.bin", "adapter_model.pt", "adapter_model.pkl"])
def test_a_pickled_adapter_is_refused_by_name(tmp_path, bomb, name):
    adapter = tmp_path / "sgpt"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text("{}")
    (adapter / name).write_bytes(pickle.dumps(bomb))
    loads = lambda: check_adapter(MODEL, adapter), lambda: adapter_hash(adapter), lambda: server_spec("embedded", MODEL, 1, str(adapter))
    for load in loads:
        with pytest.raises(ModelError, match=f"{name} is a pickle, which can run code when it is read, and is not loaded"):
            load()


def test_a_pickle_in_the_place_of_safetensors_is_not_run(tmp_path, bomb):
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    (tmp_path / "adapter_model.safetensors").write_bytes(pickle.dumps(bomb))
    with pytest.raises(SafetensorError):
        load_file(tmp_path / "adapter_model.safetensors")


@pytest.fixture
def model_folder(tmp_path, monkeypatch):
    """A folder of the user's own for a hub-only model, of which the registry knows no hashes."""
    folder = tmp_path / "mine" / MODEL
    folder.mkdir(parents=True)
    (folder / "config.json").write_text('{"model_type": "llama"}')
    monkeypatch.setenv("ECPO_MODELS", str(folder.parent))
    monkeypatch.setenv("ECPO_CACHE", str(tmp_path / "cache"))
    return folder


@pytest.mark.parametrize("name", ["pytorch_model.bin", "pytorch_model-00001-of-00002.bin", "pytorch_model.pt", "2_Dense/pytorch_model.bin"])
def test_a_model_folder_with_pickled_weights_is_refused_by_name(model_folder, bomb, name):
    (model_folder / name).parent.mkdir(exist_ok=True)
    (model_folder / name).write_bytes(pickle.dumps(bomb))
    with pytest.raises(ModelError, match=f"{name} is a pickle, which can run code when it is read, and is not loaded"):
        locate_model(MODEL)


def test_pickles_beside_safetensors_are_left_alone(model_folder, bomb):
    (model_folder / "model.safetensors").write_bytes(b"")
    for name in ("pytorch_model.bin", "training_args.bin", "model.pkl"):
        (model_folder / name).write_bytes(pickle.dumps(bomb))
    assert locate_model(MODEL) == model_folder


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("config.json", '{"auto_map": {"AutoModel": "evil.Evil"}}', "config.json asks for code of its own"),
        ("tokenizer_config.json", '{"auto_map": {"AutoTokenizer": ["evil.Evil", null]}}', "tokenizer_config.json asks for code of its own"),
        ("modules.json", '[{"type": "sentence_transformers.models.Pooling"}, {"type": "evil.Evil"}]', r"modules.json .* \(evil.Evil\)"),
    ],
)
def test_a_model_folder_that_asks_for_code_is_refused(model_folder, name, text, expected):
    (model_folder / "model.safetensors").write_bytes(b"")
    (model_folder / "evil.py").write_text(f"open({str(model_folder / 'ran')!r}, 'w')\nclass Evil: pass\n")
    (model_folder / name).write_text(text)
    with pytest.raises(ModelError, match=expected):
        locate_model(MODEL)
    assert not (model_folder / "ran").exists()


@pytest.mark.parametrize("text", ["", "[", "null", '"auto_map"', "[1]"])
def test_a_spoilt_configuration_asks_for_no_code(tmp_path, text):
    (tmp_path / "config.json").write_text(text)
    (tmp_path / "modules.json").write_text(text if text != "[1]" else "{}")
    refuse_code(tmp_path)


def test_a_registry_that_names_pickled_weights_is_refused(tmp_path):
    entry = {"kind": "transformers", "licence": "MIT", "size_mb": 1, "context_tokens": 9, "files": {"pytorch_model.bin": "0" * 64}}
    (tmp_path / "models.yaml").write_text(yaml.safe_dump({"models": {"m": entry}}))
    with pytest.raises(ModelError, match="weights are safetensors or GGUF, not pytorch_model.bin"):
        load_registry(tmp_path / "models.yaml")


def test_the_studys_own_weights_are_safetensors_or_gguf():
    for model in load_registry(ROOT / "params" / "models.yaml").values():
        assert model.files is None or any(file.endswith((".safetensors", ".gguf")) for file in model.files)


def test_no_module_loads_pickles_or_runs_what_a_model_brings():
    sources = {path: path.read_text(encoding="utf-8") for path in sorted((ROOT / "ecpo_utils").rglob("*.py"))}
    for words in ("pickle.load", "torch.load(", "allow_pickle", "trust_remote_code\": True", "trust_remote_code=True", "weights_only=False",
                  "yaml.unsafe", "import joblib", "shell=True", "os.system", "cloudpickle", "import dill"):  # fmt: skip
        assert not [path for path, text in sources.items() if words in text], words


# checkpoints, vectors, index


@pytest.mark.slow
@pytest.mark.parametrize("name", ["optimizer.pt", "scheduler.pt", "rng_state.pth"])
def test_a_bomb_in_a_checkpoint_does_not_go_off_and_is_told(tmp_path, bomb, name):
    """What a training that goes on reads: torch's own files, of which only numbers are read."""
    done = subprocess.run([sys.executable, "-c", RESUME, str(tmp_path), name], capture_output=True, text=True, cwd=ROOT / "tests")
    assert "TOLD" in done.stdout, done.stderr[-2000:]
    assert f"{name.partition('.')[0]}" in done.stdout or "holds something else than numbers" in done.stdout


RESUME = """
import pickle, sys
from pathlib import Path
import torch
from test_security import Bomb
folder, name = Path(sys.argv[1]), sys.argv[2]
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments
config = LlamaConfig(vocab_size=8, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1)
rows = [{"input_ids": [1, 2, 3], "labels": [1, 2, 3]}] * 8
def trainer(steps):
    given = TrainingArguments(str(folder / "work"), max_steps=steps, save_steps=1, use_cpu=True, report_to="none", disable_tqdm=True)
    return Trainer(LlamaForCausalLM(config), given, train_dataset=rows)
trainer(1).train()
checkpoint = folder / "work" / "checkpoint-1"
assert (checkpoint / name).is_file()
torch.save(Bomb(folder / "crater"), checkpoint / name)
pickle.dump(Bomb(folder / "crater"), open(checkpoint / "training_args.bin", "wb"))
pickle.dump(Bomb(folder / "crater"), open(checkpoint / "pytorch_model.bin", "wb"))
from ecpo_utils.core.errors import TrainingError
from ecpo_utils.method.training import go_on
try:
    go_on(trainer(2), str(checkpoint), folder / "work")
except TrainingError as error:
    print("TOLD", error)
"""


def test_a_malicious_array_in_a_shards_place_is_not_run(tmp_path, bomb, caplog):
    from scripted_models import ITEMS

    folder = tmp_path / "shards"
    (shard,) = embed_shards(ITEMS, FakeEmbedder(), folder)
    whole = np.load(shard)
    np.save(shard, np.array([bomb], dtype=object), allow_pickle=True)
    with pytest.raises(ValueError, match="allow_pickle=False|Python objects"):
        build_index([shard], lambda: None)
    assert np.array_equal(np.load(embed_shards(ITEMS, FakeEmbedder(), folder)[0]), whole) and "is damaged" in caplog.text


@pytest.mark.parametrize("content", ["pickle", "array", "nothing"])
def test_a_pickle_in_the_place_of_an_index_is_not_run(tmp_path, bomb, content):
    path = tmp_path / "items.faiss"
    if content == "array":
        with open(path, "wb") as file:
            np.save(file, np.array([bomb], dtype=object), allow_pickle=True)
    else:
        path.write_bytes(pickle.dumps(bomb) if content == "pickle" else b"")
    with pytest.raises(ArtifactError, match="cannot read .*items.faiss"):
        load_index(path)
    (tmp_path / "items.jsonl").write_text("")
    with pytest.raises(ArtifactError):
        load_database(tmp_path / "items.jsonl", path, FakeEmbedder())


# servers


def test_vllm_is_started_on_loopback_with_safetensors_and_its_key_in_no_argument(monkeypatch, tmp_path):
    """The embedded server's socket is looked at in llm/test_servers.py."""
    started = {}
    monkeypatch.setattr(supervisor.subprocess, "Popen", lambda command, **options: started.update(command=command, **options))
    monkeypatch.setattr(supervisor, "visible_gpus", list)
    options = {"model": "m", "weights": "/w", "slots": 2, "replicas": 1, "context_tokens": 512, "adapter": "/a/sgpt", "lora_rank": 8}
    options["folder"] = str(tmp_path / "m")
    supervisor._start_vllm(options, 1234, KEY)
    command = started["command"]
    assert command[command.index("--host") + 1] == "127.0.0.1" and command[command.index("--load-format") + 1] == "safetensors"
    assert KEY not in " ".join(command) and started["env"]["VLLM_API_KEY"] == KEY
    assert not [word for word in command if "trust" in word or word == "0.0.0.0"]
    assert command[command.index("--enable-lora") :] == ["--enable-lora", "--max-lora-rank", "8", "--lora-modules", "sgpt=/a/sgpt"]


def test_the_embedded_server_is_given_loopback_and_a_key(monkeypatch):
    xllamacpp = pytest.importorskip("xllamacpp")
    monkeypatch.setattr(xllamacpp, "Server", lambda params: (list(params.hostnames), params.port, list(params.api_keys), params.ui))
    options = {"model": "m", "weights": "/w", "slots": 1, "context_tokens": 256, "adapter": None}
    assert supervisor._start_embedded(options, 1234, KEY) == (["127.0.0.1"], 1234, [KEY], False)


def test_a_free_port_is_looked_for_on_loopback(monkeypatch):
    bound = []

    class Probe:
        def __enter__(self):
            return self

        def __exit__(self, *given):
            pass

        def bind(self, address):
            bound.append(address)

        def getsockname(self):
            return "127.0.0.1", 1

    monkeypatch.setattr(supervisor.socket, "socket", Probe)
    assert supervisor._free_port() == 1 and bound == [("127.0.0.1", 0)]
