"""Video files of other people, read as a correct player plays them, or rejected with a reason.

- ``tracks``: which are read, and all their packets; ``Rejected`` says why a file cannot be used
- ``clock``: packets on one clock
- ``damage``: where tracks lost packets, and which frames are whole
- ``probe``: ``probe`` reads the properties of a file
- ``edits``: edit lists of MP4 files
- ``stated``: what a container states about its picture
- ``pictures``: ``PictureReader`` gives the picture to show at a time
- ``frames``: colours, turns and fields of one frame
- ``sound``: ``read_sound`` gives 16 kHz stereo on the clock of the picture
- ``conform``: ``ClipCutter`` cuts a file into clips of one ``ClipFormat``
- ``isolated``: ``Isolated`` decodes in a process of its own

docs/how-to/source-files.md states the rules. Imports ``core`` and ``media``. Must not import a
codec, a model or any room above.
"""
