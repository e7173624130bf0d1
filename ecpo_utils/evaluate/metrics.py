"""Success, recall, length and confirmation of a set of dialogues. Paper: sections 3.1, B.5."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import get_args

from ..core.schema import Confirmation, Status, Trajectory, Turn
from ..data.release import LogDialogue
from ..dialogue.agents.base import SYSTEM_ERROR, is_system_error
from .statistics import Rate, average, mean, proportion

SUB_SCORES = ("flexibility", "coherence", "guidance")
AGENT_ROLES = ("expert", "cra")  # whose calls are the agent's
LOG_SYSTEM_ERROR = "Sorry, System Error"


@dataclass(frozen=True)
class DialogueMetrics:
    """What one system did on a set of tasks. Means are over dialogues, intervals are 95%.

    Attributes:
        n: Dialogues, failed ones included.
        n_failed: Dialogues that ended in an error; not successful, not recalled.
        failed_share: Their share; `leak_share` that of dialogues in which the user gave the title away. None for logs.
        success_rate: Share whose target was named by the agent, over all n. Paper: SR.
        recall: Share whose target was ever retrieved, over all n; None where a log does not tell. Paper: R.
        mean_turns: User messages per dialogue, failed dialogues left out.
        mean_confirmation: Mean over dialogues of the mean satisfaction, 0-5, of its scored replies.
        sub_scores: The same for flexibility 0-2, coherence 0-2 and guidance 0-1; empty for logs.
        num_replies: Agent replies in all.
        num_unscored_replies: Those among them without a satisfaction.
        system_error_share: Mean over dialogues of the share of replies that only report a system error.
        calls: Chat calls per dialogue by role, cached ones included; empty for logs.
        tokens: Tokens per dialogue by role; for logs those of the messages as logged.
        total_tokens: Tokens per dialogue, all roles together.
        statuses: Dialogues by status, all four named.
    """

    n: int
    n_failed: int
    failed_share: Rate | None
    leak_share: Rate | None
    success_rate: Rate
    recall: Rate | None
    mean_turns: Rate
    mean_confirmation: Rate
    sub_scores: dict[str, Rate]
    num_replies: int
    num_unscored_replies: int
    system_error_share: Rate
    calls: dict[str, Rate]
    tokens: dict[str, Rate]
    total_tokens: Rate
    statuses: dict[str, int]

    def rates(self) -> dict[str, Rate | None]:
        """Every rate and mean by name, the four main ones first; None where the dialogues do not tell."""
        first = ("success_rate", "recall", "mean_turns", "mean_confirmation")
        last = ("total_tokens", "failed_share", "leak_share", "system_error_share")
        return {
            **{name: getattr(self, name) for name in first},
            **self.sub_scores,
            **{f"calls {role}": rate for role, rate in self.calls.items()},
            **{f"tokens {role}": rate for role, rate in self.tokens.items()},
            **{name: getattr(self, name) for name in last},
        }


def summarize(trajectories: Sequence[Trajectory]) -> DialogueMetrics:
    """Metrics of one system's dialogues. Paper: Table 1 (SR, R), section 2.2 (r_t).

    A failed dialogue counts as one that did not succeed; an unscored reply is left out and counted.
    """
    n, statuses = len(trajectories), Counter(trajectory.status for trajectory in trajectories)
    replies = [turn for trajectory in trajectories for turn in _replied(trajectory)]
    roles = sorted({role for trajectory in trajectories for role in trajectory.usage})
    return DialogueMetrics(
        n=n,
        n_failed=statuses["failed"],
        failed_share=proportion(statuses["failed"], n),
        leak_share=proportion(statuses["leak"], n),
        success_rate=proportion(sum(t.is_success for t in trajectories), n),
        recall=proportion(sum(t.is_recalled for t in trajectories), n),
        mean_turns=mean(len(t.turns) for t in trajectories if t.status != "failed"),
        mean_confirmation=mean(mean_score(t, "satisfaction") for t in trajectories),
        sub_scores={name: mean(mean_score(t, name) for t in trajectories) for name in SUB_SCORES},
        num_replies=len(replies),
        num_unscored_replies=sum(turn.satisfaction is None for turn in replies),
        system_error_share=mean(average(map(is_system_error, _replied(t))) for t in trajectories),
        calls={role: mean(t.usage[role].calls if role in t.usage else 0 for t in trajectories) for role in roles},
        tokens={role: mean(_tokens(t, role) for t in trajectories) for role in roles},
        total_tokens=mean(sum(_tokens(t, role) for role in roles) for t in trajectories),
        statuses={status: statuses[status] for status in get_args(Status)},
    )


def _replied(trajectory: Trajectory) -> list[Turn]:
    return [turn for turn in trajectory.turns if turn.reply is not None]


def mean_score(trajectory: Trajectory, name: str) -> float | None:
    """Mean of a (sub-)score over the replies that have it; None if none has."""
    return average(getattr(turn.confirmation or Confirmation(), name) for turn in _replied(trajectory))


def valid_share(trajectory: Trajectory) -> float | None:
    """Share of an agent's actions that could be read at the first attempt; its own error notice is none. None without actions."""
    steps = [step for turn in trajectory.turns for step in turn.steps if step.purpose == "action"]
    return average(step.attempts == 1 and not step.is_unusable and step.action.argument != SYSTEM_ERROR for step in steps)


