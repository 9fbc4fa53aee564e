"""From when on a run's image is settled, whatever the label says later."""

import numpy as np
import xarray as xr


def predetermination_index(ssim: xr.DataArray, threshold: float = 0.9) -> xr.DataArray:
    """The share of the process after which a switch of the label leaves the image alike.

    Between the switches that were tried, and up to the end of the process, after which nothing can change, the curve
    is taken as straight: the index is where it passes the threshold for the last time. Its error is that of a straight
    line between two switches, and not the distance between them.

    Source: thesis section 5.3.2, fig. 5.17, D.2, as a number.

    Args:
        ssim (`xarray.DataArray`): SSIM of the switched run's image to the unswitched one's, with a dim `switch` whose
            coordinate `share` is the part of the steps done before the switch, increasing in [0, 1).
        threshold (`float`, defaults to 0.9): From which SSIM on two images count as alike, below 1.

    Returns:
        `xarray.DataArray` without the dim `switch`, in [0, 1]: the first share that was tried where every switch
        leaves an SSIM of at least `threshold`; NaN where a value is.

    Raises:
        ValueError: If the shares do not increase within [0, 1).
    """
    shares = np.asarray(ssim["share"].values, dtype=np.float64)
    if (np.diff(shares) <= 0).any() or not shares[0] >= 0 or not shares[-1] < 1:
        raise ValueError(f"Expected shares that increase within [0, 1), got {shares.tolist()}.")
    shares = np.append(shares, 1.0)

    def crossing(values: np.ndarray) -> float:
        curve = np.append(values, 1.0)
        if np.isnan(curve).any():
            return np.nan
        below = np.flatnonzero(curve < threshold)
        if not below.size:
            return shares[0]
        last = below[-1]
        part = (threshold - curve[last]) / (curve[last + 1] - curve[last])
        return float(shares[last] + part * (shares[last + 1] - shares[last]))

    return xr.apply_ufunc(crossing, ssim, input_core_dims=[["switch"]], vectorize=True).rename(
        "predetermination_index"
    )
