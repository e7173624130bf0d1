"""Profiles load, and whatever is wrong in one is named."""

from pathlib import Path

import pytest
import yaml

from ecpo_utils.core.errors import ParamsError
from ecpo_utils.core.params import build_params, load_params_file, load_profile

PARAMS = Path(__file__).resolve().parents[2] / "params"
PROFILES = sorted(path for path in PARAMS.glob("*.yaml") if path.stem != "models")


@pytest.fixture
def values():
    return load_params_file(PARAMS / "quick.yaml")


@pytest.mark.parametrize("path", PROFILES, ids=lambda path: path.stem)
def test_profile_loads_under_its_name(path):
    assert load_profile(path).profile == path.stem


@pytest.mark.parametrize("path", PROFILES, ids=lambda path: path.stem)
def test_profile_holds_no_key_and_floats_are_floats(path):
    values = load_params_file(path)
    assert "sk-" not in path.read_text(encoding="utf-8")
    assert isinstance(values["min_target_rating"], float) and isinstance(values["simulator_temperature"], float)


def test_there_is_a_default_profile_that_needs_no_key():
    params = load_profile(PARAMS / "quick.yaml")
    roles = (params.persona, params.simulator, params.expert, params.cra, params.rewriter, params.judge)
    assert {role.provider for role in roles} == {"embedded"}


def test_unknown_parameter_is_named_with_the_nearest_known_one(values):
    with pytest.raises(ParamsError, match=r"here: unknown parameter 'max_turn'; did you mean 'max_turns'\?"):
        build_params({**values, "max_turn": 3}, "here")


def test_misspelt_parameter_gets_the_hint_though_its_name_is_missing_too(values):
    values["retriver_top_k"] = values.pop("retriever_top_k")
    with pytest.raises(ParamsError, match=r"unknown parameter 'retriver_top_k'; did you mean 'retriever_top_k'\?"):
        build_params(values, "here")


def test_unknown_key_of_an_endpoint_is_named_with_the_nearest_known_one(values):
    values["judge"] = {**values["judge"], "timeouts": 5.0}
    with pytest.raises(ParamsError, match=r"'judge\.timeouts'; did you mean 'timeout_s'\?"):
        build_params(values, "here")


def test_key_put_into_an_endpoint_is_refused_and_not_shown(values):
    values["judge"] = {**values["judge"], "api_key": "sk-SECRET"}
    with pytest.raises(ParamsError, match=r"'judge\.api_key'") as caught:
        build_params(values, "here")
    assert "SECRET" not in str(caught.value)


def test_unknown_parameter_like_no_other_points_to_the_list(values):
    with pytest.raises(ParamsError, match=r"'zzz'; see ecpo_utils/core/params\.py"):
        build_params({**values, "zzz": 1}, "here")


def test_missing_parameter_is_named(values):
    del values["seed"]
    with pytest.raises(ParamsError, match="here: parameter 'seed' is missing"):
        build_params(values, "here")


def test_missing_model_of_a_role_is_named(values):
    values["judge"] = {"provider": "openai"}
    with pytest.raises(ParamsError, match=r"parameter 'judge\.model' is missing"):
        build_params(values, "here")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("seed", "seven"), ("seed", 1.5), ("seed", None), ("seed", -1), ("domains", "book"), ("domains", ["books"]), ("domains", []),
        ("max_turns", 0), ("test_share", 1.0), ("simulator_temperature", -0.1), ("judge", "gpt-4o"), ("simulator_mode", "both"),
        ("judge", {"provider": "ollama", "model": "m"}), ("judge", {"provider": "openai", "model": "m", "max_concurrency": 0}),
    ],
)  # fmt: skip
def test_mistyped_or_out_of_range_value_is_named(values, name, value):
    with pytest.raises(ParamsError, match=f"here: parameter '{name}"):
        build_params({**values, name: value}, "here")


