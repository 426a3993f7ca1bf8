"""Made data: scenes with sound whose truth is known, after a frozen protocol.

library ---------> story ---------> stage ---------> picture and visible masks at any instant
cut-outs, sounds,  who is there     where and how    |
places             and who sounds   everything is    +--> an AVISeg folder, or clips as training asks for them
|                            |
+---------> soundscape ------+    one waveform
"""
