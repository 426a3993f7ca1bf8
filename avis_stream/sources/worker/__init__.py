"""Reads one live source in a process of its own: FFmpeg, GStreamer or PortAudio in, messages on stdout out.

Connecting, name look-up, drivers and sound servers can hang inside C code that nothing in Python interrupts; a process
can always be ended. It also keeps decoding and microphone callbacks clear of the model's interpreter lock.

The folder is run as a script, as a package called `worker`, so that neither torch nor the rest of avis_stream is
imported: its files import each other by relative names, and nothing else of ours.
"""
