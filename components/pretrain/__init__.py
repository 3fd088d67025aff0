"""The student-teacher method, its presets and its run.

No other stage imports this room. It promises the method as published where no parameter says otherwise; engine, loop
and checkpoints are those of ``training``.
"""
