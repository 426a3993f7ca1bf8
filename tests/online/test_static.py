"""What a machine without a GPU can show of capture: exported graphs, one a phase; addresses and sizes that stay."""

from __future__ import annotations

from dataclasses import fields

import pytest
import torch
from online_models import Runner, Stream, random_tracker, tracker_config
from torch import Tensor, nn

from avis_stream.config import AVISMConfig
from avis_stream.models.tracker import Tracker
from avis_stream.online import OnlineState
from avis_stream.online.config import OnlineConfig
from avis_stream.online.identity_table import IdentityTable
from avis_stream.online.memory import TrackerMemory
from avis_stream.online.state import StreamBody
from avis_stream.online.tracking import Arrival, StreamTracker, geometry_of
from avis_stream.presets import avism_mini, avism_r50_in


def buffers_of(memory: TrackerMemory) -> dict[str, Tensor]:
    found = {f"objects_{n}": x for n, x in enumerate(memory.objects)}
    return found | {f.name: x for f in fields(memory) if isinstance(x := getattr(memory, f.name), Tensor)}


class OneStep(nn.Module):
    """A step at a fixed phase, its memory in buffers."""

    def __init__(self, tracking: StreamTracker, memory: TrackerMemory) -> None:
        super().__init__()
        self.tracking, self.tracker, self.seen = tracking, tracking.tracker, memory.seen
        self.layers = len(memory.objects)
        for name, values in buffers_of(memory).items():
            self.register_buffer(f"memory_{name}", values.clone())

    def forward(self, frame_queries: Tensor, audio: Tensor) -> tuple[Tensor, Tensor]:
        own = {f.name: getattr(self, f"memory_{f.name}", None) for f in fields(TrackerMemory)}
        objects = [getattr(self, f"memory_objects_{n}") for n in range(self.layers)]
        memory = TrackerMemory(**own | {"seen": self.seen, "objects": objects})  # type: ignore[arg-type]
        plans = self.tracking.push([memory], [Arrival(frame_queries, audio)])
        answer = self.tracking.answer([memory], plans)
        return answer.logits, answer.mask_embed


def test_one_exported_graph_a_phase_serves_for_ever() -> None:
    config = tracker_config(3, 2)
    runner = Runner(random_tracker(config), config)
    stream, settled = Stream.random(140, config), 90
    for _ in range(settled):
        runner.push(stream)
    memory = {f"memory_{name}": values.clone() for name, values in buffers_of(runner.memory).items()}
    graphs = []
    twin = Runner(runner.tracking.tracker, config)
    for t in range(settled + 3):  # a twin goes on to give each phase its plan
        if t >= settled:
            step = OneStep(runner.tracking, twin.memory)
            inputs = (stream.frame_queries[t : t + 1], stream.audio[t : t + 1])
            graphs.append(torch.export.export(step, inputs, strict=False).module())
        twin.push(stream)
    for t in range(settled, len(stream)):  # many windows, only these three graphs
        graph, expected = graphs[t % 3], runner.push(stream)
        own = dict(graph.named_buffers())
        for name, values in memory.items():
            if name in own:  # what a phase never touches is no part of its graph
                own[name].copy_(values)
        logits, mask_embed = graph(stream.frame_queries[t : t + 1], stream.audio[t : t + 1])
        torch.testing.assert_close(logits, expected.logits, atol=1e-6, rtol=1e-6)
        torch.testing.assert_close(mask_embed, expected.mask_embed, atol=1e-6, rtol=1e-6)
        memory |= {name: own[name].clone() for name in memory if name in own}
    for name, values in buffers_of(runner.memory).items():
        torch.testing.assert_close(memory[f"memory_{name}"], values, atol=1e-6, rtol=1e-6)


def test_a_settled_step_copies_nothing_from_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a captured CUDA graph may not hold: tensors made of Python's numbers."""
    config = tracker_config(3, 2)
    runner, stream = Runner(random_tracker(config), config), Stream.random(60, config)
    runner.push(stream, 50)

    def refuse(*arguments: object, **options: object) -> None:
        raise AssertionError(f"a tensor is made of {arguments}")

    for name in ("tensor", "as_tensor", "from_numpy"):
        monkeypatch.setattr(torch, name, refuse)
    runner.push(stream, 10)


def test_addresses_and_sizes_stay() -> None:
    for online in (OnlineConfig(), OnlineConfig(sinks="first"), OnlineConfig(kv_cache=False, encoder="frozen")):
        config = tracker_config(3, 4)
        runner = Runner(random_tracker(config), config, online)
        before = {name: (x.data_ptr(), x.shape) for name, x in buffers_of(runner.memory).items()}
        runner.push(Stream.random(100, config), 100)
        assert {name: (x.data_ptr(), x.shape) for name, x in buffers_of(runner.memory).items()} == before


@pytest.mark.parametrize(
    ("config", "kv_cache", "megabytes", "bar"),
    [
        (avism_r50_in(), False, 15.8, 16.0),
        (avism_r50_in(), True, 38.0, 40.0),
        (avism_mini(), False, 1.7, 16.0),
        (avism_mini(), True, 4.4, 40.0),
    ],
    ids=["r50", "r50 with cache", "mini", "mini with cache"],
)
def test_a_state_is_as_small_as_documented(config: AVISMConfig, kv_cache: bool, megabytes: float, bar: float) -> None:
    """All of a stream's state in float32, by the sizes of its tensors: the figures of ADR 0201, and their bars."""
    online = OnlineConfig(kv_cache=kv_cache)
    with torch.device("meta"):
        tracker = Tracker(config)
    geometry = geometry_of(tracker, online)
    memory = TrackerMemory.empty(config, geometry, kv_cache, tracker.query_feat.weight)
    table = IdentityTable.empty(online, len(config.classes), config.channels, config.drawn_channels)
    size = OnlineState(StreamBody("", "", memory, table)).nbytes / 1e6
    assert size <= bar
    assert round(size, 1) == megabytes
