#!/usr/bin/env python3
"""Reads YAMNet's published tflite file, dequantises it, and writes weights for `avis_stream.audio.yamnet`.

    pip install ai-edge-litert
    tools/convert_yamnet.py yamnet.tflite avis_stream/assets/weights/yamnet.safetensors
    tools/convert_yamnet.py yamnet.tflite --record sounds/*/*.ogg --fixture tests/fixtures/yamnet.npz

The second form records what the tflite itself computes for some clips (its log-mel, its embedding, its best class),
for the test that holds the two together.
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ai_edge_litert.interpreter import Interpreter
from safetensors.torch import save_file

LOG_MEL, EMBEDDING, SCORES = 89, 121, 123
"""Tensors of the published file."""
SAMPLES = 15_600


def dequantised(interpreter: Interpreter, detail: dict[str, Any]) -> np.ndarray:
    """A weight tensor as float32, whatever it is stored in."""
    values = interpreter.get_tensor(detail["index"])
    quantisation = detail["quantization_parameters"]
    if not len(quantisation["scales"]):
        return values.astype(np.float32)
    shape = [1] * values.ndim
    if len(quantisation["scales"]) > 1:
        shape[quantisation["quantized_dimension"]] = -1
    scale, zero = quantisation["scales"].reshape(shape), quantisation["zero_points"].reshape(shape)
    return ((values.astype(np.float32) - zero) * scale).astype(np.float32)


def weights(interpreter: Interpreter) -> dict[str, torch.Tensor]:
    """The state dict of `YAMNet`."""
    state: dict[str, torch.Tensor] = {}
    for detail in interpreter.get_tensor_details():
        found = re.match(r"yamnet_frames/layer(\d+)/(conv|depthwise_conv|pointwise_conv)/", detail["name"])
        if not found or detail["index"] > EMBEDDING or "relu" in detail["name"]:
            continue
        layer, kind = int(found[1]), found[2]
        place = "stem" if layer == 1 else f"layers.{3 * (layer - 2) + (kind == 'pointwise_conv')}"
        values = torch.from_numpy(dequantised(interpreter, detail))
        if values.dim() == 1:
            state[f"{place}.bias"] = values
        elif kind == "depthwise_conv":  # [1, height, width, channels]
            state[f"{place}.weight"] = values.permute(3, 0, 1, 2).contiguous()
        else:  # [out, height, width, in]
            state[f"{place}.weight"] = values.permute(0, 3, 1, 2).contiguous()
    return state


def record(interpreter: Interpreter, clips: list[Path], fixture: Path) -> None:
    """Writes the tflite's own answers for the loudest 0.975 s of each clip, and its classifier."""
    patches, embeddings, best = [], [], []
    for clip in clips:
        interpreter.set_tensor(0, loudest_stretch(clip)[None])
        interpreter.invoke()
        patches.append(interpreter.get_tensor(LOG_MEL).astype(np.float16))
        embeddings.append(interpreter.get_tensor(EMBEDDING)[0].astype(np.float32))
        best.append(int(interpreter.get_tensor(SCORES)[0].argmax()))
    waves = test_signals()
    wave_patches, wave_embeddings = [], []
    for wave in waves:
        interpreter.set_tensor(0, wave.astype(np.float32)[None] / 32768)
        interpreter.invoke()
        wave_patches.append(interpreter.get_tensor(LOG_MEL).astype(np.float16))
        wave_embeddings.append(interpreter.get_tensor(EMBEDDING)[0].astype(np.float32))
    details = {d["index"]: d for d in interpreter.get_tensor_details()}
    np.savez_compressed(
        fixture,
        log_mel=np.stack(patches),
        embedding=np.stack(embeddings),
        best_class=np.array(best),
        wave=waves,
        wave_log_mel=np.stack(wave_patches),
        wave_embedding=np.stack(wave_embeddings),
        classifier_weight=dequantised(interpreter, details[12]).astype(np.float16),
        classifier_bias=dequantised(interpreter, details[1]),
    )


def test_signals() -> np.ndarray:
    """Made sounds, int16 [4, 15600]: white noise at two levels, a chord, a chirp."""
    rng = np.random.default_rng(0)
    time = np.arange(SAMPLES) / 16_000
    chord = sum(np.sin(2 * np.pi * f * time) / 3 for f in (440.0, 554.4, 659.3))
    chirp = np.sin(2 * np.pi * (200 * time + 1500 * time**2))
    signals = np.stack([rng.uniform(-1, 1, SAMPLES), rng.uniform(-0.05, 0.05, SAMPLES), 0.7 * chord, 0.7 * chirp])
    return np.round(signals * 32767).astype(np.int16)


def loudest_stretch(path: Path) -> np.ndarray:
    """The 0.975 s of a sound file with the most energy, float32 at 16 kHz."""
    import av

    with av.open(str(path)) as container:
        resampler = av.AudioResampler("flt", "mono", 16_000)
        blocks = [b.to_ndarray()[0] for f in container.decode(audio=0) for b in resampler.resample(f)]
        blocks += [b.to_ndarray()[0] for b in resampler.resample(None)]
    samples = np.pad(np.concatenate(blocks), (0, SAMPLES))
    energy = np.cumsum(np.pad(samples**2, (1, 0)))
    start = int((energy[SAMPLES:] - energy[:-SAMPLES]).argmax())
    return samples[start : start + SAMPLES].astype(np.float32)


def main() -> None:
    """Command line, as the module says."""
    parser = argparse.ArgumentParser()
    parser.add_argument("tflite", type=Path)
    parser.add_argument("target", type=Path, nargs="?")
    parser.add_argument("--record", type=Path, nargs="+", default=[])
    parser.add_argument("--fixture", type=Path)
    options = parser.parse_args()
    interpreter = Interpreter(str(options.tflite), experimental_preserve_all_tensors=True)
    interpreter.allocate_tensors()
    if options.target:
        state = weights(interpreter)
        save_file({k: v.half() for k, v in state.items()}, options.target)
        print(f"{options.target}: {sum(v.numel() for v in state.values()):,} values")
    if options.record:
        record(interpreter, options.record, options.fixture)
        print(f"{options.fixture}: {len(options.record)} clips")


if __name__ == "__main__":
    main()
