"""Blur from sharp pictures, as a shutter makes it: numpy and OpenCV, seeded, without state.

    response ── coded values <-> linear light
       ├── average    consecutive frames of high-speed footage                  (paper Eq. 1)
       ├── flow       ordinary footage: frames in between by optical flow, then the same average
       └── shake      stills: a camera's trajectory, moving foreground, highlights
    degrade ── noise, demosaicing and compression, on the blurred side only
    sources ── one training crop at a time from any of them;   options ── what may be set

All arrays are (H, W, 3) R'G'B'; uint8 where coded, float32 in [0, 1] and above where linear. Whatever is random comes
from the ``numpy.random.Generator`` that is passed in: the same generator state, the same bytes, on one version of
OpenCV. The truth is the picture at the middle of the exposure.
"""
