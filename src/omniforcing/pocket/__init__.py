"""The pocket world, bouncing balls with a tone for every impact: its clips and its measures.

- ``synthetic``: ``make_clip`` renders clips whose impacts are known
- ``events``: ``detect_video_events`` and ``detect_audio_events`` find impacts in picture and sound
- ``sync``: ``score_sync``, F1 of both against chance; ``drift``: the same along long rollouts
- ``observe``: ``Observation``, what the measures need of a clip, and sets of them on disk
- ``foundation``: codec and teacher that the package keeps; ``student``: the kept student

Nothing here is needed for LTX-2 and real clips. Must not import ``data``, ``training`` or any room
above.
"""
