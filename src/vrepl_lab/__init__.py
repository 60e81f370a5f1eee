"""A vSphere to try and test vrepl against: two simulated vCenters and a VixDiskLib that serves their datastores.

Never imported by vrepl itself: only by `vrepl lab` and by tests. How the parts fit together: docs/lab-internals.md.
"""

from __future__ import annotations
