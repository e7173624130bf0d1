"""Every parameter of the study, typed once. A profile in `params/` gives a value to each of them."""

from __future__ import annotations

import difflib
import urllib.parse
from pathlib import Path
from typing import Annotated, Literal, Optional, Union

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from .errors import ParamsError
from .redaction import hide_userinfo
from .schema import Domain


class Endpoint(BaseModel):
    """Where a role's model answers.

    Attributes:
        provider: "embedded" starts a server for a GGUF model of `models.yaml` on loopback, "vllm" starts
            `vllm serve` for one of its hub models, "openai" is any OpenAI-compatible URL.
        model: Name in `models.yaml` (embedded, vllm) or the endpoint's own model name (openai).
        adapter: LoRA adapter directory (PEFT layout) that the server of an embedded or vllm model loads.
        base_url: URL of an "openai" endpoint, or a list of those that serve the same model, between which calls are shared out;
            without it `base_url_env`, then OpenAI itself.
        api_key_env: Name of the environment variable that holds the key; never the key.
        replicas: Copies of a vllm model side by side, one per GPU (vLLM's data parallelism).
        max_concurrency: Calls in flight at this endpoint.
        timeout_s: Per call, seconds. `max_retries`: of transport faults, 429 and 5xx.
        usd_per_million_prompt_tokens: Price, 0 for own hardware; likewise for completion tokens.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    provider: Literal["embedded", "vllm", "openai"]
    model: str
    adapter: Optional[str] = None
    base_url: Union[str, list[str], None] = None
    base_url_env: str = "OPENAI_BASE_URL"
    api_key_env: str = Field("OPENAI_API_KEY", pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")
    replicas: int = Field(1, ge=1)
    max_concurrency: int = Field(4, ge=1)
    timeout_s: float = Field(300.0, gt=0)
    max_retries: int = Field(5, ge=0)
    usd_per_million_prompt_tokens: float = Field(0.0, ge=0)
    usd_per_million_completion_tokens: float = Field(0.0, ge=0)

    @property
    def is_sold(self) -> bool:
        """Whether calls go to OpenAI's own API; with an address of one's own nobody knows."""
        return self.provider == "openai" and not self.urls

    @property
    def has_price(self) -> bool:
        """Whether calls cost anything by these params."""
        return self.usd_per_million_prompt_tokens + self.usd_per_million_completion_tokens > 0

    @property
    def urls(self) -> list[str]:
        """The addresses that were given."""
        return [self.base_url] if isinstance(self.base_url, str) else list(self.base_url or [])

    @field_validator("base_url")
    @classmethod
    def _is_address(cls, value: Union[str, list[str], None]) -> Union[str, list[str], None]:
        urls = [value] if isinstance(value, str) else value
        if urls == [] or not all(url.startswith(("http://", "https://")) for url in urls or []):
            raise ValueError("an address begins with http:// or https://")
        if any("@" in urllib.parse.urlsplit(url).netloc for url in urls or []):
            raise ValueError("an address in a params file holds no user or password; a key goes into the variable that api_key_env names")
        if len(set(urls or [])) < len(urls or []):
            raise ValueError("the same address twice")
        return value


PerDomain = Union[Annotated[int, Field(ge=0)], dict[Domain, Annotated[int, Field(ge=0)]]]  # one number for all domains, or one for each
LEAST = {"num_personas": 2, "num_test_tasks": 1, "num_cra_tasks": 0}  # of such numbers in a domain


class Params(BaseModel):
    """All parameters of one end-to-end run. Notebooks declare the ones they use under the same names."""

    model_config = ConfigDict(extra="forbid", strict=True)

    profile: str
    seed: int = Field(ge=0)
    domains: list[Domain] = Field(min_length=1)

    # models
    persona: Endpoint
    simulator: Endpoint
    expert: Endpoint
    cra: Endpoint
    rewriter: Endpoint
    judge: Endpoint
    embedder: str
    max_spend_usd: float = Field(ge=0)  # a run that has spent so much by the endpoints' prices stops; 0 for no limit

    # data, section 3.1 and B.1-B.2
    data_source: Literal["builtin", "folder", "release"]
    release_dir: str
    data_dir: str  # of "folder": what `ecpo data build` wrote, one folder per domain
    item_summaries: bool  # whether the simulator's model summarises the descriptions of a folder's items; the other sources have theirs
    num_personas: PerDomain  # users
    max_reviews_per_persona: int = Field(ge=1)
    min_target_rating: float = Field(ge=1, le=5)
    split: Literal["by_user", "by_item"]
    test_share: float = Field(gt=0, lt=1)
    num_sgpt_tasks: int = Field(ge=0)
    num_ecpo_tasks: int = Field(ge=0)
    num_test_tasks: PerDomain
    num_simulation_tasks: int = Field(ge=1)  # test tasks per domain that notebook 03 plays, the first ones

    # dialogue, section 2.3 and B.3
    max_turns: int = Field(ge=1)
    retriever_top_k: int = Field(ge=1)
    max_consecutive_searches: int = Field(ge=0)
    simulator_temperature: float = Field(ge=0, le=2)
    agent_temperature: float = Field(ge=0, le=2)
    user_simulator: Literal["ailo", "ievalm"]  # who talks to the agents: AILO of the paper, or the baseline iEvaLM, which scores nothing
    simulator_mode: Literal["narrow", "full"]
    dialogues_in_flight: int = Field(ge=1)
    num_separation_pairs: int = Field(ge=0, le=40)

    # frameworks, section 3.2
    cra_domains: list[Domain] = Field(min_length=1)
    frameworks: list[str] = Field(min_length=1)
    num_cra_tasks: PerDomain  # test tasks, the first ones; 0 for all

    # judge, section B.5
    judge_mode: str  # a name in evaluate/judges
    judge_max_words: int = Field(ge=0)
    num_judge_pairs: int = Field(ge=0)

    # tuning, sections 2.2, 2.4 and B.3; the words behind the prefixes are TRL's and PEFT's
    tuning_domains: list[Domain] = Field(min_length=1)
    validation_share: float = Field(ge=0, lt=1)
    lora_r: int = Field(ge=1)
    lora_alpha: int = Field(ge=1)
    lora_dropout: float = Field(ge=0, lt=1)
    sft_learning_rate: float = Field(gt=0)
    sft_num_train_epochs: float = Field(gt=0)
    sft_per_device_train_batch_size: int = Field(ge=1)
    sft_gradient_accumulation_steps: int = Field(ge=1)
    sft_max_length: int = Field(ge=64)
    satisfaction_threshold: int = Field(ge=0, le=5)  # lambda: turns scored at or below it are rewritten
    rewriter_mode: Literal["narrow", "full"]
    rewriter_reads: Literal["confirmation", "instruction"]  # its own of each turn, or the same for all: "w/o EC", section 3.4
    verify_rewrites: bool  # whether a rewrite must score higher than its original to make a pair; the paper does not ask
    preference_methods: list[Literal["dpo", "kto", "simpo"]] = Field(min_length=1)
    dpo_learning_rate: float = Field(gt=0)
    dpo_beta: float = Field(gt=0)
    dpo_sft_weight: float = Field(ge=0)  # of an SFT loss, beside DPO's, on the chosen reply and the searches before it; the paper has none
    dpo_num_train_epochs: float = Field(gt=0)  # this and the next three hold for all preference methods
    dpo_per_device_train_batch_size: int = Field(ge=1)
    dpo_gradient_accumulation_steps: int = Field(ge=1)
    dpo_max_length: int = Field(ge=64)
    kto_learning_rate: float = Field(gt=0)
    kto_beta: float = Field(gt=0)
    simpo_learning_rate: float = Field(gt=0)
    simpo_beta: float = Field(gt=0)
    simpo_gamma: float = Field(ge=0)

    def number(self, name: str, domain: Domain) -> int:
        """A domain's value of a parameter that may have one for each.

        Raises:
            ParamsError: If it has values for other domains only.
        """
        value = getattr(self, name)
        if not isinstance(value, dict):
            return value
        if domain not in value:
            raise ParamsError(f"parameter '{name}' has no number for {domain}: {value}")
        return value[domain]

    @model_validator(mode="after")
    def _consistent(self) -> Params:
        if len(set(self.domains)) < len(self.domains):
            raise ValueError(f"domains {self.domains} names one twice")
        for name, least in LEAST.items():
            value = getattr(self, name)
            if isinstance(value, dict) and (missing := [domain for domain in self.domains if domain not in value]):
                raise ValueError(f"{name} has no number for {', '.join(missing)}")
            if (number := min(value.values() if isinstance(value, dict) else [value])) < least:
                raise ValueError(f"{name} is {number}; at least {least} needed")
        endpoints = {name: value for name, value in self if isinstance(value, Endpoint)} if self.max_spend_usd else {}
        unpriced = [name for name, endpoint in endpoints.items() if endpoint.is_sold and not endpoint.has_price]
        if unpriced:
            raise ValueError(
                f"max_spend_usd is {self.max_spend_usd:g}, but {', '.join(unpriced)} has no price, so nothing would be counted: "
                "set usd_per_million_prompt_tokens and usd_per_million_completion_tokens"
            )
        if self.data_source == "release" and not self.release_dir:
            raise ValueError("data_source is release: set release_dir to the folder that holds the release's task/")
        if self.data_source == "folder" and not self.data_dir:
            raise ValueError("data_source is folder: set data_dir to the folder that `ecpo data build` wrote")
        return self


def _explain(error: ValidationError, where: str) -> ParamsError:
    first = min(error.errors(), key=lambda each: each["type"] != "extra_forbidden")  # a typo also leaves a name missing
    key = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        known = Params.model_fields if len(first["loc"]) == 1 else Endpoint.model_fields
        close = difflib.get_close_matches(str(first["loc"][-1]), known, 1)
        hint = f"; did you mean '{close[0]}'?" if close else "; see ecpo_utils/core/params.py for all names"
        return ParamsError(f"{where}: unknown parameter '{key}'{hint}")
    if first["type"] == "missing":
        return ParamsError(f"{where}: parameter '{key}' is missing; copy it from params/quick.yaml")
    if first["loc"][-1:] == ("api_key_env",):  # somebody may have put the key itself there: do not show it
        return ParamsError(f"{where}: parameter '{key}' must be the name of an environment variable, never a key")
    if "base_url" in first["loc"]:  # which may hold a password
        return ParamsError(f"{where}: parameter '{key}' is {hide_userinfo(repr(first['input']))}: {first['msg']}")
    if not key:  # a check over several parameters, whose message names them
        return ParamsError(f"{where}: {first['msg']}")
    return ParamsError(f"{where}: parameter '{key}' is {first['input']!r}: {first['msg']}")


def build_params(values: dict, where: str) -> Params:
    """Validate parameter values.

    Args:
        values: Parameter names and values.
        where: File or notebook that they come from, for messages.

    Raises:
        ParamsError: If one is unknown, missing, mistyped or out of range; names it.
    """
    try:
        return Params.model_validate(values)
    except ValidationError as error:
        raise _explain(error, where) from None


class _Loader(yaml.SafeLoader):
    """YAML in which no key stands twice, where others let the last one win."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        keys = [key for key, _ in node.value] if isinstance(node, yaml.MappingNode) else []
        for index, key in enumerate(keys):
            if key.value in [earlier.value for earlier in keys[:index]]:
                raise ParamsError(f"{key.start_mark.name}:{key.start_mark.line + 1}: parameter '{key.value}' is given twice; keep one")
        return super().construct_mapping(node, deep)


def load_params_file(path: Path) -> dict:
    """The raw mapping of a params file.

    Raises:
        ParamsError: If the file is missing, is no YAML, holds no mapping, or names a parameter twice.
    """
    try:
        with open(path, encoding="utf-8") as file:
            values = yaml.load(file, _Loader)
    except FileNotFoundError:
        known = ", ".join(sorted(p.stem for p in path.parent.glob("*.yaml") if p.stem != "models"))
        raise ParamsError(f"no profile '{path.stem}' ({path} is missing); there are: {known}") from None
    except (OSError, yaml.YAMLError, ValueError, RecursionError) as error:
        raise ParamsError(f"cannot read {path}: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict):
        raise ParamsError(f"{path}: expected 'name: value' lines, got {type(values).__name__}")
    return values


def load_profile(path: Path) -> Params:
    """Validated parameters of a profile; its name is the file's.

    Raises:
        ParamsError: See `build_params` and `load_params_file`.
    """
    values = load_params_file(path)
    if values.get("profile") != path.stem:
        raise ParamsError(f"{path}: parameter 'profile' is {values.get('profile')!r}, expected {path.stem!r}, the file's name")
    return build_params(values, str(path))
