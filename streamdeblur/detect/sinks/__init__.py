"""Where records go: JSON lines, webhook, MQTT. Each has a thread and a bounded queue and never stalls who gives."""

from __future__ import annotations

from streamdeblur.detect.options import DetectOptions
from streamdeblur.detect.sinks.base import Sink, SinkStats
from streamdeblur.detect.sinks.jsonl import JsonLinesSink
from streamdeblur.detect.sinks.mqtt import MqttSink
from streamdeblur.detect.sinks.webhook import WebhookSink

__all__ = ["JsonLinesSink", "MqttSink", "Sink", "SinkStats", "WebhookSink", "make_sinks"]


def make_sinks(options: DetectOptions, *, lossless: bool = False) -> list[Sink]:
    """The sinks that the options name, started. Raises UsageError and OutputError; then none is left running.

    lossless: the file of JSON lines waits for room in its queue instead of dropping (``JsonLinesSink``).
    """
    sinks: list[Sink] = []
    try:
        if options.detections is not None:
            sinks.append(JsonLinesSink(options.detections, lossless=lossless))
        if options.webhook is not None:
            sinks.append(WebhookSink(options.webhook.get_secret_value()))
        if options.mqtt is not None:
            sinks.append(MqttSink(options.mqtt.get_secret_value()))
    except BaseException:
        for sink in sinks:
            sink.close(0)
        raise
    return sinks
