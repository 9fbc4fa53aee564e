import pytest

from training.config import TrainingConfig
from training.schedule import Schedule, TimeLimit


def make_config(settings, **changes):
    return TrainingConfig(**{**settings, "max_steps": 100, "warmup_steps": 4, "decay_steps": 20, **changes})


def factors(schedule, steps):
    return [schedule.factor(step) for step in steps]


def test_learning_rate_rises_stays_and_falls(settings):
    schedule = Schedule.of(make_config(settings))
    assert factors(schedule, (0, 1, 3, 4, 79, 80, 90, 99)) == pytest.approx([0.25, 0.5, 1, 1, 1, 1, 0.5, 0.05])
    constant = Schedule.of(make_config(settings, warmup_steps=0, decay_steps=0))
    assert factors(constant, (0, 50, 99)) == [1, 1, 1]


def test_a_fitted_schedule_keeps_the_shares_of_the_configuration(settings):
    config = make_config(settings)
    schedule = Schedule.of(config).fitted(config, 5, 45)
    assert (schedule.max_steps, schedule.warmup_steps, schedule.decay_from) == (50, 4, 40)
    assert factors(schedule, (6, 40, 45, 49)) == pytest.approx([1, 1, 0.5, 0.1])
    # There is time for all, and for more.
    assert (
        Schedule.of(config).fitted(config, 5, 95) == Schedule.of(config).fitted(config, 5, 900) == Schedule.of(config)
    )
    short = Schedule.of(config).fitted(config, 1, 19)
    assert (short.max_steps, short.warmup_steps) == (20, 2)
    without = make_config(settings, decay_steps=0)
    assert Schedule.of(without).fitted(without, 5, 35).decay_from == 30  # a quarter


def test_a_fall_that_has_begun_goes_on_from_where_it_is(settings):
    config = make_config(settings)
    falling = Schedule.of(config).fitted(config, 5, 45)
    slower = falling.fitted(config, 45, 2)
    assert factors(slower, (45, 46)) == pytest.approx([0.5, 0.25])
    faster = slower.fitted(config, 46, 10)
    assert (faster.max_steps, factors(faster, (46, 51))) == (56, pytest.approx([0.25, 0.125]))
    assert falling.fitted(config, 45, 0).max_steps == 45
    # One that had ended begins anew.
    again = falling.fitted(config, 50, 20)
    assert (again.max_steps, again.decay_from, again.factor(55)) == (70, 56, 1)


@pytest.mark.parametrize("speeds", [[1.0], [1.0, 2.0], [2.0, 0.5], [0.3, 0.3, 3.0]])
def test_a_run_ends_in_its_time_with_the_learning_rate_at_its_end(settings, speeds):
    """Whatever the speed becomes, the last step is made at next to no learning rate."""
    config = make_config(settings, max_steps=100_000, decay_steps=25_000, warmup_steps=100)
    now, step, ending = 70.0, 0, 20.0  # reading the data took 70 seconds
    limit = TimeLimit(1000.0, started=0.0, clock=lambda: now)
    schedule, rates = Schedule.of(config), []
    while step < schedule.max_steps:
        part = min(int(now / 1000 * len(speeds)), len(speeds) - 1)
        now += 60.0 if step == 0 else speeds[part]  # the first one compiles
        rates.append(schedule.factor(step))
        step += 1
        if limit.due:
            seconds = limit.seconds_per_step(step)
            if seconds is not None:
                schedule = schedule.fitted(config, step, limit.steps_left(seconds, ending))
    assert not limit.over
    assert 0.9 * limit.seconds < now + ending <= limit.seconds
    assert rates[-1] < 0.05
    assert max(rates[: len(rates) // 2]) == 1


def test_what_comes_after_the_last_step_takes_a_fifth_of_the_time_at_most():
    limit = TimeLimit(1000.0, started=0.0, clock=lambda: 100.0)
    assert limit.steps_left(1.0, ending=50.0) == 1000 - 100 - 50 - 10
    assert limit.steps_left(1.0, ending=5000.0) == 1000 - 100 - 200 - 10
