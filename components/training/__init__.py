"""What makes a run of the learning core: parameters, loop, launch, and what becomes of an earlier run's checkpoints.

``pretrain`` and ``distill`` share this room's one engine (:func:`components.training.build.build_engine`); ``planning``
and ``evaluation`` read its parameters. It promises that a run that was killed goes on from its last checkpoint as if
nothing had happened, and that a lost rank ends all. The rooms below import only those before them: ``ranks``,
``sharded``, ``checkpoints``, ``costs``. Only ``costs`` knows the whole parameters.
"""
