"""What the server remembers of its visitors, and whom it forgets first."""

import datetime
from typing import Any

from gradio.state_holder import SessionState, StateHolder

from diffusers_xai.app.memory import give_back
from diffusers_xai.app.session import Session


class Visit(SessionState):
    """A session without Gradio's copy of all that its page shows.

    Gradio keeps it for links that this app does not offer: memory that nobody counts.
    """

    @property
    def config_values(self) -> dict[int, Any]:
        """Nothing, whatever is put in."""
        return {}

    @config_values.setter
    def config_values(self, values: dict[int, Any]) -> None:
        pass

    def _update_value_in_config(self, key: int, value: Any) -> None:
        pass


class Visitors(StateHolder):
    """Gradio's sessions, at most `capacity`: those that hold a run are kept before those that only opened the page.

    Args:
        max_bytes (`int`): The most that the runs of all sessions may take together; the run of whoever has been idle
            longest is dropped first.
    """

    def __init__(self, max_bytes: int):
        super().__init__()
        self.max_bytes = max_bytes

    def __getitem__(self, session_id: str) -> SessionState:
        """A session; a new one if it is not known."""
        if session_id not in self.session_data:
            self.session_data[session_id] = Visit(self.blocks)
        return super().__getitem__(session_id)

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
        now, before = datetime.datetime.now(), len(self.session_data)
        with self.lock:
            for name in list(self.session_data):
                idle = (now - self.time_last_used.get(name, now)).total_seconds()
                if idle > (3600 if self.session_data[name].is_closed else 7200):
                    self._forget(name)
        if len(self.session_data) < before:
            give_back()

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
