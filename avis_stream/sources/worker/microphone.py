"""Microphones, by PortAudio (PyAudio)."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from .wire import AUDIO, NO_STAMP, OPENED, SAMPLE_RATE, Ended, Hopeless, Outlet, words_of

_BLOCK_SECONDS = 0.02


def read_microphone(wanted: dict[str, Any], out: Outlet) -> None:
    """A microphone by PyAudio; `name` is part of a device's name, or its number, or empty for the default."""
    audio, portaudio = _portaudio(wanted["install_mic"])
    device = _device(portaudio, wanted["name"])
    rate = _rate_of(audio, portaudio, device)
    blocks: list[tuple[bytes, int]] = []
    """Each with when it came: how late that is tells how much was lost before it (`MicrophoneClock`)."""
    there = threading.Condition()

    def take(data: bytes | None, _count: int, _times: Any, _status: int) -> tuple[None, int]:
        with there:
            blocks.append((data or b"", time.monotonic_ns()))
            there.notify()
        return None, audio.paContinue

    try:
        stream = portaudio.open(
            format=audio.paInt16, channels=1, rate=rate, input=True, stream_callback=take,
            input_device_index=device["index"], frames_per_buffer=round(rate * _BLOCK_SECONDS),
        )  # fmt: skip
    except OSError as error:
        raise Ended(f"microphone {device['name']!r} cannot be opened ({words_of(error)})") from error
    about = {"audio": True, "name": device["name"], "rate": rate, "latency": stream.get_input_latency()}
    out.send(OPENED, json.dumps(about).encode())
    convert = _to_sixteen_thousand(rate)
    patience = wanted["open_seconds"]  # sound servers take their time to begin
    while True:
        with there:
            if not there.wait_for(lambda: blocks, patience):
                raise Ended(f"no sound came for {patience:g} s")
            patience = wanted["stall_seconds"]
            ready, blocks[:] = list(blocks), []
        for data, arrival in ready:
            out.send(AUDIO, convert(data), NO_STAMP, SAMPLE_RATE, arrival=arrival)


def _portaudio(install: str) -> tuple[Any, Any]:
    """The module and a session of it; `install` is what to do where it is missing."""
    try:
        import pyaudio
    except ImportError as error:
        raise Hopeless(
            f"PyAudio cannot be imported ({error}); apt-get install portaudio19-dev, then {install}"
        ) from error
    with _alsa_quiet():
        return pyaudio, pyaudio.PyAudio()


@contextlib.contextmanager
def _alsa_quiet() -> Iterator[None]:
    """PortAudio's scan makes ALSA print some eighty lines about cards that are not there."""
    import ctypes

    handler_type = ctypes.CFUNCTYPE(None, ctypes.c_char_p, ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_char_p)
    handler = handler_type(lambda *_: None)
    try:
        alsa = ctypes.CDLL("libasound.so.2")
    except OSError:  # no ALSA here, so no noise either
        yield
        return
    alsa.snd_lib_error_set_handler(handler)
    try:
        yield
    finally:
        alsa.snd_lib_error_set_handler(None)


def microphones(wanted: dict[str, Any]) -> list[dict[str, Any]]:
    """Every device that records, the default one marked."""
    _, portaudio = _portaudio(wanted["install_mic"])
    try:
        default = portaudio.get_default_input_device_info()["index"]
    except OSError:
        default = None
    found = [portaudio.get_device_info_by_index(n) for n in range(portaudio.get_device_count())]
    return [
        {
            "index": d["index"], "name": d["name"], "channels": d["maxInputChannels"],
            "rate": round(d["defaultSampleRate"]), "default": d["index"] == default,
        }
        for d in found if d["maxInputChannels"] > 0
    ]  # fmt: skip


def _device(portaudio: Any, name: str) -> Any:
    if not name:
        try:
            return portaudio.get_default_input_device_info()
        except OSError as error:
            raise Ended("no microphone is there; avis-stream devices lists what is") from error
    found = [portaudio.get_device_info_by_index(n) for n in range(portaudio.get_device_count())]
    inputs = [d for d in found if d["maxInputChannels"] > 0]
    for device in inputs:
        if name == str(device["index"]) or name.lower() in device["name"].lower():
            return device
    there = ", ".join(repr(d["name"]) for d in inputs) or "none"
    raise Ended(f"no microphone called {name!r} is there; there are: {there}")


def _rate_of(audio: Any, portaudio: Any, device: Any) -> int:
    """16 kHz where the device does that, else its own rate."""
    try:
        portaudio.is_format_supported(
            SAMPLE_RATE, input_device=device["index"], input_channels=1, input_format=audio.paInt16
        )
    except ValueError:
        return int(device["defaultSampleRate"])
    return SAMPLE_RATE


def _to_sixteen_thousand(rate: int) -> Callable[[bytes], bytes]:
    import numpy as np

    def floats(data: bytes) -> Any:
        return np.frombuffer(data, np.int16).astype(np.float32) / 32768

    if rate == SAMPLE_RATE:
        return lambda data: floats(data).tobytes()
    import av

    resampler = av.AudioResampler("flt", "mono", SAMPLE_RATE)

    def convert(data: bytes) -> bytes:
        frame = av.AudioFrame.from_ndarray(floats(data)[None], format="flt", layout="mono")
        frame.sample_rate = rate
        return b"".join(part.to_ndarray().tobytes() for part in resampler.resample(frame))

    return convert
