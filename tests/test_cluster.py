"""What runs on clusters only is planned dry: which jobs, what they ask for, with the profiles as they lie in the repository."""

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest
import yaml

from ecpo_utils.core.params import Endpoint, load_profile
from ecpo_utils.core.schema import Role
from ecpo_utils.llm.servers import ServerSpec
from ecpo_utils.pipeline import snakemake_command
from ecpo_utils.workflow import NEEDS, notebook_gpus, num_gpus

ROOT = Path(__file__).parents[1]
PLUGINS = {
    "slurm": ["snakemake_executor_plugin_slurm"],
    "kubernetes": ["snakemake_executor_plugin_kubernetes", "snakemake_storage_plugin_fs"],
}


@pytest.fixture
def linked(tmp_path):
    """A checkout in which nothing was run."""
    for name in ("params", "notebooks", "ecpo_utils", "workflow"):
        (tmp_path / name).symlink_to(ROOT / name)
    return tmp_path


@pytest.mark.parametrize("executor", PLUGINS)
def test_profile_plans_every_notebook_with_its_resources(executor, linked):
    if missing := [name for name in PLUGINS[executor] if importlib.util.find_spec(name) is None]:
        pytest.skip(f"{', '.join(missing)} not installed: pip install -r requirements-cluster.txt")
    words = [sys.executable, "-m", "snakemake", "--snakefile", "workflow/Snakefile", "--profile", f"workflow/profiles/{executor}"]
    words += ["--default-storage-prefix", str(linked)] if executor == "kubernetes" else []
    words += ["--dry-run", "--nolock", "--config", "profile=gpu"]
    named = {"OPENAI_API_KEY": "sk-MARK", "ECPO_CACHE": "/c", "HF_TOKEN": ""}
    done = subprocess.run(words, cwd=linked, capture_output=True, text=True, env={**os.environ, **named})
    text = done.stdout + done.stderr
    assert done.returncode == 0, text[-2000:]
    jobs = dict(re.findall(r"wildcards: name=(\w+)\n +threads: 8\n +resources: (.*)", text))
    assert set(jobs) == set(NEEDS) and "sk-MARK" not in text
    assert all("mem_mb=32000" in resources and "runtime=720" in resources for resources in jobs.values())
    assert {name for name, resources in jobs.items() if "gpu=1" in resources} == {name for name in NEEDS if notebook_gpus(name, "gpu")}


@pytest.mark.parametrize("executor", PLUGINS)
def test_a_cluster_runs_one_notebook_at_a_time(executor):
    assert yaml.safe_load((ROOT / "workflow" / "profiles" / executor / "config.yaml").read_text())["jobs"] == 1


def test_a_notebook_has_all_cores_of_a_machine_to_itself(linked):
    command = snakemake_command("quick", ["01_environment", "02_persona_diversity"], "all")
    done = subprocess.run([*command, "--dry-run"], cwd=linked, capture_output=True, text=True)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    assert done.returncode == 0, done.stderr[-2000:]
    assert (done.stdout + done.stderr).count(f"threads: {cores}\n") == (2 if cores > 1 else 0)  # one thread is not printed


def test_gpu_is_asked_for_where_a_model_is_served_or_trained_and_nowhere_else():
    assert not any(notebook_gpus(name, "cpu") for name in NEEDS)
    without = {name for name in NEEDS if not notebook_gpus(name, "paper")}
    assert without == {"01_environment", "02_persona_diversity", "11_case_studies"}
    assert {notebook_gpus(name, "paper") for name in NEEDS} == {0, 1}


def served(**endpoints):
    """The gpu profile with vllm servers in some roles, each given as (model, replicas)."""
    params = load_profile(ROOT / "params" / "gpu.yaml")
    update = {role: Endpoint(provider="vllm", model=model, replicas=number) for role, (model, number) in endpoints.items()}
    return params.model_copy(update=update)


def test_a_notebook_asks_for_the_gpus_of_all_servers_that_are_up_at_once():
    assert num_gpus("03_simulation", served(cra=("a", 4))) == 4
    two = served(simulator=("b", 1), cra=("a", 2), judge=("c", 1))
    assert [num_gpus(name, two) for name in ("02_persona_diversity", "03_simulation", "10_main_results")] == [0, 3, 3]
    same = served(**{role: ("a", 1) for role in get_args(Role)})  # one server, and with an adapter another one
    assert [num_gpus(name, same) for name in ("02_persona_diversity", "03_simulation", "07_expectation_confirmation")] == [1, 1, 2]


def test_accelerate_reads_its_configuration():
    from accelerate.commands.config.config_args import load_config_from_file

    path = ROOT / "workflow" / "accelerate" / "four_gpus.yaml"
    config = load_config_from_file(str(path))
    assert (str(config.distributed_type), config.num_processes, config.mixed_precision) == ("DistributedType.MULTI_GPU", 4, "bf16")
    assert set(yaml.safe_load(path.read_text())) <= set(vars(config)) | {"use_cpu"}


def test_replicas_of_a_model_share_out_the_calls_in_flight(monkeypatch, tmp_path):
    from ecpo_utils.llm import supervisor

    started = []
    monkeypatch.setattr(supervisor.subprocess, "Popen", lambda command, **options: started.append(command))
    monkeypatch.setattr(supervisor, "visible_gpus", list)
    options = {**ServerSpec("vllm", "m", slots=64, replicas=4).__dict__, "weights": "w", "lora_rank": 8, "folder": str(tmp_path / "m")}
    supervisor._start_vllm(options, 8000, "k")
    command = " ".join(started[0])
    assert "--data-parallel-size 4" in command and "--max-num-seqs 16" in command and "--host 127.0.0.1" in command
    supervisor._start_vllm({**options, "replicas": 1}, 8000, "k")
    assert "--data-parallel-size" not in started[1] and "64" in started[1]


def test_one_replica_is_the_default():
    assert Endpoint(provider="vllm", model="m").replicas == 1
    assert load_profile(ROOT / "params" / "gpu.yaml").cra.replicas == 1


TAKE = "import sys; from pathlib import Path; from ecpo_utils.llm.supervisor import take_gpus; print(*take_gpus(Path('.'), 2)); input()"


def test_each_server_takes_gpus_of_its_own_and_they_are_free_when_it_is_gone(monkeypatch, tmp_path):
    from ecpo_utils.llm import supervisor

    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4, 5,7")
    other = subprocess.Popen([sys.executable, "-c", TAKE], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=tmp_path,
                             env={**os.environ, "PYTHONPATH": str(ROOT)})  # fmt: skip
    assert other.stdout.readline() == "4 5\n"
    with pytest.raises(SystemExit, match="needs 2 of the 3 GPUs in sight for itself, other servers leave 1; end them, or lower replicas"):
        supervisor.take_gpus(tmp_path, 2)
    other.communicate("\n")
    started = []
    monkeypatch.setattr(supervisor.subprocess, "Popen", lambda command, **options: started.append(options["env"]["CUDA_VISIBLE_DEVICES"]))
    options = {**ServerSpec("vllm", "m").__dict__, "weights": "w", "folder": str(tmp_path / "m")}
    supervisor._start_vllm(options, 8000, "k")
    assert started == ["4"]
