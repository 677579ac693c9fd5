"""Live sources: any URL or file, opened and decoded in a process of its own that can be killed and started again.

    LiveSource (a thread here) ── spawns ──► child: open, demux, decode
         ▲   frames, packets of sound, notes      │
         └────────────── a socket ────────────────┘

FFmpeg's timeouts can't be trusted: a killed server looks like a clean end, a stalled one may block for ever. So the
parent watches for arrivals, and a child from which nothing comes is killed. No torch, no ray.
"""
