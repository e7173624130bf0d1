"""`ecpo plan`: calls, tokens, hours and money of a profile, from its counts and prices, before anything is spent."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, astuple, dataclass
from pathlib import Path

from .core.errors import ParamsError
from .core.params import Params, load_params_file
from .core.schema import Role
from .evaluate.damage import FLAWS, SEVERITIES
from .judging import framework_comparisons
from .llm.budget import call_cost
from .tuning import main_comparisons

UNITS = Path(__file__).parent / "plan_units.yaml"
NUM_RELEASED, SHARED_RELEASED = 5, 98  # released Book logs beside the expert's, and tasks that they share


@dataclass(frozen=True)
class Estimate:
    """What a stage asks of one role.

    Attributes:
        units: Personas, dialogues, replies or pairs.
        hours: With as many calls and dialogues in flight as the params allow; training and start-up are not in it.
    """

    stage: str
    role: Role
    units: float
    calls: float
    prompt_tokens: float
    completion_tokens: float
    usd: float
    hours: float


class Plan:
    """Adds up the stages of a profile.

    Args:
        params: The profile. Where the data have fewer users or tasks than it asks for, the run costs less.

    Raises:
        ParamsError: If nothing is known of what a framework or a judge costs.
    """

    def __init__(self, params: Params):
        self.params = params
        self.units = load_params_file(UNITS)
        self._found: dict[tuple[str, Role], Estimate] = {}
        self._personas()
        self._frameworks()
        self._tuning()

    def _add(self, stage: str, role: Role, units: float, unit: dict, times: float = 1.0, in_flight: float = math.inf) -> None:
        """`units` units of `times` the calls of `unit`, `in_flight` of them at most at once."""
        endpoint = getattr(self.params, role)
        calls = units * times * unit["calls"]
        tokens = calls * unit["prompt_tokens"], calls * unit["completion_tokens"]
        speed = self.units["seconds"][endpoint.provider]
        at_once = min(endpoint.max_concurrency, in_flight, max(units, 1))
        seconds = (calls * speed["call"] + tokens[1] * speed["output_token"]) / at_once
        new = Estimate(stage, role, units, calls, *tokens, call_cost(endpoint, *tokens), seconds / 3600)
        old = self._found.get((stage, role))
        sums = map(sum, zip(astuple(old)[2:], astuple(new)[2:], strict=True)) if old else astuple(new)[2:]
        self._found[stage, role] = Estimate(stage, role, *sums)

    def _unit(self, kind: str, name: str) -> dict:
        try:
            return self.units[kind][name]
        except KeyError:
            raise ParamsError(f"{UNITS} does not say what {name} costs; add it under '{kind}'") from None

    def _dialogues(self, stage: str, role: Role, number: float, framework: str = "actcrs") -> None:
        turns, in_flight = self.params.max_turns, self.params.dialogues_in_flight
        self._add(stage, role, number, self._unit("agents", framework), turns, in_flight)
        self._add(stage, "simulator", number, self._unit("simulators", self.params.simulator_mode), turns, in_flight)

    def _tests(self, name: str, domains: Sequence[str]) -> int:
        """Test tasks of some domains by a parameter, in which 0 means all."""
        return sum(self.params.number(name, domain) or self.params.number("num_test_tasks", domain) for domain in domains)

    def _among(self, domains: Sequence[str]) -> list[str]:
        """Those of the profile's domains that a stage runs in."""
        return [domain for domain in self.params.domains if domain in domains]

    def _personas(self) -> None:
        params = self.params
        number = sum(params.number("num_personas", domain) for domain in params.domains)
        if params.data_source == "folder" and params.item_summaries:
            self._add("01 item summaries", "simulator", number * self.units["items_per_persona"], self.units["item_summary"])
        if params.data_source != "release":
            unit = dict(self.units["persona"])
            unit["prompt_tokens"] += params.max_reviews_per_persona * self.units["prompt_tokens_per_review"]
            self._add("02 personas", "persona", number, unit)

    def _frameworks(self) -> None:
        params = self.params
        alone = params.num_simulation_tasks * len(params.domains)
        for role in ("expert", "cra"):
            self._dialogues("03 simulation", role, alone)
        numbers = [self._tests("num_cra_tasks", [domain]) for domain in self._among(params.cra_domains)]
        number, new = sum(numbers), sum(max(0, each - params.num_simulation_tasks) for each in numbers)
        for framework in params.frameworks:
            for role in ("expert", "cra"):  # notebook 03 played the first ones with ActCRS
                self._dialogues("04 frameworks", role, new if framework == "actcrs" else number, framework)
        comparisons = len(framework_comparisons(params.frameworks))
        self._add("04 frameworks", "judge", number * comparisons, self._judge)
        originals = min(params.num_judge_pairs or params.num_simulation_tasks, params.num_simulation_tasks) * len(params.domains)
        self._add("05 judge", "judge", originals * (1 + len(FLAWS) * len(SEVERITIES)), self._validated("planted"))
        if params.release_dir:
            self._add("05 judge", "judge", NUM_RELEASED * 2 * (params.num_judge_pairs or SHARED_RELEASED), self._validated("released"))

    @property
    def _judge(self) -> dict:
        return self._unit("judges", self.params.judge_mode)

    def _validated(self, pairs: str) -> dict:
        """A pair of notebook 05: what is asked of single replies is asked once, and many pairs share them."""
        asked = self.units["asked_anew"].get(self.params.judge_mode, {}).get(pairs, 1)
        return {**self._judge, "calls": self._judge["calls"] * asked}

    def _tuning(self) -> None:
        params, domains = self.params, self._among(self.params.tuning_domains)
        tests = self._tests("num_test_tasks", domains)
        self._dialogues("06 SGPT: expert", "expert", params.num_sgpt_tasks * len(domains))
        self._dialogues("06 SGPT: tests", "cra", 3 * tests)
        played = params.num_ecpo_tasks * len(domains)
        self._dialogues("07 confirmation", "cra", played)
        replies = played * params.max_turns * self.units["share_of_turns_rewritten"]
        self._add("08 rewriting", "rewriter", replies, self._unit("rewriters", params.rewriter_mode))
        if params.verify_rewrites:
            self._add("08 rewriting", "simulator", replies, self.units["confirmation"])
        pairs = replies * self.units["share_of_rewrites_kept"][params.rewriter_mode]
        self._add("08 rewriting", "judge", min(params.num_judge_pairs * len(domains) or pairs, pairs), self._judge)
        compared = {d: self._tests("num_cra_tasks", [d]) for d in self._among(params.cra_domains)}
        played = {d: max(params.num_simulation_tasks, compared.get(d, 0)) for d in domains}
        self._dialogues("10 main results", "expert", sum(max(0, self._tests("num_test_tasks", [d]) - played[d]) for d in domains))
        self._dialogues("10 main results", "cra", len(params.preference_methods) * tests)
        self._add("10 main results", "judge", len(main_comparisons(params)) * tests, self._judge)

    @property
    def estimates(self) -> list[Estimate]:
        """One for each stage and role, in the order of the study."""
        return [estimate for estimate in self._found.values() if estimate.calls]

    def lines(self) -> list[str]:
        """The table as text, with sums, and how they stand to the spending limit."""
        head = f"{'stage':22}{'role':11}{'units':>8}{'calls':>10}{'prompt tokens':>15}{'output tokens':>15}{'USD':>9}{'hours':>7}"
        rows = [
            f"{e.stage:22}{e.role:11}{e.units:8.0f}{e.calls:10.0f}{e.prompt_tokens:15,.0f}{e.completion_tokens:15,.0f}{e.usd:9.2f}{e.hours:7.1f}"
            for e in self.estimates
        ]
        names = ("calls", "prompt_tokens", "completion_tokens", "usd", "hours")
        sums = {name: sum(getattr(estimate, name) for estimate in self.estimates) for name in names}
        total = "{calls:10.0f}{prompt_tokens:15,.0f}{completion_tokens:15,.0f}{usd:9.2f}{hours:7.1f}".format(**sums)
        limit = self.params.max_spend_usd
        if limit and sums["usd"] > limit:
            judged = f"more than max_spend_usd {limit:g}: the run would stop before its end"
        else:
            judged = f"within max_spend_usd {limit:g}" if limit else "no spending limit is set (max_spend_usd)"
        notes = [f"{sums['usd']:.2f} USD: {judged}.", "Hours of calls, stage after stage; training comes to that. See docs/scale.md."]
        return [head, *rows, f"{'sum':41}{total}", *notes]

    def rows(self) -> list[dict]:
        """The table as records."""
        return [asdict(estimate) for estimate in self.estimates]
