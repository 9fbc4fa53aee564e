"""What the server remembers of its visitors, and whom it forgets first."""

import datetime
from typing import Any

from gradio.state_holder import StateHolder

from diffusers_xai.app.session import Session


class Visitors(StateHolder):
    """Gradio's sessions, at most `capacity`: those that hold a run are kept before those that only opened the page.

    Args:
        max_bytes (`int`): The most that the runs of all sessions may take together; the run of whoever has been idle
            longest is dropped first.
    """

    def __init__(self, max_bytes: int):
        super().__init__()
        self.max_bytes = max_bytes

    def update(self, session_id: str) -> None:
        """Notes that a session is used, and forgets others if need be."""
        with self.lock:
            if session_id in self.session_data:
                self.session_data.move_to_end(session_id)
            others = [name for name in self.session_data if name != session_id]  # the longest idle first
            holding = [name for name in others if self._is_used(name)]
            spare = len(self.session_data) - self.capacity
            fresh = [name for name in others if not self._is_used(name)]
            for name in [*fresh, *holding][: max(spare, 0)]:
                self._forget(name)
            total = sum(map(self._nbytes, self.session_data))
            for name in holding:
                if total <= self.max_bytes:
                    break
                total -= self._nbytes(name)
                self._forget(name)

    def delete_all_expired_state(self) -> None:
        """Forgets those who left an hour ago, or have been idle for two."""
        now = datetime.datetime.now()
        with self.lock:
            for name in list(self.session_data):
                idle = (now - self.time_last_used.get(name, now)).total_seconds()
                if idle > (3600 if self.session_data[name].is_closed else 7200):
                    self._forget(name)

    def _forget(self, name: str) -> None:
        state = self.session_data.pop(name, None)
        self.time_last_used.pop(name, None)
        for session in _sessions(state):
            session.close()

    def _is_used(self, name: str) -> bool:
        return any(session.is_used for session in _sessions(self.session_data.get(name)))

    def _nbytes(self, name: str) -> int:
        return sum(session.nbytes for session in _sessions(self.session_data.get(name)))


def _sessions(state: Any) -> list[Session]:
    values = () if state is None else list(state.state_data.values())
    return [value for value in values if isinstance(value, Session)]
