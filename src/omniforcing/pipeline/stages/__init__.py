"""One module per stage of the pipeline, with ``run(stage)``; ``shared`` holds what several do alike.

``pipelines/stages.py`` declares what each reads and depends on. A launcher or submitter imports
none of them: the process that runs a stage loads its module when it begins.
"""
