"""What this machine and this installation have, and what is wrong with the way out.

- ``finding.Finding``: one fact, with what is wrong with it, if anything.
- ``package``: versions, kept files, codecs; ``machine``: devices, ports, disks, variables.
- ``report``: ``omniforcing doctor``: all findings, as a page or as json.

Loads nothing heavy but PyAV: it must run, and quickly, where an installation is broken. Must not
import what loads torch or a package of an extra.
"""
