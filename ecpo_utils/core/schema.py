"""The records that stages hand to each other in files. One class per record, nothing else."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

Domain = Literal["book", "game", "yelp"]
Role = Literal["persona", "simulator", "expert", "cra", "rewriter", "judge"]
Status = Literal["complete", "ended_by_user", "leak", "failed"]
ActionType = Literal["search", "ask", "recommend", "response", "invalid"]
Purpose = Literal["action", "thought", "profile", "strategy", "plan", "query", "reply"]
Policy = Literal[
    "ask_recommendation",
    "respond_to_clarification",
    "provide_feedback_on_recommendation",
    "end_conversation",
]
Message = dict[str, str]  # {"role": "system" | "user" | "assistant", "content": ...}


class Record(BaseModel):
    """A record refuses fields it does not know, so that a typo in a file is an error."""

    model_config = ConfigDict(extra="forbid")


class Item(Record):
    """A catalogue item. `price` is in US dollars, None where the source has none."""

    item_id: str
    title: str
    categories: list[str] = []
    description: str = ""
    price: float | None = None


class ItemSummary(Record):
    """An LLM's summary of an item's raw description. `error` says why there is none, and the description stays."""

    item_id: str
    summary: str = ""
    error: str | None = None


class Review(Record):
    """One review of one item by one user. `rating` is 1-5, `timestamp_ms` is Unix time."""

    review_id: str
    user_id: str
    item_id: str
    rating: float
    title: str = ""
    text: str = ""
    timestamp_ms: int = 0


class Persona(Record):
    """AILO persona after the Activities-Interests-Opinions idea. Paper: section 2.3."""

    activities: str
    interests: str = ""
    language: str
    orientations: str = ""

    def text(self) -> str:
        """All values in one line, the text that persona diversity is measured on."""
        return " ".join(v for v in (self.activities, self.interests, self.language, self.orientations) if v)


class PersonaRecord(Record):
    """A user's persona and the reviews that it was inferred from (none for a random persona).

    Attributes:
        config: Digest of everything that decides what is inferred; records of another config are not reused.
    """

    user_id: str
    persona: Persona
    review_ids: list[str] = []
    source: Literal["ailo", "random", "release"] = "ailo"
    config: str = ""


class Task(Record):
    """A persona and the secret item that its user would like. Paper: section 2.1."""

    task_id: str
    domain: Domain
    user_id: str
    persona: Persona
    target: Item


class Action(Record):
    """An agent's action. `invalid` keeps the raw text of an answer that is none of the four."""

    type: ActionType
    argument: str


class Retrieval(Record):
    """A query and the ids of what the item database returned, best first."""

    query: str
    item_ids: list[str]


class Step(Record):
    """One call of the agent: what for, the exact messages it saw, what it wrote, what that was read as.

    Attributes:
        action: What an "action" was read as. Steps of another purpose have none, save `invalid` where the
            output could not be used.
        retrieval: The search that this step asked for, or whose items its messages hold.
        attempts: Calls of the endpoint until the output could be used; the last one stands.
    """

    purpose: Purpose = "action"
    messages: list[Message]
    output: str
    action: Action | None = None
    retrieval: Retrieval | None = None
    attempts: int = 1

    @property
    def is_unusable(self) -> bool:
        """Whether even the last attempt could not be read."""
        return self.action is not None and self.action.type == "invalid"


class Confirmation(Record):
    """Expectation confirmation of one reply. Paper: section 2.2.

    Attributes:
        flexibility: 0-2, None where unscored; `coherence` 0-2 and `guidance` 0-1 likewise.
        reasons: For each dimension why points were deducted, "" for none.
        probabilities: Probability of a faultless dimension where it was read from answer tokens.
        evidence: What these probabilities rest on, so that they can be computed anew with other weights.
        error: Why the reply is unscored, None if it is scored.
    """

    flexibility: int | None = Field(None, ge=0, le=2)
    coherence: int | None = Field(None, ge=0, le=2)
    guidance: int | None = Field(None, ge=0, le=1)
    reasons: dict[str, str] = {}
    probabilities: dict[str, float] | None = None
    evidence: dict[str, float] | None = None
    error: str | None = None

    @property
    def satisfaction(self) -> int | None:
        """r_t, the sum of the sub-scores, 0-5; None where any of them is missing."""
        scores = (self.flexibility, self.coherence, self.guidance)
        return None if None in scores else sum(scores)

    @property
    def reason(self) -> str:
        """CONF_t in words: the deductions, in the order of the dimensions."""
        return " ".join(f"{name.capitalize()}: {text}" for name, text in self.reasons.items() if text)


