"""Counts of a server, for Prometheus."""

import prometheus_client

from jaxlm.decode.serve.worker import Worker

MEDIA = prometheus_client.CONTENT_TYPE_LATEST


class Metrics:
    """Counts in a registry of their own."""

    def __init__(self, worker: Worker):
        own = self._registry = prometheus_client.CollectorRegistry()
        self._requests = prometheus_client.Counter(
            "jaxlm_requests", "Requests by path and status", ["path", "status"], registry=own
        )

        def count(name: str, text: str) -> prometheus_client.Counter:
            return prometheus_client.Counter(f"jaxlm_{name}", text, registry=own)

        self.prompt = count("prompt_tokens", "Tokens of prompts")
        self.cached = count("cached_prompt_tokens", "Tokens of prompts not computed again")
        self.generated = count("generated_tokens", "Tokens that were generated")
        self.cancelled = count("cancelled", "Sequences whose client went away")
        self.first = prometheus_client.Histogram(
            "jaxlm_time_to_first_token_seconds", "From a request to its first token", registry=own
        )
        engine = worker.engine
        for name, text, read in (
            ("running", "Slots that are taken", lambda: engine.running),
            ("waiting", "Sequences without a slot", lambda: engine.waiting),
            ("prefix_bytes", "Bytes of prefixes that are kept", lambda: engine.prefixes.bytes),
        ):
            gauge = prometheus_client.Gauge(f"jaxlm_{name}", text, registry=own)
            gauge.set_function(read)

    def answered(self, path: str, status: int) -> None:
        """One more request."""
        self._requests.labels(path, status).inc()

    def text(self) -> bytes:
        """All of it, in Prometheus' text format."""
        return prometheus_client.generate_latest(self._registry)
