from autoseg.training.thread_count import AGAIN_SECONDS, SAMPLES, ThreadCount


def drive(seconds_of, steps, state=None):
    """Run `steps` steps that take `seconds_of(threads)`; returns the counts in use and the time."""
    now = [0.0]
    used = []
    chooser = ThreadCount(4, clock=lambda: now[0], apply=used.append)
    for _ in range(steps):
        now[0] += seconds_of(chooser.current, now[0])
        chooser.after_step()
    return chooser, used


def test_the_faster_count_is_kept():
    chooser, used = drive(lambda count, now: 1.0 if count == 4 else 0.2, 2 * SAMPLES + 2)
    assert chooser.current == 2
    assert used == [2]
    chooser, used = drive(lambda count, now: 0.2 if count == 4 else 1.0, 2 * SAMPLES + 2)
    assert chooser.current == 4
    assert used == [2, 4]


def test_it_looks_again_when_the_machine_has_changed():
    def seconds(count, now):
        crowded = now < AGAIN_SECONDS / 2
        return (1.0 if count == 4 else 0.2) if crowded else (0.1 if count == 4 else 0.2)

    chooser, _ = drive(seconds, 1000)
    assert chooser.current == 4


def test_one_core_has_no_choice():
    chooser = ThreadCount(1)
    assert chooser.candidates == [1]
    for _ in range(SAMPLES + 2):
        chooser.after_step()
    assert chooser.current == 1
