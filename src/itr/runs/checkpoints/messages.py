"""What a run reports about its checkpoints when it ends."""

from __future__ import annotations


def stopped(step: int, kept: int | None) -> str:
    """The message of a run that stops after `step`, when the checkpoint on disk is that of the step `kept`."""
    if kept == step:
        return f"stopped after step {step}; --ckpt_path last resumes from there"
    return f"stopped after step {step}, {lost(kept)}"


def lost(kept: int | None) -> str:
    """The end of a sentence about a step whose checkpoint could not be written."""
    newest = "no checkpoint" if kept is None else f"the checkpoint of step {kept}"
    return f"whose checkpoint could not be written: {newest} is there to resume from"
