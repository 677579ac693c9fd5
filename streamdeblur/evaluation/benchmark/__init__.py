"""How fast, at what quality, with how much memory: the network, its stages, the whole job; ``streamdeblur benchmark``.

Ways that are compared run in turns in one process, synchronised, after a first call that is told apart, so that what
else the machine does hits all of them alike: figures are to be read as ratios. What is slow by definition, the
reference loop of research code (``reference``), is one of the ways. The modules of the network part need torch, numpy
and safetensors only (``bare`` runs them on such machines); stages and whole jobs need the rest of the package.
"""
