"""The interface in the browser: visitors sample, look inside, change something and compare.

Started by `diffusers-xai app`, or by `spaces/app.py` on a Space.
"""