class Usage(Record):
    """What a role's calls cost. `cached` calls were answered from disk and cost nothing; `cached_seconds` is what they took at first."""

    calls: int = 0
    cached: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    seconds: float = 0.0
    cached_seconds: float = 0.0
    cost_usd: float = 0.0


class Rewrite(Record):
    """What the rewriter made of one reply. Paper: section 2.2, backward expectation derivation.

    Attributes:
        prompt: The exact state that the reply was written in.
        original: The action as the agent wrote it; `rewritten` the rewriter's, in the same form.
        thought: What the rewriter said should change.
        score: r_t of the original; `reason` is CONF_t.
        score_after: r_t of the rewrite in the same place, None where it was not asked for or is unscored.
        dropped: Why this makes no preference pair, None if it does.
        config: Digest of everything else that decides the rewrite; rows of another config are not reused.
        kept_words: Share of words of original and rewrite that are the same, in order, 0-1; None where nothing was read.
    """

    task_id: str
    turn: int
    prompt: list[Message]
    original: str
    rewritten: str = ""
    thought: str = ""
    score: int
    reason: str
    score_after: int | None = None
    dropped: str | None = None
    config: str = ""
    kept_words: float | None = None
    usage: dict[str, Usage] = {}


class Turn(Record):
    """One user message and the agent's reply to it. `reply` is None after a closing message.

    Attributes:
        user_retries: Messages of the simulator that failed a check and were thrown away.
        user_faults: Checks that even the last attempt failed: "leak", "role_reversal", "parrot", "ungrounded", "empty".
    """

    index: int
    policy: Policy
    policy_reason: str = ""
    user_message: str
    user_retries: int = 0
    user_faults: list[str] = []
    steps: list[Step] = []
    reply: str | None = None
    confirmation: Confirmation | None = None

    @property
    def satisfaction(self) -> int | None:
        """The user's score of the reply, 0-5; None where there is none."""
        return self.confirmation.satisfaction if self.confirmation else None


class Trajectory(Record):
    """A dialogue with all that the agent saw and did, as `trajectories/NAME.jsonl` holds it.

    Attributes:
        config: Digest of everything that decides the dialogue; rows of another config are not reused.
        recommended_at: Index of the first turn whose reply names the target, None if none does.
        retrieved_at: Index of the first turn in which the target was among the retrieved items.
    """

    task_id: str
    domain: Domain
    system: str
    config: str
    target: Item
    persona: Persona
    status: Status
    error: str | None = None
    turns: list[Turn] = []
    recommended_at: int | None = None
    retrieved_at: int | None = None
    usage: dict[str, Usage] = {}

    @property
    def is_success(self) -> bool:
        """Whether the agent named the target; a leaked or failed dialogue is never successful, whatever it reached."""
        return self.status not in ("leak", "failed") and self.recommended_at is not None

    @property
    def is_recalled(self) -> bool:
        """Whether the agent retrieved the target, in a dialogue that counts."""
        return self.status not in ("leak", "failed") and self.retrieved_at is not None


class SFTExample(Record):
    """One action of the expert in TRL's prompt-completion form. Paper: section 2.2, SGPT.

    Attributes:
        prompt: The state, as an agent without the worked example sees it.
        completion: One assistant message with the action.
    """

    prompt: list[Message]
    completion: list[Message]
    task_id: str
    turn: int


class PreferencePair(Record):
    """A pair in TRL's conversational form. Paper: section 2.2, backward expectation derivation."""

    prompt: list[Message]
    chosen: list[Message]
    rejected: list[Message]
    score: int
    reason: str
    task_id: str
    turn: int


class Verdict(Record):
    """One presentation of two dialogues on the same task to a judge. Paper: section B.5.

    Attributes:
        first: Name of the system whose win rate is asked for; `second` is what it is held against.
        shown_first: Which of the two the judge read first; such a pair is judged in both orders. "apart" where it read
            each dialogue by itself, so that there is no order.
        scores: Per dimension 1 where the first system's dialogue is better, -1 where the second's is, 0 for a tie.
        probabilities: Per dimension the probability of the answer that prefers the first system's dialogue,
            where it was read from answer tokens.
        measures: Per dimension what the first and the second dialogue are worth, 0-1, where each was read by itself.
        error: Why this presentation is unscored, None if it is scored.
        config: Digest of everything that decides the verdict; rows of another config are not reused.
        judge: Digest of the judge alone, whatever it read.
    """

    task_id: str
    first: str
    second: str
    shown_first: Literal["first", "second", "apart"]
    scores: dict[str, Literal[-1, 0, 1]] = {}
    reasons: dict[str, str] = {}
    probabilities: dict[str, Annotated[float, Field(ge=0, le=1)]] | None = None
    measures: dict[str, tuple[float, float]] | None = None
    error: str | None = None
    config: str = ""
    judge: str = ""
