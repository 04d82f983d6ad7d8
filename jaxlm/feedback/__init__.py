"""Floor 4: what a model says of its own answers, as data to train on. `load` gives a run's Voice.

revise (critique and revision), label (AI preferences), several (n responses, the best of n) and
instruct (self-instruct) each have frozen `Settings` and `run(voice, settings) -> Summary`.
"""

from jaxlm.feedback.voice import Voice, load

__all__ = ["Voice", "load"]
