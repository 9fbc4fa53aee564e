"""What the Hub's errors are told as; `test_pushing.py` and `test_loading.py` meet them over HTTP."""

from types import SimpleNamespace

import pytest
from huggingface_hub.errors import HfHubHTTPError

from diffusers_xai.hub.transfer import HubError, hub_errors


@pytest.mark.parametrize(
    ("status", "told"),
    [
        (401, "refused the token for user/face"),
        (403, "refused the token for user/face"),
        (409, "^The Hub refused user/face: no luck"),
        (500, "connection to the Hub was lost, user/face stays as it was: try again"),
        (503, "connection to the Hub was lost, user/face stays as it was: try again"),
    ],
)
def test_a_failing_server_may_be_tried_again_and_a_refusal_not(status, told):
    response = SimpleNamespace(status_code=status, headers={}, request=None)
    with pytest.raises(HubError, match=told), hub_errors("user/face"):
        raise HfHubHTTPError("no luck", response=response)