@pytest.mark.parametrize("url", ["localhost:8000/v1", "api.example.org", "", "ftp://example.org"])
def test_address_without_http_is_named(values, url):
    values["judge"] = {"provider": "openai", "model": "m", "base_url": url}
    with pytest.raises(ParamsError, match=r"parameter 'judge\.base_url' is '.*an address begins with http:// or https://"):
        build_params(values, "here")
    values["judge"]["base_url"] = "http://localhost:8000/v1"
    assert build_params(values, "here").judge.base_url == "http://localhost:8000/v1"


def test_missing_profile_lists_the_others(tmp_path):
    (tmp_path / "quick.yaml").write_text("profile: quick\n")
    (tmp_path / "models.yaml").write_text("models: {}\n")
    with pytest.raises(ParamsError, match=r"no profile 'quik' .* there are: quick$"):
        load_profile(tmp_path / "quik.yaml")


@pytest.mark.parametrize(("text", "line", "name"), [
    ("profile: mine\nseed: 0\ndomains: [book]\nseed: 1\n", 4, "seed"),
    ("profile: mine\njudge: {provider: openai, model: a,\n  model: b}\n", 3, "model"),
])  # fmt: skip
def test_parameter_that_is_given_twice_is_named_with_its_line(tmp_path, text, line, name):
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(ParamsError, match=rf"^{path}:{line}: parameter '{name}' is given twice; keep one$"):
        load_profile(path)


def test_merged_keys_may_be_overridden(tmp_path):
    (tmp_path / "mine.yaml").write_text("a: &base {x: 1, y: 2}\nb: {<<: *base, y: 3}\n")
    assert load_params_file(tmp_path / "mine.yaml")["b"] == {"x": 1, "y": 3}


@pytest.mark.parametrize("text", ["a: [1", "- a\n- b\n", "", "just words\n", "a: \t- b", "a: " + "[" * 5000, "a: !!map [1]", "? [a]\n: b"])
def test_file_that_is_no_mapping_is_one_line_that_names_it(tmp_path, text):
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(ParamsError, match=r"mine\.yaml") as caught:
        load_profile(path)
    assert "\n" not in str(caught.value)


def test_binary_file_and_folder_are_named(tmp_path):
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    (tmp_path / "folder.yaml").mkdir()
    for name in ("binary", "folder"):
        with pytest.raises(ParamsError, match=rf"{name}\.yaml"):
            load_profile(tmp_path / f"{name}.yaml")


def test_profile_under_another_files_name_is_refused(tmp_path, values):
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(values))
    with pytest.raises(ParamsError, match="parameter 'profile' is 'quick', expected 'mine'"):
        load_profile(path)


def test_a_number_may_be_given_for_each_domain(values):
    params = build_params({**values, "num_test_tasks": {"book": 9, "game": 2, "yelp": 1}}, "test")
    assert [params.number("num_test_tasks", domain) for domain in ("book", "yelp")] == [9, 1]
    assert params.number("num_cra_tasks", "game") == values["num_cra_tasks"]
    with pytest.raises(ParamsError, match="num_test_tasks has no number for game, yelp"):
        build_params({**values, "num_test_tasks": {"book": 9}}, "test")
    with pytest.raises(ParamsError, match="num_test_tasks is 0; at least 1 needed"):
        build_params({**values, "num_test_tasks": 0}, "test")
    for few in (1, {"book": 4, "game": 1, "yelp": 2}):
        with pytest.raises(ParamsError, match="num_personas is 1; at least 2 needed"):
            build_params({**values, "num_personas": few}, "test")


def test_a_spending_limit_needs_the_prices_of_what_is_sold(values):
    sold = {"provider": "openai", "model": "gpt-4o-mini"}
    limited = {**values, "max_spend_usd": 5.0}
    with pytest.raises(ParamsError, match="max_spend_usd is 5, but judge has no price, so nothing would be counted: set usd_per_million"):
        build_params({**limited, "judge": sold}, "here")
    build_params({**values, "judge": sold}, "here")
    build_params({**limited, "judge": {**sold, "usd_per_million_prompt_tokens": 0.15}}, "here")
    build_params({**limited, "judge": {**sold, "base_url": "http://localhost:8000/v1"}}, "here")