def reply_words(trajectory: Trajectory) -> float | None:
    """Mean number of words of an agent's replies; None without replies."""
    return average(len(turn.reply.split()) for turn in trajectory.turns if turn.reply)


def _tokens(trajectory: Trajectory, role: str) -> int:
    usage = trajectory.usage.get(role)
    return usage.prompt_tokens + usage.completion_tokens if usage else 0


def summarize_log(dialogues: Sequence[LogDialogue]) -> DialogueMetrics:
    """Metrics of a released log, from its own flags and ratings.

    Confirmation is the log's expression rating: zeros are left out within a dialogue, a dialogue of
    zeros counts as 0. Dialogues that raised are not in the logs, so none counts as failed,
    and leaks count as the log counts them.
    """
    n, known = len(dialogues), [d.recall for d in dialogues if d.recall is not None]
    replies = sum(len(d.replies) for d in dialogues)
    by_user = sum(d.ended_by_user for d in dialogues)
    return DialogueMetrics(
        n=n,
        n_failed=0,
        failed_share=None,
        leak_share=None,
        success_rate=proportion(sum(d.correct for d in dialogues), n),
        recall=proportion(sum(known), len(known), num_unscored=n - len(known)) if known else None,
        mean_turns=mean(d.rounds for d in dialogues),
        mean_confirmation=mean(d.avg_expression_reward for d in dialogues),
        sub_scores={},
        num_replies=replies,
        num_unscored_replies=replies - sum(bool(score) for d in dialogues for score in d.expression_rewards or []),
        system_error_share=mean(average(text.startswith(LOG_SYSTEM_ERROR) for text in d.replies) for d in dialogues),
        calls={},
        tokens={"simulator": mean(d.user_tokens for d in dialogues), "cra": mean(d.system_tokens for d in dialogues)},
        total_tokens=mean(d.user_tokens + d.system_tokens for d in dialogues),
        statuses=dict.fromkeys(get_args(Status), 0) | {"complete": n - by_user, "ended_by_user": by_user},
    )


def metrics_json(metrics: DialogueMetrics) -> dict[str, int | float | None]:
    """The six plain numbers that the command line prints; null where there is no value."""
    return {
        "n": metrics.n,
        "n_failed": metrics.n_failed,
        "success_rate": metrics.success_rate.value,
        "recall": metrics.recall.value if metrics.recall else None,
        "mean_turns": metrics.mean_turns.value,
        "mean_confirmation": metrics.mean_confirmation.value,
    }
