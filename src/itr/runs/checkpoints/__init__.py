"""The checkpoints of a run: when they are written, what is on disk, and how a run resumes from one."""
