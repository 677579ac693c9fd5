"""Numbers as printed by others, for orientation only: measured on other data and other hardware than ours."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Published:
    """A method on the GoPro test set: PSNR in dB, seconds an image at 1280x720."""

    method: str
    psnr: float
    seconds: float


#: Cho et al., ICCV 2021, Table 1: run time as measured by its authors with the released code where they give one, else
#: as printed by the method's own paper; on a Titan XP, not synchronised with the GPU.
TABLE_1 = (
    Published("DeepDeblur", 29.23, 4.33),
    Published("SRN", 30.26, 0.342),
    Published("PSS-NSC", 30.92, 0.985),
    Published("DMPHN", 31.20, 1.061),
    Published("SAPHN", 32.02, 0.77),
    Published("MT-RNN", 31.15, 0.063),
    Published("RADN", 31.76, 0.038),
    Published("SVDN", 29.81, 0.01),
    Published("MPRNet", 32.66, 0.162),
    Published("MIMO-UNet", 31.73, 0.008),
    Published("MIMO-UNet+", 32.45, 0.017),
    Published("MIMO-UNet++", 32.68, 0.040),
)

CAPTION = (
    "Hollow: as printed in Table 1 of the MIMO-UNet paper (Cho et al., ICCV 2021), on the GoPro test set of 1,111 "
    "images and other hardware, run times not synchronised with the GPU: with synchronisation its authors later gave "
    "0.130, 0.282 and 1.115 s for MIMO-UNet, + and ++ on an RTX 3090. Not the data and not the machine of this report: "
    "only filled points compare with each other."
)
