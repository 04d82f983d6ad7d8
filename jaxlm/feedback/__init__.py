"""Floor 6: a model's judgements of answers, its own or others', as data to train on. `load` returns
a run's Voice.

critique (critique and revision), preference_labels (AI preferences), best_of_n (n responses, the
best of n) and self_instruct each have frozen `Settings` and `run(voice, settings) -> Summary`.
`output.run` is what the first three share: inputs in batches, records on disk, later runs continue.
"""

from jaxlm.feedback.chat_model import Voice, load

__all__ = ["Voice", "load"]
