"""vSphere as vrepl sees it; the only package that imports pyVmomi.

    session      login, TLS, keepalive, login again, retries, the count of calls
    stub, answers     pyVmomi's own way of a call, and how its answer is read
    faults       vSphere's faults -> vrepl's errors: one table
    collector    the property collector: explicit paths, pages
    inventory    VMs, and the names of what they stand on
    mapping      pyVmomi's objects -> model values (pure)
    tasks, task_collector     one waiter for all running tasks
    snapshots, cbt, guest     what is done to a VM
    hardware, placement, placement_lookup, replica, reconcile     what is done to a replica
    datastores, privileges, facts     what placement, transport selection and `check` want to know
    site         VsphereSite: every role of `ports.sites`, put together from these

Nothing here is imported at `import vrepl.vsphere`, so that naming the package costs nothing.
"""

from __future__ import annotations
