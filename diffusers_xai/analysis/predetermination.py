"""From when on a run's image is settled, whatever the label says later."""

import xarray as xr


def predetermination_index(ssim: xr.DataArray, threshold: float = 0.9) -> xr.DataArray:
    """The share of the process after which a switch of the label leaves the image alike.

    Source: thesis section 5.3.2, fig. 5.17, D.2, as a number.

    Args:
        ssim (`xarray.DataArray`): SSIM of the switched run's image to the unswitched one's, with a dim `switch` whose
            coordinate `share` is the part of the steps done before the switch, increasing in [0, 1].
        threshold (`float`, defaults to 0.9): From which SSIM on two images count as alike.

    Returns:
        `xarray.DataArray` without the dim `switch`: the smallest share such that this switch, and every later one that
        was tried, leaves an SSIM of at least `threshold`; 1 where no switch does.
    """
    alike = ssim >= threshold
    # From the latest switch backwards: whether all are alike up to here.
    settled = alike.isel(switch=slice(None, None, -1)).cumprod("switch").isel(switch=slice(None, None, -1)) > 0
    return xr.where(settled, ssim["share"], 1.0).min("switch").rename("predetermination_index")
