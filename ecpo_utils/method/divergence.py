"""How far a tuned policy lies from its reference: per-token KL divergence and log-probabilities on preference pairs."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ..core.schema import Message, PreferencePair
from ..llm.adapters import check_adapter
from .backbone import free_memory, load_adapter, load_backbone

if TYPE_CHECKING:
    import torch
    from peft import PeftModel
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class PairDivergence:
    """One pair under policy and reference.

    Attributes:
        kl_per_token: Mean KL(policy || reference) over the tokens of both replies, whole vocabulary, nats.
        margin: log-ratio of the chosen reply minus that of the rejected one, nats; times beta it is DPO's reward margin.
        chosen_logp: The policy's own log-probability of the chosen reply, nats; `rejected_logp` likewise.
        chosen_tokens: Length of the chosen reply; `rejected_tokens` likewise.
        keeps_shared: Whether the policy, decoding greedily, writes all that both replies begin with; None if they share no beginning.
            Where it does not, it changes what the pair left alone. `reference_keeps_shared` likewise.
    """

    kl_per_token: float
    margin: float
    chosen_logp: float
    rejected_logp: float
    chosen_tokens: int
    rejected_tokens: int
    keeps_shared: bool | None
    reference_keeps_shared: bool | None


def compare_policies(name: str, adapter: Path, reference: Path, pairs: Sequence[PreferencePair]) -> list[PairDivergence]:
    """Each pair's replies scored by an adapter and by the one that it was trained from.

    Args:
        name: The backbone in `params/models.yaml`.
        adapter: The policy.
        reference: The policy that it is compared with.
        pairs: States with chosen and rejected replies.

    Raises:
        ModelError: If an adapter is missing or was trained on other weights.
        TrainingError: If it does not fit the backbone.
    """
    import torch

    check_adapter(name, adapter)
    model, tokenizer = load_backbone(name)
    model = load_adapter(model, name, reference, trainable=False)
    model.load_adapter(str(adapter), adapter_name="policy")
    model.to("cuda" if torch.cuda.is_available() else "cpu").eval()
    with torch.no_grad():
        found = [_compare(model, tokenizer, pair) for pair in pairs]
    del model
    free_memory()
    return found


def _compare(model: PeftModel, tokenizer: PreTrainedTokenizerBase, pair: PreferencePair) -> PairDivergence:
    found, replies, likeliest = [], [], {}
    for reply in (pair.rejected, pair.chosen):
        ids, begin = _tokens(tokenizer, pair.prompt, reply)
        logs = {name: _log_probabilities(model, name, ids, begin) for name in ("policy", "default")}
        kl = (logs["policy"].exp() * (logs["policy"] - logs["default"])).sum(-1)
        answer = ids[begin:].to(kl.device).unsqueeze(-1)
        policy, reference = (logs[name].gather(-1, answer).sum().item() for name in ("policy", "default"))
        found.append((kl.sum().item(), policy - reference, policy, len(ids) - begin))
        replies.append(ids[begin:].tolist())
        likeliest = {name: logs[name].argmax(-1).tolist() for name in logs}  # of the chosen reply, in the end
    (kl_rejected, rejected, rejected_logp, m), (kl_chosen, chosen, chosen_logp, n) = found
    shared = os.path.commonprefix(replies)
    keeps = {name: tokens[: len(shared)] == shared if shared else None for name, tokens in likeliest.items()}
    kl_per_token = (kl_chosen + kl_rejected) / (n + m)
    return PairDivergence(kl_per_token, chosen - rejected, chosen_logp, rejected_logp, n, m, keeps["policy"], keeps["default"])


def _tokens(tokenizer: PreTrainedTokenizerBase, prompt: Sequence[Message], reply: Sequence[Message]) -> tuple[torch.Tensor, int]:
    """Token ids of the whole, and where the reply begins."""
    import torch

    options = {"tokenize": True, "return_dict": False}
    whole = tokenizer.apply_chat_template([*prompt, *reply], **options)
    return torch.tensor(whole), len(tokenizer.apply_chat_template(list(prompt), add_generation_prompt=True, **options))


def _log_probabilities(model: PeftModel, adapter: str, ids: torch.Tensor, begin: int) -> torch.Tensor:
    """float32 (reply tokens, vocabulary): log-probabilities of each reply token's place."""
    model.set_adapter(adapter)
    logits = model(ids.unsqueeze(0).to(model.device), logits_to_keep=len(ids) - begin + 1).logits[0, :-1]
    return logits.float().log_softmax(-1)
