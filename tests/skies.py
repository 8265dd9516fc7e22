"""A small simulated observation that several folders of tests share."""

from setibl_ray.seti.observations.simulating import Sky

SMALL = Sky(seed=3, n_channels=8192, n_coarse=2, rfi_per_mhz=200, snr=(40.0,), per_snr=3)
